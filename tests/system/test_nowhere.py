"""Every command where there is no terminal and no store yet: a line that says so, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from central_store.cli.root import fstore
from facility_sync.cli.root import fsync
from schemas.errors import FormatError, SettingsError
from tests.kit.site import call


def leaves(group: click.Group, *above: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands below a group, with the words that name each."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, *above, name)
        else:
            yield (*above, name), command


COMMANDS = {
    " ".join((program, *words)): command
    for program, group in (("fsync", fsync), ("fstore", fstore))
    for words, command in leaves(group)
}
MAKES = ("fsync init", "fstore init")
"""They make what is not there."""


def least(command: click.Command, file: Path) -> list[str]:
    """The arguments a command cannot do without."""
    words = []
    for one in command.params:
        if one.required or (isinstance(one, click.Argument) and one.nargs == 1):
            text = "20"
            if isinstance(one.type, click.Path | click.File):
                text = str(file if getattr(one.type, "file_okay", True) else file.parent)
            if isinstance(one.type, click.Choice):
                text = str(one.type.choices[0])
            words += [text] if isinstance(one, click.Argument) else [one.opts[0], text]
    return words


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - MAKES))
def test_without_a_home_or_a_root_every_command_says_so(name: str, tmp_path: Path) -> None:
    program, *words = name.split()
    file = tmp_path / "file"
    file.write_text("nothing of use")
    place = tmp_path / "nowhere"
    option = "--home" if program == "fsync" else "--root"
    done = call(
        program, option, place, *words, *least(COMMANDS[name], file), cwd=tmp_path, stdin="word\nword\n"
    )
    assert done.status != 0, done.out
    assert done.status in (SettingsError.exit_code, FormatError.exit_code), done.err
    assert len(done.err.splitlines()) in (1, 2), done.err
    assert not place.exists()
