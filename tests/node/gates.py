"""A gate with a shard behind it that says back what it hears, and whoever dials it. All in one asyncio loop."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from proteus_shards.config import Settings, socket_path
from proteus_shards.ipc.frames import pack_frame
from proteus_shards.ipc.hosts import Elsewhere, Nudge
from proteus_shards.ipc.messages import encode
from proteus_shards.node.gate import Gate
from proteus_shards.peering import Peering

SECONDS_MAX = 20.0


class Known:
    """What the gate is told of its host. Implements `gate.Knowledge`."""

    def __init__(self) -> None:
        self.here = {1}
        self.nudged: list[Nudge] = []

    def is_here(self, shard: int) -> bool:
        """Say whether a shard is here."""
        return shard in self.here

    def elsewhere(self, shard: int) -> Elsewhere:
        """Return who has a shard."""
        return Elsewhere(shard, "other.example:7", 12)

    def nudge(self, message: Nudge) -> None:
        """Take note."""
        self.nudged.append(message)


class Papers(NamedTuple):
    """Files of a cluster's certificates, and what others than its hosts show."""

    settings: Settings
    stranger: ssl.SSLContext  # of another authority
    nobody: ssl.SSLContext  # shows nothing


class Stand(NamedTuple):
    """A gate that runs."""

    gate: Gate
    known: Known
    run_dir: Path
    address: str
    peering: Peering

    async def dial(self, context: ssl.SSLContext | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to it."""
        host, _, port = self.address.rpartition(":")
        return await asyncio.open_connection(host, int(port), ssl=context, server_hostname="" if context is not None else None)


def issue(folder: Path, authority: trustme.CA, *names: str) -> None:
    """Write the certificate and key of a host."""
    certificate = authority.issue_cert(*names)
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "host.pem"))
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    """Return the papers of a cluster."""
    authority, other = trustme.CA(), trustme.CA()
    issue(tmp_path, authority, "host.example")
    stranger, nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (stranger, nobody):
        context.check_hostname = False
        authority.configure_trust(context)
    other.issue_cert("host.example").configure_cert(stranger)
    return Papers(
        settings_of(tmp_path, cluster_cert=str(tmp_path / "host.pem"), cluster_ca=str(tmp_path / "authority.pem")), stranger, nobody
    )


def settings_of(_folder: Path, **changes: Any) -> Settings:
    """Return the settings of a host."""
    return Settings(cluster=True, node_address="127.0.0.1:1", **changes)


@asynccontextmanager
async def standing(folder: Path, settings: Settings) -> AsyncIterator[Stand]:
    """Open a gate before a shard 1 that says back what it hears."""
    folder.mkdir(exist_ok=True)
    known = Known()
    peering = Peering(settings)
    echoing: set[asyncio.Task[None]] = set()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        echoing.add(task)
        with suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    shard = await asyncio.start_unix_server(echo, socket_path(str(folder), 1))
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    gate = Gate(listener, peering, known, str(folder), settings.node_connections_max, settings.handover_seconds_max)
    running = asyncio.create_task(gate.run())
    try:
        async with asyncio.timeout(SECONDS_MAX):
            yield Stand(gate, known, folder, f"{host}:{port}", peering)
    finally:
        running.cancel()
        shard.close()
        for task in echoing:
            task.cancel()
        await asyncio.gather(running, *echoing, return_exceptions=True)
        listener.close()


def frame(message: Any) -> bytes:
    """Return a message as a frame."""
    return pack_frame(encode(message))
