"""Ways to spoil bytes, each a small change a reader may meet: pure, so that a finding can be repeated."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from schemas import messages

MOST = 4 << 20
"""Most bytes that come out."""


class Step(NamedTuple):
    """One change: what, where (a fraction of the length), how much, and with which byte or piece."""

    what: int
    at: float
    length: int
    value: int


_NUMBERS = (0, 1, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
_PIECES = (
    b"\0", b"\n", b" ", b'"', b"[", b"{", b"]", b"}", b",", b":", b"\\ud800", b"-1", b"1e999", b"NaN",
    b"null", b"true", b"99999999999999999999999", b"../", b"/", b"\xff\xfe", b"\xc3\x28",
    "\u202e".encode(), b"age-encryption.org/v1\n", b"-> X25519 ", b"\n---", b"PAR1", b"DICM",
    b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\xdd\xe0\0\0\0\0",
    b"SQ\0\0\xff\xff\xff\xff", b"UN\0\0\xff\xff\xff\xff", b"\x28\xb5\x2f\xfd", b"ustar\x0000", b"SSHSIG",
)  # fmt: skip
KINDS = 10
"""Kinds of changes: a step's `what` is below."""


def spoil(data: bytes, steps: list[Step]) -> bytes:
    """Apply the changes in order."""
    for step in steps:
        data = _changed(data, step)
    return data[:MOST]


def _changed(data: bytes, step: Step) -> bytes:
    at = int(step.at * len(data))
    head, part, tail = data[:at], data[at : at + step.length], data[at + step.length :]
    match step.what:
        case 0:
            return head + bytes([data[at] ^ 1 << step.value % 8]) + data[at + 1 :] if at < len(data) else data
        case 1:
            return head + bytes([step.value % 256]) + data[at + 1 :]
        case 2:
            return head + tail
        case 3:
            return head + part * (2 + step.value % 5) + tail
        case 4:
            return head
        case 5:
            return head + _PIECES[step.value % len(_PIECES)] + data[at:]
        case 6:
            piece = _PIECES[step.value % len(_PIECES)]
            return head + piece + data[at + len(piece) :]
        case 7:
            number = _NUMBERS[step.value % len(_NUMBERS)].to_bytes(8, "little" if step.value % 2 else "big")
            width = (1, 2, 4, 8)[step.value % 4]
            cut = number[:width] if step.value % 2 else number[-width:]
            return head + cut + data[at + width :]
        case 8:
            return _json(data, step)
        case _:
            return tail + part + head


def _json(data: bytes, step: Step) -> bytes:
    """Put an odd value in the place of one of a JSON object, in the one spelling."""
    odd: tuple[Any, ...] = (
        None, True, -1, 2**63, 1.5, "", "x" * 300, "../..", "\0", [], {}, [[]], {"a": 1}, ["x"] * 50,
        "\u202e",
    )  # fmt: skip
    try:
        values = json.loads(data)
        key = sorted(values)[int(step.at * len(values))]
        if step.length % 5 == 0:
            del values[key]
        else:
            values[key if step.length % 5 else key + "x"] = odd[step.value % len(odd)]
        return messages.canonical(values)
    except (ValueError, TypeError, IndexError, AttributeError, RecursionError):
        return data[::-1]
