"""CMS EnvelopedData (RFC 5652) as PS3.15 annex E asks for it: RSA key transport, AES-256-CBC.

Guarantees: what is written here is opened by `openssl cms -decrypt` and `gdcmanon -d`; what they and other
PS3.15 tools write with RSA PKCS #1 v1.5 and AES-128, -192 or -256 is opened here. One content key may
serve many envelopes (a batch's): each has its own IV, and reading them costs one RSA operation for all.

Nothing here is authenticated: whoever has the certificate can write an envelope, and bits can be flipped
in one. What it holds must prove itself (`capsule`).

Leaves to others: the content, whose certificates. Randomness is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import padding, serialization
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from schemas.errors import FormatError, SealError, SettingsError

KEY_BYTES, IV_BYTES = 32, 16
MAX_BYTES = 192 * 1024 * 1024
"""Largest envelope that is read."""
_MAX_RECIPIENTS = 64

_OID = x509.ObjectIdentifier
_ENVELOPED, _DATA = _OID("1.2.840.113549.1.7.3"), _OID("1.2.840.113549.1.7.1")
_RSA = _OID("1.2.840.113549.1.1.1")
_AES = {
    _OID("2.16.840.1.101.3.4.1.2"): 16,
    _OID("2.16.840.1.101.3.4.1.22"): 24,
    _OID("2.16.840.1.101.3.4.1.42"): 32,
}
_AES_256 = _OID("2.16.840.1.101.3.4.1.42")


@asn1.sequence
class _IssuerAndSerial:
    issuer: asn1.TLV
    serial: int


@asn1.sequence
class _RsaAlgorithm:
    algorithm: _OID
    parameters: asn1.Null | None


@asn1.sequence
class _KeyTransport:
    """KeyTransRecipientInfo of version 0: the recipient named by issuer and serial number."""

    version: int
    recipient: _IssuerAndSerial
    algorithm: _RsaAlgorithm
    key: bytes


@asn1.sequence
class _KeyTransport2:
    """KeyTransRecipientInfo of version 2: the recipient named by key identifier."""

    version: int
    recipient: Annotated[bytes, asn1.Implicit(0)]
    algorithm: _RsaAlgorithm
    key: bytes


@asn1.sequence
class _Cipher:
    algorithm: _OID
    iv: bytes


@asn1.sequence
class _Content:
    kind: _OID
    cipher: _Cipher
    data: Annotated[bytes, asn1.Implicit(0)]


@asn1.sequence
class _Enveloped:
    version: int
    recipients: asn1.SetOf[asn1.TLV]
    content: _Content


@asn1.sequence
class _ContentInfo:
    kind: _OID
    content: Annotated[_Enveloped, asn1.Explicit(0)]


class Reader(NamedTuple):
    """A private key in PEM, and its certificate in PEM if there is one."""

    key: bytes
    certificate: bytes | None = None


class ContentKey(NamedTuple):
    """A content key, and the same wrapped for its readers (DER of each RecipientInfo)."""

    key: bytes
    recipients: tuple[bytes, ...]


def content_key(key: bytes, certificates: Sequence[bytes]) -> ContentKey:
    """Wrap a content key.

    Args:
        key: 32 random bytes.
        certificates: of the readers, PEM, RSA.

    Raises:
        SettingsError: a certificate is none, or not of an RSA key.
    """
    return ContentKey(key, tuple(_wrapped(key, certificate) for certificate in certificates))


def _wrapped(key: bytes, pem: bytes) -> bytes:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        public = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError("a reader's certificate cannot be read", hint="It must be PEM.") from error
    if not isinstance(public, RSAPublicKey):
        raise SettingsError("a reader's certificate is not of an RSA key", hint="PS3.15 asks for RSA.")
    return asn1.encode_der(
        _KeyTransport(
            version=0,
            recipient=_named(certificate),
            algorithm=_RsaAlgorithm(algorithm=_RSA, parameters=asn1.Null()),
            key=public.encrypt(key, PKCS1v15()),
        )
    )


def _named(certificate: x509.Certificate) -> _IssuerAndSerial:
    issuer = asn1.decode_der(asn1.TLV, certificate.issuer.public_bytes())
    return _IssuerAndSerial(issuer=issuer, serial=certificate.serial_number)


def seal(plain: bytes, key: ContentKey, iv: bytes) -> bytes:
    """An envelope.

    Args:
        plain: the content.
        key: for whom.
        iv: 16 random bytes, never used with the same key before.
    """
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(AES(key.key), CBC(iv)).encryptor()
    data = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    recipients = asn1.SetOf([asn1.decode_der(asn1.TLV, one) for one in key.recipients])
    content = _Content(kind=_DATA, cipher=_Cipher(algorithm=_AES_256, iv=iv), data=data)
    enveloped = _Enveloped(version=0, recipients=recipients, content=content)
    return asn1.encode_der(_ContentInfo(kind=_ENVELOPED, content=enveloped))


def unseal(envelope: bytes, readers: Sequence[Reader], begins: bytes) -> bytes:
    """Open an envelope.

    Args:
        envelope: DER, with at most one byte of padding behind it.
        readers: any of them may fit.
        begins: how the content begins: with PKCS #1 v1.5 nothing else tells a wrong key from a right one.

    Raises:
        FormatError: not an envelope of this kind.
        SealError: for none of these readers, or altered.
    """
    enveloped = _parsed(envelope)
    if enveloped.content.kind != _DATA or enveloped.version not in (0, 2):
        raise FormatError("an envelope holds something else than data")
    cipher = enveloped.content.cipher
    length = _AES.get(cipher.algorithm)
    data = enveloped.content.data
    if length is None or len(cipher.iv) != IV_BYTES or not data or len(data) % IV_BYTES:
        raise FormatError("an envelope is encrypted in a way this program does not know")
    recipients = enveloped.recipients.as_list()
    if len(recipients) > _MAX_RECIPIENTS:
        raise FormatError("an envelope has too many readers")
    known = list(filter(None, map(_key_transport, recipients)))
    if len(known) == len(recipients) and (enveloped.version == 0) != all(named for _, named in known):
        raise FormatError("an envelope's version is not that of its readers")
    for wrapped, named in known:
        for reader in readers:
            key = _unwrapped(wrapped, named, reader)
            if key is not None and len(key) == length:
                plain = _opened(data, key, cipher.iv, begins)
                if plain is not None:
                    return plain
    raise SealError("an envelope opens with none of the keys that are here")


def _parsed(envelope: bytes) -> _Enveloped:
    if len(envelope) > MAX_BYTES:
        raise FormatError("an envelope is too large")
    try:
        # DICOM values have an even length: a byte of padding may follow.
        padded = len(envelope) > 2 and envelope[-1] == 0 and _der_length(envelope) == len(envelope) - 1
        info = asn1.decode_der(_ContentInfo, envelope[:-1] if padded else envelope)
    except (ValueError, TypeError, OverflowError) as error:
        raise FormatError("this is not a CMS EnvelopedData") from error
    if info.kind != _ENVELOPED:
        raise FormatError("this is not a CMS EnvelopedData")
    return info.content


def _der_length(data: bytes) -> int:
    """Length in bytes of the DER value at the beginning, its header included."""
    first = data[1]
    if first < 0x80:
        return 2 + first
    count = first & 0x7F
    return 2 + count + int.from_bytes(data[2 : 2 + count], "big")


def _key_transport(recipient: asn1.TLV) -> tuple[bytes, tuple[bytes, int] | None] | None:
    """The wrapped key and whose it is; None for a reader of another kind."""
    for kind, version in ((_KeyTransport, 0), (_KeyTransport2, 2)):
        try:
            found = recipient.parse(kind)
        except (ValueError, TypeError):
            continue
        if found.algorithm.algorithm != _RSA or found.version != version:
            return None
        if isinstance(found, _KeyTransport):
            return found.key, (asn1.encode_der(found.recipient.issuer), found.recipient.serial)
        return found.key, None
    return None


@lru_cache(maxsize=1024)
def _unwrapped(wrapped: bytes, named: tuple[bytes, int] | None, reader: Reader) -> bytes | None:
    """The content key; many envelopes share one, and opening it costs 2 ms."""
    key, own_name = _loaded(reader)
    if len(wrapped) * 8 != key.key_size or (own_name and named and own_name != named):
        return None
    try:
        return key.decrypt(wrapped, PKCS1v15())
    except ValueError:
        return None


@lru_cache(maxsize=64)
def _loaded(reader: Reader) -> tuple[RSAPrivateKey, tuple[bytes, int] | None]:
    try:
        # The primes are not tested: a tenth of a second in each process, and the key is the reader's own.
        key = serialization.load_pem_private_key(reader.key, None, unsafe_skip_rsa_key_validation=True)
        certificate = reader.certificate and x509.load_pem_x509_certificate(reader.certificate)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError("a private key or its certificate cannot be read", hint="Use PEM.") from error
    if not isinstance(key, RSAPrivateKey):
        raise SettingsError("a private key is not of RSA", hint="PS3.15 asks for RSA.")
    if not certificate:
        return key, None
    return key, (certificate.issuer.public_bytes(), certificate.serial_number)


def _opened(data: bytes, key: bytes, iv: bytes, begins: bytes) -> bytes | None:
    decryptor = Cipher(AES(key), CBC(iv)).decryptor()
    unpadder = padding.PKCS7(128).unpadder()
    try:
        plain = decryptor.update(data) + decryptor.finalize()
        plain = unpadder.update(plain) + unpadder.finalize()
    except ValueError:
        return None
    return plain if plain.startswith(begins) else None
