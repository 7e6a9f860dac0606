"""What must hold of a store and of a terminal, found again from their files by other code than theirs.

`promises` hold at every moment, in the midst of anything; `at_rest` holds after a start and a pass over the
shelves; `terminal` holds after a round. Each returns what is wrong, in words; nothing is changed.

Packs are read with `tarfile`, manifests with pyarrow, digests with `hashlib`: a mistake of the store's own
readers is not repeated here.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq

from central_store.catalog import Catalog
from central_store.settings import Store
from facility_sync.home import Home
from facility_sync.ledger import Ledger
from schemas import container, envelope, keys, messages, ustar
from schemas.errors import SyncError
from schemas.names import PART_SUFFIX, BatchId

FIVE = ("manifest.parquet", "receipt.json", "receipt.json.sig", "statement.json", "statement.json.sig")
Open = Callable[[bytes], messages.Message]
"""Opens a reply of the store as its facility does, and checks its signature."""


def opener(home: Home) -> Open:
    """How the facility of this home opens a reply of its store."""

    def opened(sealed: bytes) -> messages.Message:
        plain = envelope.open_bytes(sealed, [home.age_identity], limit=1 << 20)
        tar = ustar.Reader(io.BytesIO(plain), limit=1 << 20)
        return container.read_head(tar, lambda _: home.store.signing_key).signed.message

    return opened


def promises(store: Store, signers: Mapping[str, str], openers: Mapping[str, Open]) -> list[str]:
    """What a store may not break even for a moment.

    Args:
        store: the store.
        signers: each facility's public key line.
        openers: how each facility opens what lies on its `out`.
    """
    return list(_promises(store, signers, openers))


def _promises(store: Store, signers: Mapping[str, str], openers: Mapping[str, Open]) -> Iterator[str]:
    layout = store.layout
    good = set()
    for facility, folder in accepted(store):
        wrong = list(_batch(store, folder, signers[facility]))
        yield from wrong
        if not wrong:
            good.add((facility, folder.name))
    for facility, opener in openers.items():
        for path in sorted((layout.shelves / facility / "out").glob("*.receipt")):
            try:
                message = opener(path.read_bytes())
            except SyncError as error:
                yield f"receipt {path.stem[:8]} on the shelf does not open: {error}"
                continue
            if not isinstance(message, messages.Receipt) or message.batch != path.stem:
                yield f"receipt {path.stem[:8]} on the shelf says something else"
            elif (facility, message.batch) not in good:
                yield f"receipt {path.stem[:8]} for a batch that is not there, or not right"


def accepted(store: Store) -> list[tuple[str, Path]]:
    """Facility and folder of every accepted batch."""
    return [
        (owner.name, folder)
        for owner in sorted(store.layout.manifests.iterdir())
        for folder in sorted(owner.iterdir())
    ]


def _batch(store: Store, folder: Path, signer: str) -> Iterator[str]:
    name = folder.name[:8]
    found = tuple(sorted(path.name for path in folder.iterdir()))
    if found != FIVE:
        yield f"batch {name} has the files {found}"
        return
    table = (folder / "manifest.parquet").read_bytes()
    if hashlib.sha256(table).hexdigest() != folder.name:
        yield f"batch {name}: the manifest is not what its name says"
        return
    try:
        for what, key in (("statement", signer), ("receipt", keys.ssh_line(store.keys.signing.public_key()))):
            data = (folder / f"{what}.json").read_bytes()
            container.verify(data, (folder / f"{what}.json.sig").read_text("ascii"), key)
    except (SyncError, UnicodeDecodeError) as error:
        yield f"batch {name}: {error}"
    rows = pq.read_table(folder / "manifest.parquet", columns=["object_sha256"]).column(0).to_pylist()
    pack = store.layout.packs / folder.name[:2] / f"{folder.name}.tar"
    try:
        with tarfile.open(pack, "r:") as tar:
            held = []
            for member in tar:
                if member.name.startswith("objects/"):
                    stream = tar.extractfile(member)
                    assert stream is not None
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
                    if digest != Path(member.name).name.split(".")[0]:
                        yield f"batch {name}: an object has other bytes"
                    held.append(digest)
    except (FileNotFoundError, tarfile.TarError) as error:
        yield f"batch {name}: its pack does not open: {type(error).__name__}"
        return
    if held != rows:
        yield f"batch {name}: its pack has {len(held)} objects, its manifest {len(rows)}"


def at_rest(store: Store, signers: Mapping[str, str], openers: Mapping[str, Open]) -> list[str]:
    """What holds beside the promises once a start and a pass are done; needs the catalog for itself."""
    return [*_promises(store, signers, openers), *_leftovers(store), *_catalog(store)]


def _leftovers(store: Store) -> Iterator[str]:
    layout = store.layout
    batches = {folder.name for _, folder in accepted(store)}
    for path in layout.packs.glob("*/*"):
        if path.suffix != ".tar" or path.stem not in batches:
            yield f"a pack of no batch: {path.name[:8]}"
    for path in layout.staging.iterdir():
        if path.name != "catalog":
            yield f"left in staging: {path.suffix}"
    for path in layout.damaged.glob("*.json"):
        if layout.pack(BatchId(path.stem)).exists():
            yield f"a notice of damage, and the pack is there: {path.stem[:8]}"
    if left := list(layout.journal.iterdir()):
        yield f"left in the journal: {len(left)}"
    for path in layout.root.rglob("*" + PART_SUFFIX):
        if path.parent.name not in ("in", "out"):  # those are swept by age, and nobody takes them for data
            yield f"left in {path.parent.relative_to(layout.root)}: a part"


def _catalog(store: Store) -> Iterator[str]:
    wanted = {}
    for _, folder in accepted(store):
        wanted[folder.name] = pq.read_metadata(folder / "manifest.parquet").num_rows
    with Catalog(store.layout, store.settings, rebuild=False) as catalog:
        found = {str(batch): count for batch, count in catalog.rows_of_batches().items()}
        doubles = catalog.row(
            "SELECT count(*) FROM (SELECT 1 FROM instances WHERE NOT duplicate "
            "GROUP BY facility, source_digest HAVING count(*) > 1)",
            {},
        )[0]
    if found != wanted:
        extra, missing = set(found) - set(wanted), set(wanted) - set(found)
        yield f"the catalog has {len(extra)} batches too many, {len(missing)} too few, or other counts"
    if doubles:
        yield f"{doubles} files are twice in the catalog"


def instances(store: Store) -> int:
    """Files the catalog knows: each once; needs the catalog for itself."""
    with Catalog(store.layout, store.settings, rebuild=False) as catalog:
        return int(catalog.row("SELECT count(*) FROM instances WHERE NOT duplicate", {})[0])


def terminal(home: Home, sources: list[Path], store: Store, listed: set[str]) -> list[str]:
    """Every file of a terminal is stored, provably, or was listed.

    Args:
        home: the terminal's home.
        sources: its source folders.
        store: the store it sends to.
        listed: paths the last round's report named as not stored, as they stand in it.
    """
    return list(_terminal(home, sources, store, listed))


def _terminal(home: Home, sources: list[Path], store: Store, listed: set[str]) -> Iterator[str]:
    there = {folder.name for facility, folder in accepted(store) if facility == home.settings.facility}
    ours = keys.ssh_line(store.keys.signing.public_key())
    proved = set()
    for path in sorted(home.receipts.glob("*.receipt.json")):
        try:
            container.verify(path.read_bytes(), path.with_name(path.name + ".sig").read_text("ascii"), ours)
        except (SyncError, OSError) as error:
            yield f"a receipt that does not hold: {error}"
            continue
        proved.add(path.name.split(".")[0])
    if lost := proved - there:
        yield f"{len(lost)} batches have a receipt and are not in the store"
    ledger = Ledger(home.ledger_path)
    try:
        for batch in ledger.batches("stored"):
            if batch.batch not in proved:
                yield f"batch {batch.batch[:8]} counts as stored without a receipt"
        for source in sources:
            for folder, files in _files(source):
                known = ledger.folder(str(source), folder)
                for name in files:
                    state = known[name].state if name in known else "unknown"
                    if state != "stored" and str(Path(folder, name)) not in listed:
                        yield f"a file is {state} and in no list"
    finally:
        ledger.close()


def _files(source: Path) -> Iterator[tuple[str, list[str]]]:
    """Folders below a source, as the ledger spells them, and the names of their files."""
    for folder in [source, *(path for path in sorted(source.rglob("*")) if path.is_dir())]:
        below = "" if folder == source else str(folder.relative_to(source))
        yield below, sorted(path.name for path in folder.iterdir() if path.is_file())
