"""`fstore erase`: what facilities erased, and removing it for good."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import click

from central_store.cli.common import Duration, Root, json_option, pass_root, show, table_or_none

_TRACES = (
    "The catalog's file may hold, in places it does not use any more, what erased rows said.\n"
    "Stop the service at a quiet hour and run `fstore rebuild`: it is made again without them."
)


@click.group()
def erase() -> None:
    """Batches that facilities erased: what waits, and removing it for good."""


@erase.command("list")
@json_option
@pass_root
def list_waiting(root: Root, as_json: bool) -> None:
    """Erased batches whose bytes still wait, since when, and why; works while the service runs.

    \b
    Example:
      fstore erase list
    """  # noqa: D301
    from central_store import output, purge

    store = root.open()
    found = [asdict(item) for item in purge.waiting(store)]
    headings = {"facility": "facility", "since": "since", "images": "images", "size": "size",
                "reason": "reason", "batch": "batch"}  # fmt: skip
    rows = [line | {"size": output.size(line["bytes"])} for line in found]
    text = table_or_none(rows, headings, "nothing waits to be purged")
    traces = purge.traces(store.layout)
    show(as_json, {"waiting": found, "traces": traces}, f"{text}\n{_TRACES}" if traces else text)


@erase.command("purge")
@click.option(
    "--older-than", type=Duration(), default="24h", show_default=True, metavar="24h",
    help="Only what has waited so long (s, m, h, d).",
)  # fmt: skip
@json_option
@pass_root
def purge_waiting(root: Root, older_than: float, as_json: bool) -> None:
    """Remove the bytes of erased batches for good, and certify it to their facilities.

    Before, ask the facility whether it meant it: whoever stole a terminal's key can erase, and what is purged
    comes back from nowhere but a backup. Works while the service runs.

    \b
    Examples:
      fstore erase purge
      fstore erase purge --older-than 7d
    """  # noqa: D301
    from central_store import output, purge

    store = root.open()
    now = datetime.now(UTC)
    done = purge.purge(store, timedelta(seconds=older_than), now)
    left = purge.waiting(store)
    traces = purge.traces(store.layout)
    size = output.size(sum(item.bytes for item in done))
    text = f"{len(done):,} batches removed for good ({size}), {len(left):,} wait"
    document = {"purged": [asdict(item) for item in done], "waiting": len(left), "traces": traces}
    show(as_json, document, f"{text}\n{_TRACES}" if traces and done else text)
