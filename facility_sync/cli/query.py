"""`fsync query`: conditions to a table of studies, series or instances."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from facility_sync import output
from facility_sync.cli.common import account_options, json_option, pass_home, password
from facility_sync.cli.conditions import condition_options, question, today
from facility_sync.home import Home

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


@click.command()
@condition_options
@click.option(
    "--level", type=click.Choice(["study", "series", "instance"]), default="study", show_default=True,
    help="One row for each study, series or instance.",
)  # fmt: skip
@click.option("--count", "count_only", is_flag=True, help="Only how many match.")
@click.option(
    "--limit", type=click.IntRange(1, 20_000), default=1000, show_default=True, help="Most rows returned."
)
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv", "parquet"]), default="table",
    help="What to print; parquet needs --output or a pipe.",
)  # fmt: skip
@click.option(
    "--output", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write there instead."
)
@account_options
@json_option
@pass_home
def query(
    home: Home, /, level: str, count_only: bool, limit: int, form: str, file: Path | None,
    user: str | None, password_file: Path | None, password_stdin: bool, as_json: bool, **values: Any,
) -> None:  # fmt: skip
    """Search the store; the password is checked there, the patient's data become tokens here.

    \b
    Examples:
      fsync query --patient-id 12345 --user kimura
      fsync query --facility clinic-a --date 2024-03 --modality CT --menu "*thorax*"
      fsync query --patient-name "YAMADA^TAROU" --birth-date 1970-05-01 --level series
      fsync query --date 2024 --format csv --output studies.csv
    """  # noqa: D301
    from facility_sync import ask, exchange
    from facility_sync.identity import domain_files

    keyring = domain_files.load(home.domains)
    wanted = ask.conditions(question(values), keyring, today())
    name, secret = password(user, password_file, stdin=password_stdin)
    with exchange.connect(home) as desk:
        answer = ask.search(
            desk,
            home.settings.facility,
            ask.Account(user=name, password=secret),
            level=level,
            wanted=wanted,
            limit=limit,
            count_only=count_only,
        )
    if count_only:
        counts = {
            "level": level,
            "matches": answer.matches,
            "instances": answer.instances,
            "bytes": answer.bytes,
        }
        click.echo(output.to_json(counts) if as_json or form == "json" else str(answer.matches))
        return
    reader = ask.Reader(keyring)
    rows = [reader.readable(row) for row in answer.rows]
    _print(rows, "json" if as_json else form, level, file)
    _remark(answer, rows, level)


def _print(rows: list[dict[str, Any]], form: str, level: str, file: Path | None) -> None:
    if form == "table":
        data = (output.table(rows, HEADINGS[level]) + "\n" if rows else "").encode()
    elif form == "json":
        data = (output.to_json(rows) + "\n").encode()
    elif form == "csv":
        data = output.to_csv(rows, list(rows[0]) if rows else list(HEADINGS[level])).encode("utf-8")
    else:
        data = _parquet(rows)
    if file is None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    else:
        file.write_bytes(data)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
    found: bytes = sink.getvalue().to_pybytes()
    return found


_THINGS = {"study": ("study", "studies"), "series": ("series", "series"), "instance": ("image", "images")}


def _remark(answer: Any, rows: list[dict[str, Any]], level: str) -> None:
    """What a person should know beside the table; on standard error, so that programs are not disturbed."""
    from facility_sync.ask import UNREADABLE

    things = _THINGS[level][answer.matches != 1]
    text = f"{answer.matches:,} {things}, {output.images(answer.instances)}, {output.size(answer.bytes)}."
    if len(rows) < answer.matches:
        text += f" Shown: the first {len(rows):,} (--limit)."
    click.echo(text, err=True)
    sealed = sum(row.get("patient_name") == UNREADABLE for row in rows)
    if sealed:
        click.echo(
            f"{sealed:,} rows are of a domain this terminal cannot read: `fsync domain import` takes one in.",
            err=True,
        )
