"""A connection that is given up leaves no timer: a process that was stopped would wait for it."""

from __future__ import annotations

import socket
import threading
from typing import Any

import paramiko
import pytest

from schemas.transit import dial


def timers() -> list[threading.Thread]:
    """Those that would hold up the end of the process."""
    return [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


@pytest.mark.parametrize("late", [False, True])
def test_given_up_while_the_handshake_begins(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    transport = paramiko.Transport(ours)
    transport.banner_timeout = transport.handshake_timeout = 60
    begins, goes_on, begin = threading.Event(), threading.Event(), transport.packetizer.start_handshake

    def start_handshake(timeout: float) -> Any:
        if late:  # we gave up already
            begins.set()
            goes_on.wait(10)
        begin(timeout)
        begins.set()

    monkeypatch.setattr(transport.packetizer, "start_handshake", start_handshake)
    before = timers()
    transport.start_client(event=threading.Event())
    theirs.sendall(b"SSH-2.0-other\r\n")
    assert begins.wait(10)
    threading.Timer(0.2, goes_on.set).start()
    dial.hang_up(transport)
    assert goes_on.wait(10) and not transport.is_alive()
    left = [timer for timer in timers() if timer not in before and not timer.finished.wait(1)]  # type: ignore[attr-defined]
    assert left == []
    theirs.close()


def test_given_up_before_anything_began() -> None:
    ours, theirs = socket.socketpair()
    dial.hang_up(paramiko.Transport(ours))
    theirs.close()
