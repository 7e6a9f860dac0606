"""Domains over a real store: a consortium's members find each other's patients, and rotation loses none."""

from __future__ import annotations

import hashlib
from datetime import date
from pathlib import Path

import pydicom

from facility_sync import ask, exchange
from facility_sync.home import Home
from facility_sync.identity import domain_files
from tests.kit import images
from tests.kit.corpus import bundled
from tests.kit.site import PASSWORD, Done, Terminal, make_site
from tests.system.conftest import free_port

BORN = "19700501"
TODAY = date(2026, 11, 24)


def found(terminal: Terminal, **conditions: object) -> set[str]:
    """Facility and ID of the patients a search shows; `fsync query` without the start of a process."""
    home = Home(terminal.home)
    keyring = domain_files.load(home.domains)
    wanted = ask.conditions(ask.Question(**conditions), keyring, TODAY)  # type: ignore[arg-type]
    account = ask.Account(user="kimura", password=PASSWORD)
    with exchange.connect(home) as desk:
        answer = ask.search(desk, terminal.name, account, level="study", wanted=wanted, limit=100)
    rows = map(ask.Reader(keyring).readable, answer.rows)
    return {f"{row['facility']}: {row['patient_id']}" for row in rows}


def well(done: Done) -> Done:
    assert done.status == 0, done.err + done.out
    return done


def hand_on(giver: Terminal, taker: Terminal, name: str) -> None:
    """A domain from one terminal to another, sealed."""
    file = giver.site.folder / f"for-{taker.name}"
    well(giver("domain", "export", "--domain", name, "--to", taker.home / f"{taker.name}.card", file))
    well(taker("domain", "import", file))


def test_members_find_each_others_patients_over_every_rotation(tmp_path):
    site = make_site(tmp_path / "site", free_port())
    romaji, kana = (
        str(pydicom.dcmread(path).PatientName)
        for path in sorted(bundled())
        if path.name in ("chrH31.dcm", "chrH32.dcm")
    )
    assert "Yamada" in romaji
    assert "Yamada" not in kana
    person = {"PatientBirthDate": BORN, "PatientID": "77"}
    of_a, of_b = tmp_path / "of-a", tmp_path / "of-b"
    first = images.write(of_a, 1, PatientName=romaji, IssuerOfPatientID="A", **person)
    images.write(of_b, 2, PatientName=kana, IssuerOfPatientID="B", **person)
    a, b = site.terminal("clinic-a", of_a), site.terminal("hospital-b", of_b)
    for terminal in (a, b):
        terminal.settings(workers=1)
    with site.serving():
        well(site.store("grant", "clinic-a", "--to", "hospital-b"))
        well(site.store("grant", "hospital-b", "--to", "clinic-a"))
        well(a("domain", "create", "region"))
        well(a("sync"))

        # Without the key there is no hit, no name and no image.
        assert found(b, patient_id="77") == set()
        assert found(b, columns={"facility": ["clinic-a"]}) == {"clinic-a: (sealed: no key here)"}

        # Members find both ways of writing from either side, and tell equal IDs of two issuers apart.
        hand_on(a, b, "region")
        well(b("domain", "join", "region"))
        well(b("sync"))
        both = {"clinic-a: 77", "hospital-b: 77"}
        assert found(a, patient_name=romaji, birth_date=BORN) == both
        assert found(b, patient_name=kana, birth_date=BORN) == both
        assert found(b, patient_id="77") == both
        assert found(b, patient_id="77", issuer="A") == {"clinic-a: 77"}

        # A member reads bit for bit, without the facility's own domain.
        well(b.ask("fetch", "--facility", "clinic-a", "--to", tmp_path / "out"))
        (back,) = (tmp_path / "out").rglob("*.dcm")
        assert back.read_bytes() == first.read_bytes()

        # Both domains get new keys; what is stored is known even to a terminal that forgot.
        well(a("domain", "rotate"))
        well(a("domain", "rotate", "region"))
        for path in a.home.glob("ledger.sqlite3*"):
            path.unlink()
        images.write(of_a, 1, 2, PatientName=romaji, **(person | {"PatientID": "78"}))
        report = well(a("sync", "--json")).json
        assert (report["taken"], report["held"], report["stored"]) == (1, 1, 1)
        name = {"patient_name": kana, "birth_date": BORN}
        assert found(a, **name) == both | {"clinic-a: 78"}
        assert found(b, **name) == both
        hand_on(a, b, "region")
        assert found(b, **name) == both | {"clinic-a: 78"}
        well(a.ask("fetch", "--facility", "clinic-a", "--to", tmp_path / "all"))
        assert digests(tmp_path / "all") == digests(of_a)

        # Who left seals for itself alone, and still reads.
        well(b("domain", "leave", "region"))
        images.write(of_b, 2, 2, PatientID="79")
        well(b("sync"))
        assert found(a, patient_id="79") == set()
        assert found(b, patient_id="79") == {"hospital-b: 79"}
        assert found(b, patient_id="78") == {"clinic-a: 78"}


def digests(folder: Path) -> set[bytes]:
    return {hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*.dcm")}
