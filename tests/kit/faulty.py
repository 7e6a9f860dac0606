"""The store's own SFTP session, with one fault: real bytes, real files, one thing done wrong, once.

    lose-reply:N     the N-th answer is never sent
    double-reply:N   the N-th answer is sent twice
    late-reply:N     the N-th answer comes after the next one
    fail-reply:N     the N-th request is not done, and answered with a failure
    lie-write:N      the N-th WRITE is answered with success and not done: zeros lie in its place
    cut-tail:N       the same, but the file stays short
    silent:N         from the N-th request on, that session answers nothing
    refuse:NAME      files whose name begins so cannot be opened, ever

Requests and WRITEs are counted over all sessions of the server.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

from central_store import sftp_server, sftp_session
from schemas.transit import sftp_packets as p

_REPLIES = ("lose-reply", "double-reply", "late-reply", "fail-reply", "silent")
_WRITES = ("lie-write", "cut-tail")


def install(fault: str) -> None:
    """Make the server of this process use the session with this fault."""
    kind, _, number = fault.partition(":")
    if kind in (*_REPLIES, *_WRITES, "refuse"):
        shared = mmap.mmap(-1, mmap.PAGESIZE)  # of all forks of this process

        class Session(_Faulty):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.kind, self.what, self.shared = kind, number, shared

        sftp_server.Session = Session  # type: ignore[misc]


class _Faulty(sftp_session.Session):
    kind: str
    what: str
    shared: mmap.mmap
    held = b""
    mute = False

    def _due(self) -> bool:
        count = int.from_bytes(self.shared[:8], "big") + 1
        self.shared[:8] = count.to_bytes(8, "big")
        return count == int(self.what)

    def answer(self, packet: bytes | memoryview) -> bytes:
        fields = p.Fields(packet)
        kind, number = fields.u8(), fields.u32()
        if kind == p.INIT:
            return super().answer(packet)
        if self.kind == "refuse":
            if kind == p.OPEN and self.what.encode() in fields.string():
                return sftp_session._status(number, p.FAILURE)
            return super().answer(packet)
        if self.kind in _WRITES:
            if kind == p.WRITE and self._due():
                handle, offset, data = fields.string(), fields.u64(), fields.blob()
                descriptor = self._files._handle(handle).descriptor
                if self.kind == "lie-write":
                    os.ftruncate(descriptor, max(os.fstat(descriptor).st_size, offset + len(data)))
                return sftp_session._status(number, p.OK)
            return super().answer(packet)
        due = self._due()
        if due and self.kind == "fail-reply":
            return sftp_session._status(number, p.FAILURE)
        answer = super().answer(packet)
        self.mute = self.mute or (due and self.kind == "silent")
        if self.mute or (due and self.kind == "lose-reply"):
            return b""
        if due and self.kind == "double-reply":
            return answer * 2
        if due and self.kind == "late-reply":
            self.held = answer
            return b""
        answer, self.held = answer + self.held, b""
        return answer
