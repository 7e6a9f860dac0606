"""One file at a time: protect it, bring it back, say what would become of it.

    protect       as a round would store it, uncompressed: protected DICOM, or an age file sealed whole
    restore       either of them back, byte for byte; also as it lies in a pack, in a zstd frame
    reidentify    what any PS3.15 tool sealed: the attributes of the original, not its bytes

Guarantees: the file written appears whole or not at all, and only after it was proved; what was transcoded on
its way comes back with its attributes and `NotExact`, what was altered does not come back at all.

Leaves to others: what a person reads (`cli.single`).
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from facility_sync import capture
from facility_sync.dicom_file import Refused
from facility_sync.identity import cms, frames, objects, reidentify
from facility_sync.identity.layout import read_front
from schemas import envelope
from schemas.container import MAX_CONTENT
from schemas.errors import FormatError, Incomplete, NotExact, SealError, SettingsError
from schemas.transit import durable

_AGE = b"age-encryption.org/v1"
_ZSTD = b"\x28\xb5\x2f\xfd"
_PIXELS_HEAD = 16


class Keys(NamedTuple):
    """What opens files here; `anyone`: believe whoever signed, for who holds a private key and no domain."""

    readers: Sequence[cms.Reader] = ()
    domain_keys: Mapping[str, bytes] = {}
    age_identities: Sequence[str] = ()
    anyone: bool = False


def protect(path: Path, out: Path, context: capture.Context) -> capture.Taken:
    """Write what a round would store of a file.

    Raises:
        Incomplete: the file is not taken; its reason is in the message.
        SettingsError: a file cannot be read or written.
    """
    made: list[capture.Taken] = []

    def write(sink: BinaryIO) -> None:
        found = capture.take(path, context._replace(stored=False), sink)
        if isinstance(found, Refused):
            raise Incomplete(f"the file is not taken: {found.reason}", hint=hint(found.reason))
        made.append(found)

    _publish(out, write)
    return made[0]


def examine(path: Path, context: capture.Context) -> capture.Taken | Refused:
    """What a round would store of a file, without storing it."""
    with tempfile.TemporaryFile() as sink:
        return capture.take(path, context, cast(BinaryIO, sink))


def hint(reason: str) -> str:
    """Meaning and next step of a reason."""
    from facility_sync.reasons import explain

    return " ".join(explain(reason))


def restore(path: Path, out: Path, keys: Keys) -> str:
    """Write the original of a protected or sealed file; returns whose signature its capsule bears, if any.

    Raises:
        NotExact: the pixels were transcoded: what was written has the original's attributes only.
        SealError: not for these keys, forged or altered; nothing was written.
        FormatError: not a file of this kind; nothing was written.
        SettingsError: a file cannot be read or written.
    """
    with _opened(path) as file, _inflated(file) as source:
        if source.read(len(_AGE)) == _AGE:
            source.seek(0)
            _publish(out, lambda sink: _unseal(source, sink, keys.age_identities))
            return ""
        source.seek(0)
        found = objects.opened(source, keys.readers, keys.domain_keys, anyone=keys.anyone)

        def write(sink: BinaryIO) -> None:
            counted = frames.Counted(sink)
            objects.write_original(found, source, cast(BinaryIO, counted))
            if counted.digest.hexdigest() != found.capsule.message.original:
                raise NotExact("the bytes are not those of the original")

        try:
            _publish(out, write)
        except (NotExact, FormatError) as error:
            if found.front.syntax == _original_syntax(found):
                raise SealError("the pixel data were altered", hint="Nothing was written.") from error
            source.seek(0)
            _publish(out, lambda sink: _reidentified(source, sink, keys))
            raise NotExact(
                "not bit-identical: the pixel data were transcoded since the file was protected",
                hint="What was written has all attributes of the original, and the pixel data of now.",
            ) from error
    return found.capsule.signer


@contextmanager
def _inflated(file: BinaryIO) -> Iterator[BinaryIO]:
    """The file, or what is in it if it is one zstd frame."""
    framed = file.read(len(_ZSTD)) == _ZSTD
    file.seek(0)
    if not framed:
        yield file
        return
    with tempfile.TemporaryFile() as plain:
        objects.write_protected(file, cast(BinaryIO, plain), "dicom+zstd")
        plain.seek(0)
        yield cast(BinaryIO, plain)


def _original_syntax(found: objects.Opened) -> str:
    """The transfer syntax the original was in."""
    head = found.capsule.rest[: found.capsule.message.pixels_at]
    return read_front(io.BytesIO(head + bytes(_PIXELS_HEAD))).syntax


def _unseal(source: BinaryIO, sink: BinaryIO, identities: Sequence[str]) -> None:
    """Open an age file with or without a zstd frame in it: no DICOM file begins like one."""
    first = _First(sink)
    envelope.open_sealed(source, cast(BinaryIO, first), identities, limit=MAX_CONTENT)
    first.finish()


class _First:
    """Writes through, decompressed if what comes begins like a zstd frame; at most `MAX_CONTENT` bytes."""

    def __init__(self, sink: BinaryIO) -> None:
        self._bounded = _Bounded(sink)
        self._held = b""
        self._sink: BinaryIO | None = None

    def write(self, data: bytes) -> int:
        if self._sink is None:
            self._held += data
            if len(self._held) >= len(_ZSTD):
                self._begin()
        else:
            self._sink.write(data)
        return len(data)

    def _begin(self) -> None:
        plain = cast(BinaryIO, self._bounded)
        if self._held.startswith(_ZSTD):
            plain = cast(BinaryIO, frames.Inflating(plain))
        self._sink = plain
        plain.write(self._held)
        self._held = b""

    def flush(self) -> None:
        """Nothing waits."""

    def finish(self) -> None:
        if self._sink is None:
            self._begin()


class _Bounded:
    """Writes through up to the largest content there is."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink, self._left = sink, MAX_CONTENT

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise FormatError("a sealed file holds more than any file this program takes")
        return self._sink.write(data)

    def flush(self) -> None:
        self._sink.flush()


def reidentified(path: Path, out: Path, keys: Keys) -> None:
    """Write a file with the attributes that any PS3.15 tool sealed in it; errors as `restore`."""
    with _opened(path) as source:
        _publish(out, lambda sink: _reidentified(source, sink, keys))


def _reidentified(source: BinaryIO, sink: BinaryIO, keys: Keys) -> None:
    reidentify.reidentify(source, sink, keys.readers, keys.domain_keys, anyone=keys.anyone)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise SettingsError("the file cannot be read", hint="Check its name and permissions.") from error


def _publish(out: Path, write: Callable[[BinaryIO], object]) -> None:
    def written(sink: BinaryIO) -> None:
        write(sink)

    try:
        durable.publish(out.absolute(), written, mode=0o600)
    except FileExistsError as error:
        raise SettingsError(
            "a file of this name is there already", hint="Take another name, or move it away."
        ) from error
    except OSError as error:
        raise SettingsError("the file cannot be written", hint="Check its folder and its room.") from error
