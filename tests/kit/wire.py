"""A wire that breaks or falls silent after a packet, once; what went through before is real.

SSH packets can be counted from outside: their lengths are readable (RFC 4253 section 6; RFC 5647 section
7.3 for AES-GCM, which is what both our ends choose).
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.kit.servers import Endpoint

_NEWKEYS, _TAG = 21, 16


class _Packets:
    """Cuts one direction of a connection into SSH packets; the version line counts as one."""

    def __init__(self) -> None:
        self._held, self._lines, self._tag = b"", True, 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._held += data
        while True:
            if self._lines:
                end = self._held.find(b"\n") + 1
                if not end:
                    return
                self._lines = not self._held.startswith(b"SSH-")
            else:
                if len(self._held) < 6:
                    return
                end = 4 + int.from_bytes(self._held[:4], "big") + self._tag
                if len(self._held) < end:
                    return
                if not self._tag and self._held[5] == _NEWKEYS:
                    self._tag = _TAG
            packet, self._held = self._held[:end], self._held[end:]
            yield packet


@dataclass
class Wire:
    """What went through, in packets by direction; and where it is to break."""

    endpoint: Endpoint
    way: Literal["up", "down"] = "up"
    after: int = 0
    stall: bool = False
    unit: Literal["packets", "bytes"] = "packets"
    packets: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    bytes: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    broken: int = 0
    _stalled: list[socket.socket] = field(default_factory=list)

    def break_after(
        self,
        count: int,
        way: Literal["up", "down"] = "up",
        *,
        stall: bool = False,
        unit: Literal["packets", "bytes"] = "packets",
    ) -> None:
        """Begin to count, and break after so many in this direction: hang up, or say nothing any more."""
        self.packets, self.bytes = {"up": 0, "down": 0}, {"up": 0, "down": 0}
        self.way, self.after, self.stall, self.unit, self.broken = way, count, stall, unit, 0

    def _through(self, way: str, size: int) -> bool:
        self.packets[way] += 1
        self.bytes[way] += size
        counted = self.packets if self.unit == "packets" else self.bytes
        if way == self.way and counted[way] >= self.after > 0 and not self.broken:
            self.broken += 1
            return False
        return True


@contextmanager
def wire(target: Endpoint) -> Iterator[Wire]:
    """A wire to a server; whole until `break_after`, and again after it broke."""
    listener = socket.create_server(("127.0.0.1", 0))
    made = Wire(target._replace(port=listener.getsockname()[1]))

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_carry, args=(near, target, made), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield made
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for sock in made._stalled:
            sock.close()


def _carry(near: socket.socket, target: Endpoint, made: Wire) -> None:
    far = socket.create_connection(target[:2])
    ways: dict[Any, tuple[str, socket.socket, _Packets]] = {
        near: ("up", far, _Packets()),
        far: ("down", near, _Packets()),
    }
    with selectors.DefaultSelector() as selector, suppress(OSError):
        for sock in ways:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(sock, selectors.EVENT_READ)
        while _move(selector, ways, made):
            pass
        if made.stall and made.broken:
            made._stalled += [near, far]
            made.stall = False
            return
    near.close()
    far.close()


def _move(selector: selectors.BaseSelector, ways: dict[Any, Any], made: Wire) -> bool:
    for selected, _ in selector.select():
        way, other, packets = ways[selected.fileobj]
        data = selected.fileobj.recv(1 << 20)  # type: ignore[union-attr]
        if not data:
            return False
        for packet in packets.feed(data):
            other.sendall(packet)
            if not made._through(way, len(packet)):
                return False
    return True
