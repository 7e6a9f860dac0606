"""`fstore serve`, `ingest`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import UTC, datetime

import click

from central_store.cli.common import Root, json_option, pass_root, show


@click.command()
@click.option("--host", help="Listen there instead of on the settings' host.")
@click.option("--port", type=click.IntRange(0, 65535), help="Listen on this port; 0: a free one.")
@click.option("--no-sftp", is_flag=True, help="The service only: another SFTP server reaches the shelves.")
@json_option
@pass_root
def serve(root: Root, host: str | None, port: int | None, no_sftp: bool, as_json: bool) -> None:
    """Run the SFTP server and the service until SIGTERM or Ctrl-C.

    Prints one line when both work; everything else is log lines on standard error.

    \b
    Examples:
      fstore serve
      fstore serve --host 0.0.0.0 --port 2222
      fstore serve --no-sftp
    """  # noqa: D301
    from central_store import logs, serving
    from central_store.service import Clock

    store = root.open()
    logs.log_to_stderr()
    address = None
    if not no_sftp:
        address = (host or store.settings.host, store.settings.port if port is None else port)

    def ready(used: tuple[str, int] | None) -> None:
        if as_json:
            listens = {"host": used[0], "port": used[1]} if used else {"host": None, "port": None}
            click.echo(json.dumps({"store": store.name, **listens}))
        else:
            where = f" at {used[0]}:{used[1]}" if used else ", without an SFTP server of its own"
            click.echo(f"store {store.name} is ready{where}")

    serving.serve(store, Clock(lambda: datetime.now(UTC), time.monotonic), address=address, ready=ready)


@click.command()
@json_option
@pass_root
def ingest(root: Root, as_json: bool) -> None:
    """Work through the shelves once and leave: for cron, behind another SFTP server.

    \b
    Example, every minute:
      * * * * *  fstore --root /srv/store ingest
    """  # noqa: D301
    from central_store import logs
    from central_store.service import Clock, Service

    store = root.open()
    logs.log_to_stderr()
    counts = Service(store, Clock(lambda: datetime.now(UTC), time.monotonic)).one_pass(publish=True)
    text = (
        f"{counts.stored:,} batches stored, {counts.answered:,} requests answered, {counts.refused:,} refused"
    )
    show(as_json, asdict(counts), text)
