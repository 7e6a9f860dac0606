"""`fsync shell`: questions one after the other on one connection, in the words of `fsync query`, and SQL.

Guarantees: the password is asked for once and kept in memory only; a line that names a patient is never
written to the history file (mode 0600) unless `--keep-all` was given; a wrong line, a refusal or a broken
connection ends the line, not the shell; a connection that broke is made again.

Leaves to others: what the words mean (`facility_sync.cli.query`).
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from facility_sync.cli.common import account_options, pass_home
from facility_sync.cli.conditions import today
from facility_sync.cli.query import asked_account, query, search
from facility_sync.cli.rows import Printing, columns_at, sql_rows
from facility_sync.home import Home
from schemas import views
from schemas.errors import OutcomeUnknown, SyncError, TransitError
from schemas.transit import durable

if TYPE_CHECKING:
    from facility_sync import ask, exchange
    from facility_sync.identity.domains import Keyring

PROMPT = "fsync> "
_SQL = re.compile(r"(select|with|from)\b", re.IGNORECASE)
_NAMES_SOMEBODY = re.compile(
    r"--(patient|issuer|birth|acc)|\b(patient|person|accession)\W*\(|--allow-text", re.IGNORECASE
)
"""A line that may hold an identity; click takes shortened options, so their beginnings count."""
_NOT_HERE = frozenset("user password_file password_stdin statement sql_file allow_text".split())
_KEPT = 1000
HELP = """\
The words of `fsync query`, without the first two:

  --since 30d --modality CT,MR --menu "*thorax*"   conditions; --level, --order, --columns, --limit, --offset
  --patient-id 12345 --count                       how many; --estimate: how much a fetch would bring
  SELECT modality, count(*) FROM series GROUP BY 1 one SELECT, with patient('ID'), person('NAME', 'BORN')
  columns                                          the views of SQL and their columns
  help, quit"""


@click.command()
@click.option("--keep-all", is_flag=True, help="Keep lines that name a patient in the history, too.")
@account_options
@pass_home
def shell(
    home: Home, keep_all: bool, user: str | None, password_file: Path | None, password_stdin: bool
) -> None:
    """Ask the store again and again on one connection: conditions as in `fsync query`, or SQL.

    \b
    Examples:
      fsync shell --user kimura
      echo "--since 30d --count" | fsync shell --user kimura --password-file FILE
    """  # noqa: D301
    from facility_sync import exchange
    from facility_sync.identity import domain_files

    keyring = domain_files.load(home.domains)
    account = asked_account(user, password_file, stdin=password_stdin)
    lines = Lines(home.root / "shell-history", keep_all=keep_all)
    with exchange.connect(home) as desk:
        Shell(home, desk, account, keyring).run(lines.read, lines.keep)


class Shell:
    """One session of questions."""

    def __init__(self, home: Home, desk: exchange.Desk, account: ask.Account, keyring: Keyring) -> None:
        self._home = home
        self._desk = desk
        self._account = account
        self._keyring = keyring

    def run(self, read: Callable[[], str | None], keep: Callable[[str], None]) -> None:
        """Answer lines until there are none, or one says `quit`; `keep` gets those that were understood."""
        while (line := read()) is not None:
            words = line.strip().rstrip(";")
            if words in ("quit", "exit"):
                return
            if words and self._line(words):
                keep(words)

    def _line(self, line: str) -> bool:
        try:
            self._again_if_broken(line)
        except SyncError as error:
            click.echo(f"{error}", err=True)
            if error.hint:
                click.echo(f"hint: {error.hint}", err=True)
            return False
        except click.ClickException as error:
            click.echo(f"{error.format_message()}", err=True)
            return False
        except click.exceptions.Exit:  # --help
            return False
        except ValueError as error:  # of shlex
            click.echo(f"{error}", err=True)
            return False
        return True

    def _again_if_broken(self, line: str) -> None:
        try:
            self._answer(line)
        except OutcomeUnknown:
            raise
        except TransitError:  # a silent connection is closed by the store: asking is repeatable
            self._desk.call_again()
            self._answer(line)

    def _answer(self, line: str) -> None:
        from facility_sync import ask

        if line == "help":
            click.echo(HELP)
        elif line == "columns":
            for name, found in views.VIEWS.items():
                click.echo(f"{name}: {', '.join(column.name for column in found)}")
        elif _SQL.match(line):
            from facility_sync.identity.sql_words import translate

            translated = translate(line, self._keyring, today())
            table = ask.sql(self._desk, self._home.settings.facility, self._account, translated, line)
            sql_rows(table, ask.Reader(self._keyring), Printing("table"))
        else:
            values = parsed(shlex.split(line))
            shown = Printing("json" if values["as_json"] else values["form"], values["file"])
            search(self._home, self._desk, self._account, self._keyring, values, shown)


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """The values of `fsync query`'s options; raises `click.ClickException` for what is none."""
    context = query.make_context("query", list(words))
    for parameter in query.params:
        given = context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
        if given and parameter.name in _NOT_HERE:
            raise click.UsageError(f"{parameter.opts[0]} has no place in the shell")
    return context.params


class Lines:
    """Lines from a person, with history and completion, or from a pipe.

    Args:
        path: the history file.
        keep_all: write lines that name a patient, too.
    """

    def __init__(self, path: Path, *, keep_all: bool) -> None:
        self._path = path
        self._keep_all = keep_all
        self._kept: list[str] = []
        self._person = sys.stdin.isatty()
        if self._person:
            self._begin()

    def _begin(self) -> None:
        import readline

        if self._path.exists():
            self._kept = self._path.read_text("utf-8", "replace").splitlines()[-_KEPT:]
        for line in self._kept:
            readline.add_history(line)
        readline.set_completer_delims(" \t\n,()='\"")
        readline.set_completer(completer(self._line_so_far))
        readline.parse_and_bind("tab: complete")

    @staticmethod
    def _line_so_far() -> str:
        import readline

        return readline.get_line_buffer()

    def read(self) -> str | None:
        """The next line, or None at the end."""
        try:
            return input(PROMPT if self._person else "")
        except EOFError:
            return None

    def keep(self, line: str) -> None:
        """Write a line to the history file, if it may be written."""
        if self._person and (self._keep_all or not _NAMES_SOMEBODY.search(line)):
            self._kept = [*self._kept, line][-_KEPT:]
            data = "".join(f"{item}\n" for item in self._kept).encode()
            durable.publish(self._path, data, mode=0o600, replace=True, lasting=False)


def completer(line_so_far: Callable[[], str]) -> Callable[[str, int], str | None]:
    """What the tab key offers: options and columns, and in SQL views and their columns."""
    options = sorted(option for parameter in query.params for option in parameter.opts)
    columns = sorted({name for level in ("study", "series", "instance") for name in columns_at(level)})
    in_sql = sorted({column.name for found in views.VIEWS.values() for column in found} | set(views.VIEWS))
    first = ["SELECT", "columns", "help", "quit", *options]

    def complete(text: str, state: int) -> str | None:
        line = line_so_far()
        if _SQL.match(line):
            offered = in_sql
        elif re.search(r"--(columns|order)[ =]\S*$", line):
            offered = columns
        else:
            offered = first if line.strip() == text else options
        found = [word for word in offered if word.startswith(text)]
        return found[state] if state < len(found) else None

    return complete
