"""`fsync domain`: who may read identities. Make, join, renew; handing on is in `domain_copies`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from facility_sync import output
from facility_sync.cli.common import json_option, now_text, pass_home, say_losing_is_final
from facility_sync.cli.domain_copies import backup, certificate, export, take_in
from facility_sync.home import Home
from schemas.errors import FormatError, SettingsError

if TYPE_CHECKING:  # the commands import it when they run: `fsync --help` needs no cryptography
    from facility_sync.identity.domains import Domain, Keyring


@click.group()
def domain() -> None:
    """Who may read identities: share, renew, back up.

    New images are sealed for this terminal's own domain and the consortia it joined.
    """


for _command in (export, take_in, backup, certificate):
    domain.add_command(_command)


@domain.command("list")
@json_option
@pass_home
def listing(home: Home, as_json: bool) -> None:
    """List the domains this terminal holds, its own first.

    Example: fsync domain list
    """
    from facility_sync.identity import domain_files

    keyring = domain_files.load(home.domains)
    rows = [_row(item, keyring, home.settings.consortia) for item in keyring.domains]
    if as_json:
        click.echo(output.to_json({"domains": rows}))
        return
    for row in rows:
        row["seals"] = "own" if row["own"] else "joined" if row["joined"] else ""
    heads = ("domain", "name", "kind", "generations", "created", "seals")
    click.echo(output.table(rows, {key: key for key in heads}))


def _row(item: Domain, keyring: Keyring, consortia: tuple[str, ...]) -> dict[str, Any]:
    return {
        "domain": item.id, "name": item.name, "kind": item.kind, "generations": len(item.generations),
        "created": item.first.created, "own": item is keyring.own, "joined": item.id in consortia,
    }  # fmt: skip


@domain.command("create")
@click.argument("name")
@json_option
@pass_home
def create(home: Home, name: str, as_json: bool) -> None:
    """Make the domain of a consortium; this terminal joins it.

    Then export it to every member's terminal. Whoever holds it reads everything its members seal for it.

    Example: fsync domain create heart-registry
    """
    from facility_sync.identity import domain_files, domains

    settings = home.settings
    if any(item.name == name for item in domain_files.load(home.domains).domains):
        raise SettingsError("this terminal holds a domain of this name", hint="Take another name.")
    try:
        made = domains.make(name, "consortium", domains.new_parts(now_text()))
    except FormatError as error:
        raise SettingsError(str(error), hint="Take another name.") from error
    joined = replace(settings, consortia=(*settings.consortia, made.id))
    domain_files.keep(home.domains, made)
    home.save(joined)
    say_losing_is_final(home, settings.facility, as_json=as_json)
    if as_json:
        click.echo(output.to_json({"domain": made.id, "name": name}))
    else:
        click.echo(f"Domain {made.id} ({name}): this terminal's new images are sealed for it too.")
        click.echo(f"Next: `fsync domain export --domain {made.id} --to MEMBER.card FILE` for each member.")


@domain.command("join")
@click.argument("which", metavar="ID|NAME")
@json_option
@pass_home
def join(home: Home, which: str, as_json: bool) -> None:
    """Seal this terminal's new images for a consortium too.

    Images stored before stay as they are.

    Example: fsync domain join heart-registry
    """
    from facility_sync.identity import domain_files

    keyring, settings = domain_files.load(home.domains), home.settings
    chosen = keyring.choose(which)
    keyring.sealing([chosen.id])
    if chosen.id not in settings.consortia:
        home.save(replace(settings, consortia=(*settings.consortia, chosen.id)))
    _say(
        {"joined": chosen.id, "name": chosen.name},
        f"New images are sealed for {chosen.id} ({chosen.name}) too: all its members can read them.",
        as_json=as_json,
    )


@domain.command("leave")
@click.argument("which", metavar="ID|NAME")
@json_option
@pass_home
def leave(home: Home, which: str, as_json: bool) -> None:
    """Seal new images for a consortium no longer; what it has, it keeps.

    Example: fsync domain leave heart-registry
    """
    from facility_sync.identity import domain_files

    settings = home.settings
    # By its id it can be left even when its file is lost.
    gone = which if which in settings.consortia else domain_files.load(home.domains).choose(which).id
    if gone not in settings.consortia:
        raise SettingsError(
            "this terminal has not joined that domain", hint="`fsync domain list` shows them."
        )
    home.save(replace(settings, consortia=tuple(item for item in settings.consortia if item != gone)))
    _say(
        {"left": gone},
        f"New images are not sealed for {gone} any more. Its members still read what is stored.",
        as_json=as_json,
    )


@domain.command("rotate")
@click.argument("which", metavar="[ID|NAME]", required=False)
@json_option
@pass_home
def rotate(home: Home, which: str | None, as_json: bool) -> None:
    """Give a domain new keys; the old ones stay, to read what they sealed.

    Default: this terminal's own domain. Whoever is to read new images needs the domain exported again;
    whoever gets no new copy reads the old ones only. Only one terminal may rotate a domain.

    \b
    Examples:
      fsync domain rotate
      fsync domain rotate heart-registry
    """  # noqa: D301
    from facility_sync.identity import domain_files, domains

    keyring = domain_files.load(home.domains)
    chosen = keyring.choose(which)
    if chosen.kind == "facility" and chosen is not keyring.own:
        raise SettingsError(
            "this domain is another facility's", hint="Ask that facility to rotate it and to export it again."
        )
    made = domain_files.keep(home.domains, domains.rotate(chosen, domains.new_parts(now_text())))
    say_losing_is_final(home, home.settings.facility, as_json=as_json)
    click.echo(
        "WARNING: no other terminal has the new keys. Export the domain again to every terminal that is to\n"
        "read the images sealed from now on; older backups lack the new keys too.\n",
        err=as_json,
    )
    count = len(made.generations)
    _say(
        {"domain": made.id, "name": made.name, "generations": count},
        f"Domain {made.id} ({made.name}) has {count} generations; new images are sealed for the newest.",
        as_json=as_json,
    )


def _say(document: dict[str, Any], text: str, *, as_json: bool) -> None:
    click.echo(output.to_json(document) if as_json else text)
