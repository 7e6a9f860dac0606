"""Reading one file: what is taken comes back bit for bit, everything else has a reason."""

from __future__ import annotations

import hashlib
import io
import os
import random
import threading
from datetime import UTC, date, datetime, time
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from facility_sync import capture, dicom_file, pack, reasons
from facility_sync.dicom_file import Refused
from facility_sync.identity import decide, domains, objects, tokens
from schemas import columns, extract, manifest
from schemas.errors import Damaged
from tests.kit import images
from tests.kit.corpus import bundled, everything
from tests.kit.domains import domain

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about the files it reads

DOMAIN = domain("x")
PROTECTED, SEALED = decide.Rules(), decide.Rules(seal_all=True)
RING = domains.Keyring((DOMAIN,))


def take(
    path: Path, sink: io.BytesIO | None = None, max_bytes: int = 1 << 33, rules: decide.Rules = SEALED
) -> capture.Taken | Refused:
    context = pack.Context(
        facility="clinic-a", domains=(DOMAIN,), key=bytes(32), escrow=None, menu={},
        captured=datetime(2026, 11, 24, tzinfo=UTC), max_file=max_bytes, rules=rules,
    )  # fmt: skip
    return capture.take(path, pack.capturing(context), sink or io.BytesIO())


def header(data: bytes) -> dicom_file.Header | Refused:
    return dicom_file.read_header(io.BytesIO(data), len(data))


@pytest.mark.campaign("corpus", small=150, large=10_000)
@pytest.mark.parametrize("rules", [PROTECTED, SEALED], ids=["protected", "sealed"])
def test_every_real_file_is_taken_and_comes_back_or_is_refused_with_a_reason(
    rules, campaign_size, campaign_seed
):
    """Of pydicom's bundled files, and the corpus when it is there: some here, all of them in the campaign."""
    rows, refused, paths = [], {}, sorted(everything())
    for path in random.Random(campaign_seed).sample(paths, min(campaign_size, len(paths))):
        sink, data = io.BytesIO(), path.read_bytes()
        result = take(path, sink, rules=rules)
        if isinstance(result, Refused):
            refused[path] = result.reason
            continue
        row, back = result.row, io.BytesIO()
        objects.open_object(io.BytesIO(sink.getvalue()), back, row["encoding"], RING, size=row["dicom_bytes"])
        assert back.getvalue() == data
        assert row["object_sha256"] == hashlib.sha256(sink.getvalue()).hexdigest()
        assert row["source_digest"] == tokens.keyed_digest(DOMAIN, hashlib.sha256(data).digest())
        assert set(row["flags"]) <= set(extract.FLAGS)
        rows.append(row)
    assert set(refused.values()) <= set(reasons.CAPTURE)
    assert len(rows) > 100
    unique = {row["object_sha256"]: row for row in rows}
    assert manifest.to_parquet(list(unique.values()), facility="clinic-a")


def test_a_file_whose_instance_uid_pydicom_can_read_is_never_refused():
    missed = []
    for path in everything():
        result = header(path.read_bytes())
        if not isinstance(result, Refused) or result.reason == "dicomdir":
            continue
        try:
            found = pydicom.dcmread(path, force=True, stop_before_pixels=True).get("SOPInstanceUID")
        except Exception:  # pydicom cannot read it either
            continue
        if found:
            missed.append(path.name)
    assert missed == []


LOUD = frozenset({"header-unreadable", "bad-value", "unknown-term", "identity-in-value", "uid-from-meta"})
"""Flags that say that a value is missing from the row, or came from elsewhere."""


def told(path: Path) -> tuple[extract.Clear, set[str], Dataset] | None:
    """Row, all flags and a full parse by pydicom, if both can read the file."""
    found = header(path.read_bytes())
    if isinstance(found, Refused):
        return None
    try:
        full = pydicom.dcmread(path, force=True)
    except Exception:  # pydicom cannot read it
        return None
    clear = extract.clear_columns(
        found.dataset, transfer_syntax=found.transfer_syntax, facility="x", site_map={}
    )
    return clear, {*clear.flags, *found.flags}, full


def as_written(column: columns.Column, value: object) -> str:
    """A value of a row as a header would have it, without the punctuation of old dates and times."""
    if isinstance(value, date):
        return value.strftime("%Y%m%d")
    if isinstance(value, time):
        return value.strftime("%H%M%S")
    return "" if value is None else str(value)


def plain(column: columns.Column, value: object) -> str:
    text = "" if value is None else str(value).strip()
    if column.vr in ("DA", "TM"):
        return text.replace(".", "" if column.vr == "DA" else ".", 9).replace(":", "").split(".")[0]
    if column.vr == "IS":
        return text.lstrip("0") or text[:1]
    return text.upper().translate({32: None, 95: None}) if column.name == "body_part" else text.upper()


def test_no_value_of_a_row_differs_silently_from_a_full_parse_by_pydicom():
    compared, silent = 0, []
    read = [column for column in columns.COLUMNS if column.keyword and column.vr != "DT"]
    for path in everything():
        if (found := told(path)) is None:
            continue
        clear, flags, full = found
        for column in read:
            source = full.file_meta if column.keyword == "TransferSyntaxUID" else full
            try:
                expected = plain(column, source.get(column.keyword))
            except Exception:  # pydicom cannot decode it: then it is left out, with a flag
                expected = "undecodable"
            got = as_written(column, clear.row[column.name]).upper()
            if column.name == "laterality" and full.get("ImageLaterality"):
                expected = str(full.ImageLaterality)
            compared += 1
            same = got == expected or (column.vr == "TM" and expected and got.startswith(expected))
            if expected and not same and not flags & LOUD:
                silent.append((path.name, column.name, expected, got))
    assert silent == []
    assert compared > 2000


GUARDED = (
    "menu", "menu_code", "menu_scheme", "institution", "station", "manufacturer", "model", "series_number",
    "instance_number",
)  # fmt: skip


def identities(full: Dataset) -> set[str]:
    """Everything of a full parse that identifies the patient, in the writings a person would look for."""
    found = []
    for keyword in ("PatientName", "PatientID", "OtherPatientIDs", "PatientBirthDate", "AccessionNumber"):
        try:
            value = full.get(keyword)
            found += [str(part) for part in value] if isinstance(value, MultiValue) else [str(value or "")]
        except Exception:  # what pydicom cannot decode
            continue
    found += [str(item.get("PatientID", "")) for item in full.get("OtherPatientIDsSequence") or ()]
    return {text.strip().casefold() for text in found if len(text.strip()) >= 4}


def test_no_identity_stands_in_a_clear_column_of_its_own_row():
    """Terms of the standard and UIDs aside: a patient may be called CHEST, and UIDs are kept by design."""
    hits, looked = [], 0
    for path in everything():
        if (found := told(path)) is None:
            continue
        needles = identities(found[2])
        looked += len(needles)
        for column in GUARDED:
            text = str(found[0].row[column] or "").casefold()
            hits += [(path.name, column) for needle in needles if needle in text]
    assert hits == []
    assert looked > 200


REFUSED = {
    "empty": b"",
    "not-dicom": b"not an image at all",
    "no-sop-instance-uid": bytes(128) + b"DICM" + bytes(20),
}


@pytest.mark.parametrize(("reason", "data"), REFUSED.items())
def test_refusals_by_content(tmp_path, reason, data):
    (tmp_path / "x").write_bytes(data)
    assert take(tmp_path / "x") == Refused(reason)


def test_refusals_by_what_the_file_is(tmp_path):
    path = images.write(tmp_path, 1)
    assert take(path, max_bytes=100) == Refused("too-large")
    assert take(tmp_path / "gone") == Refused("vanished")
    os.mkfifo(tmp_path / "pipe")
    assert take(tmp_path / "pipe") == Refused("unreadable")
    assert take(tmp_path) == Refused("unreadable")
    directories = [path for path in bundled() if path.name == "DICOMDIR"]
    assert directories
    assert all(take(path) == Refused("dicomdir") for path in directories)


def test_every_reason_has_a_meaning_and_a_next_step():
    for table in (reasons.CAPTURE, reasons.ROUND):
        assert all(meaning.endswith(".") and step.endswith(".") for meaning, step in table.values())
    assert set(reasons.CAPTURE) >= reasons.TRANSIENT


def test_a_file_that_changes_while_it_is_read_is_not_taken(tmp_path):
    path = images.write(tmp_path, 1, pixels=random.Random(1).randbytes(3_000_000))

    class Meddling(io.BytesIO):
        """Appends to the source when the seal is written: between the two looks."""

        def write(self, data):
            with path.open("ab") as file:
                file.write(b"more")
            return super().write(data)

    assert take(path, Meddling()) == Refused("changed-while-reading")


class Once(io.BytesIO):
    """A sink that does something once, at its first write."""

    def __init__(self, work):
        super().__init__()
        self.work = [work]

    def write(self, data):
        if self.work:
            self.work.pop()()
        return super().write(data)


def shrink(path: Path) -> None:
    os.truncate(path, 66 * 1024 * 1024)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-10, io.SEEK_END)
        file.write(b"0123456789")


def rewrite_and_hide_it(path: Path) -> None:
    before = path.stat()
    rewrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = [(shrink, True), (grow, True), (rewrite, True)]
CHANGES += [(change, False) for change in (shrink, grow, rewrite, rewrite_and_hide_it)]


@pytest.mark.parametrize(("change", "soft"), CHANGES)
def test_a_large_file_that_changes_while_it_streams_is_not_taken(tmp_path, change, soft):
    path = tmp_path / "large.dcm"
    path.write_bytes(images.image(1))
    with path.open("ab") as file:
        file.truncate(70 * 1024 * 1024)
    if not soft:  # noise at the three places that decide on compression
        noise = random.Random(1).randbytes(1024 * 1024)
        with path.open("r+b") as file:
            for at in (4096, 35 << 20, 69 << 20):
                file.seek(at)
                file.write(noise)
    result = take(path)
    assert isinstance(result, capture.Taken)
    assert result.row["encoding"] == ("age+zstd" if soft else "age")
    assert take(path, Once(lambda: change(path))) == Refused("changed-while-reading")


def test_a_disk_that_keeps_something_else_than_was_written_stops_everything(tmp_path):
    class Bad(io.BytesIO):
        def write(self, data):
            return super().write(bytes([data[0] ^ 1]) + data[1:])

    with pytest.raises(Damaged):
        take(images.write(tmp_path, 1), Bad())


def test_a_full_disk_comes_out_as_it_is(tmp_path):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "no space left on device")

    with pytest.raises(OSError, match="no space"):
        take(images.write(tmp_path, 1), Full())


def test_a_file_that_grows_all_the_time_is_never_taken_wrong(tmp_path):
    path, stop = images.write(tmp_path, 1), threading.Event()

    def grow():
        with path.open("ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"xy")

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        for _ in range(20):
            result = take(path)
            if not isinstance(result, Refused):
                data = path.read_bytes()[: result.row["dicom_bytes"]]
                digest = tokens.keyed_digest(DOMAIN, hashlib.sha256(data).digest())
                assert result.row["source_digest"] == digest
    finally:
        stop.set()
        thread.join()


GOOD = images.image(1)


def test_whatever_the_bytes_a_header_or_a_reason_comes_out():
    rng = random.Random(20261124)
    outcomes = set()
    cases = [GOOD[:length] for length in range(0, len(GOOD), 23)]
    cases += [rng.randbytes(300), b"\x08\0" + rng.randbytes(500), bytes(128) + b"DICM" + rng.randbytes(900)]
    for _ in range(1500):
        data = bytearray(GOOD)
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(128, 1200)] = rng.randrange(256)
        cases.append(bytes(data))
    for data in cases:
        result = header(data)
        outcomes.add(type(result))
        if isinstance(result, Refused):
            assert result.reason in reasons.CAPTURE
        else:
            assert extract.clear_columns(result.dataset, transfer_syntax="", facility="x", site_map={}).row
    assert outcomes == {Refused, dicom_file.Header}


def test_no_damage_makes_a_row_the_manifest_refuses(tmp_path):
    """One strange file must not end a whole batch."""
    rng, rows, path = random.Random(7), [], tmp_path / "x.dcm"
    for number in range(400):
        data = bytearray(images.image(number + 1, pixels=bytes(64)))
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(300, len(data) - 70)] = rng.choice((0, 27, 92, 94, 255, rng.randrange(256)))
        path.write_bytes(data)
        result = take(path)
        if isinstance(result, capture.Taken):
            rows.append(result.row)
    assert len(rows) > 300
    assert manifest.to_parquet(rows, facility="clinic-a")


def test_equal_identities_share_one_seal(tmp_path):
    one, other = (take(images.write(tmp_path, 1, 1, 1, n)) for n in (1, 2))
    assert isinstance(one, capture.Taken)
    assert isinstance(other, capture.Taken)
    assert one.row["sealed_identity"] == other.row["sealed_identity"]
    assert one.row["object_sha256"] != other.row["object_sha256"]
