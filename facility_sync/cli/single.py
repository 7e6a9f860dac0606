"""`fsync protect|restore|reidentify|explain`: one file at a time, without a store."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from facility_sync import output
from facility_sync.cli.common import json_option, pass_any_home
from facility_sync.home import Home
from schemas.errors import Incomplete, SettingsError

if TYPE_CHECKING:  # imported when a command runs: `fsync --help` needs no cryptography
    from facility_sync import capture, single

_file = click.Path(path_type=Path, dir_okay=False)
_key_option = click.option(
    "--key", type=click.File("rb"), help="Private key (PEM, RSA) to use instead of the domains."
)


@click.command()
@click.argument("source", metavar="IN", type=_file)
@click.argument("target", metavar="OUT", type=_file)
@click.option(
    "--cert", "certificates", type=click.File("rb"), multiple=True,
    help="Certificate (PEM, RSA) of somebody else who may open it; may be given again.",
)  # fmt: skip
@json_option
@pass_any_home
def protect(home: Home, source: Path, target: Path, certificates: Any, as_json: bool) -> None:
    """Write what a round would store of IN: a protected DICOM file, or an age file sealed whole.

    \b
    Examples:
      fsync protect in.dcm protected.dcm
      fsync protect --cert research.crt in.dcm protected.dcm
    """  # noqa: D301
    from facility_sync import single
    from facility_sync.identity import decide

    made = single.protect(source, target, _context(home, [file.read() for file in certificates]))
    encoding = str(made.row["encoding"])
    sealed = encoding.startswith("age")
    if as_json:
        found = {"encoding": encoding, "sealed_whole": sealed, "reasons": list(made.reasons)}
        click.echo(output.to_json(found | {"instance": made.row["sop_instance_uid"]}))
        return
    click.echo("Sealed whole, as an age file:" if sealed else "Protected, as a DICOM file:")
    for reason in made.reasons:
        click.echo(f"  {reason}: {decide.REASONS[reason]}")


@click.command()
@click.argument("source", metavar="IN", type=_file)
@click.argument("target", metavar="OUT", type=_file)
@_key_option
@json_option
@pass_any_home
def restore(home: Home, source: Path, target: Path, key: Any, as_json: bool) -> None:
    """Write the original of a protected or sealed file, byte for byte, or nothing.

    If the pixel data were transcoded on the way, OUT gets the original's attributes with the pixel data as
    they are, and the command ends with status 18.

    \b
    Examples:
      fsync restore protected.dcm original.dcm
      fsync restore --key escrow.key protected.dcm original.dcm
    """  # noqa: D301
    from facility_sync import single

    signer = single.restore(source, target, _keys(home, key))
    _done(signer, key is not None, as_json=as_json, exact=True)


@click.command()
@click.argument("source", metavar="IN", type=_file)
@click.argument("target", metavar="OUT", type=_file)
@_key_option
@json_option
@pass_any_home
def reidentify(home: Home, source: Path, target: Path, key: Any, as_json: bool) -> None:
    """Put back the attributes that a PS3.15 tool encrypted in IN; OUT is not the original byte for byte.

    \b
    Examples:
      fsync reidentify from-another-tool.dcm original.dcm
      fsync reidentify --key facility.key from-gdcmanon.dcm original.dcm
    """  # noqa: D301
    from facility_sync import single

    single.reidentified(source, target, _keys(home, key))
    _done("", False, as_json=as_json, exact=False)


def _done(signer: str, foreign: bool, *, as_json: bool, exact: bool) -> None:
    from schemas import keys

    fingerprint = keys.fingerprint(signer) if signer else ""
    if as_json:
        click.echo(output.to_json({"exact": exact, "signer": fingerprint}))
        return
    click.echo("Restored, byte for byte." if exact else "The original attributes are in place again.")
    if foreign and signer:
        click.echo(f"Its capsule was signed by {fingerprint}: compare it with the facility's card.")


@click.command()
@click.argument("source", metavar="IN", type=_file)
@click.option("--identity", is_flag=True, help="Show the values that would be hidden, too.")
@json_option
@pass_any_home
def explain(home: Home, source: Path, identity: bool, as_json: bool) -> None:
    """Say what would become of each attribute of IN, whether it would be sealed whole, and why.

    \b
    Examples:
      fsync explain in.dcm
      fsync explain --identity --json in.dcm
    """  # noqa: D301
    from facility_sync import capture, single
    from facility_sync.identity import decide
    from facility_sync.identity import explain as explaining

    found = single.examine(source, _context(home, []))
    if not isinstance(found, capture.Taken):
        raise Incomplete(f"the file is not taken: {found.reason}", hint=single.hint(found.reason))
    sealed = str(found.row["encoding"]).startswith("age")
    with source.open("rb") as file:
        rows = [line._asdict() for line in explaining.lines(file, show=identity)]
    if as_json:
        reasons = {reason: decide.REASONS[reason] for reason in found.reasons}
        click.echo(output.to_json({"sealed_whole": sealed, "reasons": reasons, "attributes": rows}))
        return
    click.echo(output.table(rows, {key: key for key in ("tag", "name", "vr", "action", "reason", "value")}))
    click.echo("It would be sealed whole:" if sealed else "It would be protected:")
    for reason in found.reasons:
        click.echo(f"  {reason}: {decide.REASONS[reason]}")


def _context(home: Home, certificates: list[bytes]) -> capture.Context:
    """What a round of this terminal takes files with, for these readers besides."""
    from facility_sync import pack

    return pack.capturing(pack.context(home, datetime.now(UTC)), certificates)


def _keys(home: Home, key: Any) -> single.Keys:
    from facility_sync import single
    from facility_sync.identity import cms, domain_files, objects

    if key is not None:
        return single.Keys(readers=(cms.Reader(key.read()),), anyone=True)
    if not home.settings_path.exists():
        raise SettingsError(
            "there is no terminal in this home yet", hint="Give --key KEY, or run `fsync init`."
        )
    keyring = domain_files.load(home.domains)
    return single.Keys(objects.readers(keyring), objects.domain_keys(keyring), keyring.age_identities)
