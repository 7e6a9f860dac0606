"""`fstore account`, `grant`, `revoke`, `grants`."""

from __future__ import annotations

from pathlib import Path

import click

from central_store.cli.common import (
    Root,
    json_option,
    named,
    new_password,
    pass_root,
    password_options,
    show,
    table_or_none,
)
from schemas import names
from schemas.errors import SettingsError


@click.group()
def account() -> None:
    """People who may search, each at one facility, each with a password."""


@account.command()
@click.argument("user")
@click.option("--facility", required=True, help="The facility the person works at.")
@password_options
@json_option
@pass_root
def add(
    root: Root, user: str, facility: str, password_file: Path | None, password_stdin: bool, as_json: bool
) -> None:
    """Make an account, or give an existing one a new password.

    \b
    Examples:
      fstore account add kimura --facility clinic-a
      fstore account add kimura --facility clinic-a --password-file kimura.pw
    """  # noqa: D301
    from central_store import accounts

    who, where = named(names.user_name, user, "USER"), named(names.facility_name, facility, "--facility")
    store = root.open()
    password = new_password(password_file, stdin=password_stdin)
    made = accounts.add(store.layout, who, where, password)
    if len(password) < accounts.GOOD_LENGTH:
        click.echo(f"warning: a password of {accounts.GOOD_LENGTH} characters or more is safer", err=True)
    document = {"user": made.user, "facility": made.facility}
    show(as_json, document, f"{made.user} may search for {made.facility}")


@account.command(name="list")
@json_option
@pass_root
def list_(root: Root, as_json: bool) -> None:
    """List the accounts."""
    from central_store import accounts

    rows = [{"user": a.user, "facility": a.facility} for a in accounts.everyone(root.open().layout)]
    headings = {"user": "user", "facility": "facility"}
    show(as_json, rows, table_or_none(rows, headings, "no accounts: `fstore account add USER --facility F`"))


@account.command()
@click.argument("user")
@click.option("--facility", required=True, help="The facility the person works at.")
@json_option
@pass_root
def remove(root: Root, user: str, facility: str, as_json: bool) -> None:
    """Remove an account; it may not search any more."""
    from central_store import accounts

    who, where = named(names.user_name, user, "USER"), named(names.facility_name, facility, "--facility")
    if not accounts.remove(root.open().layout, where, who):
        raise SettingsError(f"there is no account {who}", hint="`fstore account list` shows them.")
    show(as_json, {"user": who, "removed": True}, f"{who} may not search any more")


@click.command()
@click.argument("owner")
@click.option("--to", "reader", required=True, help="The facility that may see them.")
@json_option
@pass_root
def grant(root: Root, owner: str, reader: str, as_json: bool) -> None:
    """Let people of another facility find and fetch what OWNER stored.

    \b
    Example:
      fstore grant clinic-a --to hospital-b
    """  # noqa: D301
    from central_store import grants

    pair = named(names.facility_name, owner, "OWNER"), named(names.facility_name, reader, "--to")
    given = grants.give(root.open().layout, *pair)
    show(as_json, given._asdict(), f"{given.reader} sees what {given.owner} stored")


@click.command()
@click.argument("owner")
@click.option("--to", "reader", required=True, help="The facility that saw them.")
@json_option
@pass_root
def revoke(root: Root, owner: str, reader: str, as_json: bool) -> None:
    """Take a grant back.

    \b
    Example:
      fstore revoke clinic-a --to hospital-b
    """  # noqa: D301
    from central_store import grants

    pair = named(names.facility_name, owner, "OWNER"), named(names.facility_name, reader, "--to")
    if not grants.revoke(root.open().layout, *pair):
        raise SettingsError(f"{pair[1]} has no grant from {pair[0]}", hint="`fstore grants` lists them.")
    document = {"owner": pair[0], "reader": pair[1], "revoked": True}
    show(as_json, document, f"{pair[1]} does not see what {pair[0]} stored any more")


@click.command(name="grants")
@json_option
@pass_root
def grants(root: Root, as_json: bool) -> None:
    """List who sees whose images."""
    from central_store import grants as granted

    rows = [grant._asdict() for grant in granted.given(root.open().layout)]
    headings = {"owner": "images of", "reader": "are seen by"}
    show(as_json, rows, table_or_none(rows, headings, "no grants: each facility sees its own images only"))
