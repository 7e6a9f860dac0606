"""The receipts a terminal keeps, and whether each still holds.

    receipts/<batch>.receipt.json  .receipt.json.sig      what the store signed, byte for byte
    receipts/<batch>.notice.json   .notice.json.sig       the store's word that it lost the batch later

Guarantees: a receipt counts as verified only if at this moment its bytes parse, its signature is the
trusted store's and it names this facility and the batch of its file name. Nothing here changes a receipt.

Leaves to others: putting them there (`facility_sync.exchange`), what follows (`facility_sync.prune`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from facility_sync.home import Home
from schemas import container, messages, names, signature
from schemas.errors import FormatError, SealError
from schemas.transit import durable

_ENDING = ".receipt.json"


class Kept(NamedTuple):
    """One receipt as it lies in the home.

    Attributes:
        batch: the batch its file is named after.
        receipt: what it says, or None if it cannot be read.
        problem: why it does not hold now; empty if it does.
        lost: when the store said that it lost this batch; empty if it did not.
    """

    batch: str
    receipt: messages.Receipt | None
    problem: str
    lost: str

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
        }


def path_of(home: Home, batch: str, ending: str = _ENDING) -> Path:
    """Where a batch's receipt lies; its signature beside it with `.sig` behind the name."""
    return home.receipts / f"{batch}{ending}"


def kept(home: Home, batch: str) -> Kept | None:
    """One receipt, verified now; None if there is none."""
    path = path_of(home, batch)
    if not path.exists():
        return None
    message, problem = _verified(home, path)
    receipt = message if isinstance(message, messages.Receipt) else None
    if not problem and (receipt is None or receipt.batch != batch):
        problem = "it is not this batch's receipt"
    notice, doubt = _verified(home, path_of(home, batch, ".notice.json"))
    lost = notice.found if isinstance(notice, messages.Notice) and not doubt else ""
    return Kept(batch, receipt, problem, lost)


def listing(home: Home) -> Iterator[Kept]:
    """Every receipt, verified now, by batch."""
    for path in sorted(home.receipts.glob(f"*{_ENDING}")):
        found = kept(home, path.name.removesuffix(_ENDING))
        if found is not None:
            yield found


def _verified(home: Home, path: Path) -> tuple[messages.Message | None, str]:
    """What a file says, and what is wrong with it now."""
    message: messages.Message | None = None
    try:
        data = path.read_bytes()
        message = messages.parse(data)
        armor = path.with_name(path.name + ".sig").read_text("ascii")
        container.verify(data, armor, home.store.signing_key)
    except (OSError, UnicodeDecodeError):
        return message, "a file is missing or cannot be read"
    except FormatError:
        return message, "it is not in the form of a receipt"
    except SealError:
        return message, "its signature is not the trusted store's"
    if getattr(message, "facility", "") != home.settings.facility:
        return message, "it is another facility's"
    return message, ""


def replicas(home: Home, batch: str) -> int:
    """How many stores beyond the first have given a receipt for a batch that holds now.

    A terminal trusts one store and keeps its one receipt for each batch: then there is none.
    """
    found = [_verified(home, path) for path in home.receipts.glob(f"{names.batch_id(batch)}*{_ENDING}")]
    stores = {getattr(message, "store", "") for message, problem in found if not problem}
    return max(0, len(stores) - 1)


def export(home: Home, to: Path) -> int:
    """Copy every receipt that holds now, with what `ssh-keygen` needs to verify it; returns how many.

    Args:
        home: whose receipts.
        to: a folder; made if missing, files of the same names are replaced.
    """
    durable.make_dirs(to, mode=0o755)
    count = 0
    for found in listing(home):
        if found.verified:
            for path in (path_of(home, found.batch), path_of(home, found.batch, _ENDING + ".sig")):
                durable.publish(to / path.name, path.read_bytes(), replace=True, lasting=False)
            count += 1
    space = signature.namespace(messages.Receipt.TYPE)
    signer = f'{home.store.store} namespaces="{space}" {home.store.signing_key}\n'
    durable.publish(to / "allowed_signers", signer.encode(), replace=True, lasting=False)
    text = _README.format(store=home.store.store, facility=home.settings.facility, space=space)
    durable.publish(to / "README.txt", text.encode(), replace=True)
    return count


_README = """Receipts of the store {store} for the facility {facility}

Each BATCH.receipt.json says: this batch is durable here. BATCH.receipt.json.sig is the store's signature over
its bytes. `allowed_signers` holds the store's public key; compare it with the one the store's operator names.

One receipt:

    ssh-keygen -Y verify -f allowed_signers -I {store} -n {space} \\
        -s BATCH.receipt.json.sig < BATCH.receipt.json

All of them, in this folder:

    for receipt in *.receipt.json; do
        ssh-keygen -Y verify -f allowed_signers -I {store} -n {space} \\
            -s "$receipt.sig" < "$receipt" || echo "WRONG $receipt"
    done

`ssh-keygen` is part of OpenSSH 8.0 or newer. A batch is named by the SHA-256 of its manifest.
"""
