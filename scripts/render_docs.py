#!/usr/bin/env python3
"""Write the tables of the docs from the code they speak of; with --check only say whether they agree.

scripts/render_docs.py            rewrite what stands between `<!-- name:begin -->` and `<!-- name:end -->`
scripts/render_docs.py --check    leave with 1 if anything would change
"""

from __future__ import annotations

import base64
import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pydicom.datadict import dictionary_description, dictionary_has_tag, dictionary_VR, tag_for_keyword

from central_store import audit_kit
from central_store.audit_events import KINDS
from central_store.check import CODES
from central_store.replies import REASONS as STORE_REASONS
from central_store.settings import Settings as StoreSettings
from central_store.sql_rules import FUNCTIONS, TABLE_FUNCTIONS
from facility_sync import reasons, restore, settings
from facility_sync.identity import decide, profile, protect
from facility_sync.identity.dictionary import HEADERS
from schemas import columns, erasure_messages, extract, messages, views
from schemas.errors import EXIT_CODES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "schemas/FORMAT.md", "docs/terminals.md", "docs/sql.md", "docs/stores.md", "docs/security.md",
    "docs/auditors.md",
    "docs/erasing.md",
]  # fmt: skip


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def message_table() -> str:
    rows = []
    for kind in messages.Message.__subclasses__():
        fields = ", ".join(f"`{item.name}`" for item in dataclasses.fields(kind))
        says = " ".join((kind.__doc__ or "").split())
        rows.append([f"`{kind.TYPE}`", says, fields])
    return table(["type", "says", "fields, beside `type` and `version`"], rows)


def column_table() -> str:
    rows = [
        [
            f"`{c.name}`",
            columns.duckdb_type(c).lower() + ("" if c.required else ", may be null"),
            c.keyword,
            c.level,
            c.meaning,
        ]
        for c in columns.COLUMNS
    ]
    return table(["column", "type", "DICOM keyword", "of", "meaning"], rows)


def view_table() -> str:
    parts = []
    for name, found in views.VIEWS.items():
        rows = [[f"`{c.name}`", c.type.lower(), c.meaning] for c in found]
        parts.append(f"`{name}`:\n\n" + table(["column", "type", "meaning"], rows))
    return "\n\n".join(parts)


def sql_functions() -> str:
    named = sorted(name for name in FUNCTIONS | TABLE_FUNCTIONS if name.isidentifier())
    return ", ".join(f"`{name}`" for name in named)


def reason_table(source: dict[str, tuple[str, str]]) -> str:
    return table(["reason", "meaning", "next step"], [[f"`{code}`", *text] for code, text in source.items()])


def plain_table(heads: list[str], source: dict[str, str]) -> str:
    return table(heads, [[f"`{code}`", text] for code, text in source.items()])


def store_settings_table() -> str:
    rows = []
    for item in dataclasses.fields(StoreSettings):
        default = "" if item.default is dataclasses.MISSING else f"`{item.default}`"
        rows.append([f"`{item.name}`", default, item.metadata["doc"]])
    return table(["key", "default", "meaning"], rows)


def dictionary() -> str:
    """The dictionary of the capsules, for whoever opens one without this program."""
    text = base64.b64encode(HEADERS).decode("ascii")
    return "\n".join(["```base64", *(text[i : i + 100] for i in range(0, len(text), 100)), "```"])


BECOMES = {
    "keep": "kept",
    "remove": "removed",
    "empty": "emptied",
    "dummy": "replaced by a value that says nothing",
}

ASKED = {
    "who it is": "PatientName PatientID IssuerOfPatientID OtherPatientIDs OtherPatientNames PatientBirthDate "
    "PatientBirthName PatientMotherBirthName PatientAddress PatientTelephoneNumbers ResponsiblePerson",
    "about the patient": "PatientSex PatientAge PatientSize PatientWeight EthnicGroup Occupation "
    "PregnancyStatus MedicalAlerts Allergies AdditionalPatientHistory PatientComments",
    "the visit": "AccessionNumber StudyID AdmissionID RequestedProcedureID CurrentPatientLocation",
    "staff": "ReferringPhysicianName PerformingPhysicianName OperatorsName RequestingPhysician "
    "VerifyingObserverName ContentCreatorName",
    "texts": "StudyDescription SeriesDescription ProtocolName ImageComments ReasonForStudy TextValue "
    "UnformattedTextValue",
    "where": "InstitutionName InstitutionAddress InstitutionalDepartmentName StationName",
    "device": "Manufacturer ManufacturerModelName DeviceSerialNumber SoftwareVersions",
    "when": "StudyDate StudyTime SeriesDate AcquisitionDateTime ContentTime",
    "UIDs": "StudyInstanceUID SeriesInstanceUID SOPInstanceUID ReferencedSOPInstanceUID FrameOfReferenceUID",
    "menu": "Modality BodyPartExamined ViewPosition ProcedureCodeSequence PerformedProtocolCodeSequence",
    "the image": "ImageType Rows KVP SliceThickness ImageOrientationPatient",
    "other": "IconImageSequence GraphicAnnotationSequence ContentSequence OriginalAttributesSequence "
    "DigitalSignaturesSequence",
}
"""Attributes of which people ask what becomes of them."""


def profile_counts() -> str:
    kept: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for tag in profile.single():
        vr = dictionary_VR(tag) if dictionary_has_tag(tag) else ""
        done = profile.action(tag, vr).value
        if done == "keep":
            kept.update(profile.reason(tag, vr).removeprefix("kept: ").split(", "))
        others[done] += 1
    options = ", ".join(f"{name} {count}" for name, count in kept.most_common())
    why = {"keep": f"by the options, some by two: {options}"}
    rows = [[text, str(others[done]), why.get(done, "")] for done, text in BECOMES.items()]
    return table(["what becomes of them", "attributes", ""], rows)


def profile_attributes() -> str:
    rows = []
    for topic, keywords in ASKED.items():
        found: dict[str, list[str]] = {text: [] for text in ("a token", *BECOMES.values())}
        for keyword in keywords.split():
            tag = tag_for_keyword(keyword)
            assert tag is not None, keyword
            done = BECOMES[profile.action(tag, dictionary_VR(tag)).value]
            found["a token" if tag in protect.TOKENS else done].append(dictionary_description(tag))
        rows.append(
            [topic, "; ".join(f"{text}: {', '.join(names)}" for text, names in found.items() if names)]
        )
    return table(["about", "what becomes of it"], rows)


def cookbook() -> str:
    """Every question and its SQL; the first lines are the question."""
    parts = []
    for name, text in audit_kit.questions():
        lines = text.splitlines()
        asked = [line.removeprefix("-- ") for line in lines if line.startswith("-- ")]
        sql = "\n".join(line for line in lines if not line.startswith("-- "))
        parts.append(f"**{name.removesuffix('.sql')}.** {' '.join(asked)}\n\n```sql\n{sql}\n```\n")
    return "\n" + "\n".join(parts)


TABLES: dict[str, Callable[[], str]] = {
    "messages": message_table,
    "erasure-reasons": lambda: plain_table(["reason", "meaning"], erasure_messages.REASONS),
    "columns": column_table,
    "views": view_table,
    "sql-functions": sql_functions,
    "dictionary": dictionary,
    "exit-codes": lambda: table(["status", "name", "meaning"], [[str(c), n, t] for c, n, t in EXIT_CODES]),
    "reasons": lambda: reason_table(reasons.CAPTURE | reasons.ROUND),
    "prune-reasons": lambda: plain_table(["reason", "meaning"], reasons.PRUNE),
    "flags": lambda: plain_table(["flag", "meaning"], extract.FLAGS),
    "profile-counts": profile_counts,
    "profile-attributes": profile_attributes,
    "decide-reasons": lambda: plain_table(["reason", "meaning"], decide.REASONS),
    "restore-reasons": lambda: plain_table(["reason", "meaning"], restore.REASONS),
    "store-reasons": lambda: plain_table(["reason", "meaning"], STORE_REASONS),
    "store-settings": store_settings_table,
    "audit-kinds": lambda: plain_table(["kind", "meaning"], KINDS),
    "audit-views": lambda: f"\n```sql\n{audit_kit.source('views.sql')}```\n",
    "cookbook": cookbook,
    "check-codes": lambda: plain_table(["code", "meaning"], CODES),
    "settings": lambda: table(
        ["key", "default", "meaning"],
        [[f"`{k}`", f"`{d}`" if d else "", t] for k, d, t in settings.describe()],
    ),
}


def rendered(text: str) -> str:
    for name, make in TABLES.items():
        mark = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if mark.search(text):
            made = make()
            text = mark.sub(lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text)  # type: ignore[misc]
    return text


def main() -> int:
    changed = []
    for page in PAGES:
        path = ROOT / page
        before = path.read_text("utf-8")
        after = rendered(before)
        if after != before:
            changed.append(page)
            if "--check" not in sys.argv:
                path.write_text(after, "utf-8")
    print(
        "\n".join(
            f"{page} {'differs from the code' if '--check' in sys.argv else 'written'}" for page in changed
        )
    )
    return 1 if changed and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
