"""A network of its own for a test: namespaces without names, joined by a bridge, that vanish with the process that made them.

How to think about it: each host of a cluster, each store and the clients have a **site**, a network namespace with one address. A thread that has entered a
site starts its processes there: the namespace of a thread is inherited by what it starts, so no server needs to know of this. The bridge is in a namespace
of its own, so that two runs on one machine may use the same addresses. Namespaces are held by descriptors, not by names under /run/netns:
whatever becomes of a test, nothing is left behind.

A **cut** needs no packet filter: a site that is cut off from another is told a wrong hardware address for it. Its packets leave and reach nobody, as on a cable
that somebody has pulled out somewhere: no reset, no error, and connections that are open go on once the cut is healed in time. A cut may be one-way.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.places import NotHere

CLONE_NEWNET = 0x4000_0000
SUBNET = "10.213.88"
NOWHERE = "02:00:00:00:de:ad"  # the hardware address of nobody
OWN = Path("/proc/thread-self/ns/net")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(eq=False)
class Site:
    """One namespace, and its address in the network."""

    name: str
    address: str
    descriptor: int
    _cut: set[str] = field(default_factory=set)  # addresses that it does not reach

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Let the calling thread be in this namespace, and so all that it starts meanwhile."""
        before = os.open(OWN, os.O_RDONLY)
        try:
            _enter(self.descriptor)
            yield
        finally:
            _enter(before)
            os.close(before)

    def ip(self, *words: str) -> None:
        """Run `ip` here."""
        with self.entered():
            _ip(*words)

    def drop(self, address: str) -> None:
        """Let no packet from here reach an address."""
        self._cut.add(address)
        self.ip("neigh", "replace", address, "lladdr", NOWHERE, "dev", "eth0", "nud", "permanent")

    def reach(self, address: str) -> None:
        """Undo `drop`. Harmless where there is nothing to undo."""
        if address in self._cut:
            self._cut.discard(address)
            self.ip("neigh", "del", address, "dev", "eth0")


class Network:
    """A bridge and its sites."""

    def __init__(self) -> None:
        self._ends = ExitStack()
        self._bridge = self._namespace()
        self.sites: dict[str, Site] = {}
        with _entered(self._bridge):
            _ip("link", "add", "bridge", "type", "bridge", "forward_delay", "0")
            _ip("link", "set", "bridge", "up")

    def close(self) -> None:
        """Let go of all namespaces: they end with their last process."""
        self._ends.close()

    def add(self, name: str) -> Site:
        """Add a site."""
        number = len(self.sites) + 1
        site = Site(name, f"{SUBNET}.{number}", self._namespace())
        port = f"port{number}"
        with _entered(self._bridge):
            _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", f"/proc/{os.getpid()}/fd/{site.descriptor}")
            _ip("link", "set", port, "master", "bridge", "up")
        site.ip("link", "set", "lo", "up")
        site.ip("address", "add", f"{site.address}/24", "dev", "eth0")
        site.ip("link", "set", "eth0", "up")
        self.sites[name] = site
        return site

    def _namespace(self) -> int:
        """Make a namespace and return its descriptor."""
        before = os.open(OWN, os.O_RDONLY)
        try:
            if _libc.unshare(CLONE_NEWNET):
                raise NotHere(f"no network namespace can be made: {os.strerror(ctypes.get_errno())}")
            made = os.open(OWN, os.O_RDONLY)
            _enter(before)
        finally:
            os.close(before)
        self._ends.callback(os.close, made)
        return made


def cut(one: Site, other: Site) -> None:
    """Let no packet pass between two sites."""
    one.drop(other.address)
    other.drop(one.address)


def mend(one: Site, other: Site) -> None:
    """Undo a cut, or half of one."""
    one.reach(other.address)
    other.reach(one.address)


@contextmanager
def open_network() -> Iterator[Network]:
    """Make an empty network, and let go of it. Raises `NotHere` where that is not allowed or not possible."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise NotHere("only root can make network namespaces")
    if not OWN.exists() or shutil.which("ip") is None:
        raise NotHere("network namespaces need Linux and iproute2")
    network = Network()
    try:
        yield network
    finally:
        network.close()


@contextmanager
def _entered(descriptor: int) -> Iterator[None]:
    with Site("", "", descriptor).entered():
        yield


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {errno.errorcode.get(number, number)}")


def _ip(*words: str) -> None:
    ran = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    if ran.returncode:
        raise NotHere(f"ip {' '.join(words)}: {ran.stderr.strip()}")
