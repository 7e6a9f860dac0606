"""Bring the rows this terminal may see, for questions with the line down: only what changed.

Order: the store hears which batches are here, in a few digests, and says what is different; rows of
facilities it does not name any more go first; then, of each facility, batches it does not have any more go,
and the manifests that are missing come in pieces; the time of the answer is written down last.

Guarantees: a stop at any point leaves rows that are right as of some answer, and an age not too young.
Whichever store is asked, and whatever became of it since, what is kept afterwards is what that store has. Of
a facility whose grant was taken back nothing is left, even if nothing else succeeds.

Leaves to others: the connection and trying again (`facility_sync.rounds`), the files
(`facility_sync.kept_rows`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from facility_sync import exchange
from facility_sync.home import Home
from facility_sync.kept_rows import Arrived, KeptRows, arrived, owner
from facility_sync.kept_state import State
from facility_sync.road import Road
from schemas import names, row_marks
from schemas.errors import Damaged, FormatError, SyncError
from schemas.names import BatchId, FacilityName
from schemas.row_messages import (
    MOST_BATCHES,
    ManifestsRequest,
    RowsAnswer,
    RowsRequest,
)

PATIENCE = 120.0
"""Seconds to wait for an answer."""
HAND_BYTES = 64 << 20
"""Manifests of about so many bytes are kept in one transaction; more of them are never in memory."""


@dataclass
class Brought:
    """What was done: batches that came and went, bytes of manifests, facilities whose rows went."""

    batches: int = 0
    dropped: int = 0
    bytes: int = 0
    gone: int = 0
    as_of: str = ""


def in_round(home: Home, road: Road) -> dict[str, Any]:
    """Bring rows at the end of a round, for its report. All is stored by then: what fails is a remark."""
    done = Brought()
    try:
        road.persist(lambda desk: bring(home, desk, done))
    except SyncError as error:
        return {"trouble": str(error)}
    return asdict(done)


def bring(home: Home, desk: exchange.Desk, done: Brought) -> None:
    """Bring what is different at the store; adds to `done`.

    Raises:
        AccessDenied: the store gives no rows away.
        SyncError: the answer could not be believed, or the road broke: do it again.
    """
    kept = KeptRows(home.offline)
    broken = False
    while True:
        state = kept.state()
        answer = _compare(home, desk, state)
        before = (done.batches, done.dropped)
        try:
            _follow(home, desk, kept, state, answer, done)
        except Damaged:  # a file of ours: it is gone, and comes again
            if broken:
                raise
            broken = True
            continue
        if not answer.until:
            done.as_of = answer.answered
            return
        if (done.batches, done.dropped) == before:
            raise FormatError("the store tells of more batches, and does not go on")


def _compare(home: Home, desk: exchange.Desk, state: State) -> RowsAnswer:
    identifier, created = exchange.new_request()
    request = RowsRequest(
        id=identifier,
        facility=names.facility_name(home.settings.facility),
        marks={owner: tuple(map(str, marks)) for owner, marks in state.marks.items()},
        created=created,
    )
    answer, _ = desk.converse(request, identifier, RowsAnswer, seconds=PATIENCE)
    return answer


def _follow(
    home: Home, desk: exchange.Desk, kept: KeptRows, state: State, answer: RowsAnswer, done: Brought
) -> None:
    """Make what is kept what the answer says."""
    damaged = frozenset(answer.damaged)
    for gone in set(kept.facilities()) - set(answer.owners):
        kept.remove(gone)
        done.gone += 1
    state = replace(
        state,
        marks={owner: marks for owner, marks in state.marks.items() if owner in answer.owners},
        partial=state.partial & set(answer.owners),
    )
    for facility in answer.owners:
        theirs = state.marks.get(facility, ())
        listed, until = answer.listed.get(facility, ()), answer.until.get(facility)
        same = list(answer.agreed.get(facility, ())) == [mark.last for mark in theirs]
        if same and not listed and until is None and damaged == state.damaged:
            state = replace(state, partial=state.partial - {facility})
            continue
        others = {owner: marks for owner, marks in state.marks.items() if owner != facility}
        state = replace(state, marks=others, partial=state.partial | {facility})
        kept.save(state)
        have = kept.known(facility)
        wanted = row_marks.understood(have, answer.agreed.get(facility, ()), theirs) | set(listed)
        if until is not None:
            wanted |= {known.batch for known in have if known.sequence >= until}
        here = {known.batch for known in have}
        missing = [batch for batch in listed if batch not in here]
        _change(home, desk, kept, facility, missing, here - wanted, damaged, done)
        told = set() if until is not None else {facility}
        marks = tuple(row_marks.marks(kept.known(facility)))
        state = replace(state, marks={**others, facility: marks}, partial=state.partial - told)
        kept.save(state)
    if not answer.until:
        kept.save(replace(state, store=answer.store, as_of=answer.answered, damaged=damaged))


def _change(
    home: Home,
    desk: exchange.Desk,
    kept: KeptRows,
    facility: FacilityName,
    missing: Sequence[BatchId],
    dropped: set[BatchId],
    damaged: frozenset[BatchId],
    done: Brought,
) -> None:
    if dropped or not missing:
        kept.change(facility, [], dropped, damaged)
    done.dropped += len(dropped)
    hand: list[Arrived] = []
    size = 0
    for item in _manifests(home, desk, missing):
        if owner(item) != facility:
            raise FormatError("the store gave a batch of another facility")
        hand.append(item)
        size += len(item.table)
        if size > HAND_BYTES:
            kept.change(facility, hand, (), damaged)
            done.batches, done.bytes = done.batches + len(hand), done.bytes + size
            hand, size = [], 0
    if hand:
        kept.change(facility, hand, (), damaged)
        done.batches, done.bytes = done.batches + len(hand), done.bytes + size


def _manifests(home: Home, desk: exchange.Desk, wanted: Sequence[BatchId]) -> Iterator[Arrived]:
    """The batches asked for, as far as the store still has them, piece by piece."""
    left = list(wanted)
    while left:
        asked = left[:MOST_BATCHES]
        identifier, created = exchange.new_request()
        request = ManifestsRequest(
            id=identifier,
            facility=names.facility_name(home.settings.facility),
            batches=tuple(asked),
            created=created,
        )
        answer, tables = desk.manifests(request, identifier, seconds=PATIENCE)
        came = [arrived(*item) for item in zip(answer.statements, answer.receipts, tables, strict=True)]
        told = {item.statement.batch for item in came} | set(answer.missing)
        if not told or not told <= set(asked):
            raise FormatError("the store did not give the manifests asked for")
        yield from came
        left = [batch for batch in left if batch not in told]
