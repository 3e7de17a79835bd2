"""TLS between the hosts of a cluster: each shows a certificate that the cluster's authority has signed, whichever of them asks.

The name in a certificate is not held against the address: that authority is the cluster's own, and whoever has a certificate of it is a host of the cluster and may serve any shard that
the store gives it.

A connection over which nothing is heard, though the peer should answer, is given up by the kernel after `SILENT_SECONDS`, on both sides: a host that is gone says no farewell.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any, Protocol

from proteus_shards.certificates import Renewed, demand, new_context
from proteus_shards.config import Settings

SILENT_SECONDS = 5


class Peering:
    """The certificate of this host, and whom it trusts. Raises `SettingError`, which names the setting, where the files can't be used at the start."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        paths = {name: getattr(settings, name) for name in ("cluster_cert", "cluster_key", "cluster_ca")}
        self._contexts = Renewed(paths, self._read) if settings.cluster_cert else None

    def server(self) -> ssl.SSLContext | None:
        """Return what the next connection that is accepted is to use; None: plain TCP."""
        return self._contexts.now()[0] if self._contexts is not None else None

    def client(self) -> ssl.SSLContext | None:
        """Return what the next connection that is made is to use; None: plain TCP."""
        return self._contexts.now()[1] if self._contexts is not None else None

    def _read(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        return self._context(ssl.PROTOCOL_TLS_SERVER), self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, protocol: int) -> ssl.SSLContext:
        settings = self._settings
        context = new_context(protocol, ("cluster_cert", settings.cluster_cert), ("cluster_key", settings.cluster_key))
        context.check_hostname = False
        demand(context, ("cluster_ca", settings.cluster_ca))
        return context


class _Connected(Protocol):
    def setsockopt(self, level: int, option: int, value: Any, /) -> object:
        """Set an option, as a socket does."""


def watch(connection: _Connected) -> None:
    """Have the kernel find out when the other host is gone, or the way to it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", SILENT_SECONDS * 1000)):
        option = getattr(socket, name, None)
        if option is not None:  # not every platform has each
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
