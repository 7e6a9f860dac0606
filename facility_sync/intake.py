"""The files a round takes: the sources as they are now against the ledger.

Guarantees: every directory entry is counted in the report once; a file that changed a moment ago is
looked at again after it had time to settle, and taken in the same round if it did; memory follows one
folder, not the archive.

`survey` gives the same picture between rounds.

Leaves to others: reading the files (`facility_sync.pack`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from facility_sync import plan, scan
from facility_sync.ledger import Ledger
from facility_sync.plan import Wanted
from facility_sync.report import Line, Report
from facility_sync.settings import Settings


def below(folder: str, name: str) -> str:
    """A path below its source, for a line of the report."""
    return str(PurePosixPath(folder, name))


def wanted(
    settings: Settings,
    ledger: Ledger,
    report: Report,
    *,
    sleep: Callable[[float], None] = time.sleep,
    now_ns: Callable[[], int] = time.time_ns,
) -> Iterator[Wanted]:
    """New, settled files in a stable order; everything else goes into the report."""
    unsettled: list[tuple[Wanted, int]] = []
    for source in settings.sources:
        for folder in scan.walk(source):
            known = ledger.folder(source, folder.folder) if folder.facts else {}
            for odd in folder.oddities:
                if not _ignored(odd.name, settings):
                    report.found += 1
                    report.waiting.append(Line(source, below(odd.folder, odd.name), odd.reason))
            for fact in folder.facts:
                if _ignored(fact.name, settings):
                    report.ignored += 1
                    continue
                report.found += 1
                if not plan.is_new(fact, known):
                    _count_known(report, source, fact, known[fact.name].state, known[fact.name].reason)
                elif plan.is_settled(fact, now_ns=now_ns(), settle_seconds=settings.settle_seconds):
                    yield Wanted(source, fact)
                else:
                    unsettled.append((Wanted(source, fact), now_ns()))
    yield from _settled(unsettled, settings.settle_seconds, report, sleep, now_ns)


def _settled(
    unsettled: list[tuple[Wanted, int]],
    settle_seconds: int,
    report: Report,
    sleep: Callable[[float], None],
    now_ns: Callable[[], int],
) -> Iterator[Wanted]:
    """Of the files that had just changed, those that stood still while we waited."""
    for item, seen_ns in unsettled:  # in the order they were seen: one wait serves nearly all of them
        rest = settle_seconds - (now_ns() - seen_ns) / 1e9
        if rest > 0:
            sleep(rest)
        again = scan.look(item.source, item.fact.folder, item.fact.name)
        if again == item.fact:
            yield item
        else:
            reason = "vanished" if again is None else "settling"
            report.waiting.append(Line(item.source, below(item.fact.folder, item.fact.name), reason))


def _count_known(report: Report, source: str, fact: scan.Fact, state: str, reason: str) -> None:
    if state == "stored":
        report.known += 1
    elif state == "erased":
        report.erased += 1
    elif state == "refused":
        report.refused.append(Line(source, below(fact.folder, fact.name), reason))
    else:
        report.under_way += (
            1  # its batch is in the outbox or on the shelf: the ledger says at the end how it fared
        )


def survey(settings: Settings, ledger: Ledger, *, only: str | None = None) -> Report:
    """The sources as they are now, nothing opened: what is stored, and every file that is not.

    Args:
        settings: names the sources to walk.
        ledger: what is known of them.
        only: list files under way of this source only.
    """
    report = Report()
    lost = {line[:3] for line in ledger.not_stored() if line[3] == "lost"}
    for item in wanted(settings, ledger, report, sleep=lambda _: None):
        reason = "lost" if (item.source, item.fact.folder, item.fact.name) in lost else "new"
        report.waiting.append(Line(item.source, below(item.fact.folder, item.fact.name), reason))
    list_batches(report, ledger, only=only)
    return report


def list_batches(report: Report, ledger: Ledger, *, only: str | None = None) -> None:
    """Add the files whose batch is under way, was refused, or was lost with nothing here to send again."""
    refused = set(report.refused)
    for source, folder, name, state, reason in ledger.not_stored():
        if only not in (None, source):
            continue
        if state in ("ready", "sent"):
            report.waiting.append(Line(source, below(folder, name), state))
        elif state == "lost":
            if scan.look(source, folder, name) is None:
                report.refused.append(Line(source, below(folder, name), "lost-and-gone"))
        elif (
            reason.startswith("store:") and (line := Line(source, below(folder, name), reason)) not in refused
        ):
            report.refused.append(line)


def _ignored(name: str, settings: Settings) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in settings.ignore)
