"""The top of `fstore`: global options, and the commands by name, imported when they are called."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from central_store.cli.common import Root, exit_codes_text

_COMMANDS = {
    "init": ("setup", "Make a new store."),
    "card": ("setup", "Print the store's card: what a terminal trusts."),
    "enrol": ("setup", "Take a facility in by its card."),
    "facilities": ("setup", "List the enrolled facilities."),
    "account": ("people", "People who may search: add, list, remove."),
    "grant": ("people", "Let a facility see another's images."),
    "revoke": ("people", "Take a grant back."),
    "grants": ("people", "List who sees whose images."),
    "peer": ("peering", "Stores this one replicates with: add, list, remove, clear."),
    "replicate": ("peering", "Replicate with the peers now, until both have the same."),
    "repair": ("peering", "Fetch damaged and missing packs from the peers."),
    "restore-from": ("peering", "Fill a new store with everything a peer holds."),
    "serve": ("work", "Run the SFTP server and the service."),
    "ingest": ("work", "Work through the shelves once, for cron behind another SFTP server."),
    "sshd-config": ("road", "Print a hardened configuration for OpenSSH in front of the store."),
    "status": ("look", "What is stored, and what waits."),
    "changes": ("look", "What came in, was superseded, erased, set aside or repaired since a cursor."),
    "check": ("checking", "Check that everything promised is there."),
    "audit": ("audit", "The audit log: verify it, close and print its head, views for DuckDB."),
    "audit-kit": ("audit", "A folder for an auditor: manifests, receipts, audit log, questions as SQL."),
    "erase": ("erasing", "Batches that facilities erased: list what waits, remove it for good."),
    "rebuild": ("look", "Make the catalog again from the manifests."),
}


class _Lazy(click.Group):
    """Imports a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"central_store.cli.{_COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)  # noqa: S101  # the table above names commands only
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Lazy, name="fstore", epilog=exit_codes_text())
@click.option(
    "--root",
    envvar="FSTORE_ROOT",
    type=click.Path(path_type=Path, file_okay=False),
    help="The store's root folder (or FSTORE_ROOT).",
)
@click.version_option(package_name="facility-sync")
@click.pass_context
def fstore(context: click.Context, root: Path | None) -> None:
    """Keep facilities' images, find them, hand them out; never see whose they are.

    \b
    A new store:
      fstore --root /srv/store init --host images.example.org
      fstore --root /srv/store enrol clinic-a.card
      fstore --root /srv/store account add kimura --facility clinic-a
      fstore --root /srv/store card > central.card
      fstore --root /srv/store serve
    """  # noqa: D301  # \b keeps click from folding the lines
    context.obj = Root(None if root is None else root.absolute())
