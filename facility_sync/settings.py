"""The terminal's settings: one TOML file to one frozen dataclass, checked once.

Guarantees: an unknown key, a wrong type or an impossible value is a `SettingsError` that names the key;
the file written is the file read back.

Leaves to others: where the file lies (`facility_sync.home`).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import tomli_w

from facility_sync.releases import Release
from schemas import names, terms
from schemas.container import BATCH_BYTES
from schemas.errors import FormatError, SettingsError

MIB = 1024 * 1024
MAX_CONSORTIA = 8
"""With its own domain a row then has 27 person tokens at most, and a manifest takes 32."""
MAX_STORES = 8
"""Every waiting batch is sealed for all of them."""
_DOMAIN_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a person may change; the text of each key is what `docs/terminals.md` prints."""

    facility: str = field(metadata={"text": "This facility's name, as the store enrolled it."})
    sources: tuple[str, ...] = field(
        default=(), metadata={"text": "Folders whose DICOM files are sent; `fsync source` edits this."}
    )
    ignore: tuple[str, ...] = field(
        default=(),
        metadata={
            "text": 'Names of files that are no images and are passed over, with wildcards: `["*.txt"]`.'
        },
    )
    stores: tuple[str, ...] = field(
        default=(),
        metadata={
            "text": "Names of the trusted stores in the order they are tried; `fsync trust` and "
            "`fsync store` edit this."
        },
    )
    store_host: str = field(
        default="",
        metadata={"text": "Address of the first store instead of its card's; empty: the card's."},
    )
    store_port: int = field(
        default=0, metadata={"text": "Port of the first store instead of its card's; 0: the card's."}
    )
    store_user: str = field(
        default="", metadata={"text": "Login name at the stores' SFTP servers; empty: the facility's name."}
    )
    settle_seconds: int = field(
        default=5, metadata={"text": "A file is taken when it has not changed for this long, in seconds."}
    )
    batch_mib: int = field(
        default=64, metadata={"text": "A batch is closed at about this much source data, in MiB (1 to 256)."}
    )
    workers: int = field(
        default=0, metadata={"text": "Processes that read and seal; 0: one for each processor core."}
    )
    receipt_wait_seconds: int = field(
        default=120,
        metadata={
            "text": "How long a round waits for the next receipt, or tries a broken line again, in seconds; "
            "what is left is the next round's."
        },
    )
    max_file_mib: int = field(
        default=8191, metadata={"text": "Largest file taken, in MiB (a tar member holds less than 8 GiB)."}
    )
    consortia: tuple[str, ...] = field(
        default=(),
        metadata={
            "text": "Ids of the consortium domains that may read this terminal's new images too, at most 8; "
            "`fsync domain join` and `leave` edit this."
        },
    )
    escrow_certificate: str = field(
        default="",
        metadata={
            "text": "PEM certificate of an RSA key that may open protected images too, kept elsewhere for "
            "the day every domain is lost; an absolute path. Empty: none."
        },
    )
    offline: bool = field(
        default=True,
        metadata={
            "text": "`true`: a round also brings the rows this terminal may see, for `fsync query --offline`."
        },
    )
    seal_all: bool = field(
        default=False,
        metadata={"text": "`true`: every new image is sealed whole, none becomes a protected DICOM file."},
    )
    seal_body_parts: tuple[str, ...] = field(
        default=(),
        metadata={
            "text": 'Body parts whose new images are sealed whole, as the standard spells them: `["HEAD"]`; '
            "images that name no body part then are, too."
        },
    )
    release: tuple[Release, ...] = field(
        default=(),
        metadata={
            "text": "Kinds of device that a person released: their pixels go to the store unsealed. "
            "`fsync release` edits this."
        },
    )
    menu: Mapping[str, Mapping[str, str]] = field(
        default_factory=dict,
        metadata={
            "text": "Site map: a description or protocol name as the modality writes it, to the "
            'photographing menu it means: `[menu."CT THORAX NATIV"]`, `code = "..."`, `meaning = "..."`.'
        },
    )

    def __post_init__(self) -> None:
        try:
            names.facility_name(self.facility)
        except FormatError as error:
            raise SettingsError(f"facility: {error}", hint="Choose another name.") from error
        for key, low, high in (
            ("store_port", 0, 65535),
            ("settle_seconds", 0, 86400),
            ("batch_mib", 1, BATCH_BYTES // MIB),
            ("workers", 0, 64),
            ("receipt_wait_seconds", 0, 86400),
            ("max_file_mib", 1, 8191),
        ):
            if not low <= getattr(self, key) <= high:
                raise SettingsError(f"{key} must lie between {low} and {high}", hint=_HINT)
        _check_stores(self.stores)
        if len(self.consortia) > MAX_CONSORTIA or len(set(self.consortia)) < len(self.consortia):
            raise SettingsError(f"consortia: at most {MAX_CONSORTIA}, each once", hint=_HINT)
        if not all(_DOMAIN_ID.fullmatch(item) for item in self.consortia):
            raise SettingsError("consortia: an id has 16 hexadecimal digits", hint=_HINT)
        if self.escrow_certificate and not Path(self.escrow_certificate).is_absolute():
            raise SettingsError("escrow_certificate is an absolute path", hint=_HINT)
        for part in self.seal_body_parts:
            if part not in terms.BODY_PARTS:
                raise SettingsError(
                    f"seal_body_parts: {part!r} is no body part of the standard",
                    hint="In capitals without blanks, as in DICOM PS3.16 annex L: HEAD, BRAIN, SKULL.",
                )
        for entry in self.menu.values():
            if not set(entry) <= {"code", "meaning"} or not entry.get("meaning"):
                raise SettingsError(
                    "menu: each entry has a `meaning`, and a `code` if there is one", hint=_HINT
                )


_HINT = "Edit settings.toml in the terminal's home."


def _check_stores(stores: tuple[str, ...]) -> None:
    if len(stores) > MAX_STORES or len(set(stores)) < len(stores):
        raise SettingsError(f"stores: at most {MAX_STORES}, each once", hint=_HINT)
    for store in stores:
        try:
            names.facility_name(store)
        except FormatError as error:
            raise SettingsError("stores: a store has a name like a facility's", hint=_HINT) from error


def parse(text: str) -> Settings:
    """Read settings; raises `SettingsError` with the key's name."""
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError("settings.toml is not TOML", hint=_HINT) from error
    known = {item.name: item for item in fields(Settings)}
    for key, value in values.items():
        if key not in known:
            raise SettingsError(f"settings.toml has a key this program does not know: {key}", hint=_HINT)
        _check_type(key, value)
    if "facility" not in values:
        raise SettingsError("settings.toml names no facility", hint="Run `fsync init --facility NAME`.")
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    given["release"] = tuple(Release(**entry) for entry in values.get("release", ()))
    return Settings(**given)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_releases(value: Any) -> bool:
    """Whether each is a table with the keys of a release, all texts; `note` may be missing."""
    known = {item.name for item in fields(Release)}
    return isinstance(value, list) and all(
        isinstance(item, dict)
        and known - {"note"} <= set(item) <= known
        and all(isinstance(text, str) for text in item.values())
        for item in value
    )


def _check_type(key: str, value: Any) -> None:
    right = {
        "sources": _is_texts(value),
        "ignore": _is_texts(value),
        "consortia": _is_texts(value),
        "stores": _is_texts(value),
        "seal_all": type(value) is bool,
        "offline": type(value) is bool,
        "seal_body_parts": _is_texts(value),
        "release": _is_releases(value),
        "menu": isinstance(value, dict)
        and all(
            isinstance(item, dict) and all(isinstance(v, str) for v in item.values())
            for item in value.values()
        ),
        "facility": isinstance(value, str),
        "store_host": isinstance(value, str),
        "store_user": isinstance(value, str),
        "escrow_certificate": isinstance(value, str),
    }.get(key, type(value) is int)
    if not right:
        raise SettingsError(f"{key} has a value of the wrong type", hint=_HINT)


def render(settings: Settings) -> str:
    """The TOML text of settings; `parse(render(s)) == s`."""
    values = asdict(settings)
    values["sources"] = list(settings.sources)
    return tomli_w.dumps(
        {key: value for key, value in values.items() if value not in ("", {}, 0, ())} | _zeros(values)
    )


def _zeros(values: dict[str, Any]) -> dict[str, Any]:
    """Keys whose zero, or false, differs from their default must be written."""
    return {
        item.name: values[item.name]
        for item in fields(Settings)
        if values[item.name] == 0 and item.default not in (0, ())
    }


def describe() -> list[tuple[str, str, str]]:
    """Key, default and meaning of every setting, for the docs."""
    rows = []
    for item in fields(Settings):
        default = "" if item.default.__class__.__name__ == "_MISSING_TYPE" else repr(item.default)
        rows.append((item.name, default, item.metadata["text"]))
    return rows


def absolute_source(folder: str) -> str:
    """A source as it is kept: absolute, links kept as the person wrote them."""
    return str(Path(folder).expanduser().absolute())
