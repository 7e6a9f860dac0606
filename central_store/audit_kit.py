"""What an auditor takes along: a folder that answers with DuckDB and ssh-keygen alone.

    README.md                 what lies here, and the commands
    manifests/  facilities/   as in the store: tables, statements, receipts, cards; with their signatures
    audit/                    segments of the audit log and their checkpoints
    checks/  damaged/         results of checks, notices of damaged batches
    erased/                   tombstones of erased batches, and the store's words about them
    store.card  allowed_signers   whose keys the signatures are to be of
    views.sql  questions/*.sql    views, and the cook-book of `docs/auditors.md`
    SHA256SUMS                of every other file

Guarantees: it holds no password, no key and no image. Of one facility it holds that facility's data alone:
events about others stand there with number and hashes only, so that the chain holds and says nothing of them.
Writing it is an event of the log itself, and the last one in it.

Leaves to others: handing it over.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from central_store import audit, audit_answers, audit_segments, batches, checks, facilities
from central_store.layout import Layout
from central_store.settings import Store
from schemas import answer_table
from schemas.errors import SettingsError
from schemas.names import FacilityName

SCRIPT = "audit-with-standard-tools"


class Choice(NamedTuple):
    """What goes into the folder; days begin and end in UTC."""

    facility: FacilityName | None = None
    since: datetime | None = None
    until: datetime | None = None

    def within(self, moment: datetime) -> bool:
        """Whether a time lies in the period."""
        return (self.since is None or moment >= self.since) and (
            self.until is None or moment < self.until + timedelta(days=1)
        )


@dataclass
class Kit:
    """What was written."""

    batches: int = 0
    events: int = 0
    withheld: int = 0


def write(store: Store, folder: Path, choice: Choice, now: datetime) -> Kit:
    """Write a kit into a new folder.

    Raises:
        SettingsError: there is something in the folder, or the facility is not enrolled.
    """
    layout = store.layout
    if choice.facility is not None and facilities.load(layout, choice.facility) is None:
        raise SettingsError(
            f"{choice.facility} is not enrolled", hint="`fstore facilities` lists those that are."
        )
    if folder.exists() and any(folder.iterdir()):
        raise SettingsError("the folder is not empty", hint="Name a new one.")
    details = audit.operator(since=_day(choice.since), until=_day(choice.until))
    audit.record(layout, "kit", facility=choice.facility or "", details=details, now=now)
    audit_segments.close(store, now)
    folder.mkdir(parents=True, exist_ok=True)
    made = Kit()
    _batches(layout, folder, choice, made)
    _log(layout, folder, choice, made)
    _cards(store, folder, choice)
    _checks(layout, folder, choice)
    for name, text in questions():
        (folder / "questions").mkdir(exist_ok=True)
        (folder / "questions" / name).write_text(text, "utf-8")
    (folder / "views.sql").write_text(source("views.sql"), "utf-8")
    (folder / "README.md").write_text(_readme(store, choice, now, made), "utf-8")
    (folder / SCRIPT).write_text(source(SCRIPT), "utf-8")
    (folder / SCRIPT).chmod(0o755)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sums = [f"{_digest(path)}  {path.relative_to(folder)}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(sums), "utf-8")
    return made


def questions() -> Iterator[tuple[str, str]]:
    """The cook-book: name and SQL of each question, in order."""
    names = (item.name for item in resources.files("central_store").joinpath("cookbook").iterdir())
    for name in sorted(names):
        if name[0].isdigit():
            yield name, source(name)


def views(root: Path) -> str:
    """The views over a store's own files, by absolute paths; without those that have no file yet."""
    parts = []
    for statement in source("views.sql").split(";\n"):
        pattern = next((word for word in _GLOBS if f"'{word}" in statement), None)
        if "FROM instances" in statement:
            pattern = "manifests/*/*/manifest.parquet"
        if pattern is None or next(root.glob(pattern), None) is not None:
            parts.append(statement)
    text = ";\n".join([*(part.rstrip("\n") for part in parts), ""])
    for pattern in _GLOBS:
        text = text.replace(f"'{pattern}'", "'" + f"{root}/{pattern}".replace("'", "''") + "'")
    return text


_GLOBS = ("manifests/*/*/statement.json", "manifests/*/*/receipt.json", "manifests/*/*/manifest.parquet",
          "audit/*.parquet", "audit/*.json", "checks/*.parquet")  # fmt: skip


def source(name: str) -> str:
    """A file of the cook-book."""
    return resources.files("central_store").joinpath("cookbook", name).read_text("utf-8")


def _batches(layout: Layout, folder: Path, choice: Choice, made: Kit) -> None:
    for batch in batches.listing(layout):
        stored = batches.stored(layout, batch)
        outside = stored is not None and not choice.within(datetime.fromisoformat(stored))
        if outside or choice.facility not in (None, batch.facility):
            continue
        target = folder / "manifests" / batch.facility / batch.batch
        shutil.copytree(layout.manifest(*batch), target)
        made.batches += 1
        for path in (layout.erased / batch.facility).glob(f"{batch.batch}.*"):
            (folder / "erased" / batch.facility).mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, folder / "erased" / batch.facility)
        for name in (f"{batch.batch}.json", f"{batch.batch}.json.sig"):
            if (layout.damaged / name).exists():
                (folder / "damaged").mkdir(exist_ok=True)
                shutil.copy2(layout.damaged / name, folder / "damaged" / name)


def _log(layout: Layout, folder: Path, choice: Choice, made: Kit) -> None:
    """Whole segments of the period, and the checkpoint before them: the chain needs its links."""
    target = folder / "audit"
    target.mkdir()
    for number in audit_segments.numbers(layout):
        source = audit_segments.path(layout, number, "parquet")
        table = audit_segments.table(source)
        times = table.column("time").to_pylist()
        ends = max(times) >= choice.since if choice.since else True
        begins = min(times) < choice.until + timedelta(days=1) if choice.until else True
        if begins and not ends:  # only the newest of these stays
            for old in target.iterdir():
                old.unlink()
        if not begins:
            break
        for ending in ("json", "json.sig"):
            shutil.copy2(audit_segments.path(layout, number, ending), target)
        if ends and choice.facility is None:
            shutil.copy2(source, target)
        elif ends and choice.facility is not None:
            table, withheld = _own(table, choice.facility)
            made.withheld += withheld
            (target / source.name).write_bytes(answer_table.to_parquet(table))
        made.events += table.num_rows if ends else 0


def _own(table: pa.Table, facility: FacilityName) -> tuple[pa.Table, int]:
    """The segment, without what is not about the facility; and of how many events something is left out."""
    rows: list[dict[str, object]] = []
    withheld = 0
    for values, event in zip(table.to_pylist(), audit_segments.rows(table), strict=True):
        shown = {} if event is None else audit_answers.about(event, facility) or {}
        if shown.get("details") == values["details"]:
            rows.append(values)
            continue
        withheld += 1
        of = ("time", "kind", "facility", "user", "subject")  # of a search by others: who, and when
        linked = {key: values[key] for key in ("sequence", "previous", "hash")}
        rows.append({**linked, **{key: shown.get(key) for key in of}, "details": None})
    return pa.Table.from_pylist(rows, audit_segments.SCHEMA), withheld


def _cards(store: Store, folder: Path, choice: Choice) -> None:
    layout = store.layout
    (folder / "facilities" / "former").mkdir(parents=True)
    card = store.card()
    (folder / "store.card").write_bytes(card.to_bytes() + b"\n")
    spaces = ",".join(f"{kind}@facility-sync" for kind in ("receipt", "notice", "checkpoint", "erasure"))
    lines = [f'{card.store} namespaces="{spaces}" {card.signing_key}']
    for name in facilities.enrolled(layout):
        if choice.facility not in (None, name):
            continue
        shutil.copy2(layout.card(name), folder / "facilities")
        for path in layout.former.glob(f"{name}.*.json"):
            shutil.copy2(path, folder / "facilities" / "former")
        space = 'namespaces="statement@facility-sync,tombstone@facility-sync"'
        lines += [f"{name} {space} {key}" for key in facilities.signers(layout, name)]
    (folder / "allowed_signers").write_text("\n".join(lines) + "\n", "utf-8")


def _checks(layout: Layout, folder: Path, choice: Choice) -> None:
    """All results in one file, which is there even if there are none."""
    (folder / "checks").mkdir()
    rows: list[dict[str, object]] = []
    for path in sorted(layout.checks.glob("*.parquet")):
        for values in pq.ParquetFile(path).read(use_threads=False).to_pylist():
            if choice.facility in (None, values["facility"]) and choice.within(values["finished"]):
                rows.append(values)
    table = pa.Table.from_pylist(rows, checks.SCHEMA)
    (folder / "checks" / "checks.parquet").write_bytes(answer_table.to_parquet(table))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _day(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d}"


def _readme(store: Store, choice: Choice, now: datetime, made: Kit) -> str:
    what = "all facilities" if choice.facility is None else f"the facility {choice.facility}"
    period = f"{_day(choice.since) or 'the beginning'} to {_day(choice.until) or 'now'}"
    return source("README.md").format(
        store=store.name, what=what, period=period, batches=made.batches, events=made.events,
        withheld=made.withheld, time=f"{now:%Y-%m-%d %H:%M} UTC",
    )  # fmt: skip
