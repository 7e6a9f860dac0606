"""Sealed batches and requests of a test facility, built from rows and object bytes.

clinic = Facility("clinic-a")
made = clinic.batch([row(study_uid="1.2.3")], store_card)
(folder / f"{made.batch}.batch").write_bytes(made.sealed)
"""

from __future__ import annotations

import base64
import hashlib
import io
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from central_store.batches import Batch
from central_store.settings import Store
from schemas import columns, container, envelope, keys, manifest, messages, names, ustar
from schemas.transit import durable

NOW = datetime.now(UTC).replace(microsecond=0)
"""The present: files that tests make have the times of the clock, and a store compares them with it."""


def digest(text: str) -> str:
    """A stand-in for a keyed digest."""
    return hashlib.sha256(text.encode()).hexdigest()


def token(text: str) -> str:
    """A stand-in for a token: its shape, without a key."""
    return "1" + base64.b32encode(hashlib.sha256(text.encode()).digest()[:16]).decode().rstrip("=")


def row(number: int = 0, *, study: int = 1, series: int = 1, **values: Any) -> dict[str, Any]:
    """A row with every column; `values` replaces any of them. Bytes and facility are filled in by `batch`."""
    filled: dict[str, Any] = {
        column.name: None if not column.required else [] if "tokens" in column.name else None
        for column in columns.COLUMNS
    }
    filled |= {
        "encoding": "age",
        "dicom_bytes": 1000,
        "source_digest": digest(f"{study}.{series}.{number}"),
        "captured_at": NOW,
        "study_uid": f"1.2.{study}",
        "series_uid": f"1.2.{study}.{series}",
        "sop_instance_uid": f"1.2.{study}.{series}.{number}",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "study_date": date(2024, 3, study % 28 + 1),
        "modality": "CT",
        "menu": "Thorax routine",
        "body_part": "CHEST",
        "series_number": series,
        "instance_number": number,
        "patient_id_tokens": [token(f"patient {study}")],
        "domains": ["0d" * 8],
        "sealed_identity": f"sealed {study}".encode(),
        "flags": [],
    }
    return filled | values


class Made(NamedTuple):
    """A sealed batch and what is in it."""

    batch: names.BatchId
    sealed: bytes
    plain: bytes
    statement: container.Signed
    table: bytes
    objects: dict[str, bytes]

    @property
    def file(self) -> str:
        """Its name on a shelf."""
        return f"{self.batch}.batch"


@dataclass
class Facility:
    """A facility's keys and what it sends."""

    name: str
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    identity: str = field(default_factory=keys.new_age_identity)
    sequence: int = 0
    previous: str = ""

    @property
    def card(self) -> messages.FacilityCard:
        """What a store enrols."""
        return messages.FacilityCard(
            facility=names.facility_name(self.name),
            ssh_key=keys.ssh_line(self.key.public_key()),
            age_recipient=keys.recipient_of(self.identity),
        )

    def batch(
        self,
        rows: Sequence[Mapping[str, Any]],
        store: messages.StoreCard,
        objects: Sequence[bytes] | None = None,
        **changes: Any,
    ) -> Made:
        """A batch sealed for the store.

        Args:
            rows: from `row`.
            store: whom to seal it for.
            objects: the bytes of each row's object; random ones by default.
            changes: fields of the statement to replace, and `signer`, `table_facility`, `members`.
        """
        objects = [secrets.token_bytes(1500 + i) for i in range(len(rows))] if objects is None else objects
        facility = changes.pop("table_facility", self.name)
        signer = changes.pop("signer", self.key)
        filled = [
            dict(given)
            | {
                "facility": facility,
                "object_sha256": hashlib.sha256(data).hexdigest(),
                "object_bytes": len(data),
            }
            for given, data in zip(rows, objects, strict=True)
        ]
        table = manifest.to_parquet(filled, facility=facility)
        batch = names.BatchId(hashlib.sha256(table).hexdigest())
        values: dict[str, Any] = {
            "facility": self.name, "sequence": self.sequence + 1, "previous": self.previous, "batch": batch,
            "objects": len(rows), "bytes": sum(map(len, objects)), "created": messages.rfc3339(NOW),
        }  # fmt: skip
        members = changes.pop("members", objects)
        statement = container.sign(messages.Statement(**(values | changes)), signer)
        self.sequence, self.previous = self.sequence + 1, batch
        packed = tar_of(members, [given["encoding"] for given in rows])
        plain = container.head_bytes(statement, table) + packed + ustar.END
        sealed = envelope.seal_bytes(plain, [store.age_recipient])
        named = {hashlib.sha256(data).hexdigest(): data for data in objects}
        return Made(batch, sealed, plain, statement, table, named)

    def request(
        self, message: messages.Message, store: messages.StoreCard, signer: Ed25519PrivateKey | None = None
    ) -> bytes:
        """A request as it lies on a shelf."""
        signed = container.sign(message, signer or self.key)
        return envelope.seal_bytes(container.whole(signed), [store.age_recipient])

    def open(self, sealed: bytes, store: messages.StoreCard) -> tuple[messages.Message, bytes | None, bytes]:
        """A reply of the store: its message, its table, and the tar it came in."""
        plain = envelope.open_bytes(sealed, [self.identity], limit=1 << 30)
        head = container.read_head(
            ustar.Reader(io.BytesIO(plain), limit=1 << 30), lambda _: store.signing_key
        )
        return head.signed.message, head.table, plain


def send(store: Store, who: Facility, *rows: dict[str, Any]) -> Batch:
    """Make a batch of these rows, or of a new one, and put it on its facility's shelf, whole at once."""
    made = who.batch(rows or [row(who.sequence)], store.card())
    batch = Batch(names.facility_name(who.name), made.batch)
    durable.publish(store.layout.inbound(batch.facility) / made.file, made.sealed)
    return batch


def tar_of(objects: Sequence[bytes], encodings: Sequence[str] = ()) -> bytes:
    """The members of these objects, without the tar's end; named for `age` where nothing else is said."""
    endings = [container.ENDINGS.get(encoding, "age") for encoding in encodings]
    return b"".join(
        ustar.header(f"objects/{hashlib.sha256(data).hexdigest()}.{ending}", len(data))
        + data
        + ustar.padding(len(data))
        for data, ending in zip(objects, [*endings, *["age"] * len(objects)], strict=False)
    )


def request_id() -> names.RequestId:
    """A fresh one."""
    return names.RequestId(secrets.token_hex(16))
