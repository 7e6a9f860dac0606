"""`fsync init`, `fsync trust`, `fsync source`: everything before the first round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import click

from facility_sync import output
from facility_sync.cli.common import json_option, now_text, pass_home, say_losing_is_final
from facility_sync.home import Home
from facility_sync.settings import absolute_source
from schemas import keys
from schemas.errors import SettingsError


@click.command()
@click.option(
    "--facility", required=True, metavar="NAME", help="Letters, digits, - or _; the login name too."
)
@json_option
@pass_home
def init(home: Home, facility: str, as_json: bool) -> None:
    """Make this terminal's keys, its own domain, and its public card.

    Example: fsync init --facility clinic-a
    """
    from facility_sync.identity import domain_files, domains

    card = home.create(facility)
    domain = domains.make(facility, "facility", domains.new_parts(now_text()))
    domain_files.keep_own(home.domains, domain)
    if as_json:
        say_losing_is_final(home, facility, as_json=True)
        click.echo(
            output.to_json(
                {"facility": facility, "home": str(home.root), "card": str(card), "domain": domain.id}
            )
        )
        return
    click.echo(f"This is now the terminal of {facility}.")
    click.echo(f"Card for the store's operator (public): {card}")
    click.echo(f"Domain {domain.id}: whoever holds it can read this facility's identities and images.")
    say_losing_is_final(home, facility, as_json=False)
    click.echo("Next: have the card enrolled (`fstore enrol CARD`), then `fsync trust STORE_CARD`.")


@click.command()
@click.argument("card", type=click.File("rb"))
@click.option("--host", help="Dial this address instead of the card's.")
@click.option("--port", type=click.IntRange(1, 65535), help="Dial this port instead of the card's.")
@json_option
@pass_home
def trust(home: Home, card: BinaryIO, host: str | None, port: int | None, as_json: bool) -> None:
    """Pin the store: address, host key, signing key, age recipient.

    Example: fsync trust store.card
    """
    settings = replace(home.settings, store_host=host or "", store_port=port or 0)
    store = home.trust(card.read())
    home.save(settings)
    dialled, at = home.address
    known = {"store": store.store, "host": dialled, "port": at, "host_key": keys.fingerprint(store.host_key)}
    if as_json:
        click.echo(output.to_json(known))
        return
    click.echo(f"This terminal trusts {store.store} at {dialled}:{at}.")
    click.echo(f"Host key {known['host_key']}: compare it with `fstore status` by telephone.")


@click.group()
def source() -> None:
    """Folders whose images are sent."""


@source.command("add")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@json_option
@pass_home
def add(home: Home, folder: str, as_json: bool) -> None:
    """Add a folder; everything below it is looked at in every round.

    Example: fsync source add /data/images
    """
    path = absolute_source(folder)
    for known in home.settings.sources:
        if Path(path).is_relative_to(known) or Path(known).is_relative_to(path):
            raise SettingsError(
                "this folder lies in a source, or a source in it: files would be counted twice",
                hint="`fsync source list` shows the sources; remove the other one first.",
            )
    home.save(replace(home.settings, sources=(*home.settings.sources, path)))
    _show(home, as_json=as_json)


@source.command("list")
@json_option
@pass_home
def listing(home: Home, as_json: bool) -> None:
    """List the sources."""
    _show(home, as_json=as_json)


@source.command("remove")
@click.argument("folder", type=click.Path())
@json_option
@pass_home
def remove(home: Home, folder: str, as_json: bool) -> None:
    """Stop looking at a folder; what is stored stays stored."""
    path = absolute_source(folder)
    if path not in home.settings.sources:
        raise SettingsError("this folder is not a source", hint="`fsync source list` shows the sources.")
    home.save(replace(home.settings, sources=tuple(item for item in home.settings.sources if item != path)))
    _show(home, as_json=as_json)


def _show(home: Home, *, as_json: bool) -> None:
    if as_json:
        click.echo(output.to_json({"sources": list(home.settings.sources)}))
    else:
        click.echo("\n".join(home.settings.sources) or "No sources yet: `fsync source add DIR`.")
