"""The address by which a host is known, and which settings go with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Protocol

from proteus_shards.errors import SettingError

_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\s:/@\[\]]+)):(?P<port>\d{1,5})")


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT; an IPv6 address stands in brackets. Raises `SettingError`."""
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found["port"]) <= 65535:
        raise SettingError(f"must be HOST:PORT, with the port from 1 to 65535, not {address[:60]!r}")
    return found["six"] or found["host"], int(found["port"])


class ClusterSettings(Protocol):
    """The settings that are looked at here."""

    @property
    def cluster(self) -> bool:
        """Whether there is one."""
        ...

    @property
    def node_address(self) -> str:
        """Of this host."""
        ...

    @property
    def cluster_cert(self) -> str:
        """Path of its certificate."""
        ...

    @property
    def insecure(self) -> bool:
        """Whether something else keeps others away."""
        ...


def check_cluster(settings: ClusterSettings, sources: Mapping[str, str], is_loopback: Callable[[str], bool]) -> None:
    """Raise `SettingError` where settings of a cluster do not go together. `sources`: how a user has named each that was given."""
    for name, other in (
        ("node_address", "cluster"),
        ("cluster_cert", "cluster"),
        ("cluster_key", "cluster_cert"),
        ("cluster_ca", "cluster_cert"),
        ("cluster_cert", "cluster_ca"),
    ):
        if getattr(settings, name) and not getattr(settings, other):
            raise SettingError(f"{sources[name]} needs {other}")
    if not settings.cluster:
        return
    if not settings.node_address:
        raise SettingError(f"{sources['cluster']} needs node_address, the HOST:PORT under which the other hosts reach this one")
    try:
        host, _ = split_address(settings.node_address)
    except SettingError as error:
        raise SettingError(f"{sources['node_address']} {error}") from error
    if not (settings.cluster_cert or is_loopback(host) or settings.insecure):
        raise SettingError(
            f"{sources['node_address']}: others can reach {host}, and anyone who does could take and change all jobs. Give a cluster_cert "
            "and a cluster_ca; or, where something else keeps others away, insecure"
        )
