"""The terminal's home: one folder with its keys, card, settings, ledger and outbox.

    settings.toml         what a person may change
    FACILITY.card         this terminal's public card
    stores/NAME.card      the stores it trusts and where to dial them; the settings have their order
    keys/ssh  keys/age    login and signing; receiving            mode 0600, looser is refused
    domains/              who may read identities                 mode 0600
    ledger.sqlite3        what was seen, packed, sent, stored     an index: can be rebuilt by a round
    outbox/               sealed batches on their way
    receipts/             every receipt, verifiable with `ssh-keygen -Y verify`
    replicas/NAME/        the receipts further stores gave for the same batches
    checkpoints/STORE/    checkpoints of the store's audit log, signed by it
    offline/              the rows this terminal may see, for questions with the line down    mode 0600
    erased/               the tombstones this terminal signed, and what the stores said of them
    pruned.jsonl          every local file that was deleted because it is stored
    releases.log          who released which kind of device, and who took it back
    staging/              work of one round; wiped when a round begins

A home of the first version has one `store.card` beside these; it is read as the only store until
`fsync trust` or `fsync store` rewrites the list. A card is published before the settings that name it.

Guarantees: a secret is created with mode 0600 and never read with a looser one; one round at a time.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from facility_sync import settings as settings_file
from facility_sync.secret_files import read_secret
from facility_sync.settings import Settings
from schemas import keys, messages, names
from schemas.errors import Busy, FormatError, SettingsError
from schemas.transit import durable


@dataclass(frozen=True)
class Home:
    """A terminal's home folder; nothing is read before it is asked for."""

    root: Path

    @cached_property
    def settings(self) -> Settings:
        """The settings; raises `SettingsError` when there is no terminal here."""
        try:
            text = self.settings_path.read_text("utf-8")
        except FileNotFoundError as error:
            raise SettingsError(
                "there is no terminal in this home yet", hint="Run `fsync init --facility NAME`."
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                "settings.toml cannot be read", hint="Check its owner and content."
            ) from error
        return settings_file.parse(text)

    def save(self, settings: Settings) -> None:
        """Replace the settings file as a whole."""
        durable.publish(self.settings_path, settings_file.render(settings).encode(), mode=0o600, replace=True)
        for name in ("settings", "stores"):
            self.__dict__.pop(name, None)

    @property
    def settings_path(self) -> Path:
        """The one file a person edits."""
        return self.root / "settings.toml"

    @property
    def ledger_path(self) -> Path:
        """The ledger's database."""
        return self.root / "ledger.sqlite3"

    @property
    def outbox(self) -> Path:
        """Sealed batches on their way."""
        return self.root / "outbox"

    @property
    def receipts(self) -> Path:
        """Receipts, one pair of files each."""
        return self.root / "receipts"

    @property
    def replicas(self) -> Path:
        """Receipts of further stores, a folder for each."""
        return self.root / "replicas"

    @property
    def erased(self) -> Path:
        """Tombstones, a folder for each (`facility_sync.tombstones`)."""
        return self.root / "erased"

    @property
    def offline(self) -> Path:
        """Rows for questions with the line down (`facility_sync.kept_rows`)."""
        return self.root / "offline"

    @property
    def staging(self) -> Path:
        """Scratch space of the running round."""
        return self.root / "staging"

    @property
    def domains(self) -> Path:
        """Domain files."""
        return self.root / "domains"

    @cached_property
    def ssh_key(self) -> Ed25519PrivateKey:
        """The key for login and signing."""
        return keys.load_private(read_secret(self.root / "keys" / "ssh"))

    @cached_property
    def age_identity(self) -> str:
        """The key answers are sealed for."""
        return keys.age_identity(read_secret(self.root / "keys" / "age").decode("ascii", "replace").strip())

    @cached_property
    def stores(self) -> tuple[messages.StoreCard, ...]:
        """The cards of the trusted stores in the order they are tried; the first has the settings' address.

        Raises:
            SettingsError: none is trusted, or a card is gone.
        """
        settings = self.settings
        paths = [self._store_card(name) for name in settings.stores] or [self.root / "store.card"]
        try:
            first, *rest = (messages.StoreCard.from_bytes(path.read_bytes().rstrip(b"\n")) for path in paths)
        except FileNotFoundError as error:
            raise SettingsError(
                "a trusted store's card is gone" if settings.stores else "this terminal trusts no store yet",
                hint="Get the store's card and run `fsync trust CARD`.",
            ) from error
        host, port = settings.store_host or first.host, settings.store_port or first.port
        return replace(first, host=host, port=port), *rest

    @property
    def store(self) -> messages.StoreCard:
        """The first trusted store's card; raises `SettingsError` when none is trusted."""
        return self.stores[0]

    def chosen(self, only: str = "") -> tuple[messages.StoreCard, ...]:
        """The stores to try: all, or the one named; raises `SettingsError` if that is not trusted."""
        found = tuple(card for card in self.stores if only in ("", card.store))
        if not found:
            raise SettingsError("this terminal trusts no store of that name", hint="See `fsync store list`.")
        return found

    def _store_card(self, name: str) -> Path:
        return self.root / "stores" / f"{names.facility_name(name)}.card"

    def card(self) -> messages.FacilityCard:
        """This terminal's public card."""
        return messages.FacilityCard(
            facility=self.settings.facility,  # type: ignore[arg-type]  # checked by the message
            ssh_key=keys.ssh_line(self.ssh_key.public_key()),
            age_recipient=keys.recipient_of(self.age_identity),
        )

    def create(self, facility: str) -> Path:
        """Make keys, settings and card; returns the card's path.

        Raises:
            SettingsError: there is a terminal here already.
        """
        if self.settings_path.exists():
            raise SettingsError(
                "there is a terminal in this home already",
                hint="Use another --home, or keep this one: its keys cannot be made again.",
            )
        settings = Settings(facility=facility)
        for folder in (self.root / "keys", self.outbox, self.receipts, self.domains):
            durable.make_dirs(folder)
        self.root.chmod(0o700)
        ssh, age = Ed25519PrivateKey.generate(), keys.new_age_identity()
        durable.publish(self.root / "keys" / "ssh", keys.private_pem(ssh), mode=0o600, replace=True)
        durable.publish(self.root / "keys" / "age", f"{age}\n".encode(), mode=0o600, replace=True)
        self.save(settings)
        path = self.root / f"{facility}.card"
        durable.publish(path, self.card().to_bytes() + b"\n", replace=True)
        return path

    def trust(self, card: bytes, host: str = "", port: int = 0) -> messages.StoreCard:
        """Pin a store behind those that are trusted, or take a known one's new card; returns it as kept.

        Args:
            card: the store's card.
            host: address to dial instead of the card's.
            port: port to dial instead of the card's.

        Raises:
            SettingsError: this is not a store's card, or it is a known store's under another name.
        """
        try:
            given = messages.StoreCard.from_bytes(card.rstrip(b"\n"))
        except FormatError as error:
            raise SettingsError(
                "this is not a store's card",
                hint="Get the file again: `fstore card > store.card` at the store.",
            ) from error
        given = replace(given, host=host or given.host, port=port or given.port)
        known = self.stores if self.settings.stores or (self.root / "store.card").exists() else ()
        for other in known:
            if other.store != given.store and other.signing_key == given.signing_key:
                raise SettingsError(
                    f"this is the key of {other.store}", hint=f"`fsync store forget {other.store}` first."
                )
        new = () if given.store in {item.store for item in known} else (given,)
        self._keep_stores((*(given if item.store == given.store else item for item in known), *new))
        return given

    def put_first(self, name: str) -> None:
        """Try this store before the others; raises `SettingsError` if it is not trusted."""
        (first,) = self.chosen(name)
        self._keep_stores((first, *(card for card in self.stores if card.store != name)))

    def forget(self, name: str) -> None:
        """Trust a store no longer; raises `SettingsError` if it is not trusted, or the only one."""
        self.chosen(name)
        rest = tuple(card for card in self.stores if card.store != name)
        if not rest:
            raise SettingsError("it is the only store of this terminal", hint="Trust another one first.")
        self._keep_stores(rest)
        durable.remove(self._store_card(name))

    def _keep_stores(self, cards: tuple[messages.StoreCard, ...]) -> None:
        durable.make_dirs(self.root / "stores")
        for card in cards:
            durable.publish(self._store_card(card.store), card.to_bytes() + b"\n", replace=True)
        order = tuple(card.store for card in cards)
        self.save(replace(self.settings, stores=order, store_host="", store_port=0))
        durable.remove(self.root / "store.card")

    @contextmanager
    def only_round(self) -> Iterator[None]:
        """Hold the right to run a round; raises `Busy` when another process does."""
        with (self.root / "round.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy("another round is running in this home") from error
            yield  # the lock goes with the file: a killed process leaves none behind
