"""`fsync domain export|import|backup|certificate`: what leaves the keyring as a file, and comes back."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import click

from facility_sync import output
from facility_sync.cli.common import json_option, pass_home, passphrase
from facility_sync.home import Home
from schemas import messages
from schemas.errors import FormatError, SettingsError
from schemas.transit import durable

_passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Read the passphrase from this file (mode 0600).",
)


def _write(file: Path, data: bytes, *, replace: bool = False) -> None:
    try:
        durable.publish(file.absolute(), data, mode=0o600, replace=replace)
    except FileExistsError as error:
        raise SettingsError(
            "a file of this name is there already", hint="Take another name, or move it away."
        ) from error
    except OSError as error:
        raise SettingsError(
            "the file cannot be written", hint="Check that its folder is there and has room."
        ) from error


@click.command()
@click.option(
    "--to", "card", required=True, type=click.File("rb"), help="Card of the terminal that may read."
)
@click.option("--domain", "which", metavar="ID|NAME", help="Which domain; default: this terminal's own.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
@pass_home
def export(home: Home, card: BinaryIO, which: str | None, file: Path, as_json: bool) -> None:
    """Write a domain to FILE, sealed so that only the terminal with that card opens it.

    Whoever imports it can read every identity and image of the domain, for good.

    \b
    Examples:
      fsync domain export --to partner.card for-partner.domain
      fsync domain export --domain heart-registry --to partner.card for-partner.domain
    """  # noqa: D301
    from facility_sync.identity import domain_files

    try:
        reader = messages.FacilityCard.from_bytes(card.read().rstrip(b"\n"))
    except FormatError as error:
        raise SettingsError("this is not a terminal's card", hint="Ask for NAME.card of its home.") from error
    chosen = domain_files.load(home.domains).choose(which)
    _write(file, domain_files.export_for([chosen], reader.age_recipient), replace=True)
    if as_json:
        click.echo(output.to_json({"domain": chosen.id, "name": chosen.name, "to": reader.facility}))
    else:
        click.echo(f"Domain {chosen.id} ({chosen.name}) is sealed for {reader.facility}.")


@click.command("import")
@click.option("--own", is_flag=True, help="The file's first domain becomes this terminal's own again.")
@_passphrase_option
@click.argument("file", type=click.File("rb"))
@json_option
@pass_home
def take_in(home: Home, own: bool, passphrase_file: Path | None, file: BinaryIO, as_json: bool) -> None:
    """Take in a domain that was sealed for this terminal, or all of a backup.

    A domain that is here already gets the generations it lacks. --own is for a new terminal in the place
    of a lost one: new images are sealed for the old domain again.

    \b
    Examples:
      fsync domain import for-partner.domain
      fsync domain import --own clinic-a.backup
    """  # noqa: D301
    from facility_sync.identity import backup as backups
    from facility_sync.identity import domain_files

    data = file.read(backups.MAX_BYTES + 1)
    if backups.is_backup(data):
        taken = backups.unseal(data, passphrase(passphrase_file, new=False))
    else:
        taken = domain_files.import_from(data, home.age_identity)
    if own and taken[0].kind != "facility":
        raise SettingsError(
            "a consortium's domain cannot be a terminal's own", hint="Import it, and `fsync domain join` it."
        )
    kept = [domain_files.keep(home.domains, item) for item in taken]
    if own:
        domain_files.keep_own(home.domains, kept[0])
    if as_json:
        generations = {item.id: len(item.generations) for item in kept}
        click.echo(output.to_json({"imported": [item.id for item in kept], "generations": generations}))
        return
    for item in kept:
        more = "" if len(item.generations) == 1 else f", {len(item.generations)} generations"
        click.echo(f"This terminal now reads domain {item.id} ({item.name}{more}).")
        if item.kind == "consortium" and item.id not in home.settings.consortia:
            click.echo(f"`fsync domain join {item.id}` seals this terminal's new images for it too.")
    if own:
        click.echo(f"New images are sealed for {kept[0].id}.")


@click.command()
@_passphrase_option
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
@pass_home
def backup(home: Home, passphrase_file: Path | None, file: Path, as_json: bool) -> None:
    """Write all domains of this terminal to FILE, behind a passphrase.

    Keep the file and the passphrase in two places away from this machine. `age -d FILE` opens it without
    this program; `fsync domain import FILE` takes it in. Do it again after every rotation and import.

    \b
    Examples:
      fsync domain backup clinic-a.backup
      fsync domain backup --passphrase-file /root/passphrase clinic-a.backup
    """  # noqa: D301
    from facility_sync.identity import backup as backups
    from facility_sync.identity import domain_files

    keyring = domain_files.load(home.domains)
    if file.exists():
        raise SettingsError("a file of this name is there already", hint="Take another name.")
    _write(file, backups.seal(keyring.domains, passphrase(passphrase_file, new=True)))
    held = [item.id for item in keyring.domains]
    if as_json:
        click.echo(output.to_json({"domains": held}))
    else:
        click.echo(f"{len(held)} domains are in the backup: {', '.join(held)}.")
        click.echo("Whoever has the file and the passphrase can read their images.")


@click.command()
@click.option("--generation", metavar="VERSION", help="Of this generation; default: the newest.")
@click.option(
    "--key", "key_file", type=click.Path(path_type=Path, dir_okay=False),
    help="Write the private key there (mode 0600), for other tools.",
)  # fmt: skip
@click.argument("which", metavar="[ID|NAME]", required=False)
@json_option
@pass_home
def certificate(
    home: Home, generation: str | None, key_file: Path | None, which: str | None, as_json: bool
) -> None:
    """Print a domain's certificate (X.509, PEM): other tools seal for it.

    With --key also its private key, for `gdcmanon -d -k FILE` and `openssl cms -decrypt -inkey FILE`:
    whoever has that file reads every protected image of the generation.

    \b
    Examples:
      fsync domain certificate > clinic-a.pem
      fsync domain certificate --key clinic-a.key > clinic-a.pem
      fsync domain certificate heart-registry --generation 1 --key old.key
    """  # noqa: D301
    from facility_sync.identity import domain_files

    chosen = domain_files.load(home.domains).choose(which)
    found = {item.version: item for item in chosen.generations}.get(generation or chosen.current.version)
    if found is None:
        raise SettingsError(
            "the domain has no such generation", hint=f"It has 1 to {chosen.current.version}."
        )
    if key_file is not None:
        _write(key_file, found.rsa_key)
        click.echo(
            "WARNING: that file is a key to the patients' identities, without a passphrase. Delete it when "
            "it has served.",
            err=True,
        )
    pem = found.certificate.decode("ascii")
    if as_json:
        click.echo(output.to_json({"domain": chosen.id, "generation": found.version, "certificate": pem}))
    else:
        click.echo(pem, nl=False)
