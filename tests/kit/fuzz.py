"""Every reader of bytes from outside, with valid examples, and ways to spoil them.

    TARGETS["manifest"].survives(spoil(TARGETS["manifest"].examples[0], steps))

is true or false; what it raises is a hole. What lies under a seal, a signature or
a checksum is spoilt before these are made (`statement`, `sealed-frame`, ...): otherwise only they would be
tried. `tests/test_fuzz.py` draws the steps with hypothesis, `scripts/fuzz/run` feeds the targets to atheris.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import central_store.settings
import facility_sync.settings
from facility_sync import dicom_file
from facility_sync.identity import domain_files, domains, sealed, tokens
from schemas import (
    container,
    envelope,
    extract,
    keys,
    manifest,
    messages,
    names,
    parquet_pages,
    row_marks,
    signature,
    ustar,
)
from schemas.errors import FormatError, SealError, SettingsError
from schemas.transit import sftp_packets as sftp
from tests.kit import images
from tests.kit.batches import Facility, row
from tests.kit.corpus import bundled
from tests.kit.domains import domain
from tests.schemas.test_messages import SAMPLES
from tests.schemas.test_parquet_pages import LEVELS

LIMIT = 1 << 20


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        read: takes the bytes.
        examples: bytes it accepts.
        errors: all it may raise.
    """

    read: Callable[[bytes], object]
    examples: tuple[bytes, ...]
    errors: tuple[type[Exception], ...] = (FormatError, SealError)

    def survives(self, data: bytes) -> bool:
        """Whether the bytes were accepted; an error that is none of ours comes out."""
        try:
            self.read(data)
        except self.errors:
            return False
        return True


# -- what the readers need ----------------------------------------------------------------------------

_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_LINE = keys.ssh_line(_KEY.public_key())
_IDENTITY = keys.new_age_identity()
_RECIPIENT = keys.recipient_of(_IDENTITY)
_CARD = messages.StoreCard(
    store=names.facility_name("central"), host="h", port=1, host_key=_LINE, signing_key=_LINE,
    age_recipient=_RECIPIENT,
)  # fmt: skip
_FACILITY = Facility("clinic-a", _KEY, _IDENTITY)
_TAKEN = datetime(2024, 1, 2, 3, 4, tzinfo=UTC).replace(tzinfo=None)  # the column has no zone
_ROWS = [row(0), row(1, menu="Thorax\u00e4", study_uid=None, acquisition_datetime=_TAKEN)]
_MADE = _FACILITY.batch(_ROWS, _CARD, [b"first", b"second" * 100])
_DOMAIN = domain()
_KEYRING = domains.Keyring((_DOMAIN,))
_FOOTER = len(_MADE.table) - 8 - int.from_bytes(_MADE.table[-8:-4], "little")


def _container(data: bytes) -> None:
    tar = ustar.Reader(io.BytesIO(data), limit=LIMIT)
    head = container.read_head(tar, lambda _: _LINE)
    table = head.table and manifest.from_parquet(head.table, facility="clinic-a")
    for _ in container.read_objects(tar, manifest.objects(table) if table else iter(())):
        pass


_GIVEN = [(_MADE.batch, _MADE.table)]
_MANIFESTS = container.manifests_bytes(_MADE.statement, _GIVEN)[len(container.head_bytes(_MADE.statement)) :]


def _manifests(data: bytes) -> None:
    tar = ustar.Reader(io.BytesIO(data), limit=LIMIT)
    for _, table in container.read_manifests(tar, [(batch, len(table)) for batch, table in _GIVEN]):
        manifest.from_parquet(table, facility="clinic-a")


def _statement(data: bytes) -> None:
    """A message of these bytes, rightly signed, before the same table and objects."""
    armor = signature.sign(_KEY, signature.namespace("statement"), data)
    front = _MADE.plain.index(b"statement.json\0")
    behind = _MADE.plain.index(b"objects/")
    head = b"".join(
        ustar.header(name, len(part)) + part + ustar.padding(len(part))
        for name, part in (("statement.json", data), ("statement.json.sig", armor.encode()))
    )
    _container(_MADE.plain[:front] + head + _MADE.plain[behind:])


def _streamed(data: bytes) -> None:
    envelope.open_sealed(io.BytesIO(data), io.BytesIO(), [_IDENTITY], limit=LIMIT)


def _packets(data: bytes) -> None:
    splitter = sftp.Splitter()
    for at in range(0, len(data), 1000):
        for packet in splitter.feed(data[at : at + 1000]):
            for reading in (
                lambda fields: (fields.u8(), fields.u32(), fields.string(), fields.attributes()),
                lambda fields: (fields.u8(), fields.u32(), list(fields.pairs())),
                lambda fields: (fields.u8(), fields.u32(), fields.u64(), fields.blob()),
            ):
                with suppress(FormatError):
                    reading(sftp.Fields(packet))


def _text(*readers: Callable[[object], object]) -> Callable[[bytes], None]:
    """Readers of one text each; the bytes as they may come from JSON, a folder or the wire."""

    def read(data: bytes) -> None:
        for reader in readers:
            for text in (data.decode("utf-8", "surrogateescape"), data.decode("latin-1"), data):
                with suppress(FormatError):
                    reader(text)

    return read


def _sealed_object(encoding: str, size: int) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        whole = io.BytesIO(envelope.seal_bytes(data, [_DOMAIN.recipient]))
        sink = io.BytesIO()
        sealed.open_object(whole, sink, encoding, _KEYRING, size=size)
        assert sink.tell() == size

    return read


def _identity(data: bytes) -> None:
    found = sealed.open_identity(envelope.seal_bytes(data, [_DOMAIN.recipient]), _KEYRING)
    assert found is None or all(isinstance(value, str) for value in found.values())


def _dicom(data: bytes) -> None:
    header = dicom_file.read_header(io.BytesIO(data), len(data))
    if isinstance(header, dicom_file.Refused):
        return
    clear = extract.clear_columns(
        header.dataset, transfer_syntax=header.transfer_syntax, facility="clinic-a", site_map={}
    )
    found = clear.identity.values
    tokens.patient_id_row(_DOMAIN.current, found["patient_id"], found["issuer"])
    tokens.accession(_DOMAIN.current, found["accession"])
    if clear.identity.born:
        tokens.person(_DOMAIN.current, found["patient_name"], clear.identity.born)
    sealed.seal_identity(found, [_DOMAIN])


_FRAME = zstandard.ZstdCompressor(write_content_size=True, write_checksum=True)
_PLAIN = bytes(range(256)) * 8
_PACKET = sftp.packet(
    sftp.OPEN, 7, sftp.string(b"/in/a.batch"), sftp.u32(3), sftp.attributes(sftp.Attributes(9, 0o644, 5))
)
_SMALL = sorted((path.read_bytes() for path in bundled()), key=len)
_DICOM = tuple(data for data in _SMALL if data[128:132] == b"DICM" and len(data) < 20_000)[-6:]

_SETTINGS = facility_sync.settings.Settings(
    facility="clinic-a", sources=("/x",), ignore=("*.txt",), menu={"CT": {"meaning": "CT"}}
)
_LIMITS = parquet_pages.Limits(manifest.MAX_ROWS, manifest.MAX_DECODED)

TARGETS: dict[str, Target] = {
    "names": Target(
        _text(names.object_id, names.batch_id, names.request_id, names.facility_name, names.user_name,
              names.uid, names.shelf_name),
        (b"0a" * 32 + b".batch", b"clinic-a", b"kimura@x", b"1.2.840"), (),
    ),
    "keys": Target(
        _text(keys.ssh_key, keys.public_key, keys.age_recipient, keys.age_identity),
        (_LINE.encode(), _RECIPIENT.encode(), _IDENTITY.encode()), (),
    ),
    "private-key": Target(keys.load_private, (keys.private_pem(_KEY),)),
    "message": Target(messages.parse, tuple(kind(**values).to_bytes() for kind, values in SAMPLES.items())),
    "signature": Target(
        lambda data: signature.verify(data.decode("latin-1"), _LINE, "x@facility-sync", b"data"),
        (signature.sign(_KEY, "x@facility-sync", b"data").encode(),),
    ),
    "container": Target(_container, (_MADE.plain,)),
    "manifests": Target(_manifests, (_MANIFESTS,)),
    "row-marks": Target(_text(row_marks.mark), (b"7:" + b"0a" * 16,), ()),
    "statement": Target(_statement, (_MADE.statement.data,)),
    "envelope": Target(lambda data: envelope.open_bytes(data, [_IDENTITY], limit=LIMIT), (_MADE.sealed,)),
    "envelope-stream": Target(_streamed, (_MADE.sealed,)),
    "manifest": Target(lambda data: manifest.from_parquet(data, facility="clinic-a"), (_MADE.table,)),
    "footer": Target(
        lambda data: manifest.from_parquet(
            _MADE.table[:_FOOTER] + data + struct.pack("<I", len(data)) + b"PAR1", facility="clinic-a"),
        (_MADE.table[_FOOTER:-8],),
    ),
    "parquet-pages": Target(
        lambda data: parquet_pages.check(data, _LIMITS, LEVELS),
        (_MADE.table,),
    ),
    "sftp": Target(_packets, (_PACKET * 3, sftp.version_packet(sftp.VERSION_REPLY, [(sftp.FSYNC, b"1")]))),
    "domain": Target(domain_files.from_lines, (domain_files.to_lines([_DOMAIN]),)),
    "sealed-identity": Target(_identity, (messages.canonical({"patient_name": "A^B", "version": 1}),), ()),
    "sealed-object": Target(_sealed_object("age", len(_PLAIN)), (_PLAIN,)),
    "sealed-frame": Target(_sealed_object("age+zstd", len(_PLAIN)), (_FRAME.compress(_PLAIN),)),
    "store-settings": Target(
        lambda data: central_store.settings.parse(data.decode("utf-8", "replace")),
        (central_store.settings.to_text(
            central_store.settings.Settings(name="central", host="h", port=1)).encode(),), (SettingsError,),
    ),
    "terminal-settings": Target(
        lambda data: facility_sync.settings.parse(data.decode("utf-8", "replace")),
        (facility_sync.settings.render(_SETTINGS).encode(),),
        (SettingsError,),
    ),
    "dicom": Target(_dicom, (images.image(1), *_DICOM), ()),
}  # fmt: skip
"""By name. Valid settings, keys and names never raise: their readers are asked one by one inside."""
