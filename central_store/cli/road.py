"""`fstore sshd-config`."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import TYPE_CHECKING

import click

from central_store.cli.common import Root, json_option, named, pass_root, show

if TYPE_CHECKING:
    from central_store.sshd_config import Owner


@click.command(name="sshd-config")
@click.option(
    "--account",
    "given",
    multiple=True,
    metavar="FACILITY=NAME",
    help="A facility's Unix account; its own name by default.",
)
@click.option("--listen", default="", metavar="ADDRESS", help="Listen there only.")
@click.option("--port", type=click.IntRange(1, 65535), help="Instead of the settings' port.")
@json_option
@pass_root
def sshd_config(root: Root, given: tuple[str, ...], listen: str, port: int | None, as_json: bool) -> None:
    """Print a hardened configuration for OpenSSH's sshd in front of this store, and write its keys.

    Each enrolled facility is one Unix account, locked into its shelf. Run it again after `fstore enrol`.

    \b
    Examples:
      fstore sshd-config > /etc/ssh/fstore
      fstore sshd-config --account clinic-a=fac-a --port 22
    """  # noqa: D301
    from central_store import facilities, peers, sshd_config
    from schemas import names

    store = root.open()
    known = (*facilities.enrolled(store.layout), *peers.names_of(store.layout))
    accounts = {facility: str(facility) for facility in known}
    for pair in given:
        name, _, account = pair.partition("=")
        facility = named(names.facility_name, name, "--account")
        if facility not in accounts or not account:
            raise click.UsageError(f"--account {pair}: not an enrolled facility and its account")
        accounts[facility] = account
    found = sshd_config.config(
        store.layout,
        store.settings,
        accounts,
        _owner(store.layout.key("host_key")),
        port=port or store.settings.port,
        listen=listen,
    )
    sshd_config.write_keys(store.layout)
    show(as_json, {"config": found, "accounts": accounts}, found.rstrip("\n"))


def _owner(path: Path) -> Owner:
    from central_store.sshd_config import Owner

    status = path.stat()
    try:
        name = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        name = str(status.st_uid)
    return Owner(name=name, uid=status.st_uid, gid=status.st_gid)
