"""What import-linter cannot see: who may use which library, the clock, the environment, and rename."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import central_store
import facility_sync
import schemas

ROOT = Path(__file__).parents[1]
FILES = [
    path for name in ("schemas", "facility_sync", "central_store") for path in (ROOT / name).rglob("*.py")
]

ONLY: dict[str, tuple[str, ...]] = {
    "duckdb": (
        "central_store/catalog.py",
        "central_store/catalog_erase.py",
        "central_store/catalog_file.py",
        "central_store/catalog_load.py",
        "central_store/change_notes.py",
        "central_store/bundling.py",
        "central_store/lookups.py",
        "central_store/plain_reader.py",
        "central_store/sql_",
        "central_store/publish.py",
        "facility_sync/kept_rows.py",
        "facility_sync/offline.py",
    ),
    "schedule": ("facility_sync/daemon.py",),
    "click": ("facility_sync/cli/", "central_store/cli/"),
    "paramiko": ("schemas/transit/", "central_store/sftp_"),
    "pydicom": ("schemas/extract.py", "facility_sync/dicom_file.py", "facility_sync/identity/"),
    "pyrage": ("schemas/envelope.py", "schemas/keys.py", "facility_sync/identity/backup.py"),
    "zstandard": ("facility_sync/identity/frames.py", "schemas/parquet_pages.py"),
    "watchfiles": ("central_store/bell.py",),
    "sqlite3": ("facility_sync/ledger.py",),
}
"""A library's only importers."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def test_the_packages_are_ours():
    for package in (schemas, facility_sync, central_store):
        assert Path(package.__file__).is_relative_to(ROOT)
    assert len(FILES) > 60


def test_a_library_is_used_where_it_belongs():
    wrong = [
        f"{name_of(path)} imports {library}"
        for path in FILES
        for library in set(imports(path))
        if library in ONLY and not name_of(path).startswith(ONLY[library])
    ]
    assert wrong == []
    for library, places in ONLY.items():
        assert any(library in set(imports(path)) for path in FILES if name_of(path).startswith(places)), (
            library
        )


def test_only_one_module_renames():
    wrong = [
        (name_of(path), call)
        for path in FILES
        for call in calls(path)
        if call in {"os.replace", "os.rename", "shutil.move", "os.renames"} and path.name != "durable.py"
    ]
    assert wrong == []


def test_the_pure_half_of_schemas_looks_at_no_clock_and_no_environment():
    wrong = [
        (name_of(path), call)
        for path in (ROOT / "schemas").glob("*.py")
        for call in calls(path)
        if call
        in {"time.time", "datetime.now", "datetime.today", "date.today", "os.environ", "os.getenv", "os.open"}
    ]
    assert wrong == []


def test_the_store_cannot_import_what_reads_an_identity():
    for path in (ROOT / "central_store").rglob("*.py"):
        assert "facility_sync" not in set(imports(path)), name_of(path)


def test_modules_are_small():
    sizes = sorted(len(path.read_text("utf-8").splitlines()) for path in FILES if path.name != "__init__.py")
    assert sizes[-1] <= 400
    assert sizes[len(sizes) // 2] < 150


def test_every_module_says_what_it_is_for():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), name_of(path)
