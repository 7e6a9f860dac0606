"""`fsync domain`: who may read identities, handed on sealed to one terminal's card."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import click

from facility_sync import output
from facility_sync.cli.common import json_option, pass_home
from facility_sync.home import Home
from schemas import messages
from schemas.errors import FormatError, SettingsError
from schemas.transit import durable


@click.group()
def domain() -> None:
    """Who may read identities: hand it on, take it in."""


@domain.command("list")
@json_option
@pass_home
def listing(home: Home, as_json: bool) -> None:
    """List the domains this terminal holds; the first is its own."""
    from facility_sync.identity import domain_files

    keyring = domain_files.load(home.domains)
    rows = [
        {"domain": item.id, "name": item.name, "created": item.first.created, "own": item is keyring.own}
        for item in keyring.domains
    ]
    if as_json:
        click.echo(output.to_json({"domains": rows}))
    else:
        click.echo(output.table(rows, {key: key for key in ("domain", "name", "created", "own")}))


@domain.command("export")
@click.option(
    "--to", "card", required=True, type=click.File("rb"), help="Card of the terminal that may read."
)
@click.option("--domain", "identifier", help="Which domain; default: this terminal's own.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
@pass_home
def export(home: Home, card: BinaryIO, identifier: str | None, file: Path, as_json: bool) -> None:
    """Write a domain to FILE, sealed so that only the terminal with that card opens it.

    Whoever imports it can read every identity and image of the domain, for good.

    Example: fsync domain export --to partner.card for-partner.domain
    """
    from facility_sync.identity import domain_files

    try:
        reader = messages.FacilityCard.from_bytes(card.read().rstrip(b"\n"))
    except FormatError as error:
        raise SettingsError("this is not a terminal's card", hint="Ask for NAME.card of its home.") from error
    keyring = domain_files.load(home.domains)
    chosen = [item for item in keyring.domains if identifier in (None, item.id, item.name)]
    if not chosen:
        raise SettingsError("this terminal holds no such domain", hint="`fsync domain list` shows them.")
    durable.publish(
        file.absolute(), domain_files.export_for(chosen[:1], reader.age_recipient), mode=0o600, replace=True
    )
    if as_json:
        click.echo(output.to_json({"domain": chosen[0].id, "name": chosen[0].name, "to": reader.facility}))
    else:
        click.echo(f"Domain {chosen[0].id} ({chosen[0].name}) is sealed for {reader.facility}.")


@domain.command("import")
@click.argument("file", type=click.File("rb"))
@json_option
@pass_home
def take_in(home: Home, file: BinaryIO, as_json: bool) -> None:
    """Take in a domain that was sealed for this terminal.

    Example: fsync domain import for-partner.domain
    """
    from facility_sync.identity import domain_files

    taken = domain_files.import_from(file.read(), home.age_identity)
    for item in taken:
        domain_files.keep(home.domains, item)
    if as_json:
        click.echo(output.to_json({"imported": [item.id for item in taken]}))
    else:
        for item in taken:
            click.echo(f"This terminal now reads domain {item.id} ({item.name}).")
