"""What every `fstore` command shares: the store, secrets, `--json`, errors and exit codes.

Guarantees: a `SyncError` becomes one line, its hint and its exit code (with `--json`: one document on
standard output); a password never comes from the command line.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from central_store import output
from schemas.errors import EXIT_CODES, INTERRUPTED, FormatError, SettingsError, SyncError

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document for programs.")


class Duration(click.ParamType[float]):
    """A time to wait or to work, in seconds; written as 90s, 30m, 2h or 1d."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]{1,6})(s|m|h|d)", str(value))
        if found is None:
            self.fail("write a number and a unit: 90s, 30m, 2h or 1d", param, context)
        return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


class Root:
    """The store's root folder as given on the command line, or nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        """The folder; raises `click.UsageError` when none was given."""
        if self._path is None:
            raise click.UsageError("which store? Give --root DIR before the command, or set FSTORE_ROOT.")
        return self._path

    def open(self) -> Any:
        """The opened store; raises `SettingsError`."""
        from central_store import settings

        return settings.open_store(self.path)


pass_root = click.make_pass_decorator(Root)


def exit_codes_text() -> str:
    """The exit-code table for `--help`."""
    lines = [f"  {code:>3}  {name}: {text}" for code, name, text in EXIT_CODES]
    return "Exit status:\n\n\b\n" + "\n".join(lines)


def named(check: Callable[[object], _T], text: str, what: str) -> _T:
    """A name from the command line, checked; raises `click.UsageError`."""
    try:
        return check(text)
    except FormatError as error:
        raise click.UsageError(f"{what}: {error}") from error


def show(as_json: bool, document: object, text: str) -> None:
    """Print the document for programs or the text for people."""
    click.echo(output.to_json(document) if as_json else text)


def table_or_none(rows: Sequence[Mapping[str, object]], headings: Mapping[str, str], none: str) -> str:
    """A table, or a sentence when there are no rows."""
    return output.table(rows, headings) if rows else none


def password_options(command: _F) -> _F:
    """The ways a password may come in."""
    for option in (
        click.option("--password-stdin", is_flag=True, help="Read the password from standard input."),
        click.option(
            "--password-file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Read the password from this file (mode 0600).",
        ),
    ):
        command = option(command)
    return command


def new_password(file: Path | None, *, stdin: bool) -> str:
    """A password from a file, standard input or a person, who types it twice.

    Raises:
        SettingsError: nothing to ask and nothing given, or the file can be read by others.
    """
    from central_store.secret_files import read_secret

    if file is not None and stdin:
        raise click.UsageError("--password-file and --password-stdin exclude each other")
    if file is not None:
        return read_secret(file, name="the password file").decode("utf-8", "replace").rstrip("\r\n")
    if stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise SettingsError("no password was given", hint="Use --password-file or --password-stdin.")
    found: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return found


def run(group: click.Group, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and leave with its exit status."""
    as_json = "--json" in (arguments if arguments is not None else sys.argv[1:])
    signal.signal(signal.SIGTERM, _interrupt)
    status = 0
    try:
        result = group.main(
            args=None if arguments is None else list(arguments), prog_name=group.name, standalone_mode=False
        )
        status = result if isinstance(result, int) else 0
    except SyncError as error:
        status = error.exit_code
        _say(error, as_json=as_json)
    except click.ClickException as error:
        error.show()
        status = 2
    except click.exceptions.Exit as error:
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; the next run goes on from here", err=True)
        status = INTERRUPTED
    sys.exit(status)


def printed(error: SyncError) -> SyncError:
    """Mark an error whose report is on standard output already."""
    error.__dict__["printed"] = True
    return error


def _say(error: SyncError, *, as_json: bool) -> None:
    if as_json and not getattr(error, "printed", False):
        document = {"error": type(error).__name__, "message": str(error), "hint": error.hint}
        click.echo(output.to_json(document | {"exit_code": error.exit_code}))
    click.echo(f"fstore: {error}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
