"""Settings, keys, enrolment, accounts, grants: files are the truth, and wrong ones are named."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from central_store import accounts, facilities, grants, inbox, settings
from central_store.accounts import Doorman
from schemas import names
from schemas.errors import AccessDenied, SettingsError
from tests.central_store.conftest import PASSWORD, Place
from tests.kit.batches import Facility

A, B = names.facility_name("clinic-a"), names.facility_name("hospital_b")
USER = names.user_name("user.clinic-a")


# -- settings and keys -----------------------------------------------------------------------------


def test_settings_come_back_as_they_were_written() -> None:
    made = settings.Settings(name="central", host='odd "host"\\', port=0, workers=3)
    text = settings.to_text(made)
    assert settings.parse(text) == made
    assert all(f"\n{field} = " in "\n" + text for field in settings.Settings.__dataclass_fields__)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nonsense", "store.toml"),
        ('name = "a"\nport = 1\n', "host"),
        ('name = "a"\nhost = "h"\nport = 1\ncolour = 1\n', "colour"),
        ('name = "a"\nhost = "h"\nport = 70000\n', "port"),
        ('name = "a"\nhost = "h"\nport = true\n', "port"),
        ('name = "a"\nhost = "h"\nport = "1"\n', "port"),
        ('name = "a"\nhost = ""\nport = 1\n', "host"),
        ('name = "../a"\nhost = "h"\nport = 1\n', "name"),
        ('name = "a"\nhost = "h"\nport = 1\nworkers = 0\n', "workers"),
        ("name = " + "[" * 9000, "store.toml"),
    ],
)
def test_a_wrong_setting_is_named(text: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        settings.parse(text)


def test_a_store_is_made_once(place: Place, tmp_path: Path) -> None:
    before = place.store.layout.key("signing_key").read_bytes()
    with pytest.raises(SettingsError, match="already"):
        settings.init(place.root, name="other", host="h", port=1)
    assert place.store.layout.key("signing_key").read_bytes() == before
    with pytest.raises(SettingsError, match="no store"):
        settings.open_store(tmp_path / "nowhere")
    (place.root / "format").unlink()
    (place.root / "format").write_text("facility-sync store 2\n")
    with pytest.raises(SettingsError, match="version"):
        settings.open_store(place.root)


def test_an_init_that_was_cut_off_can_be_done_again(place: Place) -> None:
    (place.root / "format").unlink()
    again = settings.init(place.root, name="central", host="h", port=1)
    assert settings.open_store(place.root).card() == again.card()


@pytest.mark.parametrize("name", ["host_key", "signing_key", "age_identity"])
def test_a_key_others_can_read_is_refused(place: Place, name: str) -> None:
    place.store.layout.key(name).chmod(0o640)
    with pytest.raises(SettingsError, match=f"keys/{name} can be read by others") as refused:
        settings.open_store(place.root)
    assert str(place.root) not in str(refused.value)
    place.store.layout.key(name).chmod(0o600)
    place.store.layout.key(name).write_bytes(b"no key")
    with pytest.raises(SettingsError, match="no key"):
        settings.open_store(place.root)


# -- enrolment -------------------------------------------------------------------------------------


def test_a_name_keeps_its_key_unless_it_is_replaced_on_purpose(place: Place) -> None:
    layout = place.store.layout
    facilities.enrol(layout, place.a.card)
    new = Facility("clinic-a").card
    with pytest.raises(SettingsError, match="another key"):
        facilities.enrol(layout, new)
    assert facilities.load(layout, A) == place.a.card
    facilities.enrol(layout, new, replace_key=True)
    assert facilities.load(layout, A) == new
    assert facilities.signers(layout, A) == (new.ssh_key, place.a.card.ssh_key)


def test_names_that_differ_only_in_letter_case_are_refused(place: Place) -> None:
    with pytest.raises(SettingsError, match="letter case"):
        facilities.enrol(place.store.layout, Facility("Clinic-A").card)
    assert facilities.enrolled(place.store.layout) == (A, B)


def test_a_key_of_a_facility_whose_name_begins_alike_is_no_signer(place: Place) -> None:
    layout = place.store.layout
    longer = Facility("clinic-a-2")
    facilities.enrol(layout, longer.card)
    facilities.enrol(layout, Facility("clinic-a-2").card, replace_key=True)
    assert facilities.signers(layout, A) == (place.a.card.ssh_key,)


def test_a_card_that_lies_under_another_name_is_refused(place: Place) -> None:
    path = place.store.layout.card(A)
    path.unlink()
    path.write_bytes(place.b.card.to_bytes())
    with pytest.raises(SettingsError, match="another facility's card"):
        facilities.load(place.store.layout, A)


# -- accounts --------------------------------------------------------------------------------------


def test_a_password_is_kept_as_argon2id_in_a_file_nobody_else_reads(place: Place) -> None:
    path = place.store.layout.account(A, USER)
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert "$argon2id$v=19$m=65536,t=3,p=4$" in text
    assert PASSWORD not in text
    path.chmod(0o644)
    with pytest.raises(SettingsError, match="can be read by others"):
        accounts.load(place.store.layout, A, USER)


def test_a_password_counts_in_any_composition_of_its_letters(place: Place) -> None:
    accounts.add(place.store.layout, USER, A, "gr\u00fcn-gr\u00fcn")
    doorman = Doorman(place.store.layout, lambda: 0.0)
    doorman.check(A, USER, "gru\u0308n-gru\u0308n", 0.0)


def test_a_changed_password_counts_at_once_though_the_old_one_was_remembered(place: Place) -> None:
    now = [0.0]
    doorman = Doorman(place.store.layout, lambda: now[0])
    doorman.check(A, USER, PASSWORD, 0.0)
    started = time.process_time()
    doorman.check(A, USER, PASSWORD, 0.0)
    assert time.process_time() - started < 0.02, "remembered"
    accounts.add(place.store.layout, USER, A, "another password")
    with pytest.raises(AccessDenied):
        doorman.check(A, USER, PASSWORD, 0.0)
    doorman.check(A, USER, "another password", 0.0)
    accounts.remove(place.store.layout, A, USER)
    with pytest.raises(AccessDenied):
        doorman.check(A, USER, "another password", 0.0)


def test_an_unknown_user_costs_what_a_wrong_password_costs(place: Place) -> None:
    doorman = Doorman(place.store.layout, lambda: 0.0)

    def cost(user: str) -> float:
        best = 1e9
        for number in range(3):
            started = time.process_time()
            with pytest.raises(AccessDenied):
                doorman.check(A, names.user_name(user), f"wrong {number}", 0.0)
            best = min(best, time.process_time() - started)
        return best

    known, unknown = cost("user.clinic-a"), cost("nobody")
    assert min(known, unknown) > 0.01, "Argon2id ran"
    assert max(known, unknown) < 2 * min(known, unknown)


@pytest.mark.parametrize(
    "add",
    [
        lambda layout: accounts.add(layout, USER, names.facility_name("nowhere"), PASSWORD),
        lambda layout: accounts.add(layout, names.user_name("User.clinic-a"), A, PASSWORD),
        lambda layout: accounts.add(layout, USER, A, ""),
        lambda layout: grants.give(layout, A, A),
        lambda layout: grants.give(layout, A, names.facility_name("nowhere")),
    ],
)
def test_what_makes_no_sense_is_refused(place: Place, add: Callable[[object], object]) -> None:
    with pytest.raises(SettingsError):
        add(place.store.layout)


def test_grants_are_given_and_taken_any_number_of_times(place: Place) -> None:
    layout = place.store.layout
    assert grants.give(layout, A, B) == grants.give(layout, A, B)
    assert grants.given(layout) == ((A, B),)
    assert grants.revoke(layout, A, B)
    assert not grants.revoke(layout, A, B)
    assert grants.given(layout) == ()


# -- sweeping --------------------------------------------------------------------------------------


def test_what_nobody_fetched_goes_by_age(place: Place) -> None:
    import os

    layout, day = place.store.layout, 86400.0
    now = 1_000 * day
    ages = {
        layout.outbound(A) / "old.answer": 20, layout.outbound(A) / "new.answer": 1,
        layout.quarantine(A) / "old.reason": 40, layout.quarantine(A) / "new.reason": 20,
        layout.quarantine(A) / "old.refused": -99, layout.quarantine(A) / "new.refused": 999,
        layout.inbound(A) / "old.batch.part": 3, layout.inbound(A) / "new.batch.part": 1,
        layout.inbound(A) / f"{'0' * 64}.batch": 400,
    }  # fmt: skip
    for path, age in ages.items():
        path.write_bytes(b"x")
        os.utime(path, (now - age * day,) * 2)
    swept = inbox.sweep(layout, A, answers=14 * day, refused=30 * day, parts=2 * day, now=now)
    assert swept == 3
    assert {path.name for path in ages if path.exists()} == {
        "new.answer", "new.refused", "new.reason", "new.batch.part", f"{'0' * 64}.batch",
    }  # fmt: skip
