"""A DICOM file to a protected object: valid, viewable, without identity, and the file back from it.

    preamble of zeros, new File Meta
    what the profile keeps, tokens in place of patient name and ID, the method codes (PS3.15 E.1)
    (0400,0500) Encrypted Attributes Sequence, one item: the envelope with originals and capsule
    the pixel element, byte for byte

Guarantees: same transfer syntax, pixel value untouched and never copied here; if something of the identity
still stands in what would be shown, or a file cannot be followed to its end, there is no protected object
(`CannotProtectError`) and the file is sealed whole instead.

Leaves to others: whether the pixels themselves are a risk (`risk`), proof that the file comes back
(`facility_sync.capture`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydicom.uid import UID

from facility_sync.identity import capsule, cms, encode
from facility_sync.identity.layout import MAX_HEAD, Front, Layout
from facility_sync.identity.profile import CODES, DUMMIES
from facility_sync.identity.scrub import needles, scrub, shows
from facility_sync.identity.tree import UNDEFINED, Encoding
from schemas import messages, names
from schemas.errors import FormatError, SealError

IMPLEMENTATION = "2.25.196110285914093421305148466713518834219"
"""Implementation class UID in the File Meta of protected objects."""
_VERSION_NAME = b"FACILITY-SYNC 1"
_CLASS, _INSTANCE = 0x00080016, 0x00080018
_NAME, _ID = 0x00100010, 0x00100020
TOKENS = frozenset({_NAME, _ID})
"""Elements of the root in whose place a token stands."""
_NAMES = (_NAME, 0x00101001, 0x00101005, 0x00101060)
_IDENTIFIERS = (_ID, 0x00080050, 0x00101000, 0x00101040, 0x00102154)
_REMOVED, _METHOD, _MODIFIED_DATES = 0x00120062, 0x00120064, 0x00280303
_ENCRYPTED, _ENCRYPTED_SYNTAX, _ENCRYPTED_CONTENT = 0x04000500, 0x04000510, 0x04000520


class CannotProtectError(Exception):
    """This file gets no protected object; `reason` is a code of `REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


REASONS: dict[str, str] = {
    "structure": "Its elements cannot be followed to the end, or its transfer syntax is not supported.",
    "no-class": "It names no SOP class.",
    "identity-in-value": "Something of the patient's identity stands in a value that would be shown.",
}
"""Why a file is sealed whole although its pixels are no risk."""


class Writer(NamedTuple):
    """Who protects, and for whom.

    Attributes:
        facility: whose image it is.
        key: its Ed25519 key.
        content_key: wrapped for the certificates of the domains (and the escrow).
        domain_keys: capsule key of each domain, by the domain's id.
        created: RFC 3339 time.
    """

    facility: str
    key: Ed25519PrivateKey
    content_key: cms.ContentKey
    domain_keys: Mapping[str, bytes]
    created: str


class Face(NamedTuple):
    """A protected object but for its pixel value: that stands between `head` and `tail`."""

    head: bytes
    tail: bytes


def protect(layout: Layout, *, instance: str, original: bytes, token: str, writer: Writer, iv: bytes) -> Face:
    """Make a protected object.

    Args:
        layout: of the file.
        instance: its SOP Instance UID.
        original: SHA-256 of the file, 32 bytes.
        token: of the patient ID; empty if there is none.
        writer: who protects, and for whom.
        iv: 16 random bytes.

    Raises:
        CannotProtectError: seal it whole.
    """
    front = layout.front
    if len(front.head) + len(layout.tail) > MAX_HEAD or front.uid(_INSTANCE) != instance:
        raise CannotProtectError("structure")
    if not UID(instance).is_valid:
        raise CannotProtectError("structure")
    if not UID(front.uid(_CLASS)).is_valid:
        raise CannotProtectError("no-class")
    scrubbed = scrub(
        front.head,
        front.elements,
        front.encoding,
        replaced={_NAME: f"{token}^ANON".encode() if token else DUMMIES["PN"], _ID: token.encode()},
        inserted=_inserted(front.encoding),
    )
    wanted = needles(map(front.value, _NAMES), map(front.value, _IDENTIFIERS))
    if shows(b"".join(piece for piece in scrubbed.shown if piece), front.encoding, wanted):
        raise CannotProtectError("identity-in-value")
    # Padding and digital signatures: nothing behind the pixels is shown.
    behind = [encode.explicit(layout.tail, found, front.encoding) for found in layout.behind]
    item = capsule.modified(scrubbed.sealed + behind)
    message = messages.Capsule(
        facility=names.facility_name(writer.facility),
        original=names.object_id(original.hex()),
        original_bytes=len(front.head) + layout.pixels_bytes + len(layout.tail),
        item=names.object_id(hashlib.sha256(item).hexdigest()),
        pixels_at=len(front.head),
        created=writer.created,
    )
    rest = front.head + layout.tail
    content = capsule.build(message, item, rest, key=writer.key, domain_keys=writer.domain_keys)
    envelope = _encrypted(cms.seal(content, writer.content_key, iv), front.encoding)
    body = b"".join(envelope if piece is None else piece for piece in scrubbed.shown)
    head = _preface(front.uid(_CLASS), instance, front.syntax) + body + front.head[front.pixels_from :]
    return Face(head, layout.tail[:8] if front.pixels_length == UNDEFINED else b"")


def _inserted(encoding: Encoding) -> list[tuple[int, bytes | None]]:
    def code(value: str, meaning: str) -> bytes:
        return b"".join((
            encode.element(0x00080100, "SH", value.encode(), encoding),
            encode.element(0x00080102, "SH", b"DCM", encoding),
            encode.element(0x00080104, "LO", meaning.encode(), encoding),
        ))  # fmt: skip

    return [
        (_REMOVED, encode.element(_REMOVED, "CS", b"YES", encoding)),
        (_METHOD, encode.sequence(_METHOD, [code(*item) for item in CODES], encoding)),
        (_MODIFIED_DATES, encode.element(_MODIFIED_DATES, "CS", b"UNMODIFIED", encoding)),
        (_ENCRYPTED, None),
    ]


def _encrypted(envelope: bytes, encoding: Encoding) -> bytes:
    # GDCM reads the first item only and accepts no other syntax than this one.
    item = encode.element(_ENCRYPTED_SYNTAX, "UI", b"1.2.840.10008.1.2.1", encoding)
    item += encode.element(_ENCRYPTED_CONTENT, "OB", envelope, encoding)
    return encode.sequence(_ENCRYPTED, [item], encoding)


def _preface(sop_class: str, instance: str, syntax: str) -> bytes:
    """Preamble and File Meta (PS3.10 section 7.1): nothing of the original's is kept."""
    meta = b"".join((
        encode.element(0x00020001, "OB", b"\0\1"),
        encode.element(0x00020002, "UI", sop_class.encode("latin-1")),
        encode.element(0x00020003, "UI", instance.encode("latin-1")),
        encode.element(0x00020010, "UI", syntax.encode("ascii")),
        encode.element(0x00020012, "UI", IMPLEMENTATION.encode("ascii")),
        encode.element(0x00020013, "SH", _VERSION_NAME),
    ))  # fmt: skip
    length = encode.element(0x00020000, "UL", len(meta).to_bytes(4, "little"))
    return bytes(128) + b"DICM" + length + meta


def envelope_of(front: Front) -> bytes:
    """The encrypted content of the first item of (0400,0500); raises `FormatError` if there is none."""
    for found in front.elements:
        if found.tag == _ENCRYPTED and found.items:
            for inner in found.items[0]:
                if inner.tag == _ENCRYPTED_CONTENT:
                    return front.head[inner.start : inner.end]
    raise FormatError("a file has no Encrypted Attributes Sequence")


def unprotect(
    front: Front,
    readers: Sequence[cms.Reader],
    domain_keys: Mapping[str, bytes],
    *,
    anyone: bool = False,
) -> capsule.Capsule:
    """The capsule of a protected object: the original is `rest` with the pixel value at `pixels_at`.

    Args:
        front: the object up to its pixel value.
        readers: private keys; any may fit.
        domain_keys: capsule keys of the domains here, by the domain's id.
        anyone: see `capsule.read`.

    Raises:
        FormatError: no capsule of ours.
        SealError: not for these keys, not made by a member of these domains, of another image, or altered.
    """
    content = cms.unseal(envelope_of(front), readers, capsule.BEGINS)
    proved = capsule.read(content, domain_keys=domain_keys, anyone=anyone)
    if front.uid(_INSTANCE) != proved.instance:
        raise SealError("a capsule is of another image than the one it stands in")
    return proved
