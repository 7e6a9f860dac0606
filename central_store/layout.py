"""Where everything lies under a store's root; no other module spells a folder's name.

    format                                 one line: the version of this layout
    store.toml                             settings (`central_store.settings`)
    keys/                                  host_key  signing_key  age_identity, mode 0600
    facilities/<name>.json                 enrolled cards; former/ keeps replaced ones; via/ who brought them
    accounts/<facility>/<user>.json        password hashes, mode 0600
    guesses/<facility>.json                wrong passwords of late (`central_store.guesses`)
    grants/<owner>.<reader>.json           who may read whose rows
    objects/packs/<aa>/<batch-id>.tar      the batch as it came out of its seal      immutable
    manifests/<facility>/<batch-id>/       publishing this folder is the commit      immutable
    catalog/catalog.duckdb *.run *.sheet   derived: tables; look-ups and bundles beside them
    views/<facility>.duckdb .state .lock   rows for SQL from outside (`central_store.sql_rows`): derived
    catalog/published.duckdb  *.parquet    the same for readers (`central_store.publish`)
    shelves/<facility>/in, out             what that facility reaches
    quarantine/<facility>/                 what was refused, with the reason
    quarantine/_packs/                     damaged packs, with the reason; never removed by a program
    damaged/<batch-id>.json                batches whose pack is damaged: the notice their facility got
    erased/<facility>/<batch-id>.json      erased batches: the facility's tombstone, and our word about it
    quarantine/_erased/<batch-id>/         what is left of their bytes and rows, until the operator purges it
    catalog/traces                         rows were erased since the catalog was made
    changes.jsonl                          the change feed (`central_store.changes`): only ever added to
    checks/*.parquet                       what was read and compared, when, and how it came out
    audit/                                 who did what here, append-only (`central_store.audit`)
    peers/<name>/                          stores we replicate with (`central_store.peers`)
    log/                                   every receipt given here, in order (`central_store.receipt_log`)
    people/                                signed changes of people (`central_store.people`)
    journal/<batch-id>                     batches between commit and receipt
    staging/                               unfinished work: emptied at every start
    authorized_keys/<facility>             for OpenSSH in front (`fstore sshd-config`)
    lock                                   held by the one writing process

Guarantees: every path is built from ids that passed `schemas.names`. Leaves to others: making folders.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from schemas.names import BatchId, FacilityName, UserName

FORMAT = "facility-sync store 1\n"
"""Content of the `format` file; another content is a layout this program does not know."""


@dataclass(frozen=True)
class Layout:
    """The paths of one store.

    Args:
        root: the store's root folder.
    """

    root: Path

    @property
    def format(self) -> Path:
        """The version file, written last by `init`."""
        return self.root / "format"

    @property
    def settings(self) -> Path:
        """The settings file."""
        return self.root / "store.toml"

    @property
    def settings_logged(self) -> Path:
        """The settings that stand in the audit log."""
        return self.audit / "settings.toml"

    @property
    def lock(self) -> Path:
        """Locked by the process that writes."""
        return self.root / "lock"

    def key(self, name: str) -> Path:
        """A secret key: `host_key`, `signing_key` or `age_identity`."""
        return self.root / "keys" / name

    @property
    def facilities(self) -> Path:
        """Enrolled cards."""
        return self.root / "facilities"

    @property
    def former(self) -> Path:
        """Cards that were replaced: what their keys signed stays provable."""
        return self.facilities / "former"

    def card(self, facility: FacilityName) -> Path:
        """One facility's card."""
        return self.facilities / f"{facility}.json"

    def via(self, facility: FacilityName) -> Path:
        """Names the peer that brought a facility; there is none for one that was enrolled here."""
        return self.facilities / "via" / facility

    @property
    def authorized_keys(self) -> Path:
        """What OpenSSH reads at a login, one file for each facility; there only if it stands in front."""
        return self.root / "authorized_keys"

    @property
    def accounts(self) -> Path:
        """Accounts of all facilities."""
        return self.root / "accounts"

    def account(self, facility: FacilityName, user: UserName) -> Path:
        """One account."""
        return self.accounts / facility / f"{user}.json"

    def guesses(self, facility: FacilityName) -> Path:
        """A facility's wrong passwords of late."""
        return self.root / "guesses" / f"{facility}.json"

    @property
    def grants(self) -> Path:
        """Grants of all owners."""
        return self.root / "grants"

    def grant(self, owner: FacilityName, reader: FacilityName) -> Path:
        """One grant."""
        return self.grants / f"{owner}.{reader}.json"

    @property
    def packs(self) -> Path:
        """All packs, in up to 256 folders."""
        return self.root / "objects" / "packs"

    def pack(self, batch: BatchId) -> Path:
        """One batch's objects."""
        return self.packs / batch[:2] / f"{batch}.tar"

    @property
    def manifests(self) -> Path:
        """All committed batches."""
        return self.root / "manifests"

    def manifest(self, facility: FacilityName, batch: BatchId) -> Path:
        """One committed batch."""
        return self.manifests / facility / batch

    @property
    def catalog(self) -> Path:
        """The catalog's database file."""
        return self.root / "catalog" / "catalog.duckdb"

    @property
    def views(self) -> Path:
        """Rows by facility, for SQL from outside."""
        return self.root / "views"

    def view(self, facility: FacilityName) -> Path:
        """One facility's rows."""
        return self.views / f"{facility}.duckdb"

    def view_state(self, facility: FacilityName) -> Path:
        """What those rows were made of."""
        return self.views / f"{facility}.state"

    @property
    def changes(self) -> Path:
        """The change feed."""
        return self.root / "changes.jsonl"

    @property
    def published(self) -> Path:
        """The catalog for readers (`central_store.publish`)."""
        return self.catalog.with_name("published.duckdb")

    @property
    def shelves(self) -> Path:
        """All shelves."""
        return self.root / "shelves"

    def inbound(self, facility: FacilityName) -> Path:
        """What a facility put there for us."""
        return self.shelves / facility / "in"

    def outbound(self, facility: FacilityName) -> Path:
        """What we put there for a facility."""
        return self.shelves / facility / "out"

    def quarantine(self, facility: FacilityName) -> Path:
        """What a facility sent and we refused."""
        return self.root / "quarantine" / facility

    @property
    def set_aside(self) -> Path:
        """Damaged packs; no facility has a name that begins with `_`."""
        return self.root / "quarantine" / "_packs"

    @property
    def damaged(self) -> Path:
        """Notices of damaged batches."""
        return self.root / "damaged"

    def damage(self, batch: BatchId) -> Path:
        """The notice of one damaged batch; its signature beside it."""
        return self.damaged / f"{batch}.json"

    @property
    def erased(self) -> Path:
        """Tombstones, a folder for each facility (`central_store.tombstones`)."""
        return self.root / "erased"

    def tombstone(self, facility: FacilityName, batch: BatchId) -> Path:
        """The tombstone of one batch; its signature beside it."""
        return self.erased / facility / f"{batch}.json"

    def erasure(self, facility: FacilityName, batch: BatchId) -> Path:
        """Our word about an erased batch; its signature beside it."""
        return self.erased / facility / f"{batch}.erasure.json"

    def certificate(self, facility: FacilityName, batch: BatchId) -> Path:
        """Our word that its bytes are gone; its signature beside it."""
        return self.erased / facility / f"{batch}.certificate.json"

    def erased_bytes(self, batch: BatchId) -> Path:
        """What is left of an erased batch until it is purged."""
        return self.root / "quarantine" / "_erased" / batch

    @property
    def traces(self) -> Path:
        """Says that rows were erased from the catalog since it was made: its file may hold what they said."""
        return self.catalog.with_name("traces")

    @property
    def checks(self) -> Path:
        """Results of `fstore check --read-data`."""
        return self.root / "checks"

    @property
    def audit(self) -> Path:
        """The audit log."""
        return self.root / "audit"

    @property
    def peers(self) -> Path:
        """Stores we replicate with."""
        return self.root / "peers"

    def peer(self, name: FacilityName) -> Path:
        """What we know of one of them."""
        return self.peers / name

    @property
    def log(self) -> Path:
        """Every batch accepted here, in order."""
        return self.root / "log"

    @property
    def people(self) -> Path:
        """Changes of cards, accounts and grants, each signed by the store that made it."""
        return self.root / "people"

    @property
    def journal(self) -> Path:
        """Batches between commit and receipt."""
        return self.root / "journal"

    @property
    def staging(self) -> Path:
        """Unfinished work."""
        return self.root / "staging"

    def folders(self) -> tuple[Path, ...]:
        """Every folder a new store begins with; those of packs, up to 256, come with the packs."""
        return (
            self.root / "keys", self.former, self.accounts, self.grants, self.packs, self.manifests,
            self.catalog.parent, self.log, self.shelves, self.root / "quarantine", self.audit, self.journal,
            self.staging,
        )  # fmt: skip
