"""`fsync query`: conditions, or SQL, to a table of studies, series or instances."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from facility_sync import output
from facility_sync.cli.common import (
    account_options,
    json_option,
    pass_home,
    password,
    say_source,
    store_option,
)
from facility_sync.cli.conditions import condition_options, question, today
from facility_sync.cli.rows import Printing, headings, print_rows, remark, sql_rows, write
from facility_sync.home import Home

if TYPE_CHECKING:
    from facility_sync import ask


@click.command()
@condition_options
@click.option(
    "--level", type=click.Choice(["study", "series", "instance"]), default="study", show_default=True,
    help="One row for each study, series or instance.",
)  # fmt: skip
@click.option("--count", "count_only", is_flag=True, help="Only how many match.")
@click.option(
    "--estimate", is_flag=True, help="Only how much `fsync fetch` would bring, and how long it takes."
)
@click.option(
    "--limit", type=click.IntRange(1, 20_000), default=1000, show_default=True, help="Most rows returned."
)
@click.option(
    "--offset", type=click.IntRange(0), default=0, help="Leave out so many rows first: the next page."
)
@click.option(
    "--order", multiple=True, metavar="COLUMN[:desc]",
    help="Sort by this column; default: newest study first. Commas, or again, for more columns.",
)  # fmt: skip
@click.option("--columns", "chosen", metavar="A,B,C", help="Show these columns, in this order.")
@click.option("--sql", "statement", help="One SELECT instead of conditions; see docs/sql.md.")
@click.option(
    "--sql-file", type=click.File("r", encoding="utf-8"), help="The same from a file, or - for a pipe."
)
@click.option("--allow-text", is_flag=True, help="With SQL: texts that look like a person's name are none.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv", "parquet"]), default="table",
    help="What to print; parquet needs --output or a pipe.",
)  # fmt: skip
@click.option(
    "--output", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write there instead."
)
@click.option(
    "--offline",
    is_flag=True,
    help="Answer from the rows the last round brought, without the store and without a password.",
)
@store_option
@account_options
@json_option
@pass_home
def query(
    home: Home, /, statement: str | None, sql_file: Any, allow_text: bool, form: str, file: Path | None,
    offline: bool, only: str,
    user: str | None, password_file: Path | None, password_stdin: bool, as_json: bool, **values: Any,
) -> None:  # fmt: skip
    """Search the store; the password is checked there, the patient's data become tokens here.

    \b
    Examples:
      fsync query --patient-id 12345 --user kimura
      fsync query --facility clinic-a --since 30d --modality CT,MR --menu "*thorax*" --order menu
      fsync query --patient-name "YAMADA^TAROU" --birth-date 1970-05-01 --level series
      fsync query --patient-name "YAM*" --since 365d --columns study_date,patient_name,menu
      fsync query --date 2024 --format csv --output studies.csv
      fsync query --sql "SELECT modality, count(*) FROM series GROUP BY 1"
      fsync query --offline --patient-id 12345
    """  # noqa: D301
    from facility_sync import ask, failover
    from facility_sync.identity import domain_files

    if offline:
        refuse_store()
    keyring = domain_files.load(home.domains)
    shown = Printing("json" if as_json else form, file)
    if statement is not None and sql_file is not None:
        raise click.UsageError("--sql and --sql-file exclude each other")
    sql = sql_file.read() if sql_file is not None else statement
    if sql is not None:
        refuse_conditions()
        from facility_sync.identity.sql_words import translate

        translated = translate(sql, keyring, today(), allow_text=allow_text)  # before a password is asked for
        if offline:
            desk, nobody, _ = offline_desk(home, as_json=as_json)
            table = ask.sql(desk, home.settings.facility, nobody, translated, sql)
            sql_rows(table, ask.Reader(keyring), shown)
            return
        account = asked_account(user, password_file, stdin=password_stdin)
        table, source = failover.ask(
            home, only, lambda desk: ask.sql(desk, home.settings.facility, account, translated, sql)
        )
        say_source(home, source, as_json=as_json)
        sql_rows(table, ask.Reader(keyring), shown)
        return
    ask.conditions(question(values), keyring, today())
    if offline:
        desk, nobody, age = offline_desk(home, as_json=as_json)
        print_answer(home, searched(home, desk, nobody, keyring, values), keyring, values, shown, age)
        return
    account = asked_account(user, password_file, stdin=password_stdin)
    answer, source = failover.ask(home, only, lambda desk: searched(home, desk, account, keyring, values))
    say_source(home, source, as_json=as_json and not (values["count_only"] or values["estimate"]))
    print_answer(home, answer, keyring, values, shown, source.to_json())


def asked_account(user: str | None, file: Path | None, *, stdin: bool) -> ask.Account:
    """Who asks, from the options or a person."""
    from facility_sync.ask import Account

    name, secret = password(user, file, stdin=stdin)
    return Account(user=name, password=secret)


def offline_desk(home: Home, *, as_json: bool) -> tuple[ask.Asked, ask.Account, dict[str, Any]]:
    """Whoever answers with the line down, an account for it, and how old its answers are: said at once."""
    from facility_sync.ask import Account
    from facility_sync.offline import OfflineDesk

    desk = OfflineDesk(home)
    age = desk.age(datetime.now(UTC))
    for line in [output.to_json_line(age.to_json())] if as_json else age.remarks():
        click.echo(line, err=True)
    return desk, Account(user="offline", password=""), age.to_json()


def refuse_store() -> None:
    """Raise `UsageError` for an option about a store that is not asked."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(str(parameter.name)) is click.core.ParameterSource.COMMANDLINE
        if given and parameter.name in ("only", "user", "password_file", "password_stdin"):
            raise click.UsageError(f"{parameter.opts[0]} has no meaning with --offline: no store is asked")


def refuse_conditions() -> None:
    """SQL says it all: raise `UsageError` for any other option about what to find."""
    allowed = set("statement sql_file allow_text form file only user password_file".split())
    allowed |= {"password_stdin", "as_json", "offline"}
    context = click.get_current_context()
    for parameter in context.command.params:
        name = str(parameter.name)
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if given and name not in allowed:
            raise click.UsageError(f"{parameter.opts[0]} has no meaning beside SQL: say it in the statement")


def search(
    home: Home, desk: Any, account: ask.Account, keyring: Any, values: dict[str, Any], shown: Printing
) -> None:
    """Ask with the conditions of these options, and print the answer."""
    print_answer(home, searched(home, desk, account, keyring, values), keyring, values, shown, {})


def searched(home: Home, desk: Any, account: ask.Account, keyring: Any, values: dict[str, Any]) -> ask.Answer:
    """Ask with the conditions of these options."""
    from facility_sync import ask

    headings(values["level"], values["chosen"])  # a column nobody knows is refused before anything is asked
    return ask.search(
        desk, home.settings.facility, account,
        level=values["level"],
        wanted=ask.resolved(desk, home.settings.facility, account, question(values), keyring, today()),
        limit=values["limit"],
        offset=values["offset"],
        order=[part.strip() for item in values["order"] for part in item.split(",") if part.strip()],
        count_only=values["count_only"] or values["estimate"],
    )  # fmt: skip


def print_answer(
    home: Home,
    answer: ask.Answer,
    keyring: Any,
    values: dict[str, Any],
    shown: Printing,
    more: dict[str, Any],
) -> None:
    """Print an answer as these options say; `more` goes into the JSON of counts."""
    from facility_sync import ask, speed

    level = values["level"]
    titles = headings(level, values["chosen"])
    counts: dict[str, Any] = {
        "level": level, "matches": answer.matches, "instances": answer.instances, "bytes": answer.bytes,
    } | more  # fmt: skip
    if values["estimate"]:
        rate = speed.measured(home.root)
        seconds = None if rate is None else answer.bytes / rate
        text = f"{output.images(answer.instances)}, {output.size(answer.bytes)}, {minutes(seconds)}"
        write(output.to_json(counts | {"seconds": seconds}) if shown.form == "json" else text, shown)
    elif values["count_only"]:
        write(output.to_json(counts) if shown.form == "json" else str(answer.matches), shown)
    else:
        reader = ask.Reader(keyring)
        rows = [reader.readable(row) for row in answer.rows]
        print_rows(rows, titles, shown, all_columns=values["chosen"] is None)
        remark(answer, rows, level, values["offset"])


def minutes(seconds: float | None) -> str:
    """How long a fetch takes, for people."""
    if seconds is None:
        return "time unknown: no fetch was measured yet"
    if seconds < 90:
        return f"about {max(1, round(seconds))} seconds"
    return f"about {round(seconds / 60):,} minutes"
