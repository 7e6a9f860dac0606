"""From the store's sealed answer back to the files the facility read, bit for bit.

Order: the answer is opened into a staging file; its signature must be the trusted store's and it must
answer our request; then, object by object, the stored bytes must fit their name, are opened with the
domain's key, and the keyed digest of what comes out must be the one in the row (as far as the domain that
keyed it is held here); only then does the file appear under its final name.

Guarantees: no file under its final name has other bytes than the facility read. What cannot be
restored is an outcome with a reason, beside the others.

Leaves to others: asking (`facility_sync.ask`), names (`facility_sync.filenames`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from facility_sync.identity import objects, reidentify, tokens
from facility_sync.identity.domains import Keyring
from schemas import container, envelope, messages, ustar
from schemas.errors import FormatError, NotExact, SealError, SyncError
from schemas.transit import durable


class Target(NamedTuple):
    """An object to bring back: its row's facts and where its file goes.

    `protected`: the protected DICOM file is wanted, not the original.
    """

    object: str
    encoding: str
    object_bytes: int
    dicom_bytes: int
    source_digest: str
    domains: tuple[str, ...]
    path: Path
    protected: bool = False


class Outcome(NamedTuple):
    """What became of one target; `reason` is empty when its file is in place."""

    target: Target
    reason: str = ""


REASONS: dict[str, str] = {
    "no-key": "Sealed for a domain this terminal does not hold: `fsync domain import`.",
    "missing": "The store does not hand it out: gone, or not granted to this facility.",
    "damaged": "The bytes that came back are not those the facility sealed; nothing was written.",
    "not-exact": "What was sealed is not the file the facility read; if it was a protected object, its "
    "attributes and pixel data were written beside the place, as NAME.not-identical.dcm.",
    "sealed-whole": "Its pixels may show an identity: there is no protected file of it, only the sealed one.",
}


def target_of(row: Mapping[str, Any], path: Path, *, protected: bool = False) -> Target:
    """The target of a row at instance level."""
    return Target(
        row["object_sha256"], row["encoding"], row["object_bytes"], row["dicom_bytes"],
        row["source_digest"], tuple(row["domains"] or ()), path, protected,
    )  # fmt: skip


def is_in_place(target: Target, keyring: Keyring) -> bool:
    """Whether the file is there already with exactly the right bytes; reads it to know.

    A protected object that is compressed at the store is fetched again: nothing here knows its digest.
    """
    try:
        with target.path.open("rb") as file:
            if target.protected:
                return hashlib.file_digest(file, "sha256").hexdigest() == target.object
            if file.seek(0, io.SEEK_END) != target.dicom_bytes:
                return False
            file.seek(0)
            return _fits(hashlib.file_digest(file, "sha256").digest(), target, keyring) is True
    except OSError:
        return False


def _fits(sha256: bytes, target: Target, keyring: Keyring) -> bool | None:
    """Whether the keyed digest is the row's; None when the domain that keyed it is not held here.

    That is the facility's own, the first of the row's. Who reads an image as a member of a consortium
    relies on the seal alone: the stored bytes fit their name, and age gives what was sealed or nothing.
    """
    sealer = keyring.find(target.domains[0]) if target.domains else None
    return None if sealer is None else tokens.keyed_digest(sealer, sha256) == target.source_digest


def unpack(
    answer: Path,
    request: str,
    store: messages.StoreCard,
    identity: str,
    targets: Sequence[Target],
    keyring: Keyring,
) -> list[Outcome]:
    """Restore every object of one sealed answer; the answer's file is removed.

    Args:
        answer: the sealed answer, beside which the opened one is kept for the moment.
        request: the id of the request it must answer.
        store: whose signature it must bear.
        identity: the terminal's age identity.
        targets: what was asked for.
        keyring: the domains that may open it.

    Raises:
        SealError: not the trusted store's answer to this request.
        FormatError: not an answer of this version.
    """
    plain = answer.with_suffix(".tar")
    try:
        with answer.open("rb", envelope.BUFFER) as source, plain.open("w+b", envelope.BUFFER) as opened:
            envelope.open_sealed(source, opened, [identity], limit=container.MAX_CONTENT)
            opened.seek(0)
            tar = ustar.Reader(opened, limit=container.MAX_CONTENT)
            message = container.read_head(tar, lambda _: store.signing_key).signed.message
            if not isinstance(message, messages.FetchAnswer):
                raise FormatError("the store's answer is of another kind than the question")
            if (message.request, message.store) != (request, store.store):
                raise SealError("the store's answer is to another request")
            wanted = {target.object: target for target in targets}
            if not set(message.objects) <= set(wanted):
                raise FormatError("the store sends objects nobody asked for")
            expected = ((o, wanted[o].object_bytes, wanted[o].encoding) for o in message.objects)
            outcomes = []
            with plain.open("rb") as again:
                for stored in container.read_objects(tar, expected):
                    target = wanted.pop(stored.object)
                    outcomes.append(Outcome(target, _restore(again, stored, target, keyring)))
    finally:
        durable.remove(plain)
        durable.remove(answer)
    return outcomes + [Outcome(target, "missing") for target in wanted.values()]


def _restore(file: BinaryIO, stored: container.Stored, target: Target, keyring: Keyring) -> str:
    """Open one object into its file; returns the reason if it could not be."""
    if not target.protected and not any(domain.id in target.domains for domain in keyring.domains):
        return "no-key"

    def part() -> BinaryIO:
        return cast(BinaryIO, _Part(file, stored.offset, stored.length))

    def original(sink: BinaryIO) -> None:
        hashing = _Hashing(sink)
        signed = objects.open_object(
            part(), cast(BinaryIO, hashing), target.encoding, keyring, size=target.dicom_bytes
        )
        digest = hashing.digest.digest()
        if _fits(digest, target, keyring) is False or (signed and signed != digest.hex()):
            raise NotExact("a restored file is not the one the facility read")

    durable.make_dirs(target.path.parent)
    write = (
        original
        if not target.protected
        else lambda sink: objects.write_protected(part(), sink, target.encoding)
    )
    try:
        durable.publish(target.path, write, mode=0o600, replace=True, lasting=False)
    except NotExact:
        _write_logical(part(), target, keyring)
        return "not-exact"
    except SyncError:
        return "damaged"
    return ""


def _write_logical(part: BinaryIO, target: Target, keyring: Keyring) -> None:
    """The original's attributes with the pixel data there are, under another name."""
    if target.encoding not in objects.PROTECTED:
        return
    with contextlib.suppress(SyncError), tempfile.TemporaryFile() as whole:
        objects.write_protected(part, cast(BinaryIO, whole), target.encoding)
        whole.seek(0)

        def write(sink: BinaryIO) -> None:
            reidentify.reidentify(
                cast(BinaryIO, whole), sink, objects.readers(keyring), objects.domain_keys(keyring)
            )

        path = target.path.with_suffix(".not-identical.dcm")
        durable.publish(path, write, mode=0o600, replace=True, lasting=False)


class _Hashing:
    """Writes through and hashes what goes by."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._sink.write(data)

    def flush(self) -> None:
        self._sink.flush()


class _Part:
    """A stretch of a file, read like a file."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self._file = file
        self._left = length
        file.seek(offset)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data
