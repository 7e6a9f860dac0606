"""One answer with images: a signed `FetchAnswer`, then the objects straight from their packs.

Guarantees: every object is re-hashed on its way; the answer appears on the shelf whole or not at all; an
object that turns out damaged is left out and told to the operator, and the others still travel. Objects
that do not exist and objects the asker may not see are both `missing`: no one can tell them apart.

Runs in a worker process, because sealing holds the interpreter lock. Leaves to others: who may see what
(`central_store.requests`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from central_store import packs, replies
from central_store.packs import Place
from central_store.replies import Refused
from central_store.settings import Store
from schemas import container, envelope, ustar
from schemas.container import BATCH_BYTES
from schemas.errors import Damaged
from schemas.messages import FacilityCard, FetchAnswer
from schemas.names import ObjectId, RequestId, ShelfName, UserName
from schemas.transit import durable


class Order(NamedTuple):
    """What to send: decided by the service, carried out by a worker."""

    card: FacilityCard
    request: RequestId
    places: tuple[Place, ...]
    missing: tuple[ObjectId, ...]
    answered: str
    user: UserName


def check_size(places: Sequence[Place]) -> None:
    """An answer holds at most `container.BATCH_BYTES` of objects, or one larger object; raises `Refused`."""
    if len(places) > 1 and sum(place.length for place in places) > BATCH_BYTES:
        raise Refused("too-large", f"an answer holds at most {BATCH_BYTES} bytes: ask in smaller pieces")


def send(store: Store, order: Order) -> list[str]:
    """Write the answer onto the asker's `out` shelf.

    Returns:
        What was damaged and left out, one sentence each.
    """
    complaints: dict[ObjectId, str] = {}
    while True:
        try:
            _publish(store, order)
        except Damaged:
            # Where one is, there are more: all are read, and the answer is begun anew once.
            found = _broken(store, order)
            complaints |= found
            order = order._replace(
                places=tuple(place for place in order.places if place.object not in found),
                missing=(*order.missing, *found),
            )
        else:
            return list(complaints.values())


def _broken(store: Store, order: Order) -> dict[ObjectId, str]:
    """The objects of an order that cannot be handed out, and why not."""
    found = {}
    for place in order.places:
        try:
            for _ in packs.blocks(store.layout, place):
                pass
        except Damaged as error:
            found[place.object] = str(error)
    return found


def _publish(store: Store, order: Order) -> None:
    answer = FetchAnswer(
        store=store.name,
        request=order.request,
        objects=tuple(place.object for place in order.places),
        bytes=sum(place.length for place in order.places),
        missing=order.missing,
        answered=order.answered,
    )
    head = container.head_bytes(container.sign(answer, store.keys.signing))
    members = _members(store, head, order.places)

    def write(sink: BinaryIO) -> None:
        envelope.seal_pieces(members, sink, [order.card.age_recipient])

    path = store.layout.outbound(order.card.facility) / str(ShelfName(order.request, "answer"))
    durable.publish(path, write, replace=True, lasting=False)
    replies.make_room(store, order.card)


def _members(store: Store, head: bytes, places: Sequence[Place]) -> Iterator[bytes]:
    yield head
    for place in places:
        yield ustar.header(container.object_name(place.object, place.encoding), place.length)
        yield from packs.blocks(store.layout, place)
        yield ustar.padding(place.length)
    yield ustar.END
