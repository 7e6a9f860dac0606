"""RSA keys and X.509 certificates: how tools that know no age name a reader of CMS (RFC 5652, PS3.15 E.1).

Guarantees: a domain's certificate follows from its name, key and time alone, so nothing in it is random;
`openssl cms` and `gdcmanon` take it as a recipient; a key and a certificate that do not belong together,
or are shorter than this project accepts, are a `FormatError`.

Leaves to others: making a key (`domains.new_parts`), envelopes.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from schemas.errors import FormatError

BITS = 3072
"""Length of a domain's RSA key (NIST SP 800-57: 128 bits of strength)."""
_LEAST_BITS = 2048
_VALID = timedelta(days=30 * 365 + 7)
_PLAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._-]{0,62}[A-Za-z0-9._-])?")
_ERRORS = (ValueError, TypeError, UnsupportedAlgorithm)


def new_rsa_key() -> bytes:
    """A fresh RSA-3072 key as unencrypted PKCS#8 PEM: a fifth of a second; the randomness is OpenSSL's."""
    key = generate_private_key(public_exponent=65537, key_size=BITS)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_key(pem: bytes) -> RSAPrivateKey:
    """A domain's private key; raises `FormatError` unless it is an unencrypted RSA-3072 key.

    The primes are not tested: that takes a tenth of a second, and the file is our own or came sealed.
    """
    try:
        key = load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)
    except _ERRORS as error:
        raise FormatError("this is not an unencrypted RSA key") from error
    if not isinstance(key, RSAPrivateKey) or key.key_size != BITS:
        raise FormatError(f"a domain's key is an RSA key of {BITS} bits")
    return key


def self_signed(name: str, rsa_key: bytes, created: datetime, *, otherwise: str) -> bytes:
    """The certificate of a key, PEM: v3, self-signed, 30 years, for key encipherment.

    Args:
        name: becomes the common name if it is plain ASCII that every tool prints.
        rsa_key: PKCS#8 PEM.
        created: beginning of its validity.
        otherwise: the common name of a domain whose name is not plain.
    """
    key = load_key(rsa_key)
    common = name if _PLAIN.fullmatch(name) else otherwise
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    # CMS names a recipient by issuer and serial number: keys of one name must not share a number.
    serial = 1 + int.from_bytes(hashlib.sha256(public).digest()[:16])
    usage = x509.KeyUsage(
        key_encipherment=True, digital_signature=False, content_commitment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    try:
        made = (
            x509.CertificateBuilder(subject, subject, key.public_key(), serial, created, created + _VALID)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, SHA256())
        )
    except (ValueError, OverflowError) as error:
        raise FormatError("a certificate cannot begin at this time") from error
    return made.public_bytes(Encoding.PEM)


def recipient(pem: bytes) -> bytes:
    """Check a certificate that is to open envelopes; returns its one canonical PEM; raises `FormatError`."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key = certificate.public_key()
    except _ERRORS as error:
        raise FormatError("this is not an X.509 certificate in PEM") from error
    if not isinstance(key, RSAPublicKey) or key.key_size < _LEAST_BITS:
        raise FormatError(f"envelopes are opened by RSA keys of at least {_LEAST_BITS} bits")
    return certificate.public_bytes(Encoding.PEM)


def check_pair(rsa_key: bytes, certificate: bytes) -> None:
    """The certificate must be this key's, both in their one spelling; raises `FormatError`."""
    key = load_key(rsa_key)
    try:
        spelled = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        parsed = x509.load_pem_x509_certificate(certificate)
        parsed.verify_directly_issued_by(parsed)
        same = parsed.public_key() == key.public_key()
    except (*_ERRORS, InvalidSignature) as error:
        raise FormatError("this is not a domain's certificate") from error
    if not same or (spelled, recipient(certificate)) != (rsa_key, certificate):
        raise FormatError("a domain's certificate is not that of its key")
