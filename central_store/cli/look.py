"""`fstore status`, `check`, `rebuild`."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from central_store.cli.common import Root, json_option, pass_root, printed, show, table_or_none


@click.command()
@json_option
@pass_root
def status(root: Root, as_json: bool) -> None:
    """What is stored, and what waits; works while the service runs."""
    from central_store import output, report
    from schemas import keys

    store = root.open()
    lines = [asdict(line) for line in report.status(store)]
    headings = {
        "facility": "facility", "batches": "batches", "objects": "images", "size": "size",
        "last_stored": "last stored", "waiting": "waiting", "replies": "to fetch",
        "quarantined": "quarantined", "missing": "missing", "forks": "forks",
    }  # fmt: skip
    rows = [line | {"size": output.size(line["bytes"])} for line in lines]
    host_key = keys.fingerprint(store.card().host_key)
    text = f"store {store.name}, host key {host_key}\n" + table_or_none(
        rows, headings, "no facility is enrolled"
    )
    show(as_json, {"store": store.name, "host_key": host_key, "facilities": lines}, text)


@click.command()
@click.option("--read-data", is_flag=True, help="Read and re-hash every stored byte too.")
@json_option
@pass_root
def check(root: Root, read_data: bool, as_json: bool) -> None:
    """Check that everything promised is there: signatures, manifests, packs, catalog.

    Changes nothing. The catalog is checked only while the service is stopped.

    \b
    Examples:
      fstore check
      fstore check --read-data
    """  # noqa: D301
    from central_store import check as checking
    from central_store import output
    from schemas.errors import Damaged

    store = root.open()
    done = [0]

    def progress(count: int) -> None:
        done[0] += count
        click.echo(f"\rread {output.size(done[0])}   ", err=True, nl=False)

    if read_data and sys.stderr.isatty():
        found = checking.check(store, read_data=True, progress=progress)
        click.echo(err=True)
    else:
        found = checking.check(store, read_data=read_data)
    lines = [f"{p.code}  {p.facility}  {p.batch}: {p.detail}" for p in found.problems]
    lines.append(
        f"{found.batches:,} batches, {found.objects:,} images, {output.size(found.bytes)}"
        f"{', every byte read' if read_data else ''}; catalog {found.catalog}"
    )
    lines.append(f"{len(found.problems):,} problems" if found.problems else "no problem found")
    show(as_json, asdict(found), "\n".join(lines))
    if found.problems:
        raise printed(Damaged("the store is not as it should be", hint="See the report above."))


@click.command()
@json_option
@pass_root
def rebuild(root: Root, as_json: bool) -> None:
    """Make the catalog again from the manifests; the service must be stopped."""
    from central_store import catalog, lock

    store = root.open()
    with lock.held(store.layout.lock):
        catalog.drop(store.layout)
        with catalog.Catalog(store.layout, store.settings) as made:
            totals = made.totals()
    count, rows = sum(a for a, _ in totals.values()), sum(b for _, b in totals.values())
    show(as_json, {"batches": count, "rows": rows}, f"catalog made again: {count:,} batches, {rows:,} rows")
