"""Hosts of their own on this machine: network namespaces, each pair joined by a link that can be cut.

    with network(3) as net:
        call("fstore", …, through=net.hosts[0].through)
        net.cut(0, 1)

Nothing of it leaves the machine: the links end in the namespaces, and there is no way out of them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import combinations


class NoNetworks(Exception):
    """This machine, or this user, cannot have them; says why."""


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNetworks(f"ip {' '.join(words[:3])}: {done.stderr.strip()}")


@dataclass(frozen=True)
class Host:
    """One namespace with one address."""

    name: str
    address: str

    @property
    def through(self) -> tuple[str, ...]:
        """What a command is started with to run there."""
        return "ip", "netns", "exec", self.name

    def ip(self, *words: str) -> None:
        """Run `ip` there."""
        _ip("-n", self.name, *words)


class Network:
    """The hosts and their links.

    Args:
        hosts: in order; a link is named by two places in it.
    """

    def __init__(self, hosts: list[Host]) -> None:
        self.hosts = hosts

    def cut(self, a: int, b: int) -> None:
        """Nothing passes between these two; what is on its way is lost without a word."""
        self.hosts[a].ip("link", "set", f"to{b}", "down")
        self.hosts[b].ip("link", "set", f"to{a}", "down")

    def join(self, a: int, b: int) -> None:
        """They reach each other (again)."""
        for here, there in ((a, b), (b, a)):
            self.hosts[here].ip("link", "set", f"to{there}", "up")
        for here, there in ((a, b), (b, a)):
            host, other = self.hosts[here], self.hosts[there]
            host.ip("route", "replace", f"{other.address}/32", "dev", f"to{there}", "src", host.address)


@contextmanager
def network(count: int) -> Iterator[Network]:
    """So many hosts, all joined; raises `NoNetworks`."""
    if os.geteuid() or not shutil.which("ip"):
        raise NoNetworks("network namespaces need root and iproute2")
    mark, hosts = secrets.token_hex(3), list[Host]()
    try:
        for number in range(count):
            host = Host(f"images-{mark}-{number}", f"10.77.0.{number + 1}")
            _ip("netns", "add", host.name)
            hosts.append(host)
            host.ip("link", "set", "lo", "up")
            host.ip("address", "add", f"{host.address}/32", "dev", "lo")
        made = Network(hosts)
        for a, b in combinations(range(count), 2):
            hosts[a].ip(
                "link", "add", f"to{b}", "type", "veth", "peer", "name", f"to{a}", "netns", hosts[b].name
            )
            made.join(a, b)
        yield made
    finally:
        for host in hosts:
            with suppress(NoNetworks):
                _ip("netns", "delete", host.name)
