"""What every `fsync` command shares: the home, secrets, `--json`, errors and exit codes.

Guarantees: a `SyncError` becomes one line, its hint and its exit code (with `--json`: one document on
standard output); a password never comes from the command line; SIGTERM stops as Ctrl-C does.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import click

from facility_sync import output
from facility_sync.home import Home
from facility_sync.secret_files import read_secret
from schemas import messages
from schemas.errors import EXIT_CODES, INTERRUPTED, SettingsError, SyncError

if TYPE_CHECKING:  # imported when a command runs: `fsync --help` needs no connection
    from facility_sync.failover import Source

_F = TypeVar("_F", bound=Callable[..., Any])

pass_any_home = click.make_pass_decorator(Home)
"""For commands that make one, or can do without."""


def pass_home(command: _F) -> _F:
    """Give a command the terminal's home, as its first argument, if there is a terminal."""

    @wraps(command)
    def checked(home: Home, *args: Any, **values: Any) -> Any:
        home.settings  # noqa: B018  # read now: whatever else is missing, this is what to say
        return command(home, *args, **values)

    return cast(_F, pass_any_home(checked))


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document for programs.")


def now_text() -> str:
    """The shell's clock, as it is written into files."""
    return messages.rfc3339(datetime.now(UTC))


def exit_codes_text() -> str:
    """The exit-code table for `--help`."""
    lines = [f"  {code:>3}  {name}: {text}" for code, name, text in EXIT_CODES]
    return "Exit status:\n\n\b\n" + "\n".join(lines)


store_option = click.option(
    "--store", "only", default="", metavar="NAME", help="Only this store; default: the first that is there."
)


def account_options(command: _F) -> _F:
    """`--user` and the ways a password may come in."""
    for option in (
        click.option("--password-stdin", is_flag=True, help="Read the password from standard input."),
        click.option(
            "--password-file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Read the password from this file (mode 0600).",
        ),
        click.option("--user", envvar="FSYNC_USER", help="Account at the store (or FSYNC_USER)."),
    ):
        command = option(command)
    return command


def password(user: str | None, file: Path | None, *, stdin: bool) -> tuple[str, str]:
    """User and password; asks a person for what is missing.

    Raises:
        SettingsError: nothing to ask and nothing given.
    """
    if file is not None and stdin:
        raise click.UsageError("--password-file and --password-stdin exclude each other")
    if user is None and not sys.stdin.isatty():
        raise SettingsError("no account was named", hint="Give --user NAME, or set FSYNC_USER.")
    user = user or click.prompt("User", err=True)
    if file is not None:
        return user, read_secret(file).decode("utf-8", "replace").rstrip("\r\n")
    if stdin:
        return user, sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise SettingsError("no password was given", hint="Use --password-file or --password-stdin.")
    return user, click.prompt("Password", hide_input=True, err=True)


def say_source(home: Home, source: Source, *, as_json: bool) -> None:
    """Which of several stores answered, on standard error: what is on standard output stays the answer."""
    if len(home.stores) == 1:
        return
    for line in [output.to_json_line(source.to_json())] if as_json else source.remarks():
        click.echo(line, err=True)


def passphrase(file: Path | None, *, new: bool) -> str:
    """The passphrase of a backup, from a file of mode 0600 or a person; a new one is asked for twice.

    Raises:
        SettingsError: nobody to ask and no file, or a new one that is too short.
    """
    if file is None and not sys.stdin.isatty():
        raise SettingsError("no passphrase was given", hint="Use --passphrase-file.")
    if file is None:
        text: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=new, err=True)
    else:
        try:
            text = read_secret(file).decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise SettingsError("the passphrase is not text", hint="Write the file as UTF-8.") from error
    if new and len(text) < 12:
        raise SettingsError("a passphrase has at least 12 characters", hint="Take five random words.")
    return text


def say_losing_is_final(home: Home, name: str, *, as_json: bool) -> None:
    """What whoever makes or changes a domain must hear, with the command to run next."""
    root = click.get_current_context().find_root()
    given = root.get_parameter_source("home") is click.core.ParameterSource.COMMANDLINE
    words = ["fsync", *(["--home", str(home.root)] if given else []), "domain", "backup", f"{name}.backup"]
    click.echo(
        "\nWARNING: whoever loses every copy of a domain can never read its images again, and nobody can\n"
        "help: neither the store nor the makers of this program. Make a backup now, and keep it elsewhere:\n"
        f"\n    {shlex.join(words)}\n",
        err=as_json,
    )


def run(group: click.Group, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and leave with its exit status."""
    as_json = "--json" in (arguments if arguments is not None else sys.argv[1:])
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        words = None if arguments is None else list(arguments)
        result = group.main(args=words, prog_name=group.name, standalone_mode=False)
        status = result if isinstance(result, int) else 0  # an `Exit` comes back as its status
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
    except BrokenPipeError:
        sys.stderr.close()
        status = INTERRUPTED
    sys.exit(status)


def _say(error: SyncError, *, as_json: bool) -> None:
    if as_json and not getattr(error, "printed", False):
        document = {"error": type(error).__name__, "message": str(error), "hint": error.hint}
        click.echo(output.to_json(document | {"exit_code": error.exit_code}))
    click.echo(f"fsync: {error}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
