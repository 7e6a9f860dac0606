"""Publishing a file: whole, lasting, or nothing. Faults are injected at the system calls."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from schemas.transit import durable


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The calls that make things visible or lasting, in order; each one still happens."""
    seen: list[tuple[str, str]] = []
    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "link", "unlink")}

    def named(descriptor: int) -> str:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        return "folder" if path.is_dir() else ("part" if path.suffix == ".part" else "file")

    def fsync(descriptor: int) -> None:
        seen.append(("fsync", named(descriptor)))
        real["fsync"](descriptor)

    def recorder(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append((name, Path(os.fsdecode(args[0])).suffix))
            return real[name](*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("rename", "replace", "link", "unlink"):
        monkeypatch.setattr(os, name, recorder(name))
    return seen


def test_the_order_of_publishing(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    durable.publish(tmp_path / "a.batch", b"bytes")
    assert calls == [("fsync", "part"), ("link", ".part"), ("unlink", ".part"), ("fsync", "folder")]
    calls.clear()
    durable.publish(tmp_path / "a.batch", b"other", replace=True)
    assert calls == [("fsync", "part"), ("replace", ".part"), ("fsync", "folder")]
    assert [path.name for path in tmp_path.iterdir()] == ["a.batch"]


def test_bytes_and_mode(tmp_path: Path) -> None:
    durable.publish(
        tmp_path / "a", lambda sink: (sink.write(b"one"), sink.write(b"two"), None)[-1], mode=0o640
    )
    assert (tmp_path / "a").read_bytes() == b"onetwo"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    durable.publish(tmp_path / "b", b"x" * 3_000_000)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o444
    assert (tmp_path / "b").stat().st_size == 3_000_000


def test_a_taken_name_is_refused_and_untouched(tmp_path: Path) -> None:
    durable.publish(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        durable.publish(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError, ValueError])
def test_a_writer_that_stops_leaves_nothing(tmp_path: Path, stop: type[BaseException]) -> None:
    def write(sink: Any) -> None:
        sink.write(b"half")
        raise stop

    with pytest.raises(stop):
        durable.publish(tmp_path / "a", write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "link", "replace", "fchmod", "open"])
def test_a_failing_system_call_leaves_nothing_and_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    tries = []

    def fail(*args: Any, **kwargs: Any) -> None:
        tries.append(call)
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="input/output"):
        durable.publish(tmp_path / "a", b"bytes", replace=call != "link")
    monkeypatch.undo()
    assert tries == [call]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_synced_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced = os.fsync, []

    def second_fails(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(errno.EIO, "input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(OSError, match="input/output"):
        durable.publish(tmp_path / "a", b"bytes")
    assert len(synced) == 2
    assert (tmp_path / "a").read_bytes() == b"bytes"  # visible, but nobody was told that it lasts


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(OSError, match="large"):
            durable.publish(tmp_path / "a", b"x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_not_lasting_is_still_whole(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    durable.publish(tmp_path / "a", b"bytes", replace=True, lasting=False)
    assert calls == [("replace", ".part")]


def test_a_file_that_grew_elsewhere_is_published(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    (tmp_path / "out").mkdir()
    part, final = tmp_path / "a.part", tmp_path / "out" / "a"
    with part.open("xb") as file:
        file.write(b"bytes")
        durable.finish(file, part, final)
        assert calls == [
            ("fsync", "part"),
            ("link", ".part"),
            ("unlink", ".part"),
            *[("fsync", "folder")] * 2,
        ]
    assert (final.read_bytes(), final.stat().st_mode & 0o777) == (b"bytes", 0o444)
    with part.open("xb") as file:
        file.write(b"more than there should be")
        file.seek(4)
        with pytest.raises(OSError, match="another size"):
            durable.finish(file, part, final, replace=True)
    assert final.read_bytes() == b"bytes"


def test_rename_syncs_both_folders(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "a").write_bytes(b"1")
    durable.rename(tmp_path / "a", tmp_path / "x" / "a")
    assert calls == [("rename", ""), ("fsync", "folder"), ("fsync", "folder")]
    assert (tmp_path / "x" / "a").read_bytes() == b"1"


def test_a_folder_is_published_once(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    for name in ("one", "two"):
        (tmp_path / "staging" / name).mkdir(parents=True)
        (tmp_path / "staging" / name / "f").write_text(name)
    (tmp_path / "done").mkdir()
    durable.publish_dir(tmp_path / "staging" / "one", tmp_path / "done" / "b")
    assert calls == [("fsync", "folder"), ("rename", ""), ("fsync", "folder"), ("fsync", "folder")]
    with pytest.raises(FileExistsError):
        durable.publish_dir(tmp_path / "staging" / "two", tmp_path / "done" / "b")
    assert (tmp_path / "done" / "b" / "f").read_text() == "one"
    assert (tmp_path / "staging" / "two" / "f").read_text() == "two"


def test_new_folders_are_lasting(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    durable.make_dirs(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert len(calls) == 5
    durable.make_dirs(tmp_path / "a" / "b")
    assert len(calls) == 6, "a folder that is found, too: whoever made it may have died before that"
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        durable.make_dirs(tmp_path / "file")


def test_remove_is_lasting_and_may_be_repeated(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    (tmp_path / "a").touch()
    durable.remove(tmp_path / "a")
    durable.remove(tmp_path / "a")
    assert calls == [("unlink", ""), ("fsync", "folder"), ("unlink", "")]


def test_only_old_parts_are_swept(tmp_path: Path) -> None:
    for name, age in {"old.part": 100, "new.part": 1, "old.batch": 100}.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / "link.part").symlink_to(tmp_path / "old.batch")
    (tmp_path / "folder.part").mkdir()
    assert durable.sweep(tmp_path, older_than_seconds=50, now=1000) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "folder.part", "link.part", "new.part", "old.batch",
    ]  # fmt: skip


def test_rename_at_makes_bytes_and_name_lasting(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    (tmp_path / "a.part").write_bytes(b"bytes")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        durable.rename_at(folder, "a.part", "a")
    finally:
        os.close(folder)
    assert calls == [("fsync", "part"), ("replace", ".part"), ("fsync", "folder")]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o444


def test_rename_at_takes_only_files(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        (tmp_path / "target").write_text("secret")
        (tmp_path / "link").symlink_to(tmp_path / "target")
        (tmp_path / "sub").mkdir()
        for name in ("link", "sub"):
            with pytest.raises(OSError, match=r"symbolic|regular"):
                durable.rename_at(folder, name, "final")
        assert not (tmp_path / "final").exists()
    finally:
        os.close(folder)
