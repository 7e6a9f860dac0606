"""The one container that carries everything: a signed message, the table it speaks of, and objects.

A container is a tar (`schemas.ustar`) of, in this order:

    manifest.parquet             a table, when the message names one
    <message>.json               canonical JSON: statement, receipt, refusal, request or answer
    <message>.json.sig           SSHSIG over it, namespace `<type>@facility-sync`
    objects/<sha256>.<ending>    any number, when the message announces them
    manifests/<batch>.parquet    the same

and travels sealed (`schemas.envelope`). Guarantees: `read_head` returns a message only after its
signature was checked with the key the caller expects and the table's SHA-256 is the one it names; later
members are checked one by one as they stream. Whatever the bytes, only `FormatError` or `SealError`
come out.

Leaves to others: whether the signer may say what he says; what the table holds (`schemas.manifest`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas import (
    audit_messages,
    erasure_messages,
    messages,
    peer_messages,
    row_messages,
    signature,
    ustar,
)  # fmt: skip
from schemas.errors import FormatError, SealError
from schemas.names import BatchId, ObjectId, object_id

BATCH_BYTES = 256 * 1024 * 1024
"""A batch's objects stay below this; only an object larger than it travels alone above it."""
MAX_CONTENT = ustar.MAX_SIZE + BATCH_BYTES
"""Most bytes of members in one container: one object of the largest size and its company."""
TABLE = "manifest.parquet"
MAX_TABLE = 64 * 1024 * 1024
MAX_SIGNATURE = 4096

MESSAGE_FILES: dict[type[messages.Message], str] = {
    messages.Statement: "statement.json",
    messages.Receipt: "receipt.json",
    messages.Refusal: "refusal.json",
    messages.Notice: "notice.json",
    erasure_messages.Tombstone: "tombstone.json",
    erasure_messages.Erasure: "erasure.json",
    messages.HeldRequest: "request.json",
    messages.SearchRequest: "request.json",
    messages.SqlRequest: "request.json",
    messages.FetchRequest: "request.json",
    peer_messages.StoresRequest: "request.json",
    audit_messages.AuditRequest: "request.json",
    row_messages.RowsRequest: "request.json",
    row_messages.ManifestsRequest: "request.json",
    messages.HeldAnswer: "answer.json",
    messages.SearchAnswer: "answer.json",
    messages.SqlAnswer: "answer.json",
    messages.FetchAnswer: "answer.json",
    peer_messages.StoresAnswer: "answer.json",
    audit_messages.AuditAnswer: "answer.json",
    row_messages.RowsAnswer: "answer.json",
    row_messages.ManifestsAnswer: "answer.json",
    peer_messages.LogRequest: "request.json",
    peer_messages.LogAnswer: "answer.json",
    peer_messages.BatchesRequest: "request.json",
    peer_messages.BatchesAnswer: "answer.json",
    peer_messages.PeopleRequest: "request.json",
    peer_messages.PeopleAnswer: "answer.json",
}
ENDINGS: dict[str, str] = {"dicom": "dcm", "dicom+zstd": "dcm.zst", "age": "age", "age+zstd": "age"}
"""A row's encoding to the ending of its object's name."""


class Signed(NamedTuple):
    """A message with its signature, as they lie in a container and beside a manifest."""

    message: messages.Message
    data: bytes
    armor: str


class Head(NamedTuple):
    """What stands in front of the objects."""

    signed: Signed
    table: bytes | None


def sign(message: messages.Message, key: Ed25519PrivateKey) -> Signed:
    """Sign a message for its own namespace."""
    data = message.to_bytes()
    return Signed(message, data, signature.sign(key, signature.namespace(message.TYPE), data))


def verify(data: bytes, armor: str, signer: str) -> Signed:
    """A message whose signature by `signer` fits; raises `FormatError`, `SealError`."""
    message = messages.parse(data)
    signature.verify(armor, signer, signature.namespace(message.TYPE), data)
    return Signed(message, data, armor)


def table_digest(message: messages.Message) -> str:
    """SHA-256 of the table a message speaks of, or an empty text: its own field, or a batch's id."""
    if isinstance(message, messages.Statement):
        return message.batch
    tabled = (messages.SearchAnswer, messages.SqlAnswer, audit_messages.AuditAnswer)
    return message.table if isinstance(message, tabled) else ""


def object_name(name: ObjectId, encoding: str) -> str:
    """`objects/<sha256>.<ending>`; raises `FormatError` for an encoding this version does not know."""
    if encoding not in ENDINGS:
        raise FormatError("an object has an encoding this program does not know")
    return f"objects/{name}.{ENDINGS[encoding]}"


def head_bytes(signed: Signed, table: bytes | None = None) -> bytes:
    """Everything up to the objects."""
    stem = MESSAGE_FILES[type(signed.message)]
    parts = [] if table is None else [(TABLE, table)]
    parts += [(stem, signed.data), (stem + ".sig", signed.armor.encode("ascii"))]
    return b"".join(ustar.header(name, len(data)) + data + ustar.padding(len(data)) for name, data in parts)


def whole(signed: Signed, table: bytes | None = None) -> bytes:
    """A container without objects."""
    return head_bytes(signed, table) + ustar.END


def read_head(tar: ustar.Reader, signer: Callable[[messages.Message], str]) -> Head:
    """Read up to the objects.

    Args:
        tar: a reader at its beginning.
        signer: given the message, whose signature it must bear (an `ssh-ed25519 …` line); may raise.

    Raises:
        FormatError: not the members above, or a table other than the one the message names.
        SealError: another signer, or altered.
    """
    member = _next(tar)
    table = None
    if member.name == TABLE:
        table = tar.read_all(member, limit=MAX_TABLE)
        member = _next(tar)
    said = _message(tar, member)
    signed = verify(said.data, said.armor, signer(said.message))
    message = said.message
    digest = table_digest(message)
    if (hashlib.sha256(table).hexdigest() if table is not None else "") != digest:
        raise SealError("the table is not the one the message names")
    return Head(signed, table)


def read_unverified(tar: ustar.Reader) -> Signed:
    """A message alone in its container, signed by somebody who may be unknown here; raises `FormatError`."""
    signed = _message(tar, _next(tar))
    if tar.next() is not None:
        raise FormatError("there is more in a container than its message announces")
    return signed


def _message(tar: ustar.Reader, member: ustar.Member) -> Signed:
    """A message and its signature, whether it fits or not."""
    data, stem = tar.read_all(member, limit=messages.MAX_BYTES), member.name
    member = _next(tar)
    armor = tar.read_all(member, limit=MAX_SIGNATURE).decode("ascii", "replace")
    message = messages.parse(data)
    if MESSAGE_FILES.get(type(message)) != stem or member.name != stem + ".sig":
        raise FormatError("the members of a container are not those its message calls for")
    return Signed(message, data, armor)


def _next(tar: ustar.Reader) -> ustar.Member:
    member = tar.next()
    if member is None:
        raise FormatError("a container ends before its message")
    return member


class Stored(NamedTuple):
    """Where one object lies in a container: offset and length of its bytes."""

    object: ObjectId
    offset: int
    length: int


def read_objects(
    tar: ustar.Reader,
    expected: Iterator[tuple[str, int, str]],
    sink: Callable[[ObjectId], BinaryIO | None] = lambda _: None,
) -> Iterator[Stored]:
    """Read the objects to the container's end, each compared with what is expected at its place.

    Args:
        tar: a reader behind the head.
        expected: id, size in bytes and encoding of each object, in order.
        sink: where to copy an object's bytes to, or None to check them only.

    Yields:
        Each object after its last byte fitted its name.

    Raises:
        FormatError: another name, size or count than expected.
        SealError: the bytes do not fit the name.
    """
    for identifier, size, encoding in expected:
        member = _next(tar)
        wanted = object_id(identifier)
        if member.name != object_name(wanted, encoding) or member.size != size:
            raise FormatError("an object is not the one the manifest has at its place")
        digest, copy = hashlib.sha256(), sink(wanted)
        while block := tar.read(1024 * 1024):
            digest.update(block)
            if copy is not None:
                copy.write(block)
        if digest.hexdigest() != wanted:
            raise SealError("an object's bytes do not fit its name")
        yield Stored(wanted, member.offset, member.size)
    if tar.next() is not None:
        raise FormatError("there is more in a container than its message announces")


def manifests_bytes(signed: Signed, manifests: Iterable[tuple[BatchId, bytes]]) -> bytes:
    """A container of manifests, which its message announces."""
    parts = [head_bytes(signed)]
    for batch, data in manifests:
        parts += [ustar.header(f"manifests/{batch}.parquet", len(data)), data, ustar.padding(len(data))]
    return b"".join(parts) + ustar.END


def read_manifests(
    tar: ustar.Reader, expected: Iterable[tuple[BatchId, int]]
) -> Iterator[tuple[BatchId, bytes]]:
    """Read the manifests to the container's end, each compared with what is expected at its place.

    Args:
        tar: a reader behind the head.
        expected: batch and size in bytes of each, in order.

    Raises:
        FormatError: another name, size or count than expected.
        SealError: the bytes do not fit the name.
    """
    for batch, size in expected:
        member = _next(tar)
        if member.name != f"manifests/{batch}.parquet" or member.size != size:
            raise FormatError("a manifest is not the one expected at its place")
        data = tar.read_all(member, limit=MAX_TABLE)
        if hashlib.sha256(data).hexdigest() != batch:
            raise SealError("a manifest's bytes do not fit its batch")
        yield batch, data
    if tar.next() is not None:
        raise FormatError("there is more in a container than its message announces")
