"""`fsync offline`: bring the rows for questions with the line down, say what is kept, or take it away."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from facility_sync import output
from facility_sync.cli.common import json_option, pass_home, store_option
from facility_sync.home import Home


@click.command()
@click.option("--show", is_flag=True, help="Only say what is kept and how old it is; nothing is asked.")
@click.option("--forget", is_flag=True, help="Take all rows away from this terminal.")
@store_option
@json_option
@pass_home
def offline(home: Home, show: bool, forget: bool, only: str, as_json: bool) -> None:
    """Bring the rows this terminal may see, as a round does: only what changed since the last time.

    They are for `fsync query --offline`. Whoever can read this terminal's home can read them: no password is
    asked for. Identities in them stay sealed, as at the store.

    \b
    Examples:
      fsync offline
      fsync offline --show
      fsync offline --forget      (and `offline = false` in settings.toml: no round brings them again)
    """  # noqa: D301
    from facility_sync import bring_rows, exchange
    from facility_sync.kept_rows import KeptRows
    from facility_sync.offline import OfflineDesk

    if show and forget:
        raise click.UsageError("--show and --forget exclude each other")
    if forget:
        with home.only_round():
            KeptRows(home.offline).forget()
        click.echo(output.to_json({"kept": False}) if as_json else "No rows are kept any more.")
        return
    said: dict[str, Any] = {}
    if not show:
        done = bring_rows.Brought()
        with home.only_round(), exchange.connect(home, only=only) as desk:
            bring_rows.bring(home, desk, done)
        said = {"batches": done.batches, "dropped": done.dropped, "bytes": done.bytes, "gone": done.gone}
    age = OfflineDesk(home).age(datetime.now(UTC))
    kept = KeptRows(home.offline).facilities()
    if as_json:
        click.echo(output.to_json(said | age.to_json() | {"facilities": kept}))
        return
    if said:
        text = f"{done.batches:,} batches brought, {output.size(done.bytes)}; {done.dropped:,} taken away"
        click.echo(text + (f", {done.gone:,} facilities with them." if done.gone else "."))
    click.echo(f"Rows of: {', '.join(kept) or 'nobody'}.")
    for line in age.remarks():
        click.echo(line)
