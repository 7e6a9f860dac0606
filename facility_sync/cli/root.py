"""The top of `fsync`: global options, and the commands by name, imported when they are called."""

from __future__ import annotations

import importlib
from pathlib import Path

import click
import platformdirs

from facility_sync.cli.common import exit_codes_text
from facility_sync.home import Home

_COMMANDS = {
    "init": ("setup", "Make this terminal: keys, domain and public card."),
    "trust": ("setup", "Pin a store this terminal talks to."),
    "store": ("setup", "The trusted stores, in the order they are tried."),
    "source": ("setup", "Folders whose images are sent."),
    "sync": ("sync", "One round: send what is new, take receipts."),
    "status": ("keep", "What is stored, and every file that is not."),
    "receipts": ("keep", "The store's receipts: list, verify, export."),
    "prune": ("keep", "Delete local files that are stored; a dry run unless told otherwise."),
    "daemon": ("sync", "The same round on a schedule, for machines without cron."),
    "query": ("query", "Search the store."),
    "offline": ("offline", "Bring the rows for `fsync query --offline` now; say what is kept."),
    "shell": ("shell", "Search again and again on one connection."),
    "audit": ("audit", "What the store's audit log says about this facility's data."),
    "fetch": ("fetch", "Bring matching images back, bit for bit."),
    "erase": ("erasing", "Erase images at the stores, for good."),
    "erasures": ("erasing", "What was erased from here, and how far the stores are with it."),
    "protect": ("single", "One file as a round would store it."),
    "restore": ("single", "One protected or sealed file back, byte for byte."),
    "reidentify": ("single", "Put back what any PS3.15 tool encrypted in a file."),
    "explain": ("single", "What would become of each attribute of a file, and why."),
    "release": ("release", "Kinds of device whose pixels show no identity, by a person's word."),
    "domain": ("domain", "Who may read identities: share, renew, back up."),
}


class _Lazy(click.Group):
    """Imports a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"facility_sync.cli.{_COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101  # the table above names commands only
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Lazy, name="fsync", epilog=exit_codes_text())
@click.option(
    "--home",
    envvar="FSYNC_HOME",
    type=click.Path(path_type=Path, file_okay=False),
    help="The terminal's folder (or FSYNC_HOME); default: the platform's data folder.",
)
@click.version_option(package_name="facility-sync")
@click.pass_context
def fsync(context: click.Context, home: Path | None) -> None:
    """Send this facility's DICOM images to the central store, find them, bring them back.

    \b
    A first round:
      fsync init --facility clinic-a
      fsync trust store.card
      fsync source add /data/images
      fsync sync
    """  # noqa: D301  # \b keeps click from folding the lines
    context.obj = Home((home or platformdirs.user_data_path("facility-sync")).absolute())
