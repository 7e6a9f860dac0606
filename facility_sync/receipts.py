"""The receipts a terminal keeps, and whether each still holds.

    receipts/<batch>.receipt.json  .receipt.json.sig      what the store signed, byte for byte
    receipts/<batch>.notice.json   .notice.json.sig       the store's word that it lost the batch later
    replicas/<store>/              the same of every further store that holds the batch

The store whose receipt came first has the place in `receipts/`. Guarantees: a receipt counts as verified only
if at this moment its bytes parse, its signature is that of the trusted store it names, and it names this
facility and the batch of its file name. A store that is not trusted is kept and never counted. Nothing here
changes a receipt.

Leaves to others: what they change (`facility_sync.courier`, `facility_sync.prune`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from facility_sync.home import Home
from facility_sync.ledger import Ledger
from schemas import container, messages, signature
from schemas.errors import FormatError, SealError
from schemas.transit import durable

_ENDING = ".receipt.json"
_NOTICE = ".notice.json"


class Holder(NamedTuple):
    """A store whose receipt for a batch lies here.

    Attributes:
        store: its name.
        stored: since when, in its words; empty if it cannot be read.
        problem: why it does not count now; empty if it does.
    """

    store: str
    stored: str
    problem: str


class Kept(NamedTuple):
    """One receipt as it lies in the home.

    Attributes:
        batch: the batch its file is named after.
        receipt: what it says, or None if it cannot be read.
        problem: why it does not hold now; empty if it does.
        lost: when the store said that it lost this batch; empty if it did not.
        replicas: the further stores.
    """

    batch: str
    receipt: messages.Receipt | None
    problem: str
    lost: str
    replicas: tuple[Holder, ...] = ()

    @property
    def verified(self) -> bool:
        """Whether it holds now."""
        return not self.problem

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        said = self.receipt
        return {
            "stored": said and said.stored,
            "batch": self.batch,
            "objects": said and said.objects,
            "bytes": said and said.bytes,
            "store": said and said.store,
            "verified": self.verified,
            "problem": self.problem,
            "lost": self.lost,
            "replicas": [holder._asdict() | {"verified": not holder.problem} for holder in self.replicas],
        }


def path_of(home: Home, batch: str, ending: str = _ENDING, store: str = "") -> Path:
    """Where a batch's receipt lies, or a further store's; the signature's name has `.sig` behind it."""
    return (home.replicas / store if store else home.receipts) / f"{batch}{ending}"


def keep(home: Home, signed: container.Signed) -> None:
    """Bring a store's receipt or notice to its place; a receipt takes that store's notice away.

    Args:
        home: the terminal's home.
        signed: a message whose names were checked, verified or not.
    """
    message = signed.message
    if not isinstance(message, messages.Receipt | messages.Notice):
        raise TypeError("only receipts and notices are kept")
    first = _said_by(path_of(home, message.batch))
    place = message.store if first not in ("", message.store) else ""
    if place:
        durable.make_dirs(home.replicas / place)
    path = path_of(home, message.batch, f".{message.TYPE}.json", place)
    _publish(path, signed)
    if isinstance(message, messages.Receipt):
        _back(home, message.batch, place)


def _back(home: Home, batch: str, place: str) -> None:
    """What was lost is back: the store's notice is gone."""
    notice = path_of(home, batch, _NOTICE, place)
    durable.remove(notice)
    durable.remove(notice.with_name(notice.name + ".sig"))


def _publish(path: Path, signed: container.Signed) -> None:
    """The signature first: a stop between the two leaves nothing that cannot be verified."""
    durable.publish(path.with_name(path.name + ".sig"), signed.armor.encode(), replace=True)
    durable.publish(path, signed.data, replace=True)


def keep_replica(home: Home, signed: container.Signed) -> bool:
    """Keep a receipt of another store that came over this one; whether it counts now."""
    message = signed.message
    if not isinstance(message, messages.Receipt):
        raise TypeError("a replica is a receipt")
    if not path_of(home, message.batch).exists() or _said_by(path_of(home, message.batch)) != message.store:
        folder = home.replicas / message.store
        durable.make_dirs(folder)
        path = path_of(home, message.batch, store=message.store)
        if _problem(home, signed.message, signed.data, signed.armor) and not _verified(home, path)[1]:
            return False  # what holds is not replaced by what does not
        _publish(path, signed)
        _back(home, message.batch, message.store)
    return not _problem(home, signed.message, signed.data, signed.armor)


def keep_notice(home: Home, signed: container.Signed) -> bool:
    """Keep a notice of another store that came over this one, if it is that store's; whether it is."""
    if _problem(home, signed.message, signed.data, signed.armor):
        return False
    keep(home, signed)
    return True


def kept(home: Home, batch: str) -> Kept | None:
    """The receipts for a batch, verified now; None if there is none.

    The first that holds stands for the batch, the one in `receipts/` before the further stores'.
    """
    found = [
        item
        for place in ("", *(folder.name for folder in _folders(home)))
        if (item := _look(home, batch, place)) is not None
    ]
    if not found:
        return None
    first = min(found, key=lambda item: (bool(item.problem), bool(item.lost)))
    rest, seen = [], {first.receipt.store if first.receipt else ""}
    for item in found:
        store = item.receipt.store if item.receipt else ""
        if item is not first and store not in seen:
            seen.add(store)
            lost = "the store said that it lost the batch later" if item.lost else ""
            rest.append(Holder(store, item.receipt.stored if item.receipt else "", item.problem or lost))
    return first._replace(replicas=tuple(rest))


def listing(home: Home) -> Iterator[Kept]:
    """Every batch with a receipt, verified now."""
    places = (home.receipts, *_folders(home))
    names = {path.name for place in places for path in place.glob(f"*{_ENDING}")}
    for name in sorted(names):
        found = kept(home, name.removesuffix(_ENDING))
        if found is not None:
            yield found


def _look(home: Home, batch: str, place: str) -> Kept | None:
    """The receipt of one store."""
    path = path_of(home, batch, store=place)
    if not path.exists():
        return None
    message, problem = _verified(home, path)
    receipt = message if isinstance(message, messages.Receipt) else None
    if not problem and (receipt is None or receipt.batch != batch or place not in ("", receipt.store)):
        problem = "it is not this batch's receipt"
    notice, doubt = _verified(home, path_of(home, batch, _NOTICE, place))
    lost = notice.found if isinstance(notice, messages.Notice) and not doubt else ""
    return Kept(batch, receipt, problem, lost)


def _folders(home: Home) -> list[Path]:
    try:
        return sorted(path for path in home.replicas.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []


def _said_by(path: Path) -> str:
    """The store a kept message names, or an empty text."""
    with suppress(OSError, FormatError):
        return str(getattr(messages.parse(path.read_bytes()), "store", ""))
    return ""


def _verified(home: Home, path: Path) -> tuple[messages.Message | None, str]:
    """What a file says, and what is wrong with it now."""
    message: messages.Message | None = None
    try:
        data = path.read_bytes()
        message = messages.parse(data)
        armor = path.with_name(path.name + ".sig").read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return message, "a file is missing or cannot be read"
    except FormatError:
        return message, "it is not in the form of a receipt"
    return message, _problem(home, message, data, armor)


def _problem(home: Home, message: messages.Message, data: bytes, armor: str) -> str:
    """Why a message does not hold now, or an empty text."""
    said_by = getattr(message, "store", "")
    card = next((card for card in home.stores if card.store == said_by), None)
    if card is None:
        return "its store is not trusted here"
    try:
        container.verify(data, armor, card.signing_key)
    except FormatError:
        return "it is not in the form of a receipt"
    except SealError:
        return "its signature is not the trusted store's"
    return "" if getattr(message, "facility", "") == home.settings.facility else "it is another facility's"


def holders(found: Kept) -> list[str]:
    """The stores whose receipt for a batch holds now, and that did not lose it since."""
    first = [found.receipt.store] if found.receipt and found.verified and not found.lost else []
    return first + [holder.store for holder in found.replicas if not holder.problem]


def index(home: Home, ledger: Ledger, only: str = "") -> None:
    """Tell the ledger every holder whose receipt holds now, and where the sequence stands if it was lost.

    Args:
        home: whose receipts.
        ledger: learns of them.
        only: the one store whose receipts are new to us; empty: all.
    """
    if only and not (home.replicas / only).exists():
        return
    latest = (0, "")
    for found in listing(home):
        for store in holders(found):
            if only in ("", store):
                ledger.hold(found.batch, store)
        if found.receipt is not None and found.verified:
            latest = max(latest, (found.receipt.sequence, found.batch))
    if ledger.head() == (0, "") and latest[0]:
        ledger.adopt_head(*latest)


def export(home: Home, to: Path) -> int:
    """Copy every receipt that holds now, with what `ssh-keygen` needs to verify it; of how many batches.

    Args:
        home: whose receipts.
        to: a folder; made if missing, files of the same names are replaced.
    """
    durable.make_dirs(to, mode=0o755)
    count = 0
    for found in listing(home):
        count += found.verified
        for place in ("", *holders(found)):
            one = _look(home, found.batch, place)
            if one is not None and one.verified:
                for ending in (_ENDING, _ENDING + ".sig"):
                    target = to / f"{found.batch}{place and '.'}{place}{ending}"
                    data = path_of(home, found.batch, ending, place).read_bytes()
                    durable.publish(target, data, replace=True, lasting=False)
    space = signature.namespace(messages.Receipt.TYPE)
    signers = "".join(f'{card.store} namespaces="{space}" {card.signing_key}\n' for card in home.stores)
    durable.publish(to / "allowed_signers", signers.encode(), replace=True, lasting=False)
    stores = ", ".join(card.store for card in home.stores)
    text = _README.format(stores=stores, facility=home.settings.facility, space=space)
    durable.publish(to / "README.txt", text.encode(), replace=True)
    return count


_README = r"""Receipts for the facility {facility}, of: {stores}

Each BATCH.receipt.json says: this batch is durable at the store it names. BATCH.receipt.json.sig is that
store's signature over its bytes. BATCH.STORE.receipt.json is the same of a further store. `allowed_signers`
holds the stores' public keys; compare them with those the stores' operators name.

One receipt of the store STORE:

    ssh-keygen -Y verify -f allowed_signers -I STORE -n {space} \
        -s BATCH.receipt.json.sig < BATCH.receipt.json

All of them, in this folder:

    for receipt in *.receipt.json; do
        store=$(sed 's/.*"store":"\([^"]*\)".*/\1/' "$receipt")
        ssh-keygen -Y verify -f allowed_signers -I "$store" -n {space} \
            -s "$receipt.sig" < "$receipt" || echo "WRONG $receipt"
    done

`ssh-keygen` is part of OpenSSH 8.0 or newer. A batch is named by the SHA-256 of its manifest.
"""
