"""The catalog's database file: how it is opened, and what its errors become.

Guarantees: the database reads no file but its own, loads no extension and keeps these settings.
DuckDB's errors come out as `CatalogError`, whose text quotes no value of a row, and a search that was stopped
as `Refused`.

Leaves to others: what is in it (`central_store.catalog_tables`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb

from central_store.layout import Layout
from central_store.replies import Refused
from central_store.settings import Settings
from schemas.errors import Damaged, SettingsError


class CatalogError(Damaged):
    """The catalog failed; it is derived and can be made again."""

    hint = "Stop the service and run `fstore rebuild`: the catalog is made again from the manifests."


class OutOfMemory(CatalogError):
    """A statement needs more memory than the settings give it."""

    exit_code = SettingsError.exit_code
    hint = "Raise `catalog_memory_mb` in `store.toml`."


def connect(layout: Layout, settings: Settings) -> duckdb.DuckDBPyConnection:
    """Open the catalog's database, or make an empty one; raises `CatalogError`."""
    config: dict[str, Any] = {
        "memory_limit": f"{settings.catalog_memory_mb}MB",
        "threads": settings.catalog_threads,
        "temp_directory": str(layout.staging / "catalog"),
        "preserve_insertion_order": False,
        "autoload_known_extensions": False,
        "autoinstall_known_extensions": False,
        "allow_community_extensions": False,
        "python_enable_replacements": False,
    }
    with translated():
        connection = duckdb.connect(str(layout.catalog), config=config)
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
    return connection


def drop(layout: Layout) -> None:
    """Remove the catalog's files, whatever state they are in."""
    for path in layout.catalog.parent.iterdir():
        path.unlink()


def too_slow() -> Refused:
    """What becomes of a search that was stopped."""
    return Refused("too-slow", "the search took longer than this store allows: narrow it")


def too_large() -> Refused:
    """What becomes of a search that does not fit into memory."""
    return Refused("too-large", "the search needs more memory than this store allows: narrow it")


@contextmanager
def translated() -> Iterator[None]:
    """Our errors in place of DuckDB's."""
    try:
        yield
    except duckdb.InterruptException:
        raise too_slow() from None
    except duckdb.OutOfMemoryException as error:
        raise OutOfMemory("the catalog needs more memory than it may use") from error
    except duckdb.Error as error:
        # DuckDB's text may quote a value of a row: the first words of its class are enough for an operator.
        raise CatalogError(f"the catalog failed ({type(error).__name__})") from error
