"""Rows of an answer as a table, JSON, CSV or Parquet: what `fsync query` and `fsync shell` print.

Guarantees: an identity stands in the place of its seal where this terminal opens it; Parquet of SQL keeps the
types the store gave.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import click

from facility_sync import output
from schemas.errors import SettingsError

_PATIENT = {"study_date": "date", "patient_name": "patient name", "patient_id": "patient ID"}
HEADINGS: dict[str, dict[str, str]] = {
    "study": _PATIENT | {
        "birth_date": "born", "modality": "modality", "menu": "menu", "body_part": "body part",
        "facility": "facility", "n_series": "series", "n_instances": "images", "study_uid": "study",
    },
    "series": _PATIENT | {
        "modality": "modality", "series_number": "no.", "menu": "menu", "body_part": "body part",
        "facility": "facility", "n_instances": "images", "series_uid": "series",
    },
    "instance": _PATIENT | {
        "modality": "modality", "series_number": "series", "instance_number": "no.", "facility": "facility",
        "dicom_bytes": "bytes", "conflict": "conflict", "sop_instance_uid": "instance",
    },
}  # fmt: skip
"""What the table shows at each level: column to title."""
SHOWN = ("patient_name", "patient_id", "birth_date")
_VIEW = {"study": "studies", "series": "series", "instance": "instances"}


class Printing(NamedTuple):
    """How to print, and where to: standard output or a file."""

    form: str
    file: Path | None = None


def columns_at(level: str) -> list[str]:
    """Every column a row at this level has for a person."""
    from schemas import columns, views
    from schemas.columns import Level

    found = [column.name for column, _ in columns.at_level(cast(Level, level))]
    more = [c.name for c in views.VIEWS[_VIEW[level]] if c.name.startswith("n_") or c.name == "conflict"]
    return [*SHOWN, *(name for name in [*found, *more] if name != "sealed_identity")]


def headings(level: str, chosen: str | None) -> dict[str, str]:
    """The columns to show with their titles; raises `SettingsError` for one that is none."""
    if chosen is None:
        return HEADINGS[level]
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    known = columns_at(level)
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise SettingsError(
            f"rows at level {level} have no column {wrong[0] if wrong else ''}".rstrip(),
            hint=f"There are: {', '.join(known)}.",
        )
    return {name: HEADINGS[level].get(name, name) for name in names}


def write(data: str | bytes, shown: Printing) -> None:
    """Print a text with its line end, or bytes as they are."""
    made = data if isinstance(data, bytes) else (data + "\n").encode()
    if shown.file is not None:
        shown.file.write_bytes(made)
    else:
        sys.stdout.buffer.write(made)
        sys.stdout.flush()


def print_rows(
    rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str], shown: Printing, *, all_columns: bool
) -> None:
    """Print rows; programs get every column unless a person chose some."""
    if shown.form == "table":
        write(output.table(rows, titles) if rows else b"", shown)
        return
    picked = rows if all_columns else [{name: row.get(name) for name in titles} for row in rows]
    if shown.form == "json":
        write(output.to_json(picked), shown)
    elif shown.form == "csv":
        write(output.to_csv(picked, list(picked[0]) if picked else list(titles)).encode("utf-8"), shown)
    else:
        import pyarrow as pa

        write(_parquet(pa.Table.from_pylist([dict(row) for row in picked])), shown)


def sql_rows(table: Any, reader: Any, shown: Printing) -> None:
    """Print the table SQL gave; where it has sealed identities, with the names in their place."""
    sealed = "sealed_identity" in table.column_names
    if shown.form == "parquet" and not sealed:
        write(_parquet(table), shown)
        return
    rows = table.to_pylist()
    names = list(table.column_names)
    if sealed:
        rows = [row | _identity(reader, row) for row in rows]
        at = names.index("sealed_identity")
        names[at : at + 1] = [name for name in SHOWN if name not in names]
    print_rows(rows, {name: name for name in names}, shown, all_columns=False)
    click.echo(f"{len(rows):,} row{'' if len(rows) == 1 else 's'}.", err=True)


def _identity(reader: Any, row: dict[str, Any]) -> dict[str, Any]:
    from facility_sync.ask import UNREADABLE

    if row["sealed_identity"] is None:
        return dict.fromkeys(SHOWN)
    identity = reader.identity(row)
    return {name: UNREADABLE if identity is None else identity.get(name) for name in SHOWN}


def _parquet(table: Any) -> bytes:
    from schemas import answer_table

    return answer_table.to_parquet(table)


_THINGS = {"study": ("study", "studies"), "series": ("series", "series"), "instance": ("image", "images")}


def remark(answer: Any, rows: Sequence[Mapping[str, Any]], level: str, offset: int = 0) -> None:
    """What a person should know beside the table; on standard error, so that programs are not disturbed."""
    from facility_sync.ask import UNREADABLE

    things = _THINGS[level][answer.matches != 1]
    text = f"{answer.matches:,} {things}, {output.images(answer.instances)}, {output.size(answer.bytes)}."
    if offset and rows:
        text += f" Shown: {offset + 1:,} to {offset + len(rows):,}."
    elif len(rows) < answer.matches:
        text += f" Shown: the first {len(rows):,} (--limit)."
    if rows and offset + len(rows) < answer.matches:
        text += f" The next: --offset {offset + len(rows)}."
    click.echo(text, err=True)
    sealed = sum(row.get("patient_name") == UNREADABLE for row in rows)
    if sealed:
        click.echo(
            f"{sealed:,} rows are of a domain this terminal cannot read: `fsync domain import` takes one in.",
            err=True,
        )
