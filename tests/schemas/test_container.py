"""The container: head, objects, and every way to be wrong."""

import hashlib
import io

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas import audit_messages, container, keys, messages, peer_messages, ustar
from schemas.errors import FormatError, SealError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SIGNER = keys.ssh_line(KEY.public_key())
TABLE = b"PAR1 not really"
OBJECTS = [b"first object", b"", bytes(5000)]
IDS = [hashlib.sha256(data).hexdigest() for data in OBJECTS]
EXPECTED = [(name, len(data), "age") for name, data in zip(IDS, OBJECTS, strict=True)]


def statement(table: bytes = TABLE) -> container.Signed:
    message = messages.Statement(
        facility="clinic-a", sequence=1, previous="", batch=hashlib.sha256(table).hexdigest(),
        objects=3, bytes=5012, created="2026-11-24T08:30:00Z",
    )  # fmt: skip
    return container.sign(message, KEY)


def tail(objects=OBJECTS, ids=IDS) -> bytes:
    return (
        b"".join(
            ustar.header(container.object_name(name, "age"), len(data)) + data + ustar.padding(len(data))
            for name, data in zip(ids, objects, strict=True)
        )
        + ustar.END
    )


BATCH = container.head_bytes(statement(), TABLE) + tail()


def read(data: bytes, signer: str = SIGNER, expected=EXPECTED):
    tar = ustar.Reader(io.BytesIO(data), limit=10**6)
    head = container.read_head(tar, lambda _: signer)
    copies = {name: io.BytesIO() for name, _, _ in expected}
    stored = list(container.read_objects(tar, iter(expected), copies.get))
    return head, stored, copies


def test_round_trip():
    head, stored, copies = read(BATCH)
    assert head.signed == statement()
    assert head.table == TABLE
    assert [copies[name].getvalue() for name in IDS] == OBJECTS
    for item, data in zip(stored, OBJECTS, strict=True):
        assert BATCH[item.offset : item.offset + item.length] == data


def test_every_flipped_bit_is_refused():
    for flip in range(0, len(BATCH) * 8, 11):
        data = bytearray(BATCH)
        data[flip // 8] ^= 1 << flip % 8
        with pytest.raises((FormatError, SealError)):
            read(bytes(data))


def test_every_truncation_is_refused():
    for length in range(0, len(BATCH), 50):
        with pytest.raises((FormatError, SealError)):
            read(BATCH[:length])


def test_another_signer_is_refused():
    other = keys.ssh_line(Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key())
    with pytest.raises(SealError):
        read(BATCH, signer=other)


@pytest.mark.parametrize(
    "data",
    [
        container.head_bytes(statement(b"other"), TABLE) + tail(),
        container.head_bytes(statement()) + tail(),
        container.head_bytes(statement(), TABLE) + tail(OBJECTS[:2], IDS[:2]),
        container.head_bytes(statement(), TABLE) + tail([*OBJECTS, b""], [*IDS, IDS[1]]),
        container.head_bytes(statement(), TABLE) + tail(OBJECTS[::-1], IDS[::-1]),
        container.head_bytes(statement(), TABLE) + tail([b"1st object..", *OBJECTS[1:]], IDS),
        tail(),
        ustar.END,
    ],
    ids=[
        "table of another batch",
        "no table",
        "object missing",
        "object twice",
        "order",
        "other bytes",
        "no head",
        "empty",
    ],
)
def test_what_does_not_belong_together_is_refused(data):
    with pytest.raises((FormatError, SealError)):
        read(data)


def test_a_message_under_another_name_is_refused():
    signed = statement()
    data = b"".join(
        ustar.header(name, len(part)) + part + ustar.padding(len(part))
        for name, part in (
            (container.TABLE, TABLE),
            ("receipt.json", signed.data),
            ("receipt.json.sig", signed.armor.encode()),
        )
    )  # fmt: skip
    with pytest.raises(FormatError):
        read(data + tail())


def test_a_signature_for_another_purpose_is_refused():
    receipt = container.sign(
        messages.Receipt(
            store="central", facility="clinic-a", batch="0a" * 32, sequence=1, objects=1, bytes=1,
            stored="2026-11-24T08:30:00Z",
        ),
        KEY,
    )  # fmt: skip
    signed = statement()
    with pytest.raises(SealError):
        container.verify(signed.data, receipt.armor, SIGNER)


def test_every_message_that_travels_has_a_file_name():
    others = {messages.FacilityCard, messages.StoreCard, messages.Capsule}  # cards, and in an object
    others |= {audit_messages.Checkpoint, peer_messages.Change}  # within an answer
    travelling = set(messages.Message.__subclasses__()) - others
    assert set(container.MESSAGE_FILES) == travelling
