"""`fstore audit`, `audit-kit`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from central_store.cli.common import Root, json_option, named, pass_root, printed, show


@click.group()
def audit() -> None:
    """The audit log: every act at this store, in one chain, signed."""


@audit.command()
@click.option(
    "--head", "heads", multiple=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A checkpoint that was kept elsewhere; its signature beside it as FILE.sig. May be repeated.",
)  # fmt: skip
@json_option
@pass_root
def verify(root: Root, heads: tuple[Path, ...], as_json: bool) -> None:
    """Verify the whole log: each event, each segment, each checkpoint's signature.

    That events at its end were cut off shows against a checkpoint that was kept elsewhere: give it as --head.

    \b
    Examples:
      fstore audit verify
      fstore audit verify --head kept/00000012.json
    """  # noqa: D301
    from central_store import audit_verify
    from schemas import container
    from schemas.errors import Damaged, FormatError

    store = root.open()
    key = store.card().signing_key
    kept = []
    for head in heads:
        try:
            armor = head.with_name(head.name + ".sig").read_text("ascii")
        except (FileNotFoundError, UnicodeDecodeError) as error:
            raise FormatError(f"{head.name}.sig is no signature") from error
        kept.append(container.verify(head.read_bytes(), armor, key))
    proof = audit_verify.verify(store.layout, key, kept)
    text = [*proof.problems,
            f"{proof.events:,} events, {proof.segments:,} segments, {proof.journalled:,} not yet in one",
            f"{proof.kept:,} kept checkpoints compared", f"head {proof.head}"]  # fmt: skip
    text.append(f"{len(proof.problems):,} problems" if proof.problems else "the log holds")
    show(as_json, asdict(proof), "\n".join(text))
    if proof.problems:
        raise printed(Damaged("the audit log is not as it was written", hint="See the report above."))


@audit.command()
@click.option(
    "--to", type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Write it and its signature into this folder, too.",
)  # fmt: skip
@json_option
@pass_root
def head(root: Root, to: Path | None, as_json: bool) -> None:
    """Close the current segment and print the newest checkpoint: keep it elsewhere.

    \b
    Examples:
      fstore audit head
      fstore audit head --to /mnt/elsewhere
    """  # noqa: D301
    from central_store import audit as log
    from central_store import audit_segments
    from schemas.errors import SettingsError

    store = root.open()
    found = audit_segments.close(store, datetime.now(UTC))
    path = log.newest(store.layout)
    if found is None or path is None:
        raise SettingsError("the audit log has no event yet")
    armor = path.with_name(path.name + ".sig").read_text("ascii")
    if to is not None:
        (to / path.name).write_bytes(path.read_bytes())
        (to / f"{path.name}.sig").write_text(armor)
    text = f"{path.read_text('utf-8')}\n{armor}"
    show(as_json, asdict(found) | {"signature": armor}, text.rstrip("\n"))


@audit.command()
@pass_root
def views(root: Root) -> None:
    """Print views over this store's files for DuckDB; they work from any folder, while the store runs.

    \b
    Example:
      fstore audit views > views.sql
      duckdb -init views.sql
    """  # noqa: D301
    from central_store import audit_kit

    click.echo(audit_kit.views(root.open().layout.root))


class _Day(click.ParamType[datetime]):
    name = "day"

    def convert(
        self, value: object, param: click.Parameter | None, context: click.Context | None
    ) -> datetime:
        try:
            return datetime.strptime(str(value), "%Y-%m-%d").replace(tzinfo=UTC)
        except ValueError:
            self.fail("write a day as 2026-11-24", param, context)


@click.command(name="audit-kit")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--facility", help="Only this facility's data; events of others have only their hashes.")
@click.option("--since", type=_Day(), help="Only what was stored or done from this day on (UTC).")
@click.option("--until", type=_Day(), help="Only what was stored or done to the end of this day (UTC).")
@json_option
@pass_root
def audit_kit(
    root: Root, folder: Path, facility: str | None, since: datetime | None, until: datetime | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Write a folder for an auditor, who needs nothing but DuckDB and ssh-keygen.

    \b
    Examples:
      fstore audit-kit for-the-auditor
      fstore audit-kit clinic-a-2026 --facility clinic-a --since 2026-01-01 --until 2026-12-31
    """  # noqa: D301
    from central_store import audit_kit as kits
    from schemas import names

    owner = None if facility is None else named(names.facility_name, facility, "--facility")
    made = kits.write(root.open(), folder.absolute(), kits.Choice(owner, since, until), datetime.now(UTC))
    text = f"{made.batches:,} batches, {made.events:,} events in {folder}; README.md there says how to go on"
    show(as_json, asdict(made), text)
