"""Settings and home: strict about keys, modes and types."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facility_sync.home import Home
from facility_sync.releases import Release
from facility_sync.secret_files import read_secret
from facility_sync.settings import Settings, parse, render
from schemas import keys, messages
from schemas.errors import Busy, SettingsError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PRINTABLE = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)
NAME = PRINTABLE.map("x{} é".format)
RELEASE = st.builds(
    Release,
    sop_class=st.sampled_from(["any", "1.2.840.10008.5.1.4.1.1.1"]),
    manufacturer=NAME,
    model=NAME,
    by=NAME,
    at=st.just("2026-11-24T10:00:00Z"),
    note=PRINTABLE,
)
ENTRY = {"sop_class": "any", "manufacturer": "M", "model": "N", "by": "P", "at": "2026-11-24T10:00:00Z"}


def released(**values: object) -> str:
    """Settings with one release; a value of None leaves the key out."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in (ENTRY | values).items() if value is not None]
    return "\n".join(['facility = "a"', "[[release]]", *lines])


@given(
    st.builds(
        Settings,
        facility=st.just("clinic-a"),
        sources=st.lists(TEXT, max_size=3).map(tuple),
        ignore=st.lists(TEXT, max_size=3).map(tuple),
        consortia=st.lists(st.integers(0, 99).map("{:016x}".format), max_size=8, unique=True).map(tuple),
        escrow_certificate=TEXT.map(lambda text: f"/{text}" if text else ""),
        stores=st.lists(st.sampled_from(["central", "north", "a-1"]), unique=True).map(tuple),
        store_host=TEXT,
        store_port=st.integers(0, 65535),
        settle_seconds=st.integers(0, 86400),
        batch_mib=st.integers(1, 256),
        workers=st.integers(0, 64),
        seal_all=st.booleans(),
        seal_body_parts=st.lists(st.sampled_from(["HEAD", "BRAIN"]), max_size=2).map(tuple),
        release=st.lists(RELEASE, max_size=3).map(tuple),
        menu=st.dictionaries(
            TEXT, st.fixed_dictionaries({"meaning": st.just("CT Thorax"), "code": TEXT}), max_size=2
        ),
    )
)
def test_what_is_written_is_what_is_read(settings):
    assert parse(render(settings)) == settings


@pytest.mark.parametrize(
    "text",
    [
        "", "facility = 7", 'facility = "../x"', 'facility = "a"\nnew_key = 1', "=",
        'facility = "a"\nbatch_mib = 0',
        'facility = "a"\nbatch_mib = 257', 'facility = "a"\nworkers = true', 'facility = "a"\nsources = "x"',
        'facility = "a"\nsources = [1]', 'facility = "a"\nmenu = {x = 1}',
        'facility = "a"\n[menu.x]\ncode = "1"', 'facility = "a"\nconsortia = "0123456789abcdef"',
        'facility = "a"\nconsortia = ["0123456789ABCDEF"]', 'facility = "a"\nescrow_certificate = "here.pem"',
        'facility = "a"\nconsortia = ["0123456789abcdef", "0123456789abcdef"]',
        'facility = "a"\nstores = "b"', 'facility = "a"\nstores = ["b", "b"]',
        'facility = "a"\nstores = ["../b"]',
        'facility = "a"\nseal_all = 1', 'facility = "a"\nseal_all = "yes"',
        'facility = "a"\nseal_body_parts = "HEAD"', 'facility = "a"\nseal_body_parts = ["head"]',
        'facility = "a"\nseal_body_parts = ["NOWHERE"]', 'facility = "a"\nrelease = 1',
        'facility = "a"\nrelease = [1]', 'facility = "a"\n[release]\nby = "P"',
        released(by=None), released(by=" "), released(by="a\nb"), released(model=""),
        released(manufacturer=" "),
        released(sop_class="*"), released(sop_class=None), released(sop_class="CTImageStorage"),
        released(at="yesterday"), released(at=7), released(who="P"), released(note="x" * 501),
        'facility = "a"\nconsortia = ' + str([f"{number:016x}" for number in range(9)]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(text):
    with pytest.raises(SettingsError):
        parse(text)


def test_a_release_may_come_without_a_note():
    assert parse(released()).release == (Release(**ENTRY),)


def test_an_empty_list_is_not_written_so_that_a_person_may_add_a_table():
    assert parse(render(Settings(facility="a")) + released().partition("\n")[2]).release == (
        Release(**ENTRY),
    )


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.create("clinic-a")
    return home


def test_a_new_home_has_a_card_and_secrets_of_its_own(home):
    card = messages.FacilityCard.from_bytes((home.root / "clinic-a.card").read_bytes().rstrip(b"\n"))
    assert card == home.card()
    assert card.ssh_key == keys.ssh_line(home.ssh_key.public_key())
    for name in ("keys/ssh", "keys/age", "settings.toml"):
        assert (home.root / name).stat().st_mode & 0o777 == 0o600


def test_a_home_is_made_once(home):
    before = (home.root / "keys" / "ssh").read_bytes()
    with pytest.raises(SettingsError, match="already"):
        Home(home.root).create("clinic-b")
    assert (home.root / "keys" / "ssh").read_bytes() == before


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_secret_others_can_read_is_refused(home, mode):
    (home.root / "keys" / "ssh").chmod(mode)
    with pytest.raises(SettingsError, match="others"):
        _ = Home(home.root).ssh_key


def test_a_missing_secret_is_named_without_its_path(home):
    with pytest.raises(SettingsError) as caught:
        read_secret(home.root / "none")
    assert str(home.root) not in str(caught.value)


def test_without_init_or_trust_the_next_step_is_told(tmp_path, home):
    with pytest.raises(SettingsError) as caught:
        _ = Home(tmp_path / "empty").settings
    assert "fsync init" in caught.value.hint
    with pytest.raises(SettingsError) as caught:
        _ = home.store
    assert "fsync trust" in caught.value.hint


def test_only_a_store_card_is_trusted(home):
    with pytest.raises(SettingsError):
        home.trust(home.card().to_bytes())


def test_one_round_at_a_time(home):
    with home.only_round(), pytest.raises(Busy), Home(home.root).only_round():
        pass
    with home.only_round():
        pass
