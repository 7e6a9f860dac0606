"""`fsync init`, `fsync trust`, `fsync store`, `fsync source`: everything before the first round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import click

from facility_sync import output
from facility_sync.cli.common import json_option, now_text, pass_any_home, pass_home, say_losing_is_final
from facility_sync.home import Home
from facility_sync.settings import absolute_source
from schemas import keys
from schemas.errors import SettingsError
from schemas.messages import StoreCard


@click.command()
@click.option(
    "--facility", required=True, metavar="NAME", help="Letters, digits, - or _; the login name too."
)
@json_option
@pass_any_home
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
    """Pin a store: address, host key, signing key, age recipient.

    The first is used whenever it is there; further ones are used in their order when it is away. The card of
    a store that is trusted already takes the place of the one that is here.

    \b
    Examples:
      fsync trust store.card
      fsync trust --host 10.0.0.7 --port 2222 second-store.card
    """  # noqa: D301
    from contextlib import closing

    from facility_sync import receipts
    from facility_sync.ledger import Ledger

    store = home.trust(card.read(), host or "", port or 0)
    if home.ledger_path.exists():
        with closing(Ledger(home.ledger_path)) as ledger:
            receipts.index(home, ledger, store.store)
    known = _store_json(store)
    if as_json:
        click.echo(output.to_json(known))
        return
    click.echo(f"This terminal trusts {store.store} at {store.host}:{store.port}.")
    click.echo(f"Host key {known['host_key']}: compare it with `fstore status` by telephone.")
    if len(home.stores) > 1:
        click.echo(f"Stores in the order they are tried: {', '.join(card.store for card in home.stores)}.")


@click.group()
def store() -> None:
    """The stores this terminal trusts, in the order they are tried."""


@store.command("list")
@json_option
@pass_home
def stores(home: Home, as_json: bool) -> None:
    """List the stores, the first one first."""
    rows = [_store_json(card) for card in home.stores]
    heads = {"store": "store", "host": "host", "port": "port", "host_key": "host key"}
    click.echo(output.to_json({"stores": rows}) if as_json else output.table(rows, heads))


@store.command("first")
@click.argument("name")
@json_option
@pass_home
def first(home: Home, name: str, as_json: bool) -> None:
    """Try this store before the others.

    Example: fsync store first central
    """
    home.put_first(name)
    _show_stores(home, as_json=as_json)


@store.command("forget")
@click.argument("name")
@json_option
@pass_home
def forget(home: Home, name: str, as_json: bool) -> None:
    """Trust a store no longer; its receipts stay, and count no more.

    Example: fsync store forget central
    """
    home.forget(name)
    _show_stores(home, as_json=as_json)


def _show_stores(home: Home, *, as_json: bool) -> None:
    names = [card.store for card in home.stores]
    if as_json:
        click.echo(output.to_json({"stores": names}))
    else:
        click.echo(f"Stores in the order they are tried: {', '.join(names)}.")


def _store_json(card: StoreCard) -> dict[str, str | int]:
    return {
        "store": card.store, "host": card.host, "port": card.port, "host_key": keys.fingerprint(card.host_key)
    }  # fmt: skip


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
