"""Bad files and bad moments: a line each with a stable reason, and the round goes on."""

from __future__ import annotations

import gzip
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import chdir
from pathlib import Path

import pytest

from tests.kit import images
from tests.kit.site import Site


def bad_files(folder: Path) -> dict[str, str]:
    """One file of each kind of bad input; name to the reason expected, empty where it is taken anyway."""
    good = images.image(1)
    at_data, at_patient = good.index(b"\x08\0\x05\0"), good.index(b"\x10\0\x10\0PN")
    nested = b""
    for _ in range(20_000):
        nested += (
            struct.pack("<HH2sHI", 0x0009, 0x1140, b"SQ", 0, 0xFFFFFFFF) + b"\xfe\xff\0\xe0\xff\xff\xff\xff"
        )
    bomb = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    deflated = bomb.compress(bytes(300 * 1024 * 1024)) + bomb.flush()
    meta = good[:at_data].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99\0\0")
    cases: dict[str, tuple[bytes, str]] = {
        "empty": (b"", "empty"),
        "text": (b"not an image at all " * 100, "not-dicom"),
        "zeros": (bytes(5000), "not-dicom"),
        "only-a-preamble": (bytes(128) + b"DICM", "no-sop-instance-uid"),
        "gzip": (gzip.compress(good), "not-dicom"),
        "no-uid": (images.image(2, SOPInstanceUID=None), "no-sop-instance-uid"),
        "no-part10": (images.image(3)[at_data:], ""),
        "truncated-in-pixels": (images.image(4)[:-500], ""),
        "truncated-in-header": (images.image(5)[: at_data + 150], ""),
        "absurd-length": (
            images.image(6)[:at_patient] + struct.pack("<HH2sHI", 9, 0x1001, b"OB", 0, 0xFFFFFFF0) + b"x", "",
        ),
        "deeply-nested": (images.image(7)[:at_patient] + nested, ""),
        "zlib-bomb": (meta + deflated, ""),
        "wrong-vr": (images.image(8).replace(b"\x20\0\x13\0IS", b"\x20\0\x13\0FD"), ""),
    }  # fmt: skip
    for name, (data, _) in cases.items():
        (folder / name).write_bytes(data)
    return {name: reason for name, (_, reason) in cases.items()}


@pytest.fixture
def source(site: Site, tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    site.terminal("clinic-a", folder)
    return folder


def test_every_bad_file_is_a_line_and_the_good_ones_are_stored(site, source):
    expected = bad_files(source)
    images.write(source, 20)
    (source / "dangling").symlink_to("nowhere")
    os.mkfifo(source / "pipe")
    unix = socket.socket(socket.AF_UNIX)
    with chdir(source):  # a socket's path is short
        unix.bind("socket")
    (source / os.fsdecode(b"\xff\xfe not text.dcm")).write_bytes(images.image(21))
    a = site.terminals["clinic-a"]
    with site.serving():
        done = a("sync", "--json")
        assert done.status == 3, done.err
        report = done.json
        assert {line["path"]: line["reason"] for line in report["refused"]} == {
            name: reason for name, reason in expected.items() if reason
        }
        assert {line["path"]: line["reason"] for line in report["waiting"]} == dict.fromkeys(
            ("dangling", "pipe", "socket"), "not-a-file"
        )
        taken = sum(not reason for reason in expected.values()) + 2
        assert (report["taken"], report["stored"]) == (taken, taken)
        back = a.ask("fetch", "--facility", "clinic-a", "--to", source.parent / "back", "--json")
        assert back.json["restored"] == taken
        originals = {path.read_bytes() for path in source.iterdir() if path.is_file()}
        assert all(path.read_bytes() in originals for path in (source.parent / "back").rglob("*.dcm"))
        rows = a.ask("query", "--level", "instance", "--json").json
        assert any("truncated" in row["flags"] for row in rows)
        assert any("no-part10-header" in row["flags"] for row in rows)
        assert any("header-unreadable" in row["flags"] for row in rows)


def test_the_same_instance_with_other_bytes_is_kept_beside_and_flagged(site, source):
    images.write(source, 1)
    a = site.terminals["clinic-a"]
    with site.serving():
        assert a("sync").status == 0
        (source / "changed.dcm").write_bytes(images.image(1, pixels=bytes(2048)))
        done = a("sync", "--json")
        assert (done.status, done.json["taken"], done.json["conflicts"]) == (0, 1, 1)
        rows = a.ask("query", "--level", "instance", "--json").json
        assert len({row["object_sha256"] for row in rows}) == 2
        assert {row["sop_instance_uid"] for row in rows} == {f"{images.ROOT}.1.1.1.1"}
        assert all(row["conflict"] for row in rows)
        assert (
            a.ask("fetch", "--facility", "clinic-a", "--to", source.parent / "out", "--json").json["restored"]
            == 2
        )


def test_a_copy_of_a_stored_file_is_held_and_not_sent_again(site, source):
    path = images.write(source, 1)
    a = site.terminals["clinic-a"]
    with site.serving():
        assert a("sync").status == 0
        (source / "copy.dcm").write_bytes(path.read_bytes())
        done = a("sync", "--json")
        assert (done.json["held"], done.json["taken"], done.json["sent_batches"]) == (1, 0, 0)
        assert a("sync", "--json").json["known"] == 2


def test_a_growing_file_waits_and_is_taken_when_it_stands_still(site, source):
    a = site.terminals["clinic-a"]
    a.settings(settle_seconds=1)
    growing, data = source / "growing.dcm", images.image(1)
    stop = threading.Event()

    def grow() -> None:
        with growing.open("wb", buffering=0) as file:
            while not stop.wait(0.02):
                file.write(data[:100])

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        with site.serving():
            while not growing.exists():
                time.sleep(0.01)
            done = a("sync", "--json")
            assert done.status == 3
            assert [line["reason"] for line in done.json["waiting"]] == ["settling"]
            stop.set()
            thread.join()
            growing.write_bytes(data)
            assert a("sync", "--json").json["stored"] == 1
    finally:
        stop.set()
        thread.join()


def test_an_empty_source_is_fine_and_a_missing_one_is_not(site, source):
    a = site.terminals["clinic-a"]
    with site.serving():
        assert a("sync").status == 0
        source.rmdir()
        done = a("sync", "--json")
        assert done.status == 3
        assert [line["reason"] for line in done.json["waiting"]] == ["unreadable"]


def test_without_the_store_everything_waits_and_is_named(site, source):
    images.write(source, 1)
    done = site.terminals["clinic-a"]("sync", "--json")
    assert done.status == 11
    assert done.json["trouble"]
    assert [(line["path"], line["reason"]) for line in done.json["waiting"]] == [("1.dcm", "new")]
    with site.serving():
        assert site.terminals["clinic-a"]("sync").status == 0


def test_a_store_with_another_host_key_is_never_talked_to(site, source, tmp_path):
    images.write(source, 1)
    from tests.kit.site import make_site
    from tests.system.conftest import free_port

    other = make_site(tmp_path / "other", free_port())
    port = int(other.folder.joinpath("store.card").read_text().split('"port":')[1].split(",")[0])
    a = site.terminals["clinic-a"]
    a.settings(store_port=port)
    with other.serving():
        done = a("sync", "--json")
        assert done.status == 13
        assert done.json["stored"] == 0


LIMIT = 300 * 1024 * 1024


def peak(words: list[str]) -> int:
    """Largest resident size in bytes of a command and of everything it waited for."""
    code = (
        "import resource, subprocess, sys; status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL);"
        "print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    status, size = done.stdout.split()
    assert status == "0", done.stderr
    return int(size) * 1024


def test_memory_does_not_follow_the_size_of_a_file(site, source):
    path = images.write(source, 1)
    with path.open("r+b") as file:  # the pixel value grows to 400 MiB of zeros, sparse on disk
        data = file.read()
        at = data.rindex(struct.pack("<HH", 0x7FE0, 0x0010)) + 8
        file.seek(at)
        file.write(struct.pack("<I", 400 * 1024 * 1024))
        file.truncate(at + 4 + 400 * 1024 * 1024)
    a = site.terminals["clinic-a"]
    from tests.kit.site import BIN

    with site.serving() as store:
        assert peak([str(BIN / "fsync"), "--home", str(a.home), "sync"]) < LIMIT
        out = source.parent / "back"
        words = ["fetch", "--facility", "clinic-a", "--to", str(out), "--user", "kimura"]
        words += ["--password-file", str(site.password)]
        assert peak([str(BIN / "fsync"), "--home", str(a.home), *words]) < LIMIT
        status = Path(f"/proc/{store.pid}/status")
        if status.exists():
            assert int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 < LIMIT
    (back,) = out.rglob("*.dcm")
    assert back.stat().st_size == path.stat().st_size
    with back.open("rb") as one, path.open("rb") as other:
        while block := one.read(1 << 20):
            assert block == other.read(1 << 20)
