"""Print what the functions return: tables for people, JSON and CSV for programs, lines for cron.

Guarantees: with `--json` exactly one JSON document goes to standard output; everything that is not the
answer (progress, remarks) goes to standard error. Control characters from a header never reach a
terminal raw.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import time
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from datetime import time as time_of_day
from typing import Any, TextIO

from facility_sync.reasons import explain
from facility_sync.report import Line, Report

_MOST_LINES = 50


def plain(value: object) -> str:
    """A value as one line of text, safe to print."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, (date, time_of_day)):
        return value.isoformat()
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(value))


def width(text: str) -> int:
    """Columns a text takes on a terminal (Unicode TR 11)."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def table(rows: Sequence[Mapping[str, object]], headings: Mapping[str, str]) -> str:
    """Rows as aligned columns; numbers to the right; `headings` gives order and titles."""
    cells = [[plain(row.get(key)) for key in headings] for row in rows]
    titles = list(headings.values())
    right = [bool(rows) and all(isinstance(row.get(key), (int, float)) for row in rows) for key in headings]
    widths = [max(width(line[i]) for line in [titles, *cells]) for i in range(len(titles))]

    def render(line: list[str]) -> str:
        padded = [
            " " * (space - width(text)) + text if to_right else text + " " * (space - width(text))
            for text, space, to_right in zip(line, widths, right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([render(titles), render(["-" * space for space in widths]), *map(render, cells)])


def to_json(value: object) -> str:
    """One JSON document; dates as ISO 8601, bytes as hexadecimal."""

    def other(item: object) -> Any:
        return plain(item)

    return json.dumps(value, indent=2, ensure_ascii=False, default=other)


def to_json_line(value: object) -> str:
    """One JSON document on one line."""
    return json.dumps(value, ensure_ascii=False)


def to_csv(rows: Sequence[Mapping[str, object]], headings: Sequence[str]) -> str:
    """RFC 4180 with a header line. A cell that a spreadsheet would take for a formula gets an apostrophe."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\r\n")
    writer.writerow(headings)
    for row in rows:
        texts = [plain(row.get(key)) for key in headings]
        writer.writerow(["'" + text if text[:1] in ("=", "+", "-", "@") else text for text in texts])
    return sink.getvalue()


def size(count: float) -> str:
    """Bytes for people: `14.2 MB` (powers of ten, as disks and networks count)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def images(count: int) -> str:
    """`1 image`, `2 images`."""
    return f"{count:,} image" + ("" if count == 1 else "s")


def report_text(report: Report) -> str:
    """A round's report for people."""
    counted = (
        ("found", report.found, "files" + (f", {report.ignored:,} more ignored" if report.ignored else "")),
        ("stored before", report.known, ""),
        ("taken", report.taken, _kinds(report)),
        ("already held", report.held, ""),
        ("sent", report.sent_batches, f"batches, {size(report.sent_bytes)}"),
        ("stored", report.stored, "images, each with a verified receipt"),
        ("refused", len(report.refused), ""),
        ("waiting", len(report.waiting), ""),
    )
    lines = [f"{name:<14}{count:>8,} {remark}".rstrip() for name, count, remark in counted]
    if report.erased:
        lines.append(f"erased        {report.erased:>8,} files that lie there and are not sent again")
    lines += not_stored_text(report.refused, report.waiting)
    lines += [f"{name} is away: {why}. Used instead: {report.store}." for name, why in report.away.items()]
    lines += [f"Tombstones wait for {name}: {why}." for name, why in report.unburied.items()]
    if report.rows.get("trouble"):
        lines.append(f"Rows for offline questions were not brought: {report.rows['trouble']}.")
    if report.seconds:
        lines.append(f"{report.seconds:.1f} seconds")
    if report.trouble:
        lines.append(f"The round broke off: {report.trouble}")
    elif report.complete:
        lines.append("Everything found is stored.")
    return "\n".join(lines)


def _kinds(report: Report) -> str:
    if not report.taken:
        return ""
    kinds = f"{report.protected:,} protected, {report.taken - report.protected:,} sealed whole"
    if not report.conflicts:
        return kinds
    count = f"{report.conflicts:,} with other bytes than an earlier file of the same SOP instance"
    return f"{kinds} ({count}: both are kept)"


def not_stored_text(refused: Sequence[Line], waiting: Sequence[Line], most: int = _MOST_LINES) -> list[str]:
    """One line for each file that is not stored, grouped by reason."""
    text: list[str] = []
    for title, found in (("refused", refused), ("waiting", waiting)):
        for reason in sorted({line.reason for line in found}):
            group = [line for line in found if line.reason == reason]
            meaning, step = explain(reason)
            text.append(f"{title}: {reason} ({len(group):,}). {meaning} {step}")
            text += [f"    {plain(line.path) or '.'}" for line in group[:most]]
            if len(group) > most:
                text.append(f"    … and {len(group) - most:,} more: `fsync status` lists all")
    return text


class Meter:
    """Progress on standard error: one line rewritten on a terminal, a line now and then in a log.

    Args:
        quiet: print nothing at all.
        stream: where to; a terminal or not decides the form.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._quiet = quiet
        self._totals: dict[str, int] = {}
        self._last = time.monotonic()
        self._shown = False

    def step(self, what: str, amount: int) -> None:
        """Add to a total: `planned`, `read`, `sent`, `received` are bytes; `stored`, `restored` images."""
        self._totals[what] = self._totals.get(what, 0) + amount
        now = time.monotonic()
        if not self._quiet and now - self._last >= (0.1 if self._live else 15.0):
            self._last = now
            self._print(self._text())

    def _text(self) -> str:
        parts = [
            f"{what} {images(count) if what in ('stored', 'restored') else size(count)}"
            for what, count in sorted(self._totals.items(), key=lambda item: _ORDER.index(item[0]))
        ]
        return ", ".join(parts)

    def _print(self, text: str) -> None:
        if self._live:
            self._stream.write(f"\r\x1b[K{text}")
            self._shown = True
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def total(self, what: str) -> int:
        """The total of `what` so far."""
        return self._totals.get(what, 0)

    def close(self) -> None:
        """Take the live line away."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


_ORDER = ("planned", "read", "sent", "received", "stored", "restored")
