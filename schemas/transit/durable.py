"""The one place that publishes a file: whole or not at all, and still there after a power cut.

Guarantees, in this order: a temporary name beside the target (`*.part`, created exclusively), the bytes,
a check of their number, the mode, fsync of the file, the rename, fsync of the folder. Until the rename
nothing is visible under the final name; when a call returns, what it did survives a power cut. A failed
fsync is never tried again (the kernel may have dropped the pages and would then report success): it
comes out as `OSError` and the caller starts again with fresh files.

What a crash leaves:

    before the rename           a `.part` file, swept by age
    before the folder's fsync   the old state or the new one, never a mixture

Leaves to others: what is published and when. No other module calls `os.rename` or `os.replace`. Local
filesystems only (ext4, XFS, btrfs): NFS and SMB promise less.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from schemas.names import PART_SUFFIX

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def publish(
    path: Path,
    write: Callable[[BinaryIO], None] | bytes,
    *,
    mode: int = 0o444,
    replace: bool = False,
    lasting: bool = True,
) -> None:
    """Write a file that appears under its name whole or not at all.

    Args:
        path: the final name; its folder exists.
        write: the bytes, or a function that writes them in order into the file it is given.
        mode: permission bits of the file, set before it becomes visible.
        replace: put it in the place of a file that has the name already.
        lasting: fsync; without it the file is still never seen in part, but a power cut may lose it.

    Raises:
        FileExistsError: the name is taken and `replace` is false; what is there was not touched.
        OSError: the disk is full, an fsync failed, ...; whatever `write` raises comes out too. In every
            case but a failed fsync of the folder nothing is visible, and the temporary file is gone.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PART_SUFFIX}")
    descriptor = os.open(part, _NEW, 0o600)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            if isinstance(write, bytes):
                file.write(write)
            else:
                write(file)
            finish(file, part, path, mode=mode, replace=replace, lasting=lasting)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def finish(
    file: BinaryIO,
    part: Path,
    path: Path,
    *,
    mode: int = 0o444,
    replace: bool = False,
    lasting: bool = True,
) -> None:
    """Publish a file that is written to its end: how `publish` ends, for a file that grew over many tries.

    Args:
        file: open, and at its end.
        part: the name it has, in a folder of the same file system.
        path: the final name.
        mode: as for `publish`.
        replace: as for `publish`.
        lasting: as for `publish`.

    Raises:
        FileExistsError: the name is taken and `replace` is false.
        OSError: the disk is full, an fsync failed, ...; the part stays, unless it has its final name already.
    """
    file.flush()
    if os.fstat(file.fileno()).st_size != file.tell():
        raise OSError(f"a file came out with another size than was written: {file.tell()} bytes")
    os.fchmod(file.fileno(), mode)
    if lasting:
        os.fsync(file.fileno())
    _take_name(part, path, replace=replace)
    if lasting:
        for folder in dict.fromkeys((path.parent, part.parent)):
            fsync_dir(folder)


def write_hidden(path: Path, data: bytes) -> None:
    """Write a file into a folder that nobody looks into before `publish_dir` publishes it.

    Its bytes are lasting when this returns; its name is with the folder. Only for folders that are wiped
    after a crash.

    Raises:
        FileExistsError: the name is taken.
        OSError: the disk is full, an fsync failed; the caller drops the folder.
    """
    with os.fdopen(os.open(path, _NEW, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())


def _take_name(part: Path, path: Path, *, replace: bool) -> None:
    if replace:
        part.replace(path)
    else:
        path.hardlink_to(part)  # unlike rename(2), link(2) refuses a name that is taken
        part.unlink()


def rename(src: Path, dst: Path) -> None:
    """Give a file or folder another name, in another folder if need be; lasting when it returns.

    Replaces a file (or an empty folder) of that name, as rename(2) does. The bytes of `src` are the
    caller's: they must have been fsynced.
    """
    src.rename(dst)
    fsync_dir(dst.parent)
    if src.parent != dst.parent:
        fsync_dir(src.parent)


def rename_at(folder: int, src: str, dst: str) -> None:
    """Make the file `src` of an open folder lasting, read-only, and known as `dst`; replaces `dst`.

    Args:
        folder: descriptor of the folder.
        src: plain name of a regular file (no link).
        dst: plain name.
    """
    file = os.open(src, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise IsADirectoryError("only a regular file can be published")
        os.fchmod(file, 0o444)
        os.fsync(file)
        os.replace(src, dst, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(file)
    os.fsync(folder)


def publish_dir(tmp_dir: Path, final_dir: Path) -> None:
    """Publish a whole folder at once: the store's commit.

    The files in `tmp_dir` were fsynced by whoever wrote them (`write_hidden`); their names are made lasting
    here, before the folder is seen.

    Raises:
        FileExistsError: there is a folder with content of that name; nothing was changed.
    """
    fsync_dir(tmp_dir)
    try:
        rename(tmp_dir, final_dir)
    except OSError as error:
        if final_dir.is_dir() and tmp_dir.is_dir():
            raise FileExistsError(f"already published: {final_dir.name}") from error
        raise


def settle(path: Path) -> None:
    """Make a file that is already there lasting: a name that was found says nothing about the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fsync_dir(path.parent)


def make_dirs(path: Path, *, mode: int = 0o700) -> None:
    """Create a folder and what is missing above it; the name of each is lasting, and of one that is found."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    with suppress(PermissionError):  # a folder above ours
        fsync_dir(path.parent)  # whoever made what is there may have died before that
    for folder in reversed(missing):
        with suppress(FileExistsError):  # another process was quicker; a file of that name fails below
            folder.mkdir(mode=mode)
        fsync_dir(folder)
        fsync_dir(folder.parent)


def fsync_dir(path: Path) -> None:
    """Make the names in a folder lasting."""
    descriptor = os.open(path, _FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, lasting; one that is gone already is fine."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    fsync_dir(path.parent)


def sweep(folder: Path, older_than_seconds: float, now: float) -> int:
    """Remove `.part` files that nobody has written to for a while; returns how many.

    Args:
        folder: where to look; not below it.
        older_than_seconds: longer than any upload can pause.
        now: seconds since 1970, as `time.time()`.
    """
    swept = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(PART_SUFFIX) and entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):  # it was published or swept at this moment
                    if entry.stat(follow_symlinks=False).st_mtime < now - older_than_seconds:
                        Path(entry.path).unlink()
                        swept += 1
    return swept
