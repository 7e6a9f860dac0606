"""One SFTP conversation on the server's side: requests in, answers out, in bulk.

Guarantees: every request is answered, in order; an answer says success only when the thing was done;
what is malformed ends the conversation, what is not allowed gets a status, and a client that is silent, or
takes too long over one packet, is left. Many packets are read per
wake-up and their answers sent together: that, and large requests, is where the speed comes from.

Leaves to others: which files (`central_store.sftp_files`), the SSH channel (`central_store.sftp_server`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import islice
from time import monotonic

from central_store.sftp_files import Files, place
from schemas.errors import FormatError
from schemas.transit import sftp_packets as p
from schemas.transit.pump import Channel, send_all

_GULP = 4 * 1024 * 1024
_FLUSH = 1024 * 1024
_NAMES_PER_ANSWER = 200
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_TICK = 2.0  # seconds between looks at whether anyone still wants this conversation

EXTENSIONS = ((p.POSIX_RENAME, b"1"), (p.FSYNC, b"1"), (p.LIMITS, b"1"))


class Session:
    """Answers requests.

    Args:
        files: what the client may do.
        max_handles: told to the client (`limits@openssh.com`).
    """

    def __init__(self, files: Files, max_handles: int) -> None:
        self._files = files
        self._max_handles = max_handles
        self._started = False
        self._handlers: dict[int, Callable[[int, p.Fields], bytes]] = {
            p.OPEN: self._open, p.CLOSE: self._close, p.READ: self._read, p.WRITE: self._write,
            p.LSTAT: self._stat, p.STAT: self._stat, p.FSTAT: self._fstat, p.OPENDIR: self._opendir,
            p.READDIR: self._readdir, p.REMOVE: self._remove, p.REALPATH: self._realpath,
            p.RENAME: self._rename, p.EXTENDED: self._extended,
        }  # fmt: skip

    def converse(
        self,
        channel: Channel,
        *,
        idle: float,
        packet: float,
        heard: Callable[[], None],
        wanted: Callable[[], bool],
    ) -> None:
        """Answer until the client leaves or `wanted` says no.

        Args:
            channel: open.
            idle: seconds of silence after which the client is left.
            packet: seconds it may take to send one packet, or to take one piece of the answers.
            heard: called whenever the client said something.
            wanted: looked at every few seconds.

        Raises:
            FormatError: the client does not speak SFTP version 3.
            TimeoutError: it is too slow.
            OSError: the connection broke.
        """
        splitter, last = p.Splitter(), monotonic()
        begun = last  # when the packet that is not whole yet began
        while wanted():
            channel.settimeout(min(_TICK, idle, packet))
            if splitter.partial and monotonic() - begun > packet:
                raise TimeoutError("one packet takes too long")
            try:
                data = channel.recv(_GULP)
            except TimeoutError:
                if monotonic() - last > idle:
                    return
                continue
            if not data:
                return
            heard()
            if not splitter.partial:
                begun = monotonic()
            channel.settimeout(packet)
            answers, held = [], 0
            for view in splitter.feed(data):
                begun = monotonic()
                answer = self.answer(view)
                answers.append(answer)
                held += len(answer)
                if held >= _FLUSH:
                    send_all(channel, b"".join(answers))
                    answers, held = [], 0
            if answers:
                send_all(channel, b"".join(answers))
            last = monotonic()

    def answer(self, packet: bytes | memoryview) -> bytes:
        """The answer to one request; raises `FormatError` if it is malformed."""
        fields = p.Fields(packet)
        kind, number = fields.u8(), fields.u32()
        if not self._started:
            if kind != p.INIT or number < p.VERSION:
                raise FormatError("the client does not speak SFTP version 3")
            self._started = True
            return p.version_packet(p.VERSION_REPLY, EXTENSIONS)
        handler = self._handlers.get(kind)
        if handler is None:
            denied = kind in (p.SETSTAT, p.FSETSTAT, p.MKDIR, p.RMDIR, p.READLINK, p.SYMLINK)
            return _status(number, p.PERMISSION_DENIED if denied else p.OP_UNSUPPORTED)
        try:
            return handler(number, fields)
        except FileNotFoundError:
            return _status(number, p.NO_SUCH_FILE)
        except PermissionError:
            return _status(number, p.PERMISSION_DENIED)
        except OSError as error:
            full = error.errno in _NO_ROOM
            return _status(number, p.FAILURE, p.SHELF_FULL if full else b"failure")

    # -- files -----------------------------------------------------------------------------------

    def _open(self, number: int, fields: p.Fields) -> bytes:
        path, flags = fields.string(), fields.u32()
        fields.attributes()
        return p.packet(p.HANDLE, number, p.string(self._files.open(path, flags)))

    def _close(self, number: int, fields: p.Fields) -> bytes:
        self._files.close(fields.string())
        return _status(number, p.OK)

    def _read(self, number: int, fields: p.Fields) -> bytes:
        data = self._files.read(fields.string(), fields.u64(), fields.u32())
        if not data:
            return _status(number, p.EOF)
        return p.packet(p.DATA, number, p.u32(len(data)), data)

    def _write(self, number: int, fields: p.Fields) -> bytes:
        self._files.write(fields.string(), fields.u64(), fields.blob())
        return _status(number, p.OK)

    def _fstat(self, number: int, fields: p.Fields) -> bytes:
        return p.packet(p.ATTRS, number, p.attributes(self._files.stat_handle(fields.string())))

    # -- names -----------------------------------------------------------------------------------

    def _stat(self, number: int, fields: p.Fields) -> bytes:
        return p.packet(p.ATTRS, number, p.attributes(self._files.stat(fields.string())))

    def _opendir(self, number: int, fields: p.Fields) -> bytes:
        return p.packet(p.HANDLE, number, p.string(self._files.open_listing(fields.string())))

    def _readdir(self, number: int, fields: p.Fields) -> bytes:
        found = [
            p.string(name.encode("ascii")) + p.string(_long_name(name, known)) + p.attributes(known)
            for name, known in islice(self._files.listing(fields.string()), _NAMES_PER_ANSWER)
        ]
        if not found:
            return _status(number, p.EOF)
        return p.packet(p.NAME, number, p.u32(len(found)), *found)

    def _realpath(self, number: int, fields: p.Fields) -> bytes:
        name = p.string(place(fields.string()).path())
        return p.packet(p.NAME, number, p.u32(1), name, name, p.NO_ATTRIBUTES)

    def _remove(self, number: int, fields: p.Fields) -> bytes:
        self._files.remove(fields.string())
        return _status(number, p.OK)

    def _rename(self, number: int, fields: p.Fields) -> bytes:
        self._files.rename(fields.string(), fields.string(), replace=False)
        return _status(number, p.OK)

    def _extended(self, number: int, fields: p.Fields) -> bytes:
        name = fields.string()
        if name == p.POSIX_RENAME:
            self._files.rename(fields.string(), fields.string(), replace=True)
        elif name == p.FSYNC:
            self._files.sync(fields.string())
        elif name == p.LIMITS:
            limits = p.MAX_PACKET, p.MAX_DATA, p.MAX_DATA, self._max_handles
            return p.packet(p.EXTENDED_REPLY, number, *map(p.u64, limits))
        else:
            return _status(number, p.OP_UNSUPPORTED)
        return _status(number, p.OK)


def _status(number: int, code: int, text: bytes = b"") -> bytes:
    text = text or p.STATUS_TEXT[code].encode("ascii")
    return p.packet(p.STATUS, number, p.u32(code), p.string(text), p.string(b"en"))


def _long_name(name: str, known: p.Attributes) -> bytes:
    """A line as `ls -l` has it: what interactive clients print."""
    kind = "-r--r-----" if known.size is not None else "drwx------"
    return f"{kind} 1 facility facility {known.size or 0:>12} {name}".encode("ascii")
