"""A hand on the real operations on the disk: each is counted, and happens unless the test says otherwise.

    with Disk(root, before=failing(7, OSError(errno.ENOSPC, "no space left on device"))) as disk:
        ...                                   # the 7th operation below `root` fails, the others happen

Guarantees: nothing is replaced by a stand-in: the wrapped functions of `os` and `io.open` do what they
always did, but for the one operation that `before` fails, skips or shortens. Operations of forked processes
are counted with those of their parent. What C code does by itself (SQLite, DuckDB) is not seen.
"""

from __future__ import annotations

import errno
import io
import linecache
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

KINDS = ("create", "write", "truncate", "fsync", "rename", "link", "unlink", "mkdir", "rmdir")
ROOT = Path(__file__).parents[2]
_OURS = tuple(str(ROOT / name) + "/" for name in ("schemas", "central_store", "facility_sync"))
_TRANSIT = str(ROOT / "schemas" / "transit") + "/"

Verdict = Literal["skip", "short"] | None


class Dead(BaseException):
    """The process ended here: no `except OSError` of the code under test sees it."""


@dataclass(frozen=True)
class Op:
    """One operation that is about to happen, or did."""

    number: int
    kind: str
    path: str
    to: str = ""
    descriptor: int = -1
    site: str = field(default="", compare=False)


def failing(at: int, error: OSError | Dead, *kinds: str) -> Callable[[Op], Verdict]:
    """Fail the `at`-th operation of these kinds (any kind by default); `Dead` fails all after it too."""
    counter = multiprocessing.Value("q", 0)

    def before(op: Op) -> Verdict:
        if kinds and op.kind not in kinds:
            return None
        with counter.get_lock():
            counter.value += 1
            number = counter.value
        if number == at or (number > at and isinstance(error, Dead)):
            if op.kind == "fsync" and isinstance(error, OSError):
                _lose(op)
            raise error
        return None

    return before


def shortening(at: int) -> Callable[[Op], Verdict]:
    """Half of the `at`-th write is written, and nothing after it: a disk that fills up in its midst."""
    counter = multiprocessing.Value("q", 0)

    def before(op: Op) -> Verdict:
        if op.kind != "write":
            return None
        with counter.get_lock():
            counter.value += 1
            number = counter.value
        if number > at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return "short" if number == at else None

    return before


def _lose(op: Op) -> None:
    """What a failed fsync means: the kernel forgot the pages, and whoever reads now may read anything."""
    path = Path(op.path)
    if path.is_file():
        size = path.stat().st_size
        path.chmod(0o600)
        with path.open("r+b") as file:
            io.FileIO.write(file.raw, bytes(size))  # type: ignore[attr-defined]  # past the wrapper


def site() -> str:
    """Where in the project an operation comes from: the lines from it up to the second outside transit/."""
    lines: list[str] = []
    outside = 0
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_OURS):
            text = linecache.getline(name, frame.f_lineno).strip()
            lines.append(f"{Path(name).stem}.{frame.f_code.co_name}: {text}")
            outside += not name.startswith(_TRANSIT)
            if outside == 2:
                break
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(lines)


class Disk:
    """The wrapped operations below some folders; a context manager.

    Args:
        roots: folders whose operations count.
        before: told each operation; raises, or returns what to do instead.
        after: told each operation that happened.
    """

    def __init__(
        self,
        *roots: Path,
        before: Callable[[Op], Verdict] = lambda _: None,
        after: Callable[[Op], None] = lambda _: None,
    ) -> None:
        self._roots = tuple(str(root) for root in roots)
        self._before, self._after = before, after
        self._count = multiprocessing.Value("q", 0)
        self._kinds = multiprocessing.Array("q", len(KINDS))
        self._real: dict[str, Callable[..., Any]] = {}
        self._patch = pytest.MonkeyPatch()

    @property
    def count(self) -> int:
        """Operations so far, in all processes."""
        return int(self._count.value)

    @property
    def kinds(self) -> dict[str, int]:
        """The same, by kind."""
        return dict(zip(KINDS, self._kinds, strict=True))

    def _next(self, kind: str) -> int:
        with self._count.get_lock():
            self._count.value += 1
            self._kinds[KINDS.index(kind)] += 1
            return int(self._count.value)

    def __enter__(self) -> Disk:
        for name in ("open", "fsync", "rename", "replace", "link", "unlink", "mkdir", "rmdir", "remove"):
            self._real[name] = getattr(os, name)
        self._real["io.open"] = io.open
        for name, wrapper in {
            "open": self._os_open, "fsync": self._fsync, "rename": self._pair("rename", "rename"),
            "replace": self._pair("replace", "rename"), "link": self._pair("link", "link"),
            "unlink": self._single("unlink", "unlink"), "remove": self._single("remove", "unlink"),
            "mkdir": self._single("mkdir", "mkdir"), "rmdir": self._single("rmdir", "rmdir"),
        }.items():  # fmt: skip
            self._patch.setattr(os, name, wrapper)
        self._patch.setattr(io, "open", self._open)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    # -- one operation ---------------------------------------------------------------------------

    def _inside(self, path: str) -> bool:
        return any(path == root or path.startswith(root + "/") for root in self._roots)

    def do(self, kind: str, path: str, act: Callable[[], Any], *, to: str = "", descriptor: int = -1) -> Any:
        """Let an operation happen, or what `before` says."""
        if not self._inside(path) and not (to and self._inside(to)):
            return act()
        op = Op(self._next(kind), kind, path, to, descriptor, site())
        if self._before(op) == "skip":
            return None
        result = act()
        self._after(op)
        return result

    def write(self, raw: io.FileIO, data: Any, real: Callable[[Any], int]) -> int:
        """A write of a file's last layer."""
        path, verdict = _of(raw.fileno()), [None]
        if not self._inside(path):
            return real(data)
        op = Op(self._next("write"), "write", path, "", raw.fileno(), site())
        verdict = self._before(op)  # type: ignore[assignment]
        if verdict == "skip":
            return len(data)
        view = memoryview(data)
        written = real(view[: len(view) // 2 or 1] if verdict == "short" else view)
        self._after(op)
        return written

    # -- the wrapped functions -------------------------------------------------------------------

    def _open(
        self, file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
        newline: Any = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        path = _of(file) if isinstance(file, int) else os.path.abspath(os.fsdecode(file))
        if not set(mode) & set("wxa+") or not self._inside(path):
            return self._real["io.open"](file, mode, buffering, encoding, errors, newline, closefd, opener)
        plain = mode.replace("b", "").replace("t", "")

        def act() -> io.FileIO:
            return _Raw(self, file, plain, closefd, opener)

        raw = act() if isinstance(file, int) or os.path.exists(path) else self.do("create", path, act)
        size = io.DEFAULT_BUFFER_SIZE if buffering in (-1, 1) else buffering
        kind = io.BufferedRandom if "+" in mode else io.BufferedWriter
        buffered = kind(raw, size)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def _os_open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        def act() -> int:
            return int(self._real["open"](path, flags, mode, dir_fd=dir_fd))

        name = _absolute(path, dir_fd)
        if not flags & os.O_CREAT or os.path.lexists(name):
            return act()
        return int(self.do("create", name, act))

    def _fsync(self, descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        self.do("fsync", _of(number), lambda: self._real["fsync"](number), descriptor=number)

    def _pair(self, name: str, kind: str) -> Callable[..., None]:
        def call(src: Any, dst: Any, *, src_dir_fd: Any = None, dst_dir_fd: Any = None, **more: Any) -> None:
            self.do(
                kind, _absolute(src, src_dir_fd),
                lambda: self._real[name](src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **more),
                to=_absolute(dst, dst_dir_fd),
            )  # fmt: skip

        return call

    def _single(self, name: str, kind: str) -> Callable[..., None]:
        def call(path: Any, *args: Any, dir_fd: int | None = None) -> None:
            self.do(kind, _absolute(path, dir_fd), lambda: self._real[name](path, *args, dir_fd=dir_fd))

        return call


class _Raw(io.FileIO):
    """A file whose writes are operations."""

    def __init__(self, disk: Disk, *args: Any) -> None:
        super().__init__(*args)
        self._disk = disk

    def write(self, data: Any) -> int:
        return self._disk.write(self, data, super().write)

    def truncate(self, size: int | None = None) -> int:
        return int(self._disk.do("truncate", _of(self.fileno()), lambda: io.FileIO.truncate(self, size)))


def _of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _absolute(path: Any, dir_fd: int | None) -> str:
    name = os.fsdecode(path)
    return os.path.normpath(os.path.join(_of(dir_fd), name)) if dir_fd is not None else os.path.abspath(name)
