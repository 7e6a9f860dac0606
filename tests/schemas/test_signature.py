"""SSHSIG: what OpenSSH writes and checks, nothing more."""

import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas import keys, signature
from schemas.errors import SealError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
LINE = keys.ssh_line(KEY.public_key())
SPACE, DATA = "statement@facility-sync", b'{"type":"statement"}'
ARMOR = signature.sign(KEY, SPACE, DATA)

needs_ssh_keygen = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="no ssh-keygen on this machine")


def test_sign_then_verify():
    signature.verify(ARMOR, LINE, SPACE, DATA)


@needs_ssh_keygen
def test_the_bytes_are_those_of_openssh(tmp_path):
    (tmp_path / "key").write_bytes(keys.private_pem(KEY))
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "data").write_bytes(DATA)
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", tmp_path / "key", "-n", SPACE, tmp_path / "data"], check=True
    )
    assert (tmp_path / "data.sig").read_text() == ARMOR


@needs_ssh_keygen
def test_openssh_verifies_ours(tmp_path):
    (tmp_path / "signers").write_text(f'clinic-a namespaces="{SPACE}" {LINE}\n')
    (tmp_path / "data.sig").write_text(ARMOR)
    command = ["ssh-keygen", "-Y", "verify", "-f", "signers", "-I", "clinic-a", "-s", "data.sig", "-n"]
    good = subprocess.run([*command, SPACE], input=DATA, cwd=tmp_path, capture_output=True, check=False)
    assert good.returncode == 0, good.stderr
    other = subprocess.run(
        [*command, "receipt@facility-sync"], input=DATA, cwd=tmp_path, capture_output=True, check=False
    )
    assert other.returncode != 0


def test_another_namespace_signer_or_text_is_refused():
    other = keys.ssh_line(Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key())
    for signer, space, data in (
        (LINE, "receipt@facility-sync", DATA), (other, SPACE, DATA), (LINE, SPACE, DATA + b" "),
    ):  # fmt: skip
        with pytest.raises(SealError):
            signature.verify(ARMOR, signer, space, data)


@pytest.mark.parametrize("at", range(len(ARMOR)))
def test_every_altered_character_is_refused(at):
    other = "A" if ARMOR[at] != "A" else "B"
    for altered in (
        ARMOR[:at] + other + ARMOR[at + 1 :],
        ARMOR[:at] + ARMOR[at + 1 :],
        ARMOR[:at] + "\n" + ARMOR[at:],
    ):
        with pytest.raises(SealError):
            signature.verify(altered, LINE, SPACE, DATA)


@pytest.mark.parametrize(
    "text", ["", "x", "-----BEGIN SSH SIGNATURE-----\n\n-----END SSH SIGNATURE-----\n", "ä" * 100]
)
def test_what_is_no_signature_is_refused(text):
    with pytest.raises(SealError):
        signature.verify(text, LINE, SPACE, DATA)


def test_each_message_type_has_its_own_namespace():
    assert signature.namespace("receipt") == "receipt@facility-sync"
