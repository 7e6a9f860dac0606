"""`fsync sync` and `fsync daemon`: rounds."""

from __future__ import annotations

import click

from facility_sync import output
from facility_sync.cli.common import json_option, pass_home, store_option
from facility_sync.home import Home
from facility_sync.report import Report
from schemas.errors import Incomplete, SyncError


@click.command()
@click.option("--retry-refused", is_flag=True, help="Read files again that were refused before.")
@click.option("--quiet", is_flag=True, help="No progress; only the report.")
@store_option
@json_option
@pass_home
def sync(home: Home, retry_refused: bool, quiet: bool, only: str, as_json: bool) -> None:
    """One round: send what is new, take receipts, say what is not stored.

    Safe to stop at any point and to run again; leaves with status 0 only when every file found is stored.

    \b
    Examples:
      fsync sync
      15 2 * * *  fsync sync --quiet      (a crontab line)
    """  # noqa: D301
    from facility_sync.rounds import Round

    meter = output.Meter(quiet=quiet or as_json)
    current = Round(home, meter, only)
    try:
        report = current.run(retry_refused=retry_refused)
    except SyncError as error:
        meter.close()
        if current.report.trouble:  # the round had begun: say what it did before it broke off
            _print(current.report, as_json=as_json, error=error)
            error.printed = True  # type: ignore[attr-defined]
        raise
    finally:
        meter.close()
    _print(report, as_json=as_json)
    if not report.complete:
        failure = Incomplete(
            f"{len(report.refused) + len(report.waiting):,} of {report.found:,} files are not stored"
        )
        failure.printed = True  # type: ignore[attr-defined]
        raise failure


def _print(report: Report, *, as_json: bool, error: SyncError | None = None) -> None:
    if as_json:
        document = report.to_json()
        if error is not None:
            document |= {"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
        click.echo(output.to_json(document))
    else:
        click.echo(output.report_text(report))


@click.command()
@click.option("--at", default="02:15", show_default=True, metavar="HH:MM", help="When the round begins.")
@click.option("--every", type=click.IntRange(1), metavar="MINUTES", help="A round every so often instead.")
@pass_home
def daemon(home: Home, at: str, every: int | None) -> None:
    """Run the same round on a schedule, for machines without cron; stops on Ctrl-C or SIGTERM.

    \b
    Examples:
      fsync daemon --at 02:15
      fsync daemon --every 10
    """  # noqa: D301
    from facility_sync.daemon import run_forever
    from facility_sync.rounds import Round

    def one_round() -> None:
        current = Round(home, output.Meter(quiet=True))
        try:
            current.run()
        except SyncError as error:
            click.echo(f"fsync: {error}", err=True)
        click.echo(output.report_text(current.report))

    run_forever(one_round, at=at, every_minutes=every)
