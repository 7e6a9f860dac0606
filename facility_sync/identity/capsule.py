"""The capsule: what restores the original file bit for bit, behind the standard's element in one envelope.

The content of the envelope (0400,0520), Explicit VR Little Endian:

    (0400,0550) SQ  Modified Attributes Sequence, one item: the originals (PS3.15 E.1; others stop here)
    (0401,0010) LO  FACILITY-SYNC CAPSULE
    (0401,1001) UT  canonical JSON (`schemas.messages.Capsule`): hashes of the original and of (0400,0550)
    (0401,1002) OB  the facility's Ed25519 public key (32 bytes) and its signature (64), which is that of
                    an SSHSIG over the JSON in namespace `capsule@facility-sync`
    (0401,1003) OB  for each domain its id (8 bytes) and HMAC-SHA256(its capsule key, values before)[:16]
    (0401,1004) OB  raw deflate (RFC 1951) of the file without its pixel value; its dictionary is
                    `dictionary.HEADERS` and (0400,0550), the last 32 KiB of both

CMS authenticates nothing: anybody with the certificate writes an envelope. So a capsule counts only if the
HMAC shows that a member of the domain made it, the signature that the facility it names did, and the
hashes that nothing in it was changed. Guarantees: `read` returns only what passed all three; whatever the
bytes, only `FormatError`, `VersionError` or `SealError` come out; sizes are limited before inflating.

Leaves to others: the envelope (`cms`), the original's own hash (whoever writes it out compares it).
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from facility_sync.identity import encode
from facility_sync.identity.dictionary import HEADERS
from facility_sync.identity.layout import MAX_HEAD, MAX_TAIL
from facility_sync.identity.tree import EXPLICIT, Parser
from schemas import container, keys, messages, signature
from schemas.errors import FormatError, SealError

MODIFIED = 0x04000550
BEGINS = b"\x00\x04\x50\x05SQ"
"""How the content of every envelope of PS3.15 begins."""
_BLOCK, _STATEMENT, _SIGNATURE, _BINDING, _SKELETON = (
    0x04010010, 0x04011001, 0x04011002, 0x04011003, 0x04011004,
)  # fmt: skip
_CREATOR = b"FACILITY-SYNC CAPSULE"
_INSTANCE = 0x00080018
_KEY_BYTES, _SIGNATURE_BYTES, _ID_BYTES, _MAC_BYTES = 32, 64, 8, 16
_BOUND_BYTES = _ID_BYTES + _MAC_BYTES
_WINDOW = 32768  # as much of a dictionary as zlib looks at
_LEVEL, _MEMORY = 9, 9


class Capsule(NamedTuple):
    """A capsule that proved itself.

    Attributes:
        message: what the facility signed.
        signer: the key it signed with, an `ssh-ed25519` line.
        item: the element (0400,0550): the originals of what was removed or changed.
        instance: the SOP Instance UID in it.
        rest: the original without its pixel value.
    """

    message: messages.Capsule
    signer: str
    item: bytes
    instance: str
    rest: bytes

    @property
    def pixels_bytes(self) -> int:
        """Length of the pixel value that is missing in `rest`; 0 if nothing is."""
        return self.message.original_bytes - len(self.rest)


def modified(sealed: list[bytes]) -> bytes:
    """(0400,0550) with the originals as its one item."""
    return encode.sequence(MODIFIED, [b"".join(sealed)])


def build(
    message: messages.Capsule,
    item: bytes,
    rest: bytes,
    *,
    key: Ed25519PrivateKey,
    domain_keys: Mapping[str, bytes],
) -> bytes:
    """The content of an envelope.

    Args:
        message: what it says; `item` and `original` in it fit the two next.
        item: (0400,0550).
        rest: the file without its pixel value.
        key: the facility's.
        domain_keys: the capsule key of each domain that may restore, by the domain's id (16 hex digits).
    """
    signed = container.sign(message, key)
    proof = key.public_key().public_bytes_raw() + signature.raw(signed.armor)
    binding = b"".join(_bound(name, own, signed.data, proof) for name, own in domain_keys.items())
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, _MEMORY, zdict=_dictionary(item))
    skeleton = deflater.compress(rest) + deflater.flush()
    return b"".join((
        item,
        encode.element(_BLOCK, "LO", _CREATOR),
        encode.element(_STATEMENT, "UT", signed.data),
        encode.element(_SIGNATURE, "OB", proof),
        encode.element(_BINDING, "OB", binding),
        encode.element(_SKELETON, "OB", skeleton),
    ))  # fmt: skip


def _bound(domain: str, key: bytes, statement: bytes, proof: bytes) -> bytes:
    return bytes.fromhex(domain) + hmac.digest(key, statement + proof, "sha256")[:_MAC_BYTES]


def _dictionary(item: bytes) -> bytes:
    return (HEADERS + item)[-_WINDOW:]


def split(content: bytes) -> tuple[bytes, dict[int, bytes]]:
    """(0400,0550), and the values of the capsule's elements; none for an envelope of another tool.

    Nothing is proved yet. Raises `FormatError`.
    """
    elements, end = Parser(content, EXPLICIT).root(0)
    if not elements or end != len(content) or elements[0].tag != MODIFIED:
        raise FormatError("an envelope does not hold what PS3.15 says")
    if len(elements[0].items or ()) != 1:
        raise FormatError("an envelope holds another number of items than one")
    found = {e.tag: content[e.start : e.end] for e in elements[1:]}
    ours = found.get(_BLOCK, b"").rstrip() == _CREATOR
    return content[: elements[0].next], found if ours else {}


def read(content: bytes, *, domain_keys: Mapping[str, bytes], anyone: bool = False) -> Capsule:
    """A capsule that proves itself.

    Args:
        content: of an envelope.
        domain_keys: the capsule keys of the domains here, by the domain's id.
        anyone: take it whoever made it, for who holds a private key and no domain: then `signer` in what
            comes back must be compared with the facility's card.

    Raises:
        FormatError: no capsule of ours.
        SealError: not made by a member of these domains, or altered.
    """
    item, values = split(content)
    try:
        statement, proof = values[_STATEMENT].rstrip(b" "), values[_SIGNATURE]
        binding, skeleton = values[_BINDING], values[_SKELETON]
    except KeyError as error:
        raise FormatError("an envelope holds no capsule") from error
    if len(proof) != _KEY_BYTES + _SIGNATURE_BYTES or len(binding) % _BOUND_BYTES:
        raise FormatError("an envelope holds no capsule")
    author = keys.ssh_line(Ed25519PublicKey.from_public_bytes(proof[:_KEY_BYTES]))
    bound = [binding[at : at + _BOUND_BYTES] for at in range(0, len(binding), _BOUND_BYTES)]
    known = any(
        hmac.compare_digest(_bound(name, key, statement, proof), one)
        for name, key in domain_keys.items()
        for one in bound
    )
    if not known and not anyone:
        raise SealError("a capsule was not made by a member of a domain that is here")
    space = signature.namespace(messages.Capsule.TYPE)
    signature.verify(signature.armor(author, space, proof[_KEY_BYTES:]), author, space, statement)
    message = messages.Capsule.from_bytes(statement)
    if hashlib.sha256(item).hexdigest() != message.item:
        raise SealError("the originals in an envelope are not those the facility signed")
    rest = _inflated(skeleton, item)
    if not message.pixels_at <= len(rest) <= message.original_bytes:
        raise FormatError("a capsule holds sizes that cannot be")
    return Capsule(message, author, item, _instance(item), rest)


def _inflated(skeleton: bytes, item: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS, zdict=_dictionary(item))
    try:
        found = inflater.decompress(skeleton, MAX_HEAD + MAX_TAIL)
    except zlib.error as error:
        raise FormatError("a capsule holds no readable deflate stream") from error
    if not inflater.eof:
        raise FormatError("a capsule holds more than it may")
    return found


def _instance(item: bytes) -> str:
    """The SOP Instance UID among the originals: `scrub` always seals it."""
    elements, _ = Parser(item, EXPLICIT).root(0)
    for found in (elements[0].items or ((),))[0]:
        if found.tag == _INSTANCE:
            return item[found.start : found.end].rstrip(b"\0 ").decode("latin-1")
    raise FormatError("a capsule names no SOP Instance UID")
