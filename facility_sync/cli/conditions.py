"""The condition options `fsync query` and `fsync fetch` share; those of plain columns come from the table."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any, TypeVar

import click

from facility_sync.ask import Question
from schemas import columns

_F = TypeVar("_F", bound=Callable[..., Any])

_SPECIAL = (
    click.option("--patient-id", default="", help="Patient ID as the facility writes it."),
    click.option("--issuer", default="", help="Issuer of the patient ID; narrows --patient-id."),
    click.option(
        "--patient-name",
        default="",
        help="FAMILY^GIVEN, in any of its writings, with --birth-date; or a pattern like YAM*.",
    ),
    click.option("--birth-date", default="", help="Birth date, with --patient-name."),
    click.option("--accession", default="", help="Accession number."),
    click.option(
        "--date",
        "day",
        default="",
        metavar="D|D1..D2",
        help="Study date: 2024-03-05, 2024-03, 2024, 202403*, 2024-01-01..2024-03-31, 2024-06.., today.",
    ),
)


_SINCE = click.option(
    "--since", default="", metavar="30d|DATE", help="Study date from then on; 30d: thirty days, with today."
)


def plain_columns() -> list[columns.Column]:
    """Searchable columns with an option of their own, beyond tokens and dates."""
    return [
        column for column in columns.COLUMNS if column.option and column.search in ("text", "uid", "exact")
    ]


def condition_options(command: _F) -> _F:
    """Add every condition option."""
    made = [
        click.option(
            column.option,
            f"column_{column.name}",
            multiple=True,
            help=f"{column.meaning}"
            + (" Case does not matter; * and ? are wildcards." if column.search == "text" else ""),
        )
        for column in plain_columns()
    ]
    for option in reversed([*_SPECIAL, _SINCE, *made]):
        command = option(command)
    return command


def question(values: dict[str, Any]) -> Question:
    """The question from the options' values; commas in a value separate alternatives."""
    plain = {
        name.removeprefix("column_"): [
            part.strip() for value in given for part in value.split(",") if part.strip()
        ]
        for name, given in values.items()
        if name.startswith("column_") and given
    }
    return Question(
        patient_id=values["patient_id"],
        issuer=values["issuer"],
        patient_name=values["patient_name"],
        birth_date=values["birth_date"],
        accession=values["accession"],
        date=values["day"],
        since=values["since"],
        columns=plain,
    )


def today() -> date:
    """The shell's clock, for dates like `yesterday`."""
    return date.today()  # noqa: DTZ011  # a person means the day on the wall calendar
