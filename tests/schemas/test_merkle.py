"""The tree of RFC 6962: the vectors of its reference implementation, and its own definition."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import merkle
from schemas.errors import FormatError

# google/certificate-transparency, cpp/merkletree/merkle_tree_test.cc: eight inputs and the root after each
INPUTS = [
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def by_definition(entries: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, word for word."""
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\0" + entries[0]).digest()
    k = 1
    while k * 2 < len(entries):
        k *= 2
    left, right = by_definition(entries[:k]), by_definition(entries[k:])
    return hashlib.sha256(b"\1" + left + right).digest()


def test_the_vectors_of_the_reference_implementation():
    tree = merkle.Range()
    assert tree.root.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for entry, root in zip(INPUTS, ROOTS, strict=True):
        tree = tree.extended([bytes.fromhex(entry)])
        assert tree.root.hex() == root


@given(st.lists(st.binary(max_size=8), max_size=70), st.data())
def test_a_range_that_grows_is_the_tree_of_the_whole_list(entries, data):
    cut = data.draw(st.integers(0, len(entries)))
    grown = merkle.Range().extended(entries[:cut]).extended(entries[cut:])
    assert grown == merkle.Range().extended(entries)
    assert grown.root == by_definition(entries)


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=40), st.data())
def test_another_beginning_gives_another_root(entries, data):
    at = data.draw(st.integers(0, len(entries) - 1))
    other = [*entries[:at], entries[at] + b"!", *entries[at + 1 :]]
    assert merkle.Range().extended(other).root != merkle.Range().extended(entries).root


@given(st.lists(st.binary(max_size=300), max_size=merkle.TILE))
def test_bundles_come_back(entries):
    assert merkle.unbundle(merkle.bundle(entries)) == entries


@given(st.binary(max_size=600))
def test_whatever_is_no_bundle_is_refused(data):
    try:
        entries = merkle.unbundle(data)
    except FormatError:
        return
    assert merkle.bundle(entries) == data


@pytest.mark.parametrize(
    ("number", "path"),
    [(0, "tile/entries/000"), (1234067, "tile/entries/x001/x234/067"), (1000, "tile/entries/x001/000")],
)
def test_bundles_lie_where_tile_logs_have_them(number, path):
    assert merkle.bundle_path(number) == path


@pytest.mark.parametrize(
    "wrong", [(1, ()), (0, (b"0" * 32,)), (-1, ()), (1, (b"short",)), (1 << 62, (b"0" * 32,))]
)
def test_what_is_no_range_is_refused(wrong):
    with pytest.raises(FormatError):
        merkle.Range(*wrong)
    with pytest.raises(FormatError):
        merkle.bundle([b"x" * (1 << 16)])
