"""`fstore peer`, `replicate`, `repair`, `restore-from`."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from central_store.cli.common import Root, json_option, named, pass_root, printed, show, table_or_none
from schemas import names
from schemas.errors import FormatError, Incomplete, SettingsError

if TYPE_CHECKING:
    from central_store.peers import Peer
    from central_store.settings import Store

_card = click.argument("card", type=click.Path(path_type=Path, exists=True, dir_okay=False))
_host = click.option("--host", help="Dial it there instead of where its card says.")
_port = click.option("--port", type=click.IntRange(1, 65535), help="And at this port.")
_patience = click.option(
    "--patience", type=click.FloatRange(1), default=120.0, show_default=True,
    help="Give up when nothing moved for so many seconds.",
)  # fmt: skip


@click.group()
def peer() -> None:
    """Stores this one replicates with: each holds what the other holds."""


@peer.command()
@click.argument("name")
@_card
@_host
@_port
@click.option("--wait", is_flag=True, help="Do not dial it: it dials us.")
@click.option(
    "--facility", "facilities", multiple=True, metavar="FACILITY",
    help="It may bring this facility, and change its accounts and grants; may be repeated. "
    "Without it: it may bring all that are not enrolled here.",
)  # fmt: skip
@click.option("--replace-key", is_flag=True, help="It changed its keys on purpose.")
@json_option
@pass_root
def add(
    root: Root, name: str, card: Path, host: str | None, port: int | None, wait: bool,
    facilities: tuple[str, ...], replace_key: bool, as_json: bool,
) -> None:  # fmt: skip
    """Take the store NAME, known by its CARD, as a peer; do the same there with the card of this one.

    \b
    Examples:
      fstore peer add north north.card
      fstore peer add north north.card --host 10.0.0.7 --port 2222
      fstore peer add north north.card --wait --facility clinic-a
    """  # noqa: D301
    from central_store import peers

    made = _peer(name, card, host, port, dial=not wait, facilities=facilities or (peers.ANY,))
    store = root.open()
    if made.name == store.name or made.card.signing_key == store.card().signing_key:
        raise SettingsError("a store is no peer of itself")
    peers.add(store.layout, made, replace_key=replace_key)
    document = {"peer": made.name, "host": made.host, "port": made.port, "dial": made.dial}
    show(as_json, document, f"{made.name} is a peer: add this store there too (`fstore card`)")


def _peer(
    name: str, card: Path, host: str | None, port: int | None, *, dial: bool, facilities: tuple[str, ...]
) -> Peer:
    from central_store import peers
    from schemas.messages import StoreCard

    wanted = named(names.facility_name, name, "NAME")
    try:
        found = StoreCard.from_bytes(card.read_bytes().strip())
    except FormatError as error:
        raise SettingsError(f"this is no store's card: {error}", hint="`fstore card` prints one.") from error
    if found.store != wanted:
        raise SettingsError(f"this is the card of {found.store}")
    for facility in facilities:
        if facility != peers.ANY:
            named(names.facility_name, facility, "--facility")
    return peers.Peer(
        card=found, host=host or found.host, port=port or found.port, dial=dial, facilities=facilities
    )


@peer.command(name="list")
@json_option
@pass_root
def list_(root: Root, as_json: bool) -> None:
    """List the peers, and how far each is behind."""
    from central_store import output, replication

    store = root.open()
    rows = [asdict(line) for line in replication.status(store, datetime.now(UTC))]
    shown = [
        row | {"behind_bytes": output.size(row["behind_bytes"]), "alarms": ", ".join(row["alarms"])}
        for row in rows
    ]
    headings = {
        "peer": "peer", "held": "holds", "behind": "lacks", "behind_bytes": "of size",
        "behind_minutes": "for minutes", "missing": "we lack", "heard": "last heard", "alarms": "alarms",
    }  # fmt: skip
    show(as_json, rows, table_or_none(shown, headings, "no peers: `fstore peer add NAME CARD`"))


@peer.command()
@click.argument("name")
@json_option
@pass_root
def remove(root: Root, name: str, as_json: bool) -> None:
    """End replication with a peer; what it brought stays."""
    from central_store import peers

    wanted = named(names.facility_name, name, "NAME")
    if not peers.remove(root.open().layout, wanted):
        raise SettingsError(f"{wanted} is no peer", hint="`fstore peer list` shows them.")
    show(as_json, {"peer": wanted, "removed": True}, f"{wanted} is no peer any more")


@peer.command()
@click.argument("name")
@json_option
@pass_root
def clear(root: Root, name: str, as_json: bool) -> None:
    """Say that somebody saw the alarms of a peer, and knows why."""
    from central_store import peers

    found = _known(root.open(), name)[0]
    count = peers.clear(root.open().layout, found.name)
    show(as_json, {"peer": found.name, "cleared": count}, f"{count} alarms of {found.name} cleared")


def _known(store: Store, name: str | None) -> list[Peer]:
    from central_store import peers

    if name is None:
        found = list(peers.everyone(store.layout))
        if not found:
            raise SettingsError("there are no peers", hint="`fstore peer add NAME CARD` adds one.")
        return found
    one = peers.load(store.layout, named(names.facility_name, name, "NAME"))
    if one is None:
        raise SettingsError(f"{name} is no peer", hint="`fstore peer list` shows them.")
    return [one]


def _round(store: Store, found: list[Peer], patience: float, *, as_json: bool) -> None:
    from central_store import logs, output, replication
    from central_store.service import Clock

    logs.log_to_stderr()
    clock = Clock(lambda: datetime.now(UTC), time.monotonic)
    level = replication.replicate(store, found, clock, patience=patience)
    wanted = {peer.name for peer in found}
    lines = [line for line in replication.status(store, datetime.now(UTC)) if line.peer in wanted]
    broken = replication.lacking(store)
    text = "\n".join(
        f"{line.peer} holds {line.held:,} batches, lacks {line.behind:,} ({output.size(line.behind_bytes)}); "
        f"we lack {line.missing:,}"
        for line in lines
    )
    if broken:
        text += f"\n{broken:,} batches here are damaged or missing"
    show(as_json, {"level": level, "broken": broken, "peers": [asdict(line) for line in lines]}, text)
    if not level or broken or any(line.behind or line.missing for line in lines):
        raise printed(Incomplete("not everything is replicated"))


@click.command()
@click.argument("name", required=False)
@_patience
@json_option
@pass_root
def replicate(root: Root, name: str | None, patience: float, as_json: bool) -> None:
    """Replicate with NAME, or with every peer, until both have the same; for cron, or to wait for it.

    `fstore serve` does the same all the time.

    \b
    Examples:
      fstore replicate
      fstore replicate north --patience 600
    """  # noqa: D301
    store = root.open()
    _round(store, _known(store, name), patience, as_json=as_json)


@click.command()
@click.option("--from", "name", help="The peer to fetch from; every peer by default.")
@_patience
@json_option
@pass_root
def repair(root: Root, name: str | None, patience: float, as_json: bool) -> None:
    """Fetch every damaged or missing pack from a peer that holds it; what was damaged stays in quarantine.

    Replication does so by itself for damage that `fstore check --read-data` recorded; this also looks for
    packs that are gone. The service must be stopped.

    \b
    Examples:
      fstore repair
      fstore repair --from north
    """  # noqa: D301
    from central_store import peers

    store = root.open()
    found = _known(store, name)
    for one in found:
        peers.look_again(store.layout, one.name)
    _round(store, found, patience, as_json=as_json)


@click.command(name="restore-from")
@click.argument("name")
@_card
@_host
@_port
@_patience
@json_option
@pass_root
def restore_from(
    root: Root, name: str, card: Path, host: str | None, port: int | None, patience: float, as_json: bool
) -> None:
    """Fill this new store with everything the peer NAME holds: batches, facilities, accounts, grants.

    The store was made with `fstore init` and has its own keys back, so that NAME still knows it. What comes
    counts as enrolled here afterwards.

    \b
    Example:
      fstore --root /srv/store restore-from north north.card
    """  # noqa: D301
    from central_store import peers, people

    store = root.open()
    made = _peer(name, card, host, port, dial=True, facilities=(peers.ANY,))
    peers.add(store.layout, made)
    try:
        _round(store, [made], patience, as_json=as_json)
    finally:
        people.adopt(store.layout, made.name)
