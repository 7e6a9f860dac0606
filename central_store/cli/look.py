"""`fstore status`, `rebuild`, `changes`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

import click

from central_store.cli.common import Root, json_option, pass_root, show, table_or_none


@click.command()
@json_option
@pass_root
def status(root: Root, as_json: bool) -> None:
    """What is stored, and what waits; works while the service runs."""
    from central_store import output, replication, report
    from schemas import keys

    store = root.open()
    lines = [asdict(line) for line in report.status(store)]
    headings = {
        "facility": "facility", "batches": "batches", "objects": "images", "size": "size",
        "last_stored": "last stored", "waiting": "waiting", "replies": "to fetch",
        "quarantined": "quarantined", "damaged": "damaged", "erased": "erased",
        "missing": "missing", "forks": "forks",
    }  # fmt: skip
    rows = [line | {"size": output.size(line["bytes"])} for line in lines]
    host_key = keys.fingerprint(store.card().host_key)
    text = f"store {store.name}, host key {host_key}\n" + table_or_none(
        rows, headings, "no facility is enrolled"
    )
    waits = sum(line["erased"] for line in lines)
    if waits:
        text += f"\n{waits:,} erased batches wait to be removed for good: `fstore erase list`"
    known = replication.status(store, datetime.now(UTC))
    for peer in known:
        text += f"\npeer {peer.peer} lacks {peer.behind:,} batches ({output.size(peer.behind_bytes)})"
        text += f", the oldest for {peer.behind_minutes:,} minutes" if peer.behind else ""
        text += f"; we lack {peer.missing:,}; last heard {peer.heard or 'never'}"
        text += "".join(f"\nALARM peer {peer.peer}: {alarm}" for alarm in peer.alarms)
    document = {"store": store.name, "host_key": host_key, "facilities": lines}
    show(as_json, document | {"peers": [asdict(peer) for peer in known]}, text)


@click.command()
@json_option
@pass_root
def rebuild(root: Root, as_json: bool) -> None:
    """Make the catalog again from the manifests; the service must be stopped."""
    from central_store import audit, catalog, catalog_file, lock

    store = root.open()
    with lock.held(store.layout.lock):
        audit.record(store.layout, "rebuild", details=audit.operator())
        catalog_file.drop(store.layout)
        with catalog.Catalog(store.layout, store.settings) as made:
            totals = made.totals()
    count, rows = sum(a for a, _ in totals.values()), sum(b for _, b in totals.values())
    show(as_json, {"batches": count, "rows": rows}, f"catalog made again: {count:,} batches, {rows:,} rows")


@click.command()
@click.option(
    "--since", type=click.IntRange(0), default=0, show_default=True, help="What came after this cursor."
)
@json_option
@pass_root
def changes(root: Root, since: int, as_json: bool) -> None:
    """What was added, superseded, erased, set aside or repaired since a cursor; works while the service runs.

    The last line, or `cursor` in the JSON document, is the cursor for the next time.

    \b
    Examples:
      fstore changes
      fstore changes --since 1200 --json
    """  # noqa: D301
    from central_store import changes as feed

    found = list(feed.since(root.open().layout, since))
    cursor = found[-1]["number"] if found else since
    lines = [f"{c['number']:>8}  {c['kind']:<10}  {c['facility']}  {c['batch']}" for c in found]
    show(as_json, {"changes": found, "cursor": cursor}, "\n".join([*lines, f"cursor: {cursor}"]))
