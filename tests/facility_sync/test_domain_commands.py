"""`fsync domain` on one machine: backup and its drill, joining and leaving, keys for other tools."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess

import pytest

from facility_sync.identity import backup, domain_files, domains
from facility_sync.identity.domain_format import to_bytes
from schemas.errors import FormatError, SealError, SettingsError
from tests.kit.domains import domain, parts
from tests.kit.images import image
from tests.kit.site import call

PASSPHRASE = "correct horse battery"
OWN = domain(generations=2)
OTHER = domain("region", 2, kind="consortium")


@pytest.fixture
def fsync(tmp_path):
    """A terminal's commands; its passphrase lies in `passphrase`."""
    (tmp_path / "passphrase").write_text(PASSPHRASE + "\n")
    (tmp_path / "passphrase").chmod(0o600)

    def run(*words, status=0, home="home"):
        done = call("fsync", "--home", tmp_path / home, *words, cwd=tmp_path)
        assert done.status == status, done.err
        return done

    made = run("init", "--facility", "clinic-a")
    assert f"fsync --home {tmp_path}/home domain backup clinic-a.backup" in made.out
    assert "WARNING" in made.out
    return run


@pytest.fixture(scope="module")
def sealed():
    """A backup; making one takes a second, as it should."""
    return backup.seal([OWN, OTHER], PASSPHRASE)


def test_a_backup_comes_back_whole_or_not_at_all(sealed):
    assert backup.is_backup(sealed)
    assert backup.unseal(sealed, PASSPHRASE) == [OWN, OTHER]
    assert not backup.is_backup(domain_files.export_for([OWN], OWN.recipient))
    for data, passphrase in ((sealed, PASSPHRASE + "x"), (sealed[:60], PASSPHRASE), (b"", PASSPHRASE)):
        with pytest.raises(SealError):
            backup.unseal(data, passphrase)
    with pytest.raises(FormatError):
        backup.unseal(bytes(backup.MAX_BYTES + 1), PASSPHRASE)


@pytest.mark.skipif(shutil.which("age") is None, reason="age is not installed")
def test_age_alone_opens_a_backup(sealed, tmp_path):
    """`age` asks on the terminal only, so it gets one."""
    (tmp_path / "b").write_bytes(sealed)
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execvp("age", ["age", "-d", "-o", "plain", "b"])
    shown = b""
    while b"passphrase" not in shown:
        shown += os.read(terminal, 1024)
    os.write(terminal, PASSPHRASE.encode() + b"\n")
    try:
        while os.read(terminal, 1024):
            pass
    except OSError:  # so a pseudo-terminal says that nobody is left at its other end
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "plain").read_bytes().splitlines() == [to_bytes(OWN), to_bytes(OTHER)]


def test_a_lost_terminals_domain_comes_back_from_its_backup(fsync, tmp_path):
    (tmp_path / "short").write_text("short\n")
    (tmp_path / "short").chmod(0o600)
    fsync("domain", "backup", "--passphrase-file", "short", "b", status=10)
    assert not (tmp_path / "b").exists()
    fsync("domain", "create", "region")
    fsync("domain", "rotate")
    held = fsync("domain", "list", "--json").json["domains"]
    assert [(item["generations"], item["own"], item["joined"]) for item in held] == [
        (2, True, False),
        (1, False, True),
    ]
    made = fsync("domain", "backup", "--passphrase-file", "passphrase", "b", "--json").json
    assert made["domains"] == [item["domain"] for item in held]
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    fsync("domain", "backup", "--passphrase-file", "passphrase", "b", status=10)  # never over another file
    fsync("init", "--facility", "clinic-a", home="new")
    fsync("domain", "import", "b", home="new", status=10)  # nobody to ask for the passphrase
    words = ("domain", "import", "--own", "--passphrase-file", "passphrase", "b")
    assert held[1]["domain"] in fsync(*words, home="new").out
    back = fsync("domain", "list", "--json", home="new").json["domains"]
    assert back[0] == held[0]
    assert {**held[1], "joined": False} in back
    assert len(back) == 3


def test_who_may_join_leave_and_rotate_what(fsync, tmp_path):
    home = tmp_path / "home"
    partner = domain("partner", 3)
    for item in (OTHER, partner):
        domain_files.keep(home / "domains", item)
    fsync("domain", "join", "partner", status=10)  # a facility's domain
    fsync("domain", "join", "nobody", status=10)
    fsync("domain", "create", "region", status=10)  # the name is taken
    fsync("domain", "create", "a\tb", status=10)
    fsync("domain", "rotate", "partner", status=10)
    fsync("domain", "leave", "region", status=10)
    fsync("domain", "join", "region")
    assert f'"{OTHER.id}"' in (home / "settings.toml").read_text()
    (home / "domains" / f"{OTHER.id}.domain").unlink()
    with pytest.raises(SettingsError, match=OTHER.id):
        domain_files.load(home / "domains").sealing([OTHER.id])
    fsync("domain", "leave", OTHER.id)  # even when its file is lost
    assert OTHER.id not in (home / "settings.toml").read_text()


def test_two_continuations_of_a_domain_do_not_mix(fsync, tmp_path):
    home = tmp_path / "home"
    domain_files.keep(home / "domains", OTHER)
    recipient = json.loads((home / "clinic-a.card").read_text())["age_recipient"]
    (tmp_path / "theirs").write_bytes(domain_files.export_for([domains.rotate(OTHER, parts(9))], recipient))
    loud = fsync("domain", "rotate", "region", "--json")
    assert loud.json == {"domain": OTHER.id, "name": "region", "generations": 2}
    assert "Export the domain again" in loud.err
    assert "domain backup" in loud.err
    fsync("domain", "import", "theirs", status=15)


@pytest.mark.skipif(shutil.which("gdcmanon") is None, reason="GDCM's tools are not installed")
def test_gdcm_seals_for_the_certificate_and_opens_with_the_key(fsync, tmp_path):
    pem = fsync("domain", "certificate", "--key", "key").out
    assert fsync("domain", "certificate", "--generation", "1", "--json").json["certificate"] == pem
    fsync("domain", "certificate", "--generation", "2", status=10)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "c.pem").write_text(pem)
    (tmp_path / "in.dcm").write_bytes(image(1))
    for words in ("-e --aes256 -c c.pem -i in.dcm -o e.dcm", "-d -k key -i e.dcm -o d.dcm"):
        subprocess.run(["gdcmanon", *words.split()], cwd=tmp_path, check=True, capture_output=True)
    assert b"FAMILY1" not in (tmp_path / "e.dcm").read_bytes()
    assert b"FAMILY1" in (tmp_path / "d.dcm").read_bytes()
