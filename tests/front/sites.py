"""A server with a fake shard behind it, and a client of raw sockets, in plain text and behind TLS."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import h11
import msgspec
import trio
import trustme

from proteus_shards.config import Settings
from proteus_shards.core.commands import Command, Outcome
from proteus_shards.front.access import Access
from proteus_shards.front.app import make_app
from proteus_shards.front.router import Router
from proteus_shards.front.server import Server
from tests.front.fake_shard import PATIENCE_SECONDS, FakeShard, linked, obliging

SETTINGS = Settings(shards=1, body_size_max=100_000)
JOB = b'{"id":"j","queue":"q","timeout":1}'


class ClientStream:
    """A client's end of a connection: what the tests do with it, the same with and without TLS."""

    def __init__(self, transport: trio.SocketStream, trusting: ssl.SSLContext | None) -> None:
        self.socket = transport.socket
        self.send_eof = transport.send_eof
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = transport
        if trusting is not None:
            stream = trio.SSLStream(transport, trusting, server_hostname="127.0.0.1", https_compatible=True)
        self.send_all = stream.send_all
        self.aclose = stream.aclose
        self._stream = stream

    async def receive_some(self, max_bytes: int) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))


class Reply(NamedTuple):
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One client connection: sends raw bytes, reads answers."""

    def __init__(self, stream: ClientStream) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.CLIENT)

    async def send(self, data: bytes) -> None:
        """Send raw bytes."""
        await self.stream.send_all(data)

    async def receive(self, method: str = "GET", *, leave_open: bool = True) -> Reply:
        """Read one answer."""
        self.http = h11.Connection(h11.CLIENT) if not self.http.trailing_data[0] else self.http
        self.http.send(h11.Request(method=method, target="/", headers=[("host", "localhost")]))
        self.http.send(h11.EndOfMessage())
        body = b""
        head: h11.Response | None = None
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                event = self.http.next_event()
                if event is h11.NEED_DATA:
                    self.http.receive_data(await self.stream.receive_some(65536))
                elif isinstance(event, h11.Response):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    assert isinstance(event, h11.InformationalResponse), event
        assert head is not None
        if leave_open and self.http.their_state is h11.DONE:
            self.http.start_next_cycle()
        return Reply(head.status_code, {name.decode(): value.decode() for name, value in head.headers}, body)

    async def ask(self, method: str, target: str, body: bytes = b"", *headers: str) -> Reply:
        """Send a request and read its answer."""
        head = "".join(
            f"{line}\r\n" for line in (f"{method} {target} HTTP/1.1", "host: localhost", f"content-length: {len(body)}", *headers)
        )
        await self.send(head.encode() + b"\r\n" + body)
        return await self.receive(method)

    async def wait_closed(self) -> bytes:
        """Read what is left until the server closes."""
        rest = b""
        with trio.fail_after(PATIENCE_SECONDS):
            while data := await self.stream.receive_some(65536):
                rest += data
        return rest


class Site:
    """A server and the shard behind it."""

    def __init__(self, server: Server, router: Router, shard: FakeShard, port: int) -> None:
        self.server = server
        self.router = router
        self.shard = shard
        self.port = port
        self.clients: list[Client] = []
        self.trusting: ssl.SSLContext | None = None  # set where the server speaks TLS

    async def client(self) -> Client:
        """Connect."""
        transport = await trio.open_tcp_stream("127.0.0.1", self.port)
        client = Client(ClientStream(transport, self.trusting))
        self.clients.append(client)
        return client


def with_tls(settings: Settings, folder: Path) -> Settings:
    """Return settings with a new certificate of a new authority, both in a folder."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    return msgspec.structs.replace(settings, tls_cert=str(folder / "server.pem"))


def trusting(folder: Path) -> ssl.SSLContext:
    """Return what a client needs to trust the server of such settings."""
    return ssl.create_default_context(cafile=folder / "authority.pem")


@asynccontextmanager
async def serving(
    tmp_path: Path, settings: Settings = SETTINGS, answer: Callable[[Command], Outcome | None] = obliging
) -> AsyncIterator[Site]:
    """Serve; at the end, drain."""
    async with linked(tmp_path, settings, answer) as (router, shards), trio.open_nursery() as nursery:
        listener = socket.create_server(("127.0.0.1", 0))
        router.access = Access(settings.tokens_file) if settings.tokens_file else None
        server = Server(make_app(router, settings), router, settings)
        await nursery.start(server.serve, listener, settings.drain_seconds_max)
        site = Site(server, router, shards[0], listener.getsockname()[1])
        if settings.tls_cert:
            site.trusting = trusting(tmp_path)
        try:
            yield site
        finally:
            for client in site.clients:
                client.stream.socket.close()
            server.drain()
    listener.close()
