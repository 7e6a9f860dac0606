"""Tombstones travel between stores: which ones a peer lacks, and what of a peer's word is believed.

They are part of what is said about people (`central_store.people`): the digest there covers which batches are
erased, so a peer asks when there is one more. The asker says which tombstones it has, by their SHA-256, and
gets the others in that order, so many at a time.

Guarantees: only tombstones of facilities the peer takes part in are told; only what a key of the facility
signed, as this store knows the facility, is believed, whoever tells it. One that was kept in part before a
stop counts as lacking.

Leaves to others: erasing (`central_store.erasure`), when it is asked (`central_store.talk`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from central_store import erasure, tombstones
from central_store.batches import Batch
from central_store.layout import Layout
from central_store.peers import Peer
from central_store.settings import Store
from schemas.container import Signed
from schemas.erasure_messages import Tombstone, name_of
from schemas.errors import Damaged, FormatError, SyncError
from schemas.messages import MAX_ITEMS
from schemas.names import FacilityName
from schemas.peer_messages import MOST_TOMBSTONES, PeopleAnswer

log = logging.getLogger("central_store")

Erase = Callable[[Signed, FacilityName], int]
"""Does what a tombstone says that a peer told; how many batches were not erased before."""
PAGE_BYTES = 4 << 20
"""Most bytes of tombstones in one answer."""


class Page(NamedTuple):
    """Tombstones for a peer, and whether there are more behind them."""

    found: tuple[Signed, ...]
    more: bool


def have(layout: Layout) -> tuple[str, ...]:
    """The SHA-256s of all tombstones of which every batch is erased here."""
    complete = set[str]()
    for facility, name, signed in _all(layout, (batch.facility for batch in tombstones.everything(layout))):
        message = signed.message
        assert isinstance(message, Tombstone)  # noqa: S101  # so `_all` says
        if all(tombstones.erased(layout, Batch(facility, batch)) for batch in message.batches):
            complete.add(name)
    return tuple(sorted(complete))[:MAX_ITEMS]  # of more, some are told again


def lacking(layout: Layout, shared: Sequence[FacilityName], has: Collection[str], after: str) -> Page:
    """What a peer lacks.

    Args:
        layout: ours.
        shared: the facilities it takes part in.
        has: SHA-256s of those it has.
        after: the last one it was told, to go on behind.
    """
    known = {name: signed for _, name, signed in _all(layout, shared)}
    wanted = [name for name in sorted(known.keys() - set(has)) if name > after]
    found: list[Signed] = []
    size = 0
    for name in wanted:
        size += len(known[name].data)
        if found and (size > PAGE_BYTES or len(found) == MOST_TOMBSTONES):
            return Page(tuple(found), more=True)
        found.append(known[name])
    return Page(tuple(found), more=False)


def bury(store: Store, peer: Peer, answer: PeopleAnswer, erase: Erase) -> tuple[int, str]:
    """Do what a peer's answer brings; how much was not erased before, and behind what to ask for more."""
    fresh = sum(erase(signed, peer.name) for signed in heard(store, peer, answer))
    return fresh, name_of(answer.tombstones[-1].encode()) if answer.more and answer.tombstones else ""


def heard(store: Store, peer: Peer, answer: PeopleAnswer) -> Iterator[Signed]:
    """The tombstones in a peer's answer that are believed; the rest is a line in the log.

    Raises:
        FormatError: it has not a signature for each.
    """
    if len(answer.tombstones) != len(answer.tombstone_signatures):
        raise FormatError("people-answer: tombstones and signatures are not as many")
    for data, armor in zip(answer.tombstones, answer.tombstone_signatures, strict=True):
        try:
            yield erasure.brought(store, data, armor)
        except SyncError as error:
            log.warning("tombstone not taken peer=%s: %s", peer.name, error)


def _all(
    layout: Layout, owners: Iterator[FacilityName] | Sequence[FacilityName]
) -> Iterator[tuple[FacilityName, str, Signed]]:
    """Each tombstone of these facilities once, with its facility and SHA-256; broken ones are passed over."""
    for facility in dict.fromkeys(owners):
        seen = set[str]()
        for batch in sorted(tombstones.of(layout, facility)):
            with suppress(Damaged):  # `fstore check` names it
                _, signed = tombstones.load(layout, Batch(facility, batch))
                name = name_of(signed.data)
                if name not in seen:
                    seen.add(name)
                    yield facility, name, signed
