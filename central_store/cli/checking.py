"""`fstore check`: is everything there, and is every byte what it was?"""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from central_store.cli.common import Duration, Root, json_option, pass_root, printed, show


@click.command()
@click.option("--read-data", is_flag=True, help="Read and re-hash every stored byte too.")
@click.option(
    "--max-duration", type=Duration(), metavar="2h",
    help="With --read-data: begin no further batch after this long (s, m, h, d).",
)  # fmt: skip
@json_option
@pass_root
def check(root: Root, read_data: bool, max_duration: float | None, as_json: bool) -> None:
    """Check that everything promised is there: signatures, manifests, packs, catalog.

    Without --read-data nothing is changed. With it, what was checked longest ago comes first, results are
    kept in checks/, and a damaged pack is moved to quarantine and its facility asked to send again. The
    catalog is checked only while the service is stopped.

    \b
    Examples:
      fstore check
      fstore check --read-data
      30 1 * * *  fstore --root /srv/store check --read-data --max-duration 2h
    """  # noqa: D301
    from central_store import check as checking
    from central_store import output
    from schemas.errors import Damaged

    if max_duration is not None and not read_data:
        raise click.UsageError("--max-duration goes with --read-data")
    store = root.open()
    done = [0]

    def progress(step: checking.Step) -> None:
        done[0] += step.bytes
        click.echo(
            f"\rbatch {step.batch:,} of {step.known:,}, {output.size(done[0])} read   ", err=True, nl=False
        )

    if read_data and sys.stderr.isatty():
        found = checking.check(store, read_data=True, max_seconds=max_duration, progress=progress)
        click.echo(err=True)
    else:
        found = checking.check(store, read_data=read_data, max_seconds=max_duration)
    lines = [f"{p.code}  {p.facility}  {p.batch}: {p.detail}" for p in found.problems]
    lines.append(
        f"{found.batches:,} of {found.known:,} batches, {found.objects:,} images, {output.size(found.bytes)}"
        f"{', every byte read' if read_data else ''}; catalog {found.catalog}"
    )
    if found.set_aside:
        lines.append(
            f"{len(found.set_aside):,} damaged packs set aside in quarantine; their facilities were told"
        )
    if found.repaired:
        lines.append(f"{found.repaired:,} batches that were damaged are whole again")
    if found.erased:
        lines.append(f"{found.erased:,} batches are erased")
    if found.resent:
        lines.append(f"{found.resent:,} damaged batches are made up for: every file was sent again")
    lines.append(f"{len(found.problems):,} problems" if found.problems else "no problem found")
    show(as_json, asdict(found), "\n".join(lines))
    if found.problems:
        raise printed(Damaged("the store is not as it should be", hint="See the report above."))
