"""A hardened OpenSSH in front of the shelves: its configuration and its keys, from what is enrolled.

Guarantees: whoever logs in is one facility with its enrolled Ed25519 key, sees `in` and `out` of its own
shelf as the whole file system (chroot), and can do there what `REQUESTS` lists: no shell, no terminal, no
forwarding, no links, no change of modes. OpenSSH 9.2 or later. The same host key as on the store's card.

The accounts all have the store's own user id, so that both sides can work on the shelves' files; what keeps
them apart is the chroot, and it only holds below folders that belong to root: the comment on top of the
configuration has the commands.

Leaves to others: running sshd, quotas (the file system's), printing (`central_store.cli`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from central_store import facilities, peers
from central_store.layout import Layout
from central_store.settings import Settings
from schemas import keys
from schemas.errors import SettingsError
from schemas.names import FacilityName
from schemas.transit import durable
from schemas.transit.dial import CIPHERS, MACS

REQUESTS = (
    "open,close,read,write,lstat,stat,fstat,opendir,readdir,remove,realpath,posix-rename,fsync,limits,statvfs"
)
"""SFTP requests a terminal needs (`sftp-server -Q requests` lists what there is)."""
COMMAND = f"internal-sftp -u 0077 -p {REQUESTS}"

_KEX = "sntrup761x25519-sha512@openssh.com,curve25519-sha256,curve25519-sha256@libssh.org"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The Unix user the store's files belong to."""

    name: str
    uid: int
    gid: int


def write_keys(layout: Layout) -> None:
    """Write one authorized-keys file for each facility and peer; what is there already is replaced."""
    durable.make_dirs(layout.authorized_keys, mode=0o755)
    for facility in facilities.enrolled(layout):
        card = facilities.load(layout, facility)
        if card is not None:
            line = f'restrict,command="{COMMAND}" {keys.ssh_key(card.ssh_key)} {facility}\n'
            durable.publish(layout.authorized_keys / facility, line.encode("ascii"), replace=True)
    for peer in peers.everyone(layout):
        line = f'restrict,command="{COMMAND}" {keys.ssh_key(peer.card.signing_key)} {peer.name}\n'
        durable.publish(layout.authorized_keys / peer.name, line.encode("ascii"), replace=True)


def config(
    layout: Layout,
    settings: Settings,
    accounts: Mapping[FacilityName, str],
    owner: Owner,
    *,
    port: int,
    listen: str = "",
) -> str:
    """The configuration, to be run as `sshd -D -f FILE`.

    Args:
        layout: the store.
        settings: its limits.
        accounts: Unix account of each facility.
        owner: of the store's files.
        port: where terminals reach it.
        listen: address; empty for all.

    Raises:
        SettingsError: an account or a path cannot be written into such a file.
    """
    for account in (*accounts.values(), listen):
        if not account.isascii() or not account.isprintable() or set(account) & set(" \"\\,*?!@'"):
            raise SettingsError("this is no Unix account or address as sshd knows them")
    if len(set(accounts.values())) != len(accounts):
        raise SettingsError("two facilities have the same Unix account")
    lines = [
        *_setup(layout, accounts, owner),
        "",
        f"Port {port}",
        *([f"ListenAddress {listen}"] if listen else []),
        f"HostKey {_path(layout.key('host_key'), tokens=False)}",
        *_GENERAL.format(
            ciphers=",".join(CIPHERS),
            macs=",".join(MACS),
            users=" ".join(sorted(accounts.values())) or "!*",
            tries=min(settings.key_attempts, 6),
            login=settings.login_seconds,
            idle=settings.idle_seconds,
            waiting=settings.waiting_logins,
            most_waiting=2 * settings.waiting_logins,
        ).splitlines(),
    ]
    for facility, account in sorted(accounts.items()):
        lines += [
            "",
            f"Match User {account}",
            f"    ChrootDirectory {_path(layout.shelves / facility)}",
            f"    AuthorizedKeysFile {_path(layout.authorized_keys / facility)}",
            f"    ForceCommand {COMMAND}",
        ]
    return "\n".join(lines) + "\n"


_GENERAL = f"""\
HostKeyAlgorithms ssh-ed25519
PubkeyAcceptedAlgorithms ssh-ed25519
KexAlgorithms {_KEX}
Ciphers {{ciphers}}
MACs {{macs}}

AuthenticationMethods publickey
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
HostbasedAuthentication no
GSSAPIAuthentication no
UsePAM no
PermitRootLogin no
PermitEmptyPasswords no
StrictModes yes
AllowUsers {{users}}
AuthorizedKeysFile none
MaxAuthTries {{tries}}
LoginGraceTime {{login}}
MaxStartups {{waiting}}:30:{{most_waiting}}
PerSourceMaxStartups {{waiting}}
MaxSessions 1

ClientAliveInterval 15
ClientAliveCountMax 4
ChannelTimeout session:*={{idle}}
UnusedConnectionTimeout {{login}}

DisableForwarding yes
AllowTcpForwarding no
AllowStreamLocalForwarding no
AllowAgentForwarding no
X11Forwarding no
PermitTunnel no
GatewayPorts no
PermitTTY no
PermitUserRC no
PermitUserEnvironment no
Compression no
PrintMotd no
PrintLastLog no
UseDNS no
PidFile none
LogLevel VERBOSE
Subsystem sftp internal-sftp"""


def _setup(layout: Layout, accounts: Mapping[FacilityName, str], owner: Owner) -> list[str]:
    """What root does once, and again for each new facility."""
    root = _path(layout.root, tokens=False)
    lines = [
        "# sshd for the facilities of this store and for nothing else. Run: sshd -D -f THIS_FILE",
        "# As root, after each `fstore enrol` (what is done already does no harm):",
        f"#   touch {root}/lock && chown {owner.name}: {root}/lock",
        f"#   chown root:root {root} {root}/shelves && chmod 755 {root} {root}/shelves",
    ]
    for facility, account in sorted(accounts.items()):
        shelf, owned = (
            f"{root}/shelves/{facility}",
            f"{root}/quarantine/{facility}",
        )
        ids = f"--non-unique --uid {owner.uid} --gid {owner.gid}"
        rest = "--no-create-home --home-dir / --shell /usr/sbin/nologin --password '*'"
        lines += [
            f"#   useradd {ids} {rest} {account}",
            f"#   chown root:root {shelf} && chmod 755 {shelf}",
            f"#   chown -R {owner.name}: {shelf}/in {shelf}/out {owned}",
        ]
    return lines


def _path(path: Path, *, tokens: bool = True) -> str:
    text = str(path)
    if not text.isprintable() or set(text) & set("\"'\\ "):
        raise SettingsError("the store's root has a name that cannot be written into sshd's configuration")
    return text.replace("%", "%%") if tokens else text
