"""Domains: every generation opens, nothing of one is ever lost, sealed for one terminal, mode 0600."""

import json
import subprocess
from dataclasses import replace

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from facility_sync.identity import certificates, domain_files, domains, sealed
from facility_sync.identity.domain_format import from_bytes, to_bytes
from schemas import keys
from schemas.errors import FormatError, SealError, SettingsError, VersionError
from tests.kit.domains import CREATED, domain, parts, rsa_key

DOMAIN = domain()
ROTATED = domains.rotate(DOMAIN, parts(2))
CONSORTIUM = domain("region", 3, kind="consortium")


@pytest.mark.parametrize("made", [DOMAIN, ROTATED, CONSORTIUM, domain("clinic", generations=35)])
def test_round_trip(made):
    assert from_bytes(to_bytes(made)) == made
    assert made.id == domains.domain_id(keys.recipient_of(made.first.age_identity))
    assert "".join(item.version for item in made.generations) == domains.VERSIONS[: len(made.generations)]


def test_secrets_are_not_in_the_repr():
    for secret in ("AGE-SECRET", "PRIVATE KEY", repr(DOMAIN.first.secret)[2:-1]):
        assert secret not in repr(DOMAIN)


def test_a_rotation_keeps_what_must_never_change():
    assert ROTATED.id == DOMAIN.id
    assert ROTATED.capsule_key == DOMAIN.capsule_key != CONSORTIUM.capsule_key
    assert len(DOMAIN.capsule_key) == 32
    assert ROTATED.recipient != DOMAIN.recipient
    assert ROTATED.current.version == "2"


def test_a_domain_is_rotated_at_most_34_times():
    with pytest.raises(SettingsError):
        domains.rotate(domain(generations=35), parts())


def test_every_generation_opens_and_the_newest_seals():
    old, new = (sealed.seal_identity({"patient_name": "DOE^JOHN"}, [item]) for item in (DOMAIN, ROTATED))
    assert sealed.open_identity(old, domains.Keyring((ROTATED,))) == {"patient_name": "DOE^JOHN"}
    assert sealed.open_identity(new, domains.Keyring((ROTATED,))) == {"patient_name": "DOE^JOHN"}
    assert sealed.open_identity(new, domains.Keyring((DOMAIN,))) is None


def test_what_is_sealed_for_consortia_is_chosen_by_id():
    ring = domains.Keyring((DOMAIN, domain("partner", 2), CONSORTIUM))
    assert ring.sealing([]) == (DOMAIN,)
    assert ring.sealing([CONSORTIUM.id]) == (DOMAIN, CONSORTIUM)
    for identifier in ("0" * 16, ring.domains[1].id):
        with pytest.raises(SettingsError, match=identifier):
            ring.sealing([identifier])


def test_a_person_names_a_domain_by_id_or_name():
    twin = domain("region", 2)
    ring = domains.Keyring((DOMAIN, CONSORTIUM))
    assert ring.choose(None) == ring.choose(DOMAIN.id) == ring.choose("clinic-a") == DOMAIN
    assert ring.choose("region") == CONSORTIUM
    with pytest.raises(SettingsError, match="no such"):
        ring.choose("elsewhere")
    with pytest.raises(SettingsError, match="several"):
        domains.Keyring((DOMAIN, CONSORTIUM, twin)).choose("region")


@pytest.mark.parametrize("name", ["clinic-a", "愛知 hospital", "x" * 64])
def test_the_certificate_says_who_and_for_how_long(name):
    made = domain(name)
    certificate = x509.load_pem_x509_certificate(made.current.certificate)
    common = name if name.isascii() else made.id
    assert certificate.subject.rfc4514_string() == f"CN={common}" == certificate.issuer.rfc4514_string()
    assert certificate.not_valid_after_utc.year == 2056
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_encipherment
    certificate.verify_directly_issued_by(certificate)


def test_the_certificate_follows_from_its_parts():
    one, other = domain(seed=1), domain(seed=1)
    assert one.id != other.id
    assert one.current.certificate == other.current.certificate
    assert one.current.certificate != domain(seed=2).current.certificate


def test_openssl_seals_for_the_certificate_and_opens_with_the_key(tmp_path):
    (tmp_path / "c.pem").write_bytes(DOMAIN.current.certificate)
    (tmp_path / "k.pem").write_bytes(DOMAIN.current.rsa_key)
    (tmp_path / "plain").write_bytes(b"who it is")
    for words in (
        "cms -encrypt -binary -aes-256-cbc -in plain -outform DER -out sealed c.pem",
        "cms -decrypt -binary -inform DER -in sealed -inkey k.pem -recip c.pem -out opened",
    ):
        subprocess.run(["openssl", *words.split()], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "opened").read_bytes() == b"who it is"


@pytest.mark.parametrize(
    "change",
    [
        {"secret": b"\7" * 31}, {"age_identity": "AGE-SECRET-KEY-1"}, {"rsa_key": rsa_key(2)},
        {"rsa_key": b"none"}, {"certificate": domain(seed=2).current.certificate}, {"certificate": b""},
        {"created": "yesterday"}, {"created": "2026-11-24"}, {"version": "2"},
        {"certificate": DOMAIN.current.certificate + b"\n"},
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(change):
    with pytest.raises(FormatError):
        domains.from_generations("x", "facility", [replace(DOMAIN.first, **change)])


@pytest.mark.parametrize(
    ("name", "kind"), [("", "facility"), ("a\nb", "facility"), ("x" * 65, "facility"), ("x", "club")]
)
def test_names_and_kinds_are_checked(name, kind):
    with pytest.raises(FormatError):
        domains.make(name, kind, parts())


def test_it_travels_sealed_for_one_terminal():
    terminal, other = keys.new_age_identity(), keys.new_age_identity()
    sealed_ones = domain_files.export_for([ROTATED, CONSORTIUM], keys.recipient_of(terminal))
    assert domain_files.import_from(sealed_ones, terminal) == [ROTATED, CONSORTIUM]
    assert ROTATED.current.secret not in sealed_ones
    with pytest.raises(SealError):
        domain_files.import_from(sealed_ones, other)
    with pytest.raises(SealError):
        domain_files.import_from(sealed_ones[:-1], terminal)


def test_the_keyring_begins_with_the_own_domain(tmp_path):
    domain_files.keep(tmp_path, CONSORTIUM)
    domain_files.keep_own(tmp_path, DOMAIN)
    ring = domain_files.load(tmp_path)
    assert ring.own == DOMAIN
    assert set(ring.domains) == {DOMAIN, CONSORTIUM}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())


def test_keeping_a_domain_never_loses_a_generation(tmp_path):
    for given_one in (DOMAIN, ROTATED, DOMAIN, ROTATED):
        domain_files.keep_own(tmp_path, given_one)
    assert domain_files.load(tmp_path).domains == (ROTATED,)


def test_two_different_rotations_are_refused_and_nothing_changes(tmp_path):
    domain_files.keep_own(tmp_path, ROTATED)
    for other in (
        domains.rotate(DOMAIN, parts(5)),
        domains.rotate(domains.rotate(DOMAIN, parts(5)), parts(6)),
    ):
        with pytest.raises(FormatError, match="rotated differently"):
            domain_files.keep(tmp_path, other)
    assert domain_files.load(tmp_path).domains == (ROTATED,)
    with pytest.raises(FormatError):
        domains.merge(DOMAIN, CONSORTIUM)


def test_a_file_others_can_read_is_refused(tmp_path):
    domain_files.keep_own(tmp_path, DOMAIN)
    (tmp_path / f"{DOMAIN.id}.domain").chmod(0o640)
    with pytest.raises(SettingsError):
        domain_files.load(tmp_path)


def written(folder, data):
    domain_files.keep_own(folder, DOMAIN)
    path = folder / f"{DOMAIN.id}.domain"
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o600)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", to_bytes(domain()), to_bytes(DOMAIN) + b" "])
def test_a_damaged_or_exchanged_file_is_refused(tmp_path, damage):
    written(tmp_path, damage)
    with pytest.raises(SettingsError):
        domain_files.load(tmp_path)
    with pytest.raises(SettingsError):
        domain_files.keep(tmp_path, DOMAIN)


def test_without_the_own_domain_nothing_goes_on(tmp_path):
    domain_files.keep(tmp_path, DOMAIN)
    with pytest.raises(SettingsError):
        domain_files.load(tmp_path)


FIRST_VERSION = json.dumps({
    "type": "domain", "version": 1, "name": "x", "created": CREATED, "secret": "", "age_identity": "",
})  # fmt: skip


@pytest.mark.parametrize(
    "data", [FIRST_VERSION, to_bytes(DOMAIN).decode().replace('"version":2}', '"version":3}')]
)
def test_another_version_is_refused_as_such(tmp_path, data):
    with pytest.raises(VersionError):
        from_bytes(data.encode())
    written(tmp_path, data.encode())
    with pytest.raises(VersionError):
        domain_files.load(tmp_path)


@given(st.binary(max_size=200), st.integers(0, 5000))
def test_only_our_error_comes_out(junk, at):
    data = to_bytes(DOMAIN)
    altered = data[:at] + junk + data[at + len(junk) :]
    for case in (junk, altered):
        if case != data:
            try:
                from_bytes(case)
            except FormatError:
                continue


@pytest.mark.parametrize("key", ["name", "kind", "generations", "version", "type"])
@pytest.mark.parametrize("value", [None, 1, [], {}, "x", [1], [{}], [[]], ["x"]])
def test_any_other_shape_is_our_error(key, value):
    values = json.loads(to_bytes(DOMAIN))
    inner = values["generations"][0]
    if key in inner:
        with pytest.raises(FormatError):
            from_bytes(json.dumps(values | {"generations": [inner | {key: value}]}).encode())
    with pytest.raises(FormatError):
        from_bytes(json.dumps(values | {key: value}).encode())


def test_the_escrow_certificate_is_checked(tmp_path):
    path = tmp_path / "escrow.pem"
    assert domain_files.escrow_certificate("") is None
    with pytest.raises(SettingsError, match="escrow_certificate"):
        domain_files.escrow_certificate(str(path))
    path.write_bytes(b"text before\n" + DOMAIN.current.certificate)
    assert domain_files.escrow_certificate(str(path)) == DOMAIN.current.certificate
    assert certificates.recipient(DOMAIN.current.certificate) == DOMAIN.current.certificate
    path.write_bytes(DOMAIN.current.rsa_key)
    with pytest.raises(SettingsError, match="certificate"):
        domain_files.escrow_certificate(str(path))
