"""Domains: sealed for one terminal, kept with mode 0600, never two keys under one id."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facility_sync.identity import domains
from schemas import keys
from schemas.errors import FormatError, SealError, SettingsError, VersionError


def make(name: str = "clinic-a") -> domains.Domain:
    return domains.make(
        name, secret=b"\7" * 32, age_identity=keys.new_age_identity(), created="2026-11-24T00:00:00Z"
    )


DOMAIN = make()


def test_round_trip():
    assert domains.from_bytes(domains.to_bytes(DOMAIN)) == DOMAIN
    assert DOMAIN.id == domains.domain_id(DOMAIN.recipient)


def test_secrets_are_not_in_the_repr():
    assert "AGE-SECRET" not in repr(DOMAIN)
    assert "\\x07" not in repr(DOMAIN)


def test_it_travels_sealed_for_one_terminal():
    terminal, other = keys.new_age_identity(), keys.new_age_identity()
    sealed = domains.export_for([DOMAIN], keys.recipient_of(terminal))
    assert domains.import_from(sealed, terminal) == [DOMAIN]
    assert DOMAIN.secret not in sealed
    with pytest.raises(SealError):
        domains.import_from(sealed, other)
    with pytest.raises(SealError):
        domains.import_from(sealed[:-1], terminal)


def test_the_keyring_begins_with_the_own_domain(tmp_path):
    other = make("partner")
    domains.keep(tmp_path, other)
    domains.keep_own(tmp_path, DOMAIN)
    ring = domains.load(tmp_path)
    assert ring.own == DOMAIN
    assert set(ring.domains) == {DOMAIN, other}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())


def test_keeping_a_domain_twice_changes_nothing(tmp_path):
    domains.keep_own(tmp_path, DOMAIN)
    domains.keep(tmp_path, DOMAIN)
    assert domains.load(tmp_path).domains == (DOMAIN,)


def test_a_file_others_can_read_is_refused(tmp_path):
    domains.keep_own(tmp_path, DOMAIN)
    (tmp_path / f"{DOMAIN.id}.domain").chmod(0o640)
    with pytest.raises(SettingsError):
        domains.load(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", domains.to_bytes(make())])
def test_a_damaged_or_exchanged_file_is_refused(tmp_path, damage):
    domains.keep_own(tmp_path, DOMAIN)
    path = tmp_path / f"{DOMAIN.id}.domain"
    path.chmod(0o600)
    path.unlink()
    path.write_bytes(damage)
    path.chmod(0o600)
    with pytest.raises(SettingsError):
        domains.load(tmp_path)


def test_without_the_own_domain_nothing_goes_on(tmp_path):
    domains.keep(tmp_path, DOMAIN)
    with pytest.raises(SettingsError):
        domains.load(tmp_path)


def test_another_version_is_refused_as_such(tmp_path):
    domains.keep_own(tmp_path, DOMAIN)
    path = tmp_path / f"{DOMAIN.id}.domain"
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2'))
    with pytest.raises(VersionError):
        domains.load(tmp_path)
    with pytest.raises(VersionError):
        domains.from_bytes(domains.to_bytes(DOMAIN).replace(b'"version":1', b'"version":2'))


@given(st.binary(max_size=200), st.integers(0, 300))
def test_only_our_error_comes_out(junk, at):
    data = domains.to_bytes(DOMAIN)
    altered = data[:at] + junk + data[at + len(junk) :]
    for case in (junk, altered):
        if case != data:
            try:
                domains.from_bytes(case)
            except FormatError:
                continue
