"""Batches that are sealed and signed as they should be, with a tar or a table made to do harm.

All of them lie on one shelf at once, beside good batches of this facility and another. Each is refused with a
signed reason, the good ones are stored, and the process that reads them stays small.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from central_store import facilities
from central_store.catalog import Catalog
from schemas import container, envelope, manifest, messages, names, signature, ustar
from tests.central_store.conftest import Place
from tests.kit.batches import row, tar_of
from tests.schemas.test_parquet_pages import SCHEMA, folded, replaced, rows

OBJECT = b"an object"
NAME = f"objects/{hashlib.sha256(OBJECT).hexdigest()}.age"
WORKER_MIB = 100
"""Most a worker may grow over all of them."""


def _member(data: bytes = OBJECT, kind: int = tarfile.USTAR_FORMAT, **change: Any) -> bytes:
    """A member as `tarfile` writes it, with our numbers' spelling where nothing else is asked for."""
    info = tarfile.TarInfo(NAME)
    info.size = len(data)
    for key, value in change.items():
        setattr(info, key, value)
    return info.tobuf(kind, "utf-8", "surrogateescape") + data + ustar.padding(len(data))


def _field(at: int, value: bytes, size: int = len(OBJECT)) -> bytes:
    """Our own header with one field changed and the checksum made right again."""
    head = bytearray(ustar.header(NAME, size))
    head[at : at + len(value)] = value
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + OBJECT + ustar.padding(len(OBJECT))


def _object(head: bytes) -> Callable[[Place], bytes]:
    """A batch of one object whose member is this."""
    return lambda place: container.head_bytes(*_signed(place)) + head + ustar.END


def _signed(place: Place, table: bytes | None = None, **change: Any) -> tuple[container.Signed, bytes]:
    table = _table() if table is None else table
    values: dict[str, Any] = {
        "facility": place.a.name, "sequence": 1, "previous": "", "batch": hashlib.sha256(table).hexdigest(),
        "objects": 1, "bytes": len(OBJECT), "created": "2026-11-24T08:30:00Z",
    }  # fmt: skip
    return container.sign(messages.Statement(**(values | change)), place.a.key), table


_numbers = itertools.count()


def _table(**values: Any) -> bytes:
    """Each call gives another table: batches are named by them."""
    sealed = {"facility": "clinic-a", "object_sha256": NAME[8:72], "object_bytes": len(OBJECT)}
    sealed["instance_number"] = next(_numbers)
    return manifest.to_parquet([row(0) | sealed | values], facility="clinic-a")


def _whole(place: Place) -> bytes:
    return container.head_bytes(*_signed(place)) + tar_of([OBJECT]) + ustar.END


def _of_table(table: bytes) -> Callable[[Place], bytes]:
    return lambda place: container.head_bytes(*_signed(place, table)) + tar_of([OBJECT]) + ustar.END


def _parts(place: Place, *order: str) -> bytes:
    signed, table = _signed(place)
    data = {
        container.TABLE: table, "statement.json": signed.data, "statement.json.sig": signed.armor.encode(),
        "receipt.json": signed.data, "receipt.json.sig": signed.armor.encode(), "long.sig": bytes(5000),
    }  # fmt: skip
    members = ((name, data[name]) for name in order)
    front = b"".join(ustar.header(name, len(one)) + one + ustar.padding(len(one)) for name, one in members)
    return front + tar_of([OBJECT]) + ustar.END


def _forged_json(place: Place, change: Callable[[dict[str, Any]], bytes]) -> bytes:
    """A statement in another spelling, signed as it stands."""
    signed, table = _signed(place)
    data = change(json.loads(signed.data))
    armor = signature.sign(place.a.key, signature.namespace("statement"), data)
    return container.head_bytes(signed._replace(data=data, armor=armor), table) + tar_of([OBJECT]) + ustar.END


def _other_namespace(place: Place) -> bytes:
    signed, table = _signed(place)
    armor = signature.sign(place.a.key, signature.namespace("receipt"), signed.data)
    return container.head_bytes(signed._replace(armor=armor), table) + tar_of([OBJECT]) + ustar.END


def _written(table: pa.Table, **how: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **({"compression": "zstd"} | how))
    return sink.getvalue()


def _many_rows() -> bytes:
    sink, one = io.BytesIO(), rows(1)
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer:
        for _ in range(11):
            writer.write_table(pa.concat_tables([one] * 20_000).combine_chunks())
    return sink.getvalue()


def _deep() -> bytes:
    kind: pa.DataType = pa.int8()
    for _ in range(60):
        kind = pa.list_(kind)
    return _written(pa.table({"deep": pa.array([None], kind)}))


def _lying() -> bytes:
    """The statistics of `menu` say that no row has what the rows have."""
    table = _table(menu="ZZZZ")
    footer = len(table) - 8 - int.from_bytes(table[-8:-4], "little")
    assert table[footer:].count(b"ZZZZ") >= 2
    return table[:footer] + table[footer:].replace(b"ZZZZ", b"AAAA")


def _page_of(text: int, **how: Any) -> bytes:
    return _written(replaced(rows(3), "menu", pa.array(["a" * text] * 3)), use_dictionary=False, **how)


M = "manifest-mismatch"
PLAIN: dict[str, tuple[Callable[[Place], bytes], str]] = {
    # the tar
    "a link": (_object(_member(b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")), M),
    "a hard link": (_object(_member(b"", type=tarfile.LNKTYPE, linkname="manifest.parquet")), M),
    "a device": (_object(_member(b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3)), M),
    "a block device": (_object(_member(b"", type=tarfile.BLKTYPE)), M),
    "a pipe": (_object(_member(b"", type=tarfile.FIFOTYPE)), M),
    "a folder": (_object(_member(b"", type=tarfile.DIRTYPE)), M),
    "a sparse file": (_object(_member(type=tarfile.GNUTYPE_SPARSE)), M),
    "a contiguous file": (_object(_member(type=tarfile.CONTTYPE)), M),
    "an unknown type": (_object(_field(156, b"Z")), M),
    "an old regular file": (_object(_field(156, b"\0")), M),
    "a PAX header": (_object(_member(kind=tarfile.PAX_FORMAT, pax_headers={"path": "../../x"})), M),
    "a PAX size": (_object(_member(kind=tarfile.PAX_FORMAT, pax_headers={"size": "99999999999"})), M),
    "a global PAX header": (_object(_member(b"13 path=../x\n", type=tarfile.XGLTYPE)), M),
    "a GNU long name": (_object(_member(kind=tarfile.GNU_FORMAT, name="x" * 300)), M),
    "a GNU long link": (_object(_member(b"", kind=tarfile.GNU_FORMAT, linkname="y" * 300, type=b"2")), M),
    "a base-256 size": (_object(_field(124, b"\x80" + bytes(7) + b"\0\0\0\x09")), M),
    "a negative base-256 size": (_object(_field(124, b"\xff" * 12)), M),
    "a negative size": (_object(_field(124, b"         -1\0")), M),
    "a size with a sign": (_object(_field(124, b"        +11\0")), M),
    "a size in hexadecimal": (_object(_field(124, b"        0x9\0")), M),
    "a size with zeros": (_object(_field(124, b"00000000011\0")), M),
    "a size beyond its field": (_object(_field(124, b"777777777777")), M),
    "eight gigabytes": (_object(_field(124, b"77777777777\0")), M),
    "a size beyond the end": (_object(ustar.header(NAME, 10**6) + OBJECT), M),
    "a size too small": (_object(_field(124, b"          1\0")), M),
    "a setuid mode": (_object(_member(mode=0o4755)), M),
    "an owner": (_object(_member(uid=1000, uname="root")), M),
    "a time": (_object(_member(mtime=10**9)), M),
    "a prefix": (_object(_field(345, b"../../..")), M),
    "a wrong checksum": (_object(ustar.header(NAME, 9)[:150] + b"7" + ustar.header(NAME, 9)[151:]), M),
    "padding that is not zero": (lambda p: _whole(p)[:-1025] + b"!" + ustar.END, M),
    "content behind the end": (lambda p: _whole(p) + b"\0", M),
    "an end behind the end": (lambda p: _whole(p) + ustar.END, M),
    "a whole tar behind the end": (lambda p: _whole(p) + _whole(p), M),
    "half an end": (lambda p: _whole(p)[:-512], M),
    "no end": (lambda p: _whole(p)[:-1024], M),
    "a hundred thousand more members": (_object(tar_of([OBJECT]) + ustar.header("a", 0) * 100_000), M),
    "an object twice": (_object(tar_of([OBJECT, OBJECT])), M),
    # its names
    **{
        f"the name {name!r}": (_object(_field(0, name.ljust(100, b"\0"))), M)
        for name in (
            b"../../etc/cron.d/x", b"/etc/passwd", b"objects/../../x", b"objects//x", b"",
            b"./" + NAME.encode(),
            b"objects/\xc3\xa4.age", b"objects/\xff\xfe.age", b"objects\\x.age", b"objects/CON", b"o" * 100,
            NAME.encode() + b"\0/x", NAME.upper().encode(), NAME.encode() + b" ", b"-rf",
            NAME.encode() + b"\n",
            NAME.replace("/", "\u2215").encode()[:100], b"objects/" + b"0" * 64 + b".age", NAME[:-4].encode(),
        )
    },
    # the message and its signature
    "the message before the table": (
        lambda p: _parts(p, "statement.json", "statement.json.sig", container.TABLE), "seal"),
    "no signature": (lambda p: _parts(p, container.TABLE, "statement.json"), "format"),
    "two tables": (lambda p: _parts(p, container.TABLE, container.TABLE, "statement.json"), "format"),
    "no table": (lambda p: _parts(p, "statement.json", "statement.json.sig"), "seal"),
    "another message's name": (
        lambda p: _parts(p, container.TABLE, "receipt.json", "receipt.json.sig"), "format"),
    "a signature of pages": (lambda p: _parts(p, container.TABLE, "statement.json", "long.sig"), "format"),
    "signed for another purpose": (_other_namespace, "seal"),
    "a statement with blanks": (lambda p: _forged_json(p, lambda v: json.dumps(v).encode()), "format"),
    "a statement with more": (
        lambda p: _forged_json(p, lambda v: messages.canonical(v | {"x": 1})), "format"),
    "a statement of version 2": (
        lambda p: _forged_json(p, lambda v: messages.canonical(v | {"version": 2})), "version"),
    "a statement of version 1.0": (
        lambda p: _forged_json(p, lambda v: messages.canonical(v | {"version": 1.0})), "format"),
    "a statement of a path": (
        lambda p: _forged_json(p, lambda v: messages.canonical(v | {"facility": "../a"})), "format"),
    "a negative sequence": (
        lambda p: _forged_json(p, lambda v: messages.canonical(v | {"sequence": -1})), "format"),
    "a deep statement": (lambda p: _forged_json(p, lambda _: b"[" * 90_000), "format"),
    "a statement of brackets": (lambda p: _forged_json(p, lambda _: b"[" + b"[]," * 5_000_000), "format"),
    # the table
    "a table that is none": (_of_table(b"PAR1" + bytes(100) + b"PAR1"), "format"),
    "one text many times": (_of_table(folded("menu", 4096, "a" * 1_000_000)), "format"),
    "one flag many times": (_of_table(folded("flags", 100_000, "a" * 1_000_000)), "format"),
    "a page that inflates": (_of_table(_page_of(9_000_000, data_page_size=1 << 30)), "format"),
    "long texts": (_of_table(_page_of(5000)), "format"),
    "more rows than allowed": (_of_table(_many_rows()), "format"),
    "columns nested deeply": (_of_table(_deep()), "format"),
    "ten thousand columns": (_of_table(_written(pa.table({f"c{n}": [1] for n in range(10_000)}))), "format"),
    "statistics that lie": (_of_table(_lying()), "format"),
    "another codec": (_of_table(_written(rows(1), compression="brotli")), "format"),
    "more in the row than in the object": (_of_table(_table(object_bytes=8 * 1024**3 - 1)), M),
}  # fmt: skip


def _name(plain: bytes) -> names.BatchId:
    """The digest of the table it begins with: a name on the shelf that is no reason by itself."""
    size = int(plain[124:135], 8) if plain.startswith(container.TABLE.encode() + b"\0") else 0
    return names.BatchId(hashlib.sha256(plain[512 : 512 + size] if size else plain).hexdigest())


@pytest.fixture
def hostile(place: Place) -> dict[str, tuple[str, str]]:
    """All of them on the shelf: batch to what it is and the reason expected."""
    expected = {}
    for what, (make, reason) in PLAIN.items():
        plain = make(place)
        sealed = envelope.seal_bytes(plain, [place.card.age_recipient])
        (place.inbound(place.a) / f"{_name(plain)}.batch").write_bytes(sealed)
        expected[_name(plain)] = (what, reason)
    assert len(expected) == len(PLAIN)
    return expected


def test_each_is_refused_and_nothing_else_is_disturbed(
    place: Place, hostile: dict[str, tuple[str, str]]
) -> None:
    good = place.put(place.a, place.a.batch([row(7)], place.card))
    other = place.put(place.b, place.b.batch([row(8)], place.card))
    counts = place.work()
    assert (counts.stored, counts.refused) == (2, len(hostile))
    found = {}
    for batch, (what, _) in hostile.items():
        refusal = place.reply(place.a, f"{batch}.refusal")
        assert isinstance(refusal, messages.Refusal), what
        found[what] = refusal.reason
        assert not place.store.layout.pack(names.batch_id(batch)).exists(), what
    assert found == dict(hostile.values())
    for who, made in ((place.a, good), (place.b, other)):
        assert isinstance(place.reply(who, f"{made.batch}.receipt"), messages.Receipt)
    assert not list(place.inbound(place.a).iterdir())
    assert not [path for path in place.store.layout.staging.iterdir() if path.name != "catalog"]
    assert len(list(place.store.layout.packs.glob("*/*"))) == 2


def test_the_process_that_reads_them_stays_small(place: Place, hostile: dict[str, tuple[str, str]]) -> None:
    """Peak memory of one process over all of them, above what it has with one good batch."""
    good = place.put(place.a, place.a.batch([row(7)], place.card))
    code = """
import re, sys
from pathlib import Path
from central_store import facilities, settings, verify
from schemas import names
from schemas.errors import FormatError, SealError
store = settings.open_store(Path(sys.argv[1]))
card = facilities.load(store.layout, names.facility_name("clinic-a"))
grown = []
for batch in sys.argv[2:]:
    try:
        verify.verify(store.layout, card, store.keys.age_identity, names.batch_id(batch))
    except (FormatError, SealError):
        pass
    # Not ru_maxrss: that begins with what the parent had when it forked.
    grown.append(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
print(grown[0], grown[-1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, place.root, good.batch, *hostile],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    before, after = map(int, done.stdout.split())
    assert after - before < WORKER_MIB, f"{before} MiB before, {after} MiB after"


def test_content_of_another_facility_signed_anew(place: Place) -> None:
    """B, once granted A's objects, sends them as its own: they are B's rows, and nothing of A changes."""
    mine = place.put(place.a, place.a.batch([row(0), row(1)], place.card))
    place.work()
    objects = list(mine.objects.values())
    theirs = place.b.batch([row(0), row(1)], place.card, objects)
    stolen = mine.table  # A's own table under B's signature
    statement = container.sign(
        messages.Statement(
            facility=place.b.card.facility, sequence=2, previous="", batch=mine.batch, objects=2,
            bytes=sum(map(len, objects)), created="2026-11-24T08:30:00Z",
        ),
        place.b.key,
    )  # fmt: skip
    plain = container.head_bytes(statement, stolen) + tar_of(objects) + ustar.END
    copied = envelope.seal_bytes(plain, [place.card.age_recipient])
    (place.inbound(place.b) / mine.file).write_bytes(copied)  # not A's: it has A's table and B's signature
    place.put(place.b, theirs)
    before = {path: path.read_bytes() for path in (place.root / "manifests" / "clinic-a").rglob("*.*")}
    pack = place.store.layout.pack(mine.batch).read_bytes()
    counts = place.work()
    assert (counts.stored, counts.refused) == (1, 1)
    refusal = place.reply(place.b, f"{mine.batch}.refusal")
    assert isinstance(refusal, messages.Refusal)
    assert refusal.reason == "format"
    assert {path: path.read_bytes() for path in before} == before
    assert place.store.layout.pack(mine.batch).read_bytes() == pack
    with Catalog(place.store.layout, place.store.settings) as catalog:
        assert catalog.totals() == {"clinic-a": (1, 2), "hospital_b": (1, 2)}
        owner = catalog.places([names.object_id(name) for name in mine.objects], [place.a.card.facility])
        assert {found.batch for found in owner} == {mine.batch}, "A is served from A's own pack"


def test_a_replaced_key_counts_no_more_and_a_facility_that_is_gone_is_not_served(place: Place) -> None:
    old = place.a
    before = place.put(old, old.batch([row(0)], place.card))
    place.work()
    new = type(old)(old.name, sequence=1, previous=before.batch)
    facilities.enrol(place.store.layout, new.card, replace_key=True)
    late = place.put(old, old.batch([row(1)], place.card))
    fresh = place.put(new, new.batch([row(2)], place.card))
    asked = place.search(old)
    place.ask(old, asked)
    counts = place.work()
    assert (counts.stored, counts.refused, counts.answered) == (1, 2, 0)
    for subject in (late.batch, asked.id):
        refusal = place.reply(new, f"{subject}.refusal")
        assert isinstance(refusal, messages.Refusal)
        assert refusal.reason == "seal"
    assert isinstance(place.reply(new, f"{fresh.batch}.receipt"), messages.Receipt)
    place.put(new, before)  # what the old key signed while it counted stays stored: the receipt again
    assert place.work().stored == 1
    assert isinstance(place.reply(new, f"{before.batch}.receipt"), messages.Receipt)

    place.store.layout.card(place.a.card.facility).unlink()
    place.put(new, new.batch([row(3)], place.card))
    other = place.put(place.b, place.b.batch([row(8)], place.card))
    counts = place.work()
    assert (counts.stored, counts.refused) == (1, 0)
    assert isinstance(place.reply(place.b, f"{other.batch}.receipt"), messages.Receipt)
