"""What one facility may do with files over SFTP: its `in` and its `out`, nothing else.

Guarantees:
    * no path leaves the facility's folder: a path is at most a folder of ours and a name that
      `schemas.names` accepts, opened below an open folder, links never followed;
    * `in` takes writes to `<name>.part` and the rename of that to `<name>`, which is on the disk, name and
      all, before the answer; an upload that broke can be looked at by whoever goes on writing it; `out` is
      read, listed and emptied;
    * a file with a second name (a hard link) is neither opened nor published: its bytes may be somebody
      else's;
    * what waits in `in` stays within its quota (`central_store.sftp_quota`);
    * what a session renames is the very file it wrote, not one that another session put in its place.

Failures are `OSError` (the session turns them into SFTP statuses) or `FormatError`.
Leaves to others: the protocol (`central_store.sftp_session`), who logs in (`central_store.sftp_login`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from central_store.sftp_quota import Meter, Quota
from schemas.errors import FormatError
from schemas.names import INBOUND, OUTBOUND, PART_SUFFIX, shelf_name
from schemas.transit import durable
from schemas.transit import sftp_packets as p

FOLDERS = ("in", "out")
_ACCEPT = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True)
class Place:
    """A checked path: the root (no folder), a folder (no name), or a file."""

    folder: str = ""
    name: str = ""

    @property
    def part(self) -> bool:
        """Whether this is a file being written."""
        return self.name.endswith(PART_SUFFIX)

    @property
    def request(self) -> bool:
        """Whether this is a request being written."""
        return self.name.endswith(".request" + PART_SUFFIX)

    def path(self) -> bytes:
        """As the client sees it."""
        return "/".join(("", self.folder, self.name) if self.name else ("", self.folder)).encode("ascii")


@dataclass
class Handle:
    """An open file or listing."""

    descriptor: int = -1
    place: Place = Place()
    listing: Iterator[tuple[str, p.Attributes]] | None = None


def place(path: bytes) -> Place:
    """Check a client's path; raises `PermissionError` or `FileNotFoundError`."""
    try:
        words = [word for word in path.decode("ascii").split("/") if word not in ("", ".")]
    except UnicodeDecodeError as error:
        raise FileNotFoundError(errno.ENOENT, "no such file") from error
    if ".." in words or "\0" in "".join(words):
        raise PermissionError(errno.EACCES, "no way out of this folder")
    if not words:
        return Place()
    if words[0] not in FOLDERS or len(words) > 2:
        raise FileNotFoundError(errno.ENOENT, "no such file")
    return Place(*words)


def admits(folder: str, name: str) -> bool:
    """Whether a name has a place in a folder: a `.part` only where files arrive."""
    inbound = folder == "in"
    if inbound and name.endswith(PART_SUFFIX):
        name = name.removesuffix(PART_SUFFIX)
    try:
        return shelf_name(name).kind in (INBOUND if inbound else OUTBOUND)
    except FormatError:
        return False


class Files:
    """One facility's two folders and the handles a session has open in them.

    Args:
        root: the facility's folder; `in` and `out` are made if they are missing.
        max_handles: open handles at once.
        max_file: largest file, in bytes.
        quota: what may wait in `in`.

    Raises:
        OSError: the folder cannot be used.
    """

    def __init__(self, root: Path, *, max_handles: int, max_file: int, quota: Quota) -> None:
        self._max_handles, self._max_file = max_handles, max_file
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        for folder in FOLDERS:
            # Enrolment made them lasting: a session does not ask the disk again.
            if not (root / folder).is_dir():
                durable.make_dirs(root / folder)
        below = os.open(root, flags)
        try:
            self._folders = {folder: os.open(folder, flags, dir_fd=below) for folder in FOLDERS}
        finally:
            os.close(below)
        self._meter = Meter(self._folders["in"], quota)
        self._handles: dict[bytes, Handle] = {}
        self._issued = 0
        self._written: dict[str, int] = {}  # kept open, so that no other file can get the same inode number

    # -- handles ---------------------------------------------------------------------------------

    def open(self, path: bytes, flags: int) -> bytes:
        """Open a file to read in `out`, or to write as `.part` in `in`; returns a handle."""
        where = self._file(path)
        if where.folder == "out" and flags == p.FLAG_READ:
            descriptor = os.open(where.name, os.O_RDONLY | _ACCEPT, dir_fd=self._folders["out"])
        elif where.part and flags == p.FLAG_READ | p.FLAG_WRITE:  # an upload that is gone on with
            descriptor = os.open(where.name, os.O_RDWR | _ACCEPT, dir_fd=self._folders["in"])
        elif where.part and flags & p.FLAG_WRITE and not flags & (p.FLAG_READ | p.FLAG_APPEND):
            mode = os.O_WRONLY | _ACCEPT
            mode |= os.O_CREAT if flags & p.FLAG_CREATE else 0
            mode |= os.O_EXCL if flags & p.FLAG_EXCLUSIVE else 0
            self._meter.begin(request=where.request)
            descriptor = os.open(where.name, mode, 0o600, dir_fd=self._folders["in"])
        else:
            raise PermissionError(errno.EACCES, "files are written as .part in `in` and read in `out`")
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            os.close(descriptor)
            raise PermissionError(errno.EACCES, "only files with one name can be opened")
        handle = self._issue(Handle(descriptor, where))
        if flags & p.FLAG_TRUNCATE:  # not with open(2): first it had to be looked at
            os.ftruncate(descriptor, 0)
        if where.folder == "in":
            self._forget(where.name)
            if len(self._written) >= self._max_handles:
                self._forget(next(iter(self._written)))
            self._written[where.name] = os.dup(descriptor)
        return handle

    def open_listing(self, path: bytes) -> bytes:
        """Open a folder to list it; returns a handle."""
        where = place(path)
        if where.name:
            raise FileNotFoundError(errno.ENOENT, "no such folder")
        return self._issue(Handle(place=where, listing=self._list(where.folder)))

    def listing(self, handle: bytes) -> Iterator[tuple[str, p.Attributes]]:
        """What is left of a listing."""
        found = self._handle(handle).listing
        if found is None:
            raise OSError(errno.ENOTDIR, "this handle is not of a folder")
        return found

    def close(self, handle: bytes) -> None:
        """Give a handle back."""
        found = self._handle(handle)
        del self._handles[handle]
        if found.descriptor >= 0:
            os.close(found.descriptor)

    def close_all(self) -> None:
        """Give everything back, the folders too."""
        for handle in list(self._handles):
            with suppress(OSError):
                self.close(handle)
        for descriptor in (*self._written.values(), *self._folders.values()):
            os.close(descriptor)
        self._written.clear()

    # -- bytes -----------------------------------------------------------------------------------

    def read(self, handle: bytes, offset: int, length: int) -> bytes:
        """Up to `length` bytes; empty at the end."""
        return os.pread(self._file_handle(handle).descriptor, min(length, p.MAX_DATA), offset)

    def write(self, handle: bytes, offset: int, data: memoryview) -> None:
        """Write all of `data`; a short write of the system is gone on with, not overlooked."""
        found = self._file_handle(handle, "in")
        descriptor = found.descriptor
        if offset + len(data) > self._max_file:
            raise OSError(errno.EFBIG, "the file is larger than allowed")
        self._meter.grow(len(data), request=found.place.request)
        while data:
            written = os.pwrite(descriptor, data, offset)
            if written == 0:
                raise OSError(errno.EIO, "nothing was written")
            offset, data = offset + written, data[written:]

    def sync(self, handle: bytes) -> None:
        """Bring a written file to the disk."""
        os.fsync(self._file_handle(handle, "in").descriptor)

    # -- names -----------------------------------------------------------------------------------

    def stat(self, path: bytes) -> p.Attributes:
        """Attributes of a folder or a file."""
        where = place(path)
        if not where.name:
            return p.Attributes(mode=stat.S_IFDIR | 0o700)
        return self._stat(self._file(path))

    def stat_handle(self, handle: bytes) -> p.Attributes:
        """Attributes of an open file."""
        found = self._handle(handle)
        return (
            _attributes(os.fstat(found.descriptor))
            if found.listing is None
            else self.stat(found.place.path())
        )

    def remove(self, path: bytes) -> None:
        """Remove a file of either folder, lasting."""
        where = self._file(path)
        folder = self._folders[where.folder]
        os.unlink(where.name, dir_fd=folder)
        self._forget(where.name)  # the disk gets its room back now
        if not where.part:
            os.fsync(folder)

    def rename(self, source: bytes, target: bytes, *, replace: bool) -> None:
        """Publish `<name>.part` in `in` as `<name>`; file and name are on the disk on return."""
        src, dst = self._file(source), self._file(target)
        if src.folder != "in" or src != Place("in", dst.name + PART_SUFFIX):
            raise PermissionError(errno.EACCES, "only a .part in `in` can be renamed, to its final name")
        folder = self._folders["in"]
        there = os.stat(src.name, dir_fd=folder, follow_symlinks=False)
        if there.st_nlink != 1:
            raise PermissionError(errno.EACCES, "this file has another name elsewhere")
        ours = self._written.get(src.name)
        if ours is None or not os.path.samestat(there, os.fstat(ours)):
            raise OSError(errno.ESTALE, "this session did not write this file")
        if any(handle.place == src for handle in self._handles.values()):
            raise OSError(errno.EBUSY, "the file is still open for writing")
        if not replace and _exists(dst.name, folder):
            raise FileExistsError(errno.EEXIST, "the name is taken")
        durable.rename_at(folder, src.name, dst.name)
        self._forget(src.name)

    # -- inside ----------------------------------------------------------------------------------

    def _forget(self, name: str) -> None:
        descriptor = self._written.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)

    def _file(self, path: bytes) -> Place:
        where = place(path)
        if not where.name or not admits(where.folder, where.name):
            raise PermissionError(errno.EACCES, "this name has no place on a shelf")
        return where

    def _stat(self, where: Place) -> p.Attributes:
        return _attributes(os.stat(where.name, dir_fd=self._folders[where.folder], follow_symlinks=False))

    def _list(self, folder: str) -> Iterator[tuple[str, p.Attributes]]:
        if not folder:
            for name in FOLDERS:
                yield name, p.Attributes(mode=stat.S_IFDIR | 0o700)
            return
        with os.scandir(self._folders[folder]) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            if admits(folder, name):
                with suppress(FileNotFoundError):
                    found = self._stat(Place(folder, name))
                    if found.regular:
                        yield name, found

    def _issue(self, handle: Handle) -> bytes:
        if len(self._handles) >= self._max_handles:
            if handle.descriptor >= 0:
                os.close(handle.descriptor)
            raise OSError(errno.EMFILE, "too many open handles")
        self._issued += 1
        key = p.u32(self._issued & 0xFFFFFFFF)
        self._handles[key] = handle
        return key

    def _handle(self, handle: bytes) -> Handle:
        found = self._handles.get(handle)
        if found is None:
            raise OSError(errno.EBADF, "no such handle")
        return found

    def _file_handle(self, handle: bytes, folder: str = "") -> Handle:
        found = self._handle(handle)
        if found.listing is not None or folder not in ("", found.place.folder):
            raise PermissionError(errno.EACCES, "this handle was opened for something else")
        return found


def _attributes(status: os.stat_result) -> p.Attributes:
    return p.Attributes(status.st_size, status.st_mode, max(0, int(status.st_mtime)) & 0xFFFFFFFF)


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
