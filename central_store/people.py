"""Facilities, accounts and grants travel between stores: who is believed about whom, and which change counts.

    people/<subject>.<time>.<digest>      one change: the message, LF, its signer's key, LF, the signature

A subject is a file of `grants/` or `accounts/`. A change made here is noticed by comparing each file with
the last change of it, dated by the file's time (never before the change it follows, so that a clock that is
behind does not lose it), and signed. Of all changes of a subject the last counts, by time and then by digest;
all are kept, and the last of each store travels, so that two that were made at once are known at both. A
change dated more than a day ahead is not taken until then.

Who is believed: a peer may bring the facilities its entry names (`peers.ANY`: all that are unknown here), and
its word on accounts and grants counts for facilities that it brought or that its entry names. It never
changes the key of a facility that was enrolled here, or came from elsewhere.

Guarantees: whatever a peer says, files are written only in the one form their readers know.
"""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from central_store import accounts, audit, facilities, tombstones
from central_store.layout import Layout
from central_store.peers import ANY, Peer
from central_store.settings import Store
from schemas import container, keys, names
from schemas.errors import FormatError, SettingsError, SyncError
from schemas.messages import FacilityCard, canonical, rfc3339
from schemas.names import BatchId, FacilityName
from schemas.peer_messages import Change, PeopleAnswer
from schemas.transit import durable

log = logging.getLogger("central_store")

AHEAD = timedelta(days=1)
"""How far ahead of ours a peer's clock may be."""
_PHC = f"$argon2id$v=19$m={accounts.MEMORY_KIB},t={accounts.ITERATIONS},p={accounts.LANES}$"


class Known(NamedTuple):
    """A change, who signed it, and what orders it."""

    change: Change
    key: str
    signed: container.Signed

    @property
    def order(self) -> tuple[str, str]:
        """The greatest counts."""
        return self.change.changed, hashlib.sha256(self.signed.data).hexdigest()


# -- what there is -----------------------------------------------------------------------------------


def everything(layout: Layout) -> list[Known]:
    """All changes, the oldest first; raises `SettingsError` for a file that is none."""
    found = []
    for path in layout.people.glob("*"):
        if path.suffix == ".part":
            continue
        try:
            data, key, armor = path.read_bytes().split(b"\n", 2)
            found.append(_known(data, key.decode("ascii"), armor.decode("ascii")))
        except (ValueError, SyncError) as error:
            raise SettingsError("a file in people/ is no change") from error
    return sorted(found, key=lambda known: known.order)


def last(layout: Layout) -> dict[str, Known]:
    """The change that counts of each subject."""
    return {known.change.subject: known for known in everything(layout)}


def _known(data: bytes, key: str, armor: str) -> Known:
    signed = container.verify(data, armor, key)
    if not isinstance(signed.message, Change):
        raise FormatError("this is no change")
    return Known(signed.message, key, signed)


def record(store: Store, now: datetime) -> dict[str, Known]:
    """Sign what changed here since the last look; returns what counts now."""
    layout, known = store.layout, last(store.layout)
    present = {_subject(layout, path): path for path in _files(layout)}
    for subject in sorted(set(present) | set(known)):
        path, before = present.get(subject), known.get(subject)
        content, moment = "", now
        if path is not None:
            with suppress(FileNotFoundError):
                content = path.read_bytes().decode("utf-8", "replace")
                moment = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        if content == ("" if before is None else before.change.content):
            continue
        if before is not None:
            moment = max(moment, datetime.fromisoformat(before.change.changed) + timedelta(seconds=1))
        change = Change(store=store.name, subject=subject, content=content, changed=rfc3339(moment))
        signed = container.sign(change, store.keys.signing)
        known[subject] = Known(change, keys.ssh_line(store.keys.signing.public_key()), signed)
        _keep(layout, known[subject])
    return known


def _files(layout: Layout) -> list[Path]:
    return [*layout.grants.glob("*.json"), *layout.accounts.glob("*/*.json")]


def _subject(layout: Layout, path: Path) -> str:
    return path.relative_to(layout.root).as_posix()


def _keep(layout: Layout, known: Known) -> None:
    durable.make_dirs(layout.people)
    moment = known.change.changed.replace("-", "").replace(":", "")
    subject = hashlib.sha256(known.change.subject.encode()).hexdigest()[:32]
    path = layout.people / f"{subject}.{moment}.{known.order[1][:16]}"
    if path.exists():
        return
    data = b"\n".join((known.signed.data, known.key.encode("ascii"), known.signed.armor.encode("ascii")))
    durable.publish(path, data, mode=0o600, replace=True)


def about(layout: Layout, subject: str) -> tuple[FacilityName, Path]:
    """Whose business a subject is, and its file; raises `FormatError`."""
    folder, _, rest = subject.partition("/")
    stem, dot, ending = rest.rpartition(".")
    if not dot or ending != "json":
        raise FormatError("this is no subject of a change")
    if folder == "grants":
        owner, _, reader = stem.partition(".")
        return names.facility_name(owner), layout.grant(
            names.facility_name(owner), names.facility_name(reader)
        )
    facility, _, user = stem.partition("/")
    if folder != "accounts":
        raise FormatError("this is no subject of a change")
    return names.facility_name(facility), layout.account(names.facility_name(facility), names.user_name(user))


# -- to a peer ---------------------------------------------------------------------------------------


class Told(NamedTuple):
    """What a peer may know, and its digest."""

    cards: tuple[str, ...]
    changes: tuple[Known, ...]
    shared: tuple[FacilityName, ...]
    erased: tuple[tuple[BatchId, ...], ...]
    """Of each of the shared facilities."""

    @property
    def digest(self) -> str:
        """Changes when any of it does."""
        said = [self.cards, [item.signed.armor for item in self.changes], self.erased]
        return hashlib.sha256(canonical(said)).hexdigest()


def told(store: Store, peer: Peer, now: datetime) -> Told:
    """Cards, former ones too, changes and erased batches of the facilities this peer takes part in."""
    layout, cards = store.layout, []
    shared = [name for name in facilities.enrolled(layout) if {ANY, name} & set(peer.facilities)]
    for name in shared:
        present = facilities.load(layout, name)
        former = sorted(layout.former.glob(f"{name}.*.json"))
        found = [*([present.to_bytes()] if present else []), *(path.read_bytes() for path in former)]
        cards += [FacilityCard.from_bytes(data).to_bytes().decode() for data in found]
    record(store, now)
    words = {(known.change.subject, known.key): known for known in everything(layout)}
    ours = [words[word] for word in sorted(words) if about(layout, word[0])[0] in shared]
    erased = tuple(tuple(sorted(tombstones.of(layout, name))) for name in shared)
    return Told(tuple(cards), tuple(ours), tuple(shared), erased)


# -- from a peer -------------------------------------------------------------------------------------


def apply(store: Store, peer: Peer, answer: PeopleAnswer, now: datetime) -> bool:
    """Take what a peer says, as far as it is believed; the rest is a line in the log.

    Returns:
        Whether that is all; False if something is dated too far ahead, and to be heard again.
    """
    layout, early = store.layout, False
    _introduce(layout, peer, [FacilityCard.from_bytes(card.encode()) for card in answer.cards])
    if not len(answer.changes) == len(answer.keys) == len(answer.signatures):
        raise FormatError("people-answer: changes, keys and signatures are not as many")
    known = record(store, now)
    for data, key, armor in zip(answer.changes, answer.keys, answer.signatures, strict=True):
        try:
            change = _known(data.encode("utf-8", "replace"), key, armor)
            if datetime.fromisoformat(change.change.changed) > now + AHEAD:
                early = True
                raise FormatError("it is dated too far ahead")
            if _take(layout, peer, change, known.get(change.change.subject)):
                known[change.change.subject] = change
        except SyncError as error:
            log.warning("change not taken peer=%s: %s", peer.name, error)
    return not early


def _introduce(layout: Layout, peer: Peer, cards: list[FacilityCard]) -> None:
    """Enrol facilities; of each the present card comes first, then those its key replaced."""
    seen: set[FacilityName] = set()
    for card in cards:
        name = card.facility
        present, known = facilities.load(layout, name), facilities.via(layout, name)
        first = name not in seen
        seen.add(name)
        if not first:
            if known == peer.name and card.ssh_key not in facilities.signers(layout, name):
                data = card.to_bytes()
                old = layout.former / f"{name}.{hashlib.sha256(data).hexdigest()[:16]}.json"
                subject, details = keys.fingerprint(card.ssh_key), {"former": True, "peer": peer.name}
                audit.record(layout, "enrol", facility=name, subject=subject, details=details)
                durable.publish(old, data, replace=True)
        elif present is None:
            if {ANY, name} & set(peer.facilities):
                with suppress(SettingsError):  # a name that differs in letter case only, or is a peer's
                    facilities.enrol(layout, card, through=peer.name)
                    log.info("facility=%s came through peer=%s", name, peer.name)
        elif present != card and known == peer.name:
            facilities.enrol(layout, card, replace_key=True, through=peer.name)
            log.warning("facility=%s has another key, says peer=%s that brought it", name, peer.name)
        elif present.ssh_key != card.ssh_key and card.ssh_key not in facilities.signers(layout, name):
            log.error("facility=%s has another key at peer=%s: not taken", name, peer.name)


def _take(layout: Layout, peer: Peer, new: Known, present: Known | None) -> bool:
    """Keep a change, and let it count if it is the last one; returns whether it is."""
    facility, path = about(layout, new.change.subject)
    if facility not in peer.facilities and facilities.via(layout, facility) != peer.name:
        return False  # its own store's word counts, not this one's
    content = new.change.content
    if content:
        _check(new.change.subject, content)
    _keep(layout, new)
    if present is not None and present.order >= new.order:
        return False
    _log(layout, peer, facility, path, gone=not content)
    if not content:
        durable.remove(path)
        return True
    durable.make_dirs(path.parent)
    mode = 0o600 if path.is_relative_to(layout.accounts) else 0o444
    durable.publish(path, content.encode(), mode=mode, replace=True)
    return True


def _log(layout: Layout, peer: Peer, facility: FacilityName, path: Path, *, gone: bool) -> None:
    """Into the audit log, as if the command had been given here; the peer is named in it."""
    details: dict[str, Any] = {"peer": peer.name}
    if path.is_relative_to(layout.accounts):
        kind = "account-removed" if gone else "account"
        details |= {} if gone else {"new": not path.exists()}
        audit.record(layout, kind, facility=facility, user=path.stem, details=details)
    else:
        reader = path.stem.partition(".")[2]
        audit.record(
            layout, "revoke" if gone else "grant", facility=facility, subject=reader, details=details
        )


def _check(subject: str, content: str) -> None:
    """A file as our own commands write it, for that subject; raises `FormatError`."""
    try:
        found: Any = json.loads(content)
        right = isinstance(found, dict) and canonical(found) == content.encode() and found["version"] == 1
        if subject.startswith("grants/"):
            right = (
                right and found["type"] == "grant" and set(found) == {"owner", "reader", "type", "version"}
            )
            right = right and subject == f"grants/{found['owner']}.{found['reader']}.json"
        else:
            phc = found["phc"]
            right = right and found["type"] == "account" and len(found) == 5 and isinstance(phc, str)
            right = right and subject == f"accounts/{found['facility']}/{found['user']}.json"
            right = right and phc.startswith(_PHC) and len(phc) < 200 and phc.isascii()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError("a change holds no grant or account") from error
    if not right:
        raise FormatError("a change holds no grant or account of this version")


def brought(layout: Layout) -> dict[FacilityName, FacilityName]:
    """The facilities that came through peers, each with its peer."""
    found = {name: facilities.via(layout, name) for name in facilities.enrolled(layout)}
    return {name: peer for name, peer in found.items() if peer is not None}


def adopt(layout: Layout, peer: FacilityName) -> None:
    """Treat what a peer brought as if it had been enrolled here: this store was rebuilt from it."""
    audit.record(layout, "restore", subject=peer, details=audit.operator())
    for name, source in brought(layout).items():
        card = facilities.load(layout, name)
        if source == peer and card is not None:
            facilities.enrol(layout, card)
