"""One store's settings: `store.toml` under its root, and making a new store.

Guarantees: a store opens only if its layout is of the version this program writes, every key in
`store.toml` is known and within its range, and no secret key can be read by others; otherwise
`SettingsError` names the key or the file, relative to the root. `init` never touches an existing store: the
`format` file is written last and makes it one.

Leaves to others: the environment and the command line (`central_store.cli`).
"""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from central_store import audit
from central_store.layout import FORMAT, Layout
from central_store.secret_files import read_secret
from schemas import keys, names
from schemas.container import MAX_CONTENT
from schemas.envelope import sealed_size
from schemas.errors import FormatError, SettingsError
from schemas.messages import StoreCard
from schemas.transit import durable

LARGEST_MIB = -(-sealed_size(MAX_CONTENT, 64 * 1024) // (1 << 20))
"""The largest sealed batch there can be, in MiB."""


def _key(doc: str, low: int = 1, high: int = 2**31, **default: Any) -> Any:
    return field(metadata={"doc": doc, "low": low, "high": high}, **default)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an operator may set; the file's comments are derived from this table."""

    name: str = _key("The store's name, as it stands in receipts and on its card.")
    host: str = _key("The address terminals reach, written into the card; `fstore serve` listens on it.")
    port: int = _key("The port terminals reach.", 0, 65535)
    workers: int = _key("Processes that open and verify batches.", 1, 64, default=2)
    catalog_memory_mb: int = _key("Memory in MB the catalog may use for one statement.", 32, default=256)
    catalog_threads: int = _key("Threads the catalog may use for one statement.", 1, 256, default=2)
    publish_seconds: int = _key(
        "The catalog for auditors is at most about this old while the service runs, in seconds.",
        1, 86_400, default=60,
    )  # fmt: skip
    search_seconds: int = _key("A search that takes longer is refused, in seconds.", 1, 3600, default=30)
    sql_seconds: int = _key("A statement of SQL that runs longer is ended, in seconds.", 1, 3600, default=10)
    sql_memory_mb: int = _key("Memory in MB one statement of SQL may use.", 32, 65_536, default=256)
    sql_rows: int = _key("Most rows a statement of SQL may answer.", 1, 10_000_000, default=50_000)
    sql_mib: int = _key("Most MiB of rows a statement of SQL may answer.", 1, 60, default=16)
    sql_workers: int = _key("Statements of SQL that run at once, of different facilities.", 1, 64, default=2)
    offline_rows: int = _key(
        "1: a terminal's round brings the rows its facility may see, for `fsync query --offline`; 0: never.",
        0, 1, default=1,
    )  # fmt: skip
    look_seconds: int = _key("A full look at all shelves at least this often, in seconds.", default=2)
    answer_days: int = _key("Answers, receipts and refusals nobody fetched stay this many days.", default=14)
    quarantine_days: int = _key("What was refused stays in quarantine this many days.", default=30)
    quarantine_mib: int = _key(
        "Most MiB on the disk of what one facility sent and was refused.", default=1024
    )
    answers_mib: int = _key(
        "Most MiB of answers that wait for one facility; the oldest go first.", default=4096
    )
    part_hours: int = _key("An upload that stopped is removed after this many hours.", default=48)
    sessions: int = _key("SFTP connections at once.", 1, 10_000, default=160)
    facility_sessions: int = _key(
        "SFTP sessions at once of one facility; a round has two.", 1, 10_000, default=8
    )
    waiting_logins: int = _key("SFTP connections at once that have not logged in yet.", 1, 10_000, default=64)
    login_seconds: int = _key("Time from connecting to being logged in, in seconds.", 1, 600, default=20)
    idle_seconds: int = _key("A silent SFTP session ends after this many seconds.", 1, 86_400, default=600)
    packet_seconds: int = _key(
        "A client that needs longer for one SFTP packet (256 KiB at most) is dropped, in seconds.",
        1, 3600, default=60,
    )  # fmt: skip
    key_attempts: int = _key("Keys one SFTP connection may try.", 1, 100, default=6)
    failed_logins: int = _key("Failed logins after which an address has to pause.", default=30)
    pause_seconds: int = _key("How long such an address is refused, in seconds.", 1, 86_400, default=60)
    open_files: int = _key("Files one SFTP session may have open.", 4, 10_000, default=64)
    file_mib: int = _key("Largest file a facility may put on its shelf, in MiB.", default=LARGEST_MIB)
    shelf_mib: int = _key(
        "MiB that may wait on one facility's shelf; then it is told to come back later.", default=65_536
    )
    shelf_files: int = _key("Files that may wait on one facility's shelf.", default=20_000)
    replicate_seconds: int = _key("A peer is asked for news at least this often, in seconds.", default=60)
    replicate_streams: int = _key("SFTP connections to one peer.", 1, 16, default=2)
    replicate_kib_s: int = _key("Most KiB a second to and from one peer; 0: no limit.", 0, default=0)
    replicate_from_hour: int = _key(
        "Batches travel between peers from this hour, local time.", 0, 24, default=0
    )
    replicate_to_hour: int = _key(
        "… and until this one; before the first: over midnight. 0 and 24: always.", 0, 24, default=24
    )
    reserve_mib: int = _key("MiB of the shelves' disk that uploads leave free.", 0, default=512)


@dataclass(frozen=True)
class Keys:
    """A store's secret keys; never printed."""

    host: bytes = field(repr=False)
    """The SSH host key as an OpenSSH PEM file."""
    signing: Ed25519PrivateKey = field(repr=False)
    age_identity: str = field(repr=False)


@dataclass(frozen=True)
class Store:
    """An opened store: where it lies, how it is set, its keys."""

    layout: Layout
    settings: Settings
    keys: Keys

    @property
    def name(self) -> names.FacilityName:
        """The store's name, checked."""
        return names.facility_name(self.settings.name)

    def card(self) -> StoreCard:
        """What terminals must know of this store."""
        return StoreCard(
            store=self.name,
            host=self.settings.host,
            port=self.settings.port,
            host_key=keys.ssh_line(keys.load_private(self.keys.host).public_key()),
            signing_key=keys.ssh_line(self.keys.signing.public_key()),
            age_recipient=keys.recipient_of(self.keys.age_identity),
        )


def parse(text: str) -> Settings:
    """Settings from the text of a `store.toml`; raises `SettingsError` naming the key."""
    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError(f"store.toml is not TOML: {error}") from error
    known = {item.name: item for item in fields(Settings)}
    for name in found:
        if name not in known:
            raise SettingsError(f"store.toml has a key this program does not know: {name}")
    for name, item in known.items():
        if name not in found:
            if item.default is MISSING:
                raise SettingsError(f"store.toml lacks the key {name}")
            continue
        _check(name, found[name], item.type, item.metadata)
    settings = Settings(**found)
    try:
        names.facility_name(settings.name)
    except FormatError as error:
        raise SettingsError(f"store.toml, name: {error}") from error
    return settings


def _check(name: str, value: object, kind: object, bounds: Any) -> None:
    if kind == "str":
        if not isinstance(value, str) or not 0 < len(value) <= 255 or not value.isprintable():
            raise SettingsError(f"store.toml, {name}: this is not a text of 1 to 255 characters")
    elif type(value) is not int or not bounds["low"] <= value <= bounds["high"]:
        raise SettingsError(
            f"store.toml, {name}: this is not a number from {bounds['low']} to {bounds['high']}"
        )


def to_text(settings: Settings) -> str:
    """A `store.toml` with each key and what it means."""
    lines = []
    for item in fields(Settings):
        value = getattr(settings, item.name)
        shown = (
            str(value)
            if isinstance(value, int)
            else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        )
        lines.append(f"# {item.metadata['doc']}\n{item.name} = {shown}\n")
    return "\n".join(lines)


def init(root: Path, *, name: str, host: str, port: int) -> Store:
    """Make a new store; raises `SettingsError` if there is one, or a value is out of range."""
    layout = Layout(root)
    if layout.format.exists():
        raise SettingsError("there is a store already under this root")
    settings = parse(to_text(Settings(name=name, host=host, port=port)))
    for folder in layout.folders():
        durable.make_dirs(folder)
    secrets = {
        "host_key": keys.private_pem(Ed25519PrivateKey.generate()),
        "signing_key": keys.private_pem(Ed25519PrivateKey.generate()),
        "age_identity": keys.new_age_identity().encode("ascii") + b"\n",
    }
    for file, data in secrets.items():
        durable.publish(layout.key(file), data, mode=0o600, replace=True)
    durable.publish(layout.settings, to_text(settings).encode("utf-8"), mode=0o644, replace=True)
    audit.record(layout, "init", subject=settings.name, details=audit.operator(settings=asdict(settings)))
    durable.publish(layout.settings_logged, to_text(settings).encode("utf-8"), mode=0o644, replace=True)
    durable.publish(layout.format, FORMAT.encode("ascii"))
    return open_store(root)


def log_change(store: Store) -> None:
    """Write the settings into the audit log if they are others than those that stand there."""
    text, path = to_text(store.settings).encode("utf-8"), store.layout.settings_logged
    if not path.exists() or path.read_bytes() != text:
        audit.record(
            store.layout, "settings", subject=store.name,
            details=audit.operator(settings=asdict(store.settings)),
        )  # fmt: skip
        durable.publish(path, text, mode=0o644, replace=True)


def open_store(root: Path) -> Store:
    """Open an existing store; raises `SettingsError`."""
    layout = Layout(root)
    try:
        version = layout.format.read_bytes()
        text = layout.settings.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SettingsError(
            "there is no store under this root", hint="Make one: `fstore --root DIR init`."
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError("store.toml is not UTF-8") from error
    if version != FORMAT.encode("ascii"):
        raise SettingsError("this store's layout is of a version this program does not know")
    return Store(layout, parse(text), _keys(layout))


def _keys(layout: Layout) -> Keys:
    found = {
        name: read_secret(layout.key(name), name=f"keys/{name}")
        for name in ("host_key", "signing_key", "age_identity")
    }
    try:
        keys.load_private(found["host_key"])
        return Keys(
            found["host_key"],
            keys.load_private(found["signing_key"]),
            keys.age_identity(found["age_identity"].decode("ascii", "replace").strip()),
        )
    except FormatError as error:
        raise SettingsError(f"a file in keys/ holds no key: {error}") from error
