"""Questions of the auditors' cook-book, asked with nothing but DuckDB and the files in a folder."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path
from typing import Any

import duckdb

import central_store

FOLDER = Path(central_store.__file__).parent / "cookbook"


def ask(root: Path, name: str, **variables: Any) -> list[dict[str, Any]]:
    """The rows of one question, asked in `root`."""
    return ask_sql(root, (FOLDER / f"{name}.sql").read_text("utf-8"), **variables)


def ask_sql(root: Path, sql: str, **variables: Any) -> list[dict[str, Any]]:
    """The rows of SQL over the views, in `root`; views that need what is not there are left out."""
    with chdir(root), duckdb.connect() as auditor:
        for statement in (FOLDER / "views.sql").read_text("utf-8").split(";\n"):
            try:
                auditor.execute(statement)
            except (duckdb.IOException, duckdb.CatalogException):  # no batch yet, no check yet
                assert Path("audit").is_dir()
        for variable, value in variables.items():
            auditor.execute(f"SET VARIABLE {variable} = {value}")
        rows: list[dict[str, Any]] = auditor.sql(sql).to_arrow_table().to_pylist()
        return rows
