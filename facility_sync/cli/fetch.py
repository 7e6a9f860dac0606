"""`fsync fetch`: matching images back as the facility wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from facility_sync.home import Home
from schemas.errors import NotExact, SettingsError


@click.command()
@condition_options
@click.option(
    "--to", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write to."
)
@click.option(
    "--protected",
    is_flag=True,
    help="The protected DICOM files, without identity: for research, teaching, AI.",
)
@click.option("--quiet", is_flag=True, help="No progress.")
@store_option
@account_options
@json_option
@pass_home
def fetch(
    home: Home, /, to: Path, protected: bool, quiet: bool, only: str,
    user: str | None, password_file: Path | None, password_stdin: bool, as_json: bool, **values: Any,
) -> None:  # fmt: skip
    """Bring matching images back, byte for byte what the facility read.

    Files are named patient/study/series/instance.dcm. Nothing appears under its final name before its
    digest is right; a second run continues where the first stopped.

    \b
    Examples:
      fsync fetch --patient-id 12345 --to ~/images --user kimura
      fsync fetch --study 1.2.840.1 --to .
      fsync fetch --date 2024 --modality CT --protected --to ~/research
    """  # noqa: D301
    import time

    from facility_sync import ask, exchange, failover, fetching, restore, speed
    from facility_sync.identity import domain_files
    from facility_sync.workers import Workers

    keyring = domain_files.load(home.domains)
    asked = question(values)
    if not ask.conditions(asked, keyring, today()) and not asked.patient_name:
        raise SettingsError(
            "no condition was given", hint="Name what to fetch; `fsync fetch --help` shows how."
        )
    name, secret = password(user, password_file, stdin=password_stdin)
    account = ask.Account(user=name, password=secret)
    fetching.sweep(home, now=time.time())
    meter = output.Meter(quiet=quiet or as_json)
    done = fetching.Fetched()

    def bring(desk: exchange.Desk) -> None:
        done.begin_again()
        wanted = ask.resolved(desk, home.settings.facility, account, asked, keyring, today())
        began, before = time.monotonic(), meter.total("received")
        run = fetching.Fetch(home, desk, account, keyring, workers, meter, protected=protected, done=done)
        for number, answer in enumerate(ask.all_rows(desk, home.settings.facility, account, wanted)):
            if number == 0 and not as_json:
                found = f"{output.images(answer.instances)}, {output.size(answer.bytes)}"
                click.echo(f"{found} to bring to {to}", err=True)
            run.run(answer.rows, to.absolute())
        done.end()
        speed.remember(home.root, meter.total("received") - before, time.monotonic() - began)

    try:
        with Workers(home.settings.workers) as workers:
            _, source = failover.ask(home, only, bring)
    finally:
        meter.close()
    if as_json:
        click.echo(output.to_json(done.to_json() | source.to_json()))
    else:
        click.echo(
            f"{output.images(done.restored)} restored ({output.size(done.bytes)}), "
            f"{done.in_place:,} in place before, {len(done.failed):,} not restored"
        )
        say_source(home, source, as_json=False)
        for reason in sorted({item.reason for item in done.failed}):
            count = sum(item.reason == reason for item in done.failed)
            click.echo(f"  {reason} ({count:,}): {restore.REASONS[reason]}")
    if done.failed:
        failure = NotExact(f"{len(done.failed):,} of {done.matched:,} images were not restored")
        failure.printed = True  # type: ignore[attr-defined]
        raise failure
