"""`fsync erase`, `fsync erasures`: images out of every answer, and how far the stores are with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from facility_sync import output
from facility_sync.cli.common import account_options, json_option, pass_home, password, store_option
from facility_sync.cli.conditions import today
from facility_sync.home import Home
from schemas import names
from schemas.erasure_messages import REASONS
from schemas.errors import FormatError, Incomplete, SettingsError


@click.command()
@click.option("--study", multiple=True, metavar="UID", help="Every image of this study.")
@click.option("--patient", metavar="ID", default="", help="Every image of the patient with this ID.")
@click.option("--issuer", metavar="NAME", default="", help="Issuer of the patient ID; narrows --patient.")
@click.option("--batch", multiple=True, metavar="ID", help="Everything in this batch.")
@click.option(
    "--reason", type=click.Choice(list(REASONS)), default="asked", show_default=True,
    help="Why; the stores keep the code.",
)  # fmt: skip
@click.option(
    "--give-up",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Erase even if up to N other images of the batches lie nowhere any more and cannot be sent again.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--quiet", is_flag=True, help="No progress.")
@store_option
@account_options
@json_option
@pass_home
def erase(
    home: Home, study: tuple[str, ...], patient: str, issuer: str, batch: tuple[str, ...], reason: str,
    give_up: int, yes: bool, quiet: bool, only: str, user: str | None, password_file: Path | None,
    password_stdin: bool, as_json: bool,
) -> None:  # fmt: skip
    """Erase images of this facility at every trusted store, for good.

    Batches are erased whole. So the other images of the same batches are sent again first, and only when each
    has a new receipt this terminal signs. Then nobody finds or fetches the erased ones any more; their bytes
    are removed by each store's operator, who certifies it: `fsync erasures`. Local files stay where they are,
    and are never sent again.

    \b
    Examples:
      fsync erase --patient 12345 --user kimura
      fsync erase --study 1.2.840.1 --reason wrong-patient --user kimura --yes
      fsync erase --patient 12345 --give-up 2 --user kimura
    """  # noqa: D301
    from facility_sync import ask
    from facility_sync import erase as erasing
    from facility_sync.identity import domain_files
    from facility_sync.workers import Workers

    where = _where(study, patient, issuer, batch)
    keyring = domain_files.load(home.domains)
    name, secret = password(user, password_file, stdin=password_stdin)
    account = ask.Account(user=name, password=secret)
    meter = output.Meter(quiet=quiet or as_json)
    try:
        with Workers(home.settings.workers) as workers:
            act = erasing.Erase(home, account, keyring, where, today(), workers, meter, only, give_up)
            found = act.look()
            if not as_json or not yes:
                click.echo(_text(found.to_json()), err=as_json)
            if found.batches:
                if not yes:
                    _agree()
                found = act.run(found, reason)
    finally:
        meter.close()
    _print(home, found.to_json(), as_json=as_json)
    if found.away or not act.acknowledged(found):
        failure = Incomplete(
            f"{', '.join(found.away)} could not be asked"
            if found.away
            else "a store has not answered yet whether these batches are out of its answers",
            hint="Run the command again then: it looks whether something of it still shows.",
        )
        failure.printed = True  # type: ignore[attr-defined]
        raise failure


def _where(study: tuple[str, ...], patient: str, issuer: str, batch: tuple[str, ...]) -> str:
    """The condition in SQL; raises `click.UsageError` unless one thing is named."""
    if sum(map(bool, (study, patient, batch))) != 1:
        raise click.UsageError("name one of --study, --patient and --batch")
    if issuer and not patient:
        raise click.UsageError("--issuer narrows --patient and says nothing alone")
    try:
        if study:
            return f"study_uid IN ({', '.join(_quoted(names.uid(uid)) for uid in study)})"
        if batch:
            return f"batch_id IN ({', '.join(_quoted(names.batch_id(one)) for one in batch)})"
    except FormatError as error:
        raise click.UsageError(str(error)) from error
    return f"patient({', '.join(_quoted(text) for text in (patient, issuer) if text)})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _text(found: dict[str, Any]) -> str:
    if not found["batches"]:
        return "No image of this facility matches: nothing is to be erased."
    return (
        f"{found['studies']:,} studies, {output.images(found['images'])} ({output.size(found['bytes'])}) in "
        f"{len(found['batches']):,} batches; {found['sent_again']:,} other images of these batches "
        f"({output.size(found['sent_again_bytes'])}) are sent again first"
    )


def _agree() -> None:
    if not sys.stdin.isatty():
        raise SettingsError("nothing was erased: nobody is there to agree", hint="Give --yes.")
    click.confirm("Erase these images for good?", abort=True, err=True)


def _print(home: Home, document: dict[str, Any], *, as_json: bool) -> None:
    from facility_sync import tombstones

    mine = [one for one in tombstones.standings(home) if one.batch in document["batches"]]
    stores = {
        store: {
            "batches": sum(one.store == store for one in mine),
            "out_of_answers": sum(one.store == store and bool(one.taken) for one in mine),
            "for_good": sum(one.store == store and bool(one.purged) for one in mine),
        }
        for store in sorted({one.store for one in mine})
    }
    if as_json:
        click.echo(output.to_json(document | {"stores": stores}))
        return
    for store, count in stores.items():
        click.echo(
            f"{store}: {count['out_of_answers']:,} of {count['batches']:,} batches are out of every answer"
        )
    if document["given_up"]:
        click.echo(f"{document['given_up']:,} other images lie nowhere any more, and went with them.")
    if stores:
        click.echo("Their bytes are removed by each store's operator: `fsync erasures` shows when.")


@click.command()
@click.option("--ask", is_flag=True, help="Give the stores every tombstone again, and ask them now.")
@json_option
@pass_home
def erasures(home: Home, ask: bool, as_json: bool) -> None:
    """What this terminal erased, and how far each trusted store is with it; each round asks the stores.

    Run it with --ask when a store was put back from a backup: it is told again what is erased.

    \b
    Examples:
      fsync erasures
      fsync erasures --ask --json
    """  # noqa: D301
    from facility_sync import exchange, tombstones

    if ask:
        with home.only_round():
            for card in home.stores:
                with exchange.connect(home, only=card.store) as desk:
                    tombstones.carry(home, desk, again=True)
    found = [one._asdict() for one in tombstones.standings(home)]
    if as_json:
        click.echo(output.to_json({"erasures": found}))
        return
    rows = [one | {"state": _state(one)} for one in found]
    click.echo(output.table(rows, _COLUMNS) if rows else "Nothing was erased from here.")


_COLUMNS = {"requested": "requested", "store": "store", "state": "state", "taken": "out of answers",
            "purged": "for good", "batch": "batch"}  # fmt: skip


def _state(one: dict[str, Any]) -> str:
    if one["refused"]:
        return f"refused: {one['refused']}"
    return "erased for good" if one["purged"] else "out of answers" if one["taken"] else "requested"
