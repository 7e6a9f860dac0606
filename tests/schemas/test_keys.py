"""Keys as text."""

import base64
import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from schemas import keys
from schemas.errors import FormatError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
LINE = keys.ssh_line(KEY.public_key())


def test_an_ssh_key_comes_back_without_its_comment():
    assert keys.ssh_key(LINE + " root@terminal") == LINE


def test_a_private_key_round_trips():
    assert keys.load_private(keys.private_pem(KEY)).private_bytes_raw() == bytes(range(32))


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="no ssh-keygen on this machine")
def test_the_fingerprint_is_that_of_ssh_keygen(tmp_path):
    (tmp_path / "key.pub").write_text(LINE)
    listed = subprocess.run(
        ["ssh-keygen", "-lf", tmp_path / "key.pub"], capture_output=True, text=True, check=True
    )
    assert listed.stdout.split()[1] == keys.fingerprint(LINE)


def test_age_keys_belong_together():
    identity = keys.new_age_identity()
    assert keys.age_recipient(keys.recipient_of(identity)) == keys.recipient_of(identity)
    assert keys.age_identity(identity) == identity


PARSERS = [
    keys.ssh_key,
    keys.ssh_blob,
    keys.public_key,
    keys.age_identity,
    keys.age_recipient,
    keys.recipient_of,
]
BAD = ["", "ssh-rsa AAAA", "ssh-ed25519", "ssh-ed25519 AAAA", LINE[:-4], "ssh-dss" + LINE[11:], "age1",
       "\ud800 " + LINE[12:], "age1" + "q" * 58, "AGE-SECRET-KEY-1", "x" * 5000, None, 7, b"x"]  # fmt: skip


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("text", BAD)
def test_what_is_no_key_is_refused(parse, text):
    with pytest.raises(FormatError):
        parse(text)


@given(
    st.text() | st.text().map(lambda text: "ssh-ed25519 " + text) | st.text().map(lambda text: "age1" + text)
)
def test_only_our_error_comes_out(text):
    for parse in PARSERS:
        with pytest.raises(FormatError):
            parse(text)


def unknown_cipher() -> bytes:
    """`none` stands twice at the front of a key file: cipher and key derivation."""
    lines = keys.private_pem(KEY).splitlines()
    blob = base64.b64decode(b"".join(lines[1:-1])).replace(b"none", b"nine", 1)
    return b"\n".join([lines[0], base64.b64encode(blob), lines[-1], b""])


@pytest.mark.parametrize("pem", [b"", b"x", keys.private_pem(KEY)[:-40], unknown_cipher()])
def test_what_is_no_private_key_is_refused(pem):
    with pytest.raises(FormatError):
        keys.load_private(pem)
