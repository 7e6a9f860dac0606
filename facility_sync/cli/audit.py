"""`fsync audit`: the events about this facility's data."""

from __future__ import annotations

from pathlib import Path

import click

from facility_sync import output
from facility_sync.cli.common import account_options, json_option, pass_home, password, store_option
from facility_sync.cli.conditions import today
from facility_sync.home import Home

_HEADINGS = {
    "time": "time", "kind": "what", "facility": "facility", "user": "user", "subject": "about",
    "details": "details",
}  # fmt: skip


@click.command()
@click.option(
    "--since", metavar="DAY", default="30d", show_default=True,
    help="Nothing older: a day (2026-11-24), a month, a year, or the last days (30d).",
)  # fmt: skip
@click.option(
    "--limit", type=click.IntRange(1), default=1000, show_default=True, help="Most events, newest first."
)
@store_option
@account_options
@json_option
@pass_home
def audit(
    home: Home, /, since: str, limit: int, only: str, user: str | None, password_file: Path | None,
    password_stdin: bool, as_json: bool,
) -> None:  # fmt: skip
    """What happened to this facility's data at the store: who searched, was given images, was refused.

    Of other facilities' searches it shows who, when and how many rows of yours. The store's newest signed
    checkpoint is kept in the home: proof that its log was not cut off later.

    \b
    Examples:
      fsync audit --user kimura
      fsync audit --since 2026-11-01 --json
    """  # noqa: D301
    from facility_sync import events, exchange
    from facility_sync.ask import Account

    name, secret = password(user, password_file, stdin=password_stdin)
    account = Account(user=name, password=secret)
    with exchange.connect(home, only=only) as desk:
        rows = list(events.read(home, desk, account, since=_moment(since), limit=limit))
    if as_json:
        click.echo(output.to_json(rows))
        return
    if rows:
        click.echo(output.table(rows, _HEADINGS))
    click.echo(f"{len(rows):,} events" + (" (--limit)" if len(rows) == limit else ""), err=True)


def _moment(text: str) -> str:
    """A time from what a person wrote; raises `FormatError` for a day nobody can read."""
    from facility_sync import dates

    first, _ = dates.parse(text, today=today())
    return "" if first is None else f"{first.isoformat()}T00:00:00Z"
