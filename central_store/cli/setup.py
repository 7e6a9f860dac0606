"""`fstore init`, `card`, `enrol`, `facilities`."""

from __future__ import annotations

from pathlib import Path

import click

from central_store.cli.common import Root, json_option, pass_root, show, table_or_none


@click.command()
@click.option("--name", default="central", show_default=True, help="The store's name.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address written into the card.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=2222,
    show_default=True,
    help="Port written into the card.",
)
@json_option
@pass_root
def init(root: Root, name: str, host: str, port: int, as_json: bool) -> None:
    """Make a new store: its folders, its keys, its settings.

    \b
    Example:
      fstore --root /srv/store init --name central --host images.example.org
    """  # noqa: D301
    from central_store import settings
    from schemas import keys

    store = settings.init(root.path, name=name, host=host, port=port)
    card = store.card()
    prints = {"host_key": keys.fingerprint(card.host_key), "signing_key": keys.fingerprint(card.signing_key)}
    show(
        as_json,
        {"store": store.name, "host": host, "port": port, **prints},
        f"store {store.name} for {host}:{port}\n"
        f"  host key     {prints['host_key']}\n"
        f"  signing key  {prints['signing_key']}\n"
        "next: `fstore enrol FACILITY_CARD`, `fstore account add USER --facility F`, `fstore serve`",
    )


@click.command()
@json_option
@pass_root
def card(root: Root, as_json: bool) -> None:  # noqa: ARG001  # the card is JSON either way
    """Print the store's card. Terminals pin it with `fsync trust`.

    \b
    Example:
      fstore card > central.card
    """  # noqa: D301
    click.echo(root.open().card().to_bytes().decode("utf-8"))


@click.command()
@click.argument("facility_card", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--replace-key", is_flag=True, help="The facility changed its keys on purpose.")
@json_option
@pass_root
def enrol(root: Root, facility_card: Path, replace_key: bool, as_json: bool) -> None:
    """Take a facility in by its card (`fsync init` writes it).

    Compare the fingerprint with the facility by telephone: the card is what you trust.

    \b
    Example:
      fstore enrol clinic-a.card
    """  # noqa: D301
    from central_store import facilities
    from schemas import keys, messages
    from schemas.errors import FormatError

    with facility_card.open("rb") as file:
        data = file.read(64 * 1024)
    try:
        found = messages.FacilityCard.from_bytes(data.rstrip(b"\n"))
    except FormatError as error:
        raise FormatError(f"{facility_card.name} is no facility's card: {error}") from error
    layout = root.open().layout
    facilities.enrol(layout, found, replace_key=replace_key)
    if layout.authorized_keys.is_dir():  # OpenSSH stands in front: a new key counts at once there too
        from central_store import sshd_config

        sshd_config.write_keys(layout)
    prints = {"facility": found.facility, "ssh_key": keys.fingerprint(found.ssh_key)}
    show(as_json, prints, f"enrolled {found.facility}, key {prints['ssh_key']}")


@click.command(name="facilities")
@json_option
@pass_root
def facilities(root: Root, as_json: bool) -> None:
    """List the enrolled facilities and their keys."""
    from central_store import facilities as enrolment
    from schemas import keys

    layout = root.open().layout
    rows = []
    for name in enrolment.enrolled(layout):
        found = enrolment.load(layout, name)
        if found is not None:
            rows.append({"facility": name, "ssh_key": keys.fingerprint(found.ssh_key)})
    headings = {"facility": "facility", "ssh_key": "key"}
    show(
        as_json, rows, table_or_none(rows, headings, "no facility is enrolled: `fstore enrol FACILITY_CARD`")
    )
