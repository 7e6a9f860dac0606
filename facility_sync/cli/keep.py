"""`fsync status`, `fsync receipts`, `fsync prune`: what is stored, the proof of it, and what may go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from facility_sync import output
from facility_sync.cli.common import json_option, pass_home
from facility_sync.home import Home
from facility_sync.reasons import PRUNE, explain
from facility_sync.report import Report
from schemas.errors import Incomplete, SealError, SettingsError

if TYPE_CHECKING:
    from facility_sync.kept_state import Age
    from facility_sync.ledger import Ledger


@click.command()
@click.option("--files", "each", is_flag=True, help="One line for every file, the stored ones too.")
@json_option
@pass_home
def status(home: Home, each: bool, as_json: bool) -> None:
    """What is stored, per source, and every file that is not, with its reason.

    And how old the rows are that answer with the line down.

    \b
    Examples:
      fsync status --json
      fsync status --files
    """  # noqa: D301
    from dataclasses import replace

    from facility_sync.intake import survey
    from facility_sync.ledger import Ledger

    documents, complete, several = [], True, len(_trusted(home)) > 1
    with closing(Ledger(home.ledger_path)) as ledger:
        for source in home.settings.sources:
            picture = survey(replace(home.settings, sources=(source,)), ledger, only=source)
            complete = complete and picture.complete
            pruned = ledger.pruned(source)
            copies = _copies(home, ledger, source)
            document = _source_json(source, picture, pruned) | {"replicas": copies}
            if as_json:
                if each:
                    document["files"] = list(_files(home, ledger, source))
                documents.append(document)
                continue
            click.echo(
                f"{output.plain(source)}: {picture.found:,} files, {picture.known:,} stored, "
                f"{len(picture.refused):,} refused, {len(picture.waiting):,} waiting"
                + (f", {picture.erased:,} erased and not sent again" if picture.erased else "")
                + (f"; {pruned:,} more stored and pruned" if pruned else "")
            )
            if several and copies:
                click.echo("  stored, " + "; ".join(f"{_replicas(n)}: {copies[n]:,}" for n in copies))
            if each:
                for line in _files(home, ledger, source):
                    if several and "replicas" in line:
                        line["state"] = f"stored, {_replicas(line['replicas'])}"
                    click.echo("  " + "  ".join(output.plain(line[key]) for key in _COLUMNS).rstrip())
            else:
                for text in output.not_stored_text(picture.refused, picture.waiting, most=1_000_000):
                    click.echo(f"  {text}")
    age = _age(home)
    if as_json:
        click.echo(output.to_json({"sources": documents, "rows": age and age.to_json()}))
    else:
        said = [] if home.settings.sources else ["No sources yet: `fsync source add DIR`."]
        click.echo("".join(f"{line}\n" for line in said + (age.remarks() if age else [])), nl=False)
    if not complete:
        raise click.exceptions.Exit(Incomplete.exit_code)


def _age(home: Home) -> Age | None:
    """How old the rows are that answer with the line down, if there are any."""
    from facility_sync import kept_state

    rows = kept_state.load(home.offline)
    return rows.age(datetime.now(UTC)) if rows.as_of else None


_COLUMNS = ("state", "path", "reason", "stored", "batch")


def _trusted(home: Home) -> list[str]:
    """Names of the trusted stores; none before the first `fsync trust`."""
    try:
        return [card.store for card in home.stores]
    except SettingsError:
        return []


def _copies(home: Home, ledger: Ledger, source: str) -> dict[int, int]:
    """Number of stored files by the number of trusted stores beyond the first that hold them."""
    found: dict[int, int] = {}
    for holders, files in ledger.copies(source, _trusted(home)).items():
        found[max(0, holders - 1)] = found.get(max(0, holders - 1), 0) + files
    return found


def _replicas(count: int) -> str:
    return "no replica" if count == 0 else "1 replica" if count == 1 else f"{count} replicas"


def _files(home: Home, ledger: Ledger, source: str) -> Iterator[dict[str, Any]]:
    from facility_sync.inventory import files

    trusted = set(_trusted(home))
    for file in files(home.settings, ledger, source):
        line = file.to_json()
        if file.state == "stored":
            line["replicas"] = max(0, len(trusted & set(ledger.holders(file.batch))) - 1)
        yield line


def _source_json(name: str, picture: Report, pruned: int) -> dict[str, object]:
    return {
        "source": name,
        "found": picture.found,
        "stored": picture.known,
        "pruned": pruned,
        "erased": picture.erased,
        "ignored": picture.ignored,
        "not_stored": [
            {"path": line.path, "state": state, "reason": line.reason, "meaning": explain(line.reason)[0]}
            for state, lines in (("refused", picture.refused), ("waiting", picture.waiting))
            for line in lines
        ],
    }


@click.command()
@click.option(
    "--verify", is_flag=True, help="List only receipts that do not hold; status 16 if there are any."
)
@click.option(
    "--export", "to", metavar="DIR", type=click.Path(path_type=Path, file_okay=False),
    help="Copy them there with what `ssh-keygen -Y verify` needs.",
)  # fmt: skip
@json_option
@pass_home
def receipts(home: Home, verify: bool, to: Path | None, as_json: bool) -> None:
    """The stores' signed receipts; each is verified with the trusted store's key as it is listed.

    A line names every store that holds the batch. A store that is not trusted here is named, and not counted.

    \b
    Examples:
      fsync receipts
      fsync receipts --verify
      fsync receipts --export for-the-auditor
    """  # noqa: D301
    from facility_sync import receipts as keeping

    found = list(keeping.listing(home))
    wrong = [item for item in found if not item.verified]
    shown = wrong if verify else found
    exported = None if to is None else keeping.export(home, to.absolute())
    if as_json:
        document: dict[str, object] = {
            "receipts": [item.to_json() for item in shown], "count": len(found), "wrong": len(wrong)
        }  # fmt: skip
        click.echo(output.to_json(document | ({} if exported is None else {"exported": exported})))
    else:
        rows = [
            item.to_json()
            | {
                "store": ", ".join(keeping.holders(item)) or (item.receipt and item.receipt.store),
                "doubtful": ", ".join(f"{one.store} ({one.problem})" for one in item.replicas if one.problem),
                "verified": "yes" if item.verified else f"NO: {item.problem}",
                "lost": item.lost and "lost later",
            }
            for item in shown
        ]
        if rows:
            click.echo(output.table(rows, _RECEIPT_COLUMNS))
        click.echo(f"{len(found):,} receipts, {len(found) - len(wrong):,} verified")
        if exported is not None:
            click.echo(
                f"{exported:,} exported to {output.plain(to)}; README.txt there says how to verify them"
            )
    if wrong:
        failure = SealError(
            f"{len(wrong):,} receipts do not hold",
            hint="Nothing they name is pruned. `fsync store list` shows whose receipts count.",
        )
        failure.printed = True  # type: ignore[attr-defined]
        raise failure


_RECEIPT_COLUMNS = {
    "stored": "time", "batch": "batch", "objects": "objects", "bytes": "bytes", "store": "held by",
    "verified": "verified now", "lost": "", "doubtful": "not counted",
}  # fmt: skip


@click.command()
@click.option(
    "--older-than", "days", type=click.IntRange(0), default=30, show_default=True, metavar="DAYS",
    help="Age of the receipt at least.",
)  # fmt: skip
@click.option(
    "--require-replicas", "replicas", type=click.IntRange(0), default=0, show_default=True, metavar="N",
    help="Further trusted stores that must have given their own receipt for the batch.",
)  # fmt: skip
@click.option("--delete", is_flag=True, help="Really delete; without it nothing is changed.")
@click.option("--quiet", is_flag=True, help="No line for each file; only the sums.")
@json_option
@pass_home
def prune(home: Home, days: int, replicas: int, delete: bool, quiet: bool, as_json: bool) -> None:
    """Delete local files that are stored with a receipt that verifies now.

    Each file is read again first: one that changed, or that is reached over a link, stays. Every deletion
    stands in `pruned.jsonl` of the home, and `fsync status` still counts the file as stored.

    \b
    Examples:
      fsync prune
      fsync prune --older-than 90 --delete
    """  # noqa: D301
    from facility_sync import prune as pruning
    from facility_sync.identity import domain_files
    from facility_sync.ledger import Ledger

    rules = pruning.Rules(
        older_than=timedelta(days=days), replicas=replicas, delete=delete, now=datetime.now(UTC)
    )
    gone: list[dict[str, object]] = []

    def tell(outcome: pruning.Outcome) -> None:
        if outcome.reason or quiet:
            return
        if as_json:
            gone.append({"source": outcome.source, "path": outcome.path, "bytes": outcome.bytes})
        else:
            click.echo(f"{'deleted' if delete else 'would delete'}  {output.plain(outcome.path)}")

    with ExitStack() as stack:
        if delete:
            stack.enter_context(home.only_round())
        ledger = stack.enter_context(closing(Ledger(home.ledger_path)))
        done = pruning.prune(home, ledger, domain_files.load(home.domains), rules, tell)
    if as_json:
        counts = {"deleted": delete, "count": done.files, "bytes": done.bytes, "kept": dict(done.kept)}
        click.echo(output.to_json(counts | {"files": gone}))
        return
    for reason in sorted(done.kept):
        click.echo(f"kept: {reason} ({done.kept[reason]:,}). {PRUNE[reason]}")
    word = "deleted" if delete else "would be deleted"
    click.echo(f"{done.files:,} files, {output.size(done.bytes)} {word}")
    if done.files and not delete:
        click.echo("Nothing was deleted: add --delete.")
