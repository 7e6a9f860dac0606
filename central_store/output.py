"""Print what the functions return: lines and tables for people, one JSON document for programs.

Guarantees: with `--json` exactly one JSON document goes to standard output; control characters never
reach a terminal raw.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence


def to_json(value: object) -> str:
    """One JSON document."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def plain(value: object) -> str:
    """A value as one line of text, safe to print."""
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(value))


def table(rows: Sequence[Mapping[str, object]], headings: Mapping[str, str]) -> str:
    """Rows as aligned columns; numbers to the right; `headings` gives order and titles."""
    cells = [[plain(row.get(key, "")) for key in headings] for row in rows]
    lines = [list(headings.values()), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    right = [bool(rows) and all(type(row.get(key)) is int for row in rows) for key in headings]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def size(count: float) -> str:
    """Bytes for people: `14.2 MB` (powers of ten, as disks and networks count)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
