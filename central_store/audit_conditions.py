"""What of a search's conditions is written into the audit log: all that cannot be an identity. Pure.

    {"patient_id_tokens": ["1M5…"], "study_date": ["2026-11-01..2026-11-24"], "modality": ["CT"], "menu": 1}

Of each column the values, if every one has a form that no name, number of a patient or password has: a
token, a UID, a SHA-256, a date, a modality of the standard, an enrolled facility. Otherwise, and when there
are more than `MOST`, how many values there were: people write names into fields for something else.

Guarantees: whatever was asked, no text somebody typed comes out, unless it has one of these forms.

Leaves to others: writing the event (`central_store.requests`), showing it (`central_store.audit_answers`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from schemas import columns

MOST = 100
"""Most values of a column that are written down."""

MODALITIES = frozenset(
    "AR AS AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL "
    "IVOCT IVUS KER KO LEN LS M3D MG MR NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT "
    "PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF "
    "STAIN TEXTUREMAP TG US VA XA XAPROTOCOL XC".split()
)
"""Defined terms of Modality (0008,0060), PS3.3 C.7.3.1.1.1."""

_SHAPE = r"[0-9A-Z][A-Z2-7]{26}"  # of a token
_FORMS: dict[str, re.Pattern[str]] = {
    "token": re.compile(_SHAPE, re.ASCII),
    "uid": re.compile(r"[0-2](\.(0|[1-9][0-9]*)){3,31}", re.ASCII),
    "date": re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})?\.\.([0-9]{4}-[0-9]{2}-[0-9]{2})?", re.ASCII),
    "exact": re.compile(r"[0-9a-f]{64}", re.ASCII),
}


def conditions(asked: Mapping[str, Sequence[str]], facilities: Collection[str]) -> dict[str, list[str] | int]:
    """The conditions of a search as the log has them.

    Args:
        asked: columns and values, as `query.build` took them.
        facilities: names that may stand there: those whose rows the asker may see.
    """
    return {name: _written(name, values, facilities) for name, values in asked.items()}


def tokens(sql: str) -> list[str]:
    """The tokens in a statement of SQL, each once, `MOST` at most."""
    return list(dict.fromkeys(re.findall(rf"'({_SHAPE})'", sql)))[:MOST]


def counts(written: Mapping[str, list[str] | int]) -> dict[str, int]:
    """The same without any value: what those see whose rows were looked at."""
    return {name: what if isinstance(what, int) else len(what) for name, what in written.items()}


def _written(name: str, values: Sequence[str], facilities: Collection[str]) -> list[str] | int:
    form = _FORMS.get(columns.by_name[name].search)

    def plain(value: str) -> bool:
        if name == "facility":
            return value in facilities
        if name == "modality":
            return value in MODALITIES
        return form is not None and bool(form.fullmatch(value))

    return list(values) if len(values) <= MOST and all(map(plain, values)) else len(values)
