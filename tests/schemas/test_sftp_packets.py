"""SFTP packets: any cutting of the stream gives the same packets; whatever the bytes, only our error."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import FormatError
from schemas.transit import sftp_packets as p


@given(st.lists(st.binary(max_size=50), max_size=10), st.data())
def test_any_cutting_gives_the_same_packets(bodies: list[bytes], data: st.DataObject) -> None:
    packets = [p.packet(p.DATA, number, body) for number, body in enumerate(bodies)]
    stream, found, splitter = b"".join(packets), [], p.Splitter()
    while stream:
        at = data.draw(st.integers(1, len(stream)))
        found += [bytes(view) for view in splitter.feed(stream[:at])]
        stream = stream[at:]
    assert found == [packet[4:] for packet in packets]


@pytest.mark.parametrize("length", [0, 101, 2**31, 2**32 - 1])
def test_a_packet_outside_the_limit_is_refused_at_its_length(length: int) -> None:
    with pytest.raises(FormatError):
        list(p.Splitter(limit=100).feed(p.u32(length)))


@given(st.binary(max_size=200))
def test_fields_raise_only_our_error(data: bytes) -> None:
    for read in ("u8", "u32", "u64", "blob", "string", "attributes"):
        fields = p.Fields(data)
        with suppress(FormatError):
            while fields:
                getattr(fields, read)()
    with suppress(FormatError):
        list(p.Fields(data).pairs())


@given(
    st.builds(
        p.Attributes,
        st.none() | st.integers(0, 2**64 - 1),
        st.none() | st.integers(0, 2**32 - 1),
        st.none() | st.integers(0, 2**32 - 1),
    )
)
def test_attributes_come_back(known: p.Attributes) -> None:
    fields = p.Fields(p.attributes(known))
    assert fields.attributes() == known
    assert not fields


def test_attributes_with_owner_and_extensions_are_read_past() -> None:
    data = p.u32(0x80000003) + p.u64(7) + p.u64(0) + p.u32(1) + p.string(b"name") + p.string(b"data")
    assert p.Fields(data).attributes() == p.Attributes(size=7)


def test_the_bytes_of_a_packet() -> None:
    """Against the draft, byte for byte: OPEN "in" for reading, as request 5."""
    packet = p.packet(p.OPEN, 5, p.string(b"in"), p.u32(p.FLAG_READ), p.NO_ATTRIBUTES)
    assert packet.hex() == "00000013030000000500000002696e0000000100000000"
