"""The change feed: what came into the store, and what stands for what, as lines that are only ever added.

    changes.jsonl     {"number": 1, "kind": "added", "facility": …, "batch": …, …}

A line's number is the cursor: who has read to number N asks for what came since N. Kinds: `KINDS`.

Guarantees: numbers follow each other without a gap; each change of the catalog is in it once, in the order in
which the catalog made them. Lines wait in the catalog, in the transaction of what they tell, until they are
lasting in the file; so a crash loses none and doubles none. A rebuild of the catalog adds only what the file
does not have yet. Readers need no lock.

Leaves to others: when something changes (`central_store.catalog`); who did it, and when (the audit log).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from central_store.layout import Layout
from schemas.errors import Damaged, SettingsError

KINDS: dict[str, str] = {
    "added": "A batch was stored: `sequence`, `images`, `bytes`, and when: `stored`.",
    "conflict": "The facility sent different files of these SOP instances: `sop_instance_uids`.",
    "superseded": "These `objects` of the batch do not stand in answers: others of the same files do.",
    "standing": "These `objects` stand in answers again.",
    "erased": "The facility erased the batch: its rows are in no answer, its objects are handed out no more.",
    "set-aside": "The batch's pack is damaged.",
    "repaired": "The batch's pack is whole again.",
}


class Feed:
    """The feed's file, for the one process that writes it.

    Args:
        layout: the store.
    """

    def __init__(self, layout: Layout) -> None:
        self._path = layout.changes
        self.last, self._size = 0, 0
        if self._path.exists():
            with self._path.open("rb") as file:
                for text in file:
                    if text.endswith(b"\n"):  # one that does not was torn by a crash: it comes again
                        self.last, self._size = self.last + 1, self._size + len(text)

    def add(self, lines: Iterable[tuple[int, str]]) -> None:
        """Make lines lasting; those that are there already are passed over."""
        new = [text for number, text in lines if number > self.last]
        if not new:
            return
        data = "".join(f"{text}\n" for text in new).encode()
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.truncate(self._size)
            file.seek(self._size)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        self.last, self._size = self.last + len(new), self._size + len(data)


def line(number: int, kind: str, facility: str, batch: str, more: Mapping[str, Any]) -> str:
    """One line of the feed, without its end."""
    return json.dumps(
        {"number": number, "kind": kind, "facility": facility, "batch": batch, **more}, separators=(",", ":")
    )


def since(layout: Layout, cursor: int) -> Iterator[dict[str, Any]]:
    """The changes after a cursor, oldest first.

    Raises:
        SettingsError: the cursor is of another feed.
        Damaged: the file is no feed.
    """
    number = 0
    if layout.changes.exists():
        with layout.changes.open("rb") as file:
            for number, text in enumerate(file, 1):
                if number > cursor and text.endswith(b"\n"):
                    yield _parsed(text, number)
    if cursor > number:
        raise SettingsError("this store's feed has no such cursor", hint="Begin again with --since 0.")


def _parsed(text: bytes, number: int) -> dict[str, Any]:
    try:
        found = json.loads(text)
        if found["number"] == number:
            return dict(found)
    except (ValueError, KeyError, TypeError):
        pass
    raise Damaged(f"line {number} of the change feed is damaged")


def seen(layout: Layout) -> tuple[set[str], set[str], set[str]]:
    """The batches that the feed says were added, those that it leaves set aside, and those erased."""
    added, aside, erased = set[str](), set[str](), set[str]()
    for change in since(layout, 0):
        if change["kind"] == "added":
            added.add(change["batch"])
        elif change["kind"] == "set-aside":
            aside.add(change["batch"])
        elif change["kind"] == "repaired":
            aside.discard(change["batch"])
        elif change["kind"] == "erased":
            aside.discard(change["batch"])
            erased.add(change["batch"])
    return added, aside, erased
