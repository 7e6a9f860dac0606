"""Measured values to Markdown, and into the part of a document between two marks: pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

_TITLES = {
    "slices": "Generated CT slices",
    "corpus": "Real files: the corpus",
    "giant": "One multi-frame file: memory only, one run",
}
_HEAD = (
    "| {way} | s | flush s | files/s | MB/s | CPU s client | CPU s server | CPU s both | peak MB client "
    "| peak MB server | ratio | ratio on disk |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)
_WAYS = {"put": "to the store", "get": "back again"}


def markdown(values: Mapping[str, Any]) -> str:
    """The report of a campaign."""
    machine = values["machine"]
    versions = ", ".join(
        text if name.lower() in text.lower() else f"{name} {text}"
        for name, text in machine["versions"].items()
    )
    head = (
        f"Measured {machine['measured']} by `{values['command']}` on {machine['cores']} cores "
        f"({machine['processor']}), {machine['system']}; load of others before it began: "
        f"{machine['load_before']}. {versions}. Cipher for everybody: `{machine['cipher']}`."
    )
    return "\n\n".join([head, *(_set(item) for item in values["sets"])]) + "\n"


def _set(item: Mapping[str, Any]) -> str:
    left = ""
    if item["stored"] != item["files"]:
        left = f"; of them fsync stores {item['stored']:,}, {item['stored_bytes'] / 1e6:,.0f} MB, as images"
    size = f"{item['files']:,} files, {item['bytes'] / 1e6:,.0f} MB{left}."
    parts = [f"### {_TITLES[item['name']]}", f"{size} Load of the machine meanwhile: {item['load']}."]
    for way, words in _WAYS.items():
        rows = [row for row in item["rows"] if row["way"] == way]
        if rows:
            own = next((row for row in rows if row["tool"] == "fsync, OpenSSH"), None)
            parts.append("\n".join([_HEAD.format(way=words), *(_row(row, item, own) for row in rows)]))
    return "\n\n".join(parts)


def _row(row: Mapping[str, Any], item: Mapping[str, Any], own: Mapping[str, Any] | None) -> str:
    ours = row["tool"].startswith("fsync")
    part = "stored" if ours and row["way"] == "get" else "files"
    count, size = item[part], item["stored_bytes" if part == "stored" else "bytes"]
    seconds = row["seconds"]
    ratio, durable = "", ""
    if own is not None and row is not own:
        ratio = f"{own['seconds'] / seconds:.2f}"
        durable = f"{(own['seconds'] + own['flush']) / (seconds + row['flush']):.2f}"
    cells = (
        f"**{row['tool']}**" if ours else row["tool"],
        f"{seconds:.2f}",
        f"{row['flush']:.2f}",
        f"{count / seconds:,.0f}",
        f"{size / seconds / 1e6:,.1f}",
        f"{row['client_cpu']:.1f}",
        f"{row['server_cpu']:.1f}",
        f"{row['client_cpu'] + row['server_cpu']:.1f}",
        f"{row['client_peak'] / 1e6:,.0f}",
        f"{row['server_peak'] / 1e6:,.0f}",
        ratio,
        durable,
    )
    return "| " + " | ".join(cells) + " |"


def update(document: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """The document with another text between its marks.

    Raises:
        ValueError: it has not one of each mark, in this order.
    """
    head, first, rest = document.partition(begin)
    _, last, tail = rest.partition(end)
    if not first or not last or begin in rest or end in tail:
        raise ValueError("the document has not one pair of marks")
    return f"{head}{begin}\n{text.strip()}\n{end}{tail}"
