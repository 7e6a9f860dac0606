"""`fsync release`: a person releases a kind of device, so that its images become protected DICOM files.

Order: the line in `releases.log` (fsynced, mode 0600), then the settings: there is no release without its
line. Guarantees: each is by a named person, and whoever makes one is told what it means.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import click

from facility_sync import line_log, output
from facility_sync.cli.common import json_option, now_text, pass_home
from facility_sync.home import Home
from facility_sync.releases import Release
from schemas import messages
from schemas.errors import SettingsError

LOG = "releases.log"
_LOUD = (
    "WARNING: from now on the pixels of new images of this kind go to the store UNSEALED. Nobody looks at\n"
    "them: if this device writes a name into a picture, the store's operator can read it, and so can\n"
    "whoever the store shows it to. What was stored so stays so when the release is taken back."
)
_by = click.option("--by", required=True, metavar="NAME", help="Who answers for it; goes into the log.")


@click.group()
def release() -> None:
    """Kinds of device whose pixels show no identity, each released by a named person.

    Only images that are sealed whole because nobody released their device are affected; what says of itself
    that it may show an identity (screens, photographs, burned-in text, overlays) is always sealed whole.
    """


@release.command("add")
@click.option(
    "--sop-class", required=True, metavar="UID|KEYWORD|any", help="Class: CTImageStorage, or its UID."
)
@click.option("--manufacturer", required=True, help="As the device writes it; case does not matter.")
@click.option("--model", required=True, help="Manufacturer's model name, as the device writes it.")
@_by
@click.option("--note", default="", metavar="TEXT", help="What was looked at, and why it is released.")
@json_option
@pass_home
def add(home: Home, sop_class: str, manufacturer: str, model: str, by: str, note: str, as_json: bool) -> None:
    """Release a kind of device: its new images become protected DICOM files instead of being sealed whole.

    \b
    Examples:
      fsync release add --sop-class ComputedRadiographyImageStorage --manufacturer Maker \\
          --model "Model 7" --by "Dr. Sato" --note "200 images looked at, markers only"
      fsync release add --sop-class any --manufacturer Maker --model "Model 7" --by "Dr. Sato"
    """  # noqa: D301
    from facility_sync.identity import risk

    made = Release(
        sop_class=risk.sop_class(sop_class),
        manufacturer=manufacturer.strip(),
        model=model.strip(),
        by=by.strip(),
        at=now_text(),
        note=note.strip(),
    )
    before = home.settings
    if any(_kind(item) == _kind(made) for item in before.release):
        raise SettingsError("this kind of device is released already", hint="`fsync release list` shows it.")
    _log(home, "add", made, made)
    home.save(replace(before, release=(*before.release, made)))
    click.echo(_LOUD, err=as_json)
    _show(home, as_json=as_json)


@release.command("list")
@json_option
@pass_home
def listing(home: Home, as_json: bool) -> None:
    """List the releases, with their numbers.

    Example: fsync release list
    """
    _show(home, as_json=as_json)


@release.command("remove")
@click.argument("number", type=click.IntRange(min=1))
@_by
@json_option
@pass_home
def remove(home: Home, number: int, by: str, as_json: bool) -> None:
    """Take a release back; what was stored under it stays as it is.

    Example: fsync release remove 1 --by "Dr. Sato"
    """
    before = home.settings
    if number > len(before.release):
        raise SettingsError("there is no release of this number", hint="`fsync release list` shows them.")
    gone = before.release[number - 1]
    _log(home, "remove", gone, replace(gone, by=by.strip(), at=now_text()))
    home.save(
        replace(before, release=tuple(item for at, item in enumerate(before.release, 1) if at != number))
    )
    _show(home, as_json=as_json)


def _kind(item: Release) -> tuple[str, str, str]:
    return item.sop_class, item.manufacturer.upper(), item.model.upper()


def _log(home: Home, what: str, item: Release, done: Release) -> None:
    line = {"time": done.at, "what": what, "who": done.by, "release": asdict(item)}
    try:
        line_log.append(home.root / LOG, messages.canonical(line) + b"\n")
    except OSError as error:
        raise SettingsError(
            f"{LOG} in the home cannot be written, and nothing is released without it",
            hint="Check the disk and its owner.",
        ) from error


def _show(home: Home, *, as_json: bool) -> None:
    rows = [{"number": at, **asdict(item)} for at, item in enumerate(home.settings.release, 1)]
    if as_json:
        click.echo(output.to_json({"releases": rows}))
    elif rows:
        click.echo(output.table(rows, {key: key.replace("_", " ") for key in rows[0]}))
    else:
        click.echo("Nothing is released: `fsync release add --help` says what that means.")
