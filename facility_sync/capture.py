"""One source file, read once, to a manifest row and a stored object.

Order: open, look, hash, header, row, protect or seal, open what was stored and compare, look once more.
Guarantees: a file that is taken was proved to come back bit for bit with the domain's key before anything is
sent; a file that changed meanwhile is not taken; a bad file is a `Refused`, never an exception; memory stays
bounded whatever the file's size (up to 64 MiB it is held, beyond it streams through the open file).

What does not clearly show no identity, and what would not come back as a protected object, is sealed whole.

Leaves to others: which files (`facility_sync.intake`), where the object goes (`facility_sync.pack`), what is
protected (`facility_sync.identity.decide`). Runs in worker processes: pyrage holds the interpreter lock.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from facility_sync.dicom_file import Header, Refused, read_header
from facility_sync.identity import cms, decide, frames, objects, protect, sealed, tokens
from facility_sync.identity.domains import Domain, Keyring
from schemas.errors import Damaged, FormatError, SealError
from schemas.extract import Clear, Identity, SiteMap, clear_columns

_HELD = 64 * 1024 * 1024
_BLOCK = 256 * 1024


class Taken(NamedTuple):
    """A file that was taken: its whole manifest row, and why it was protected or sealed whole.

    The reasons are codes of `identity.decide.REASONS`.
    """

    row: dict[str, Any]
    reasons: tuple[str, ...]


class Context(NamedTuple):
    """What every file of a batch is taken with.

    Attributes:
        domains: who may read it; the first is the facility's own.
        site_map: from descriptions to the menu.
        captured_at: written into the rows.
        max_bytes: largest file taken.
        writer: who protects; its facility is the rows'.
        rules: what is sealed whole.
        stored: for a batch: named by its bytes, and compressed where that saves something.
    """

    domains: tuple[Domain, ...]
    site_map: SiteMap
    captured_at: datetime
    max_bytes: int
    writer: protect.Writer
    rules: decide.Rules
    stored: bool = True


def take(path: Path, context: Context, sink: BinaryIO) -> Taken | Refused:
    """Take one file.

    Args:
        path: the file.
        context: what it is taken with.
        sink: readable and writable; the stored object is written from where it stands.

    Raises:
        OSError: the sink failed.
        Damaged: the stored object does not open to the file: memory or disk are at fault.
    """
    try:
        with _opened(path) as file:
            return _Taking(file, context, sink).taken()
    except _NotTakenError as error:
        return Refused(error.reason)


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb", opener=_open_at_once)
    except OSError as error:
        reason = "vanished" if isinstance(error, FileNotFoundError) else "unreadable"
        raise _NotTakenError(reason) from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe that nobody writes to


class _Taking:
    """One file on its way."""

    def __init__(self, file: BinaryIO, context: Context, sink: BinaryIO) -> None:
        self._file, self._context, self._sink = file, context, sink

    def taken(self) -> Taken:
        """Its row, when its object is in the sink, was proved, and the file stood still."""
        before = os.fstat(self._file.fileno())
        self._size = before.st_size
        if not stat.S_ISREG(before.st_mode):
            raise _NotTakenError("unreadable")
        if self._size > self._context.max_bytes:
            raise _NotTakenError("too-large")
        self._reasons: tuple[str, ...] = ()
        self._source, self._digest = _content(self._file, self._size)
        self._layout = decide.layout_of(self._source, self._size)
        self._source.seek(0)
        header = read_header(self._source, self._size, self._layout)
        if isinstance(header, Refused):
            raise _NotTakenError(header.reason)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's may quote values
            clear = clear_columns(
                header.dataset,
                transfer_syntax=header.transfer_syntax,
                facility=self._context.writer.facility,
                site_map=self._context.site_map,
            )
            made = self._stored(header, clear)
        if _changed(before, os.fstat(self._file.fileno())):
            raise _NotTakenError("changed-while-reading")
        return Taken(
            _row(clear, header, made, self._context.domains)
            | {
                "dicom_bytes": self._size,
                "source_digest": tokens.keyed_digest(self._context.domains[0], self._digest),
                "captured_at": self._context.captured_at,
            },
            self._reasons,
        )

    def _stored(self, header: Header, clear: Clear) -> frames.Encoded:
        """Write the object, protected if it may be and comes back, else sealed whole."""
        start = self._sink.tell()
        made = self._protected(header, clear)
        if made is not None:
            if self._proved(start, made):
                return made
            self._reasons = ("not-proved",)
        self._sink.seek(start)
        self._sink.truncate()
        self._source.seek(0)
        made = sealed.seal_object(self._source, self._size, self._sink, self._context.domains)
        if not self._proved(start, made):
            if _content(self._file, self._size)[1] != self._digest:
                raise _NotTakenError("changed-while-reading")
            raise Damaged(
                "a sealed image does not open to the file it was made of",
                hint="Nothing was sent. Check this machine's memory and disk, then run the command again.",
            )
        return made

    def _protected(self, header: Header, clear: Clear) -> frames.Encoded | None:
        context, found = self._context, clear.identity.values
        decision = decide.decide(
            header.dataset,
            clear.row["body_part"],
            self._layout,
            context.rules,
            unreadable=header.unreadable,
        )
        self._reasons = decision.reasons
        if decision.layout is None:
            return None
        own = tokens.patient_id(context.domains[0].current, found["patient_id"], found["issuer"])
        try:
            face = protect.protect(
                decision.layout,
                instance=clear.row["sop_instance_uid"],
                original=self._digest,
                token=own[0] if own else "",
                writer=context.writer,
                iv=os.urandom(cms.IV_BYTES),
            )
        except protect.CannotProtectError as error:
            self._reasons = (error.reason,)
            return None
        return objects.store_protected(face, decision.layout, self._source, self._sink, stored=context.stored)

    def _proved(self, start: int, made: frames.Encoded) -> bool:
        """Open what was just stored, from where it was written to, and compare."""
        again = _Same(self._source)
        self._sink.flush()
        self._sink.seek(start)
        part = io.BytesIO(self._sink.read(made.size)) if made.size <= _HELD else self._sink
        keyring = Keyring(self._context.domains)
        try:
            objects.open_object(part, cast(BinaryIO, again), made.encoding, keyring, size=self._size)
        except (SealError, FormatError):
            return False
        self._sink.seek(start + made.size)
        return again.fits()


class _NotTakenError(Exception):
    """Why this file is not taken; raised wherever that turns out, inside a seal too."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Steady(io.RawIOBase):
    """A file of exactly `size` bytes: what comes behind is not there, what is missing is a change."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def read(self, size: int = -1, /) -> bytes:
        at = self._file.tell()
        wanted = max(0, self._size - at)
        wanted = wanted if size is None or size < 0 else min(size, wanted)
        try:
            data = self._file.read(wanted)
        except OSError as error:
            raise _NotTakenError("unreadable") from error
        if len(data) < wanted:
            raise _NotTakenError("changed-while-reading")
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _content(file: BinaryIO, size: int) -> tuple[BinaryIO, bytes]:
    """The file's content from its beginning as something seekable, and its SHA-256."""
    file.seek(0)
    steady = cast(BinaryIO, _Steady(file, size))
    if size <= _HELD:
        data = steady.read()
        return io.BytesIO(data), hashlib.sha256(data).digest()
    digest = hashlib.sha256()
    while block := steady.read(_BLOCK):
        digest.update(block)
    steady.seek(0)
    return steady, digest.digest()


def _changed(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether somebody wrote meanwhile; the time of the last change cannot be set back, unlike `mtime`."""
    return _state(before) != _state(after)


def _state(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


class _Same:
    """Compares what is written to it with what was read: eight times as fast as a digest."""

    def __init__(self, held: BinaryIO) -> None:
        held.seek(0)
        self._held = held
        self._same = True

    def write(self, data: bytes) -> int:
        self._same = self._same and self._held.read(len(data)) == data
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def fits(self) -> bool:
        """Whether all of it was the same."""
        return self._same and not self._held.read(1)


def _row(clear: Clear, header: Header, made: frames.Encoded, domains: Sequence[Domain]) -> dict[str, Any]:
    """Everything but what the file itself says."""
    identity = clear.identity
    found = identity.values
    return clear.row | {
        "object_sha256": made.sha256,
        "object_bytes": made.size,
        "encoding": made.encoding,
        "patient_id_tokens": [
            token
            for domain in domains
            for token in tokens.patient_id_row(domain.current, found["patient_id"], found["issuer"])
        ],
        "person_tokens": [
            token
            for domain in domains
            for token in tokens.person(domain.current, found["patient_name"], identity.born)
        ],
        "accession_tokens": [
            token for domain in domains for token in tokens.accession(domain.current, found["accession"])
        ],
        "domains": [domain.id for domain in domains],
        "sealed_identity": _sealed_identity(tuple(sorted(_known(identity))), tuple(domains)),
        "flags": sorted({*header.flags, *clear.flags}),
    }


def _known(identity: Identity) -> list[tuple[str, str]]:
    return [(key, value) for key, value in identity.values.items() if value]


@lru_cache(maxsize=4096)
def _sealed_identity(identity: tuple[tuple[str, str], ...], domains: tuple[Domain, ...]) -> bytes:
    """Equal identities of a round share one seal: smaller manifests, and one opening for many rows."""
    return sealed.seal_identity(dict(identity), domains)
