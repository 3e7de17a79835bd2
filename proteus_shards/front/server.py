"""Serves a front's HTTP on a socket that listens already, and drains it: the fast lane first, and an ASGI app on Hypercorn behind it.

With TLS there is no fast lane: Hypercorn has the connections from their handshake on. (One who needs both puts a proxy in front.)

Hypercorn's own `worker_serve` is not used, only what it is made of (its TCP server, one per connection, and its lifespan), because:

- There, an error that it did not foresee in one connection ends the whole process. Here it ends that connection, and is logged.
- A connection is a `Connection`, which `exchange` needs, and which can be aborted when the drain is over: Hypercorn shields its
  sends from cancellation, so a client that does not read could hold up an exit for ever.
- A connection can be served that someone else has accepted.

Drain: no new connections; idle ones are closed; each of the others ends after the answer to what it has asked, which says so; what is left
after a time is aborted.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import hypercorn.protocol
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Event, Updated
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext

from proteus_shards.config import Settings
from proteus_shards.core.commands import Sample
from proteus_shards.front.connection import CURRENT_CONNECTION, Connection, SecureConnection
from proteus_shards.front.counts import count_limit
from proteus_shards.front.heads import limits_of
from proteus_shards.front.http2 import FrontConfig, GuardedH2Protocol
from proteus_shards.front.http11 import EndingH11Protocol
from proteus_shards.front.lane import Lane
from proteus_shards.front.router import Router
from proteus_shards.front.tls import Certificates
from proteus_shards.front.turning import Turnstile

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework, LifespanState

DRAIN_QUIET_SECONDS = 0.5  # a connection without a request for so long is closed by a drain
ACCEPT_PAUSE_SECONDS = 0.1
STALL_LOOKS = 4  # in the time that a client may take over a piece of an answer

log = logging.getLogger("proteus_shards.front")


def hypercorn_config(settings: Settings) -> Config:
    """Return Hypercorn's settings."""
    config = FrontConfig()
    config.accesslog = None
    config.errorlog = logging.getLogger("proteus_shards.front.hypercorn")
    config.include_server_header = False
    config.keep_alive_max_requests = settings.connection_requests_max
    config.keep_alive_timeout = settings.connection_idle_seconds_max
    config.graceful_timeout = settings.drain_seconds_max
    config.ssl_handshake_timeout = settings.header_seconds_max
    config.h11_max_incomplete_size = settings.header_bytes_max
    config.h2_max_concurrent_streams = settings.http2_streams_max
    config.http2_control_frames_max = settings.http2_control_frames_max
    config.h2_max_header_list_size = settings.header_bytes_max
    return config


class _ConnectionServer(TCPServer):
    """Hypercorn's own, but that a connection is over when the client has ended it, and not only after its idle time.

    And a drain leaves an idle connection open for a moment: a request may be on its way.
    """

    _over = False

    async def _idle_timeout(self) -> None:
        with trio.move_on_after(self.config.keep_alive_timeout):
            await self.context.terminated.wait()
            await trio.sleep(DRAIN_QUIET_SECONDS)
        with trio.CancelScope(shield=True):
            await self._initiate_server_close()

    async def _read_data(self) -> None:
        await super()._read_data()
        self._over = True
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        if not (self._over and isinstance(event, Updated)):
            await super().protocol_send(event)


class Server:
    """Serves connections. `drain` may be called at any time, and more than once."""

    def __init__(self, app: ASGIFramework, router: Router, settings: Settings) -> None:
        """Raise `SettingError` where the TLS files can't be used."""
        self._settings = settings
        self._router = router
        self._certificates = Certificates(settings) if settings.tls_cert else None
        self._config = hypercorn_config(settings)
        self._limits = limits_of(settings)
        self._turnstile = Turnstile(router)
        assert vars(hypercorn.protocol)["H2Protocol"] is GuardedH2Protocol
        assert vars(hypercorn.protocol)["H11Protocol"] is EndingH11Protocol
        self._app = ASGIWrapper(app)
        self._context = WorkerContext(None)
        self._state: LifespanState = {}
        self._connections: dict[Connection, trio.CancelScope] = {}  # each with that of all its tasks
        self._draining = trio.Event()
        self._one_fewer = trio.Event()
        self._lane: Lane | None = None
        self._accepted = 0  # connections that are open and came without the lane
        self._accepted_ever = 0

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections) + (self._lane.statistics().connections if self._lane is not None else 0)

    def samples(self, front: str) -> list[Sample]:
        """Return what there is to tell about connections."""
        lane = self._lane.statistics() if self._lane is not None else None
        return [
            ("proteus_connections", [front, "lane"], lane.connections if lane is not None else 0),
            ("proteus_connections", [front, "quart"], len(self._connections)),
            ("proteus_connections_accepted_total", [front], self._accepted_ever + (lane.accepted if lane is not None else 0)),
        ]

    def drain(self) -> None:
        """Stop accepting, and let `serve` return once all connections are done."""
        self._draining.set()

    async def serve(
        self,
        listener: socket.socket,
        drain_seconds_max: float,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept and serve until drained. Connections that are not done `drain_seconds_max` after `drain` are aborted."""
        lifespan = Lifespan(self._app, self._config, self._state)
        async with trio.open_nursery() as lifespan_nursery:
            await lifespan_nursery.start(lifespan.handle_lifespan)
            await lifespan.wait_for_startup()
            lifespan_nursery.start_soon(self._cut_off_the_stalled)
            async with trio.open_nursery() as connections:
                if self._settings.fast_lane and self._certificates is None:
                    await self._serve_lane(listener, connections, task_status)
                else:
                    await self._serve_directly(listener, connections, task_status)
                await self._context.terminated.set()
                with trio.move_on_after(drain_seconds_max) as patience:
                    await self._wait_closed()
                if patience.cancelled_caught:
                    log.warning("connections were aborted at the end of the drain", extra={"connections": len(self._connections)})
                for connection in list(self._connections):
                    connection.abort()
                connections.cancel_scope.cancel()  # the lane ends with it
            await lifespan.wait_for_shutdown()
            lifespan_nursery.cancel_scope.cancel()

    async def _serve_lane(self, listener: socket.socket, connections: trio.Nursery, task_status: trio.TaskStatus[None]) -> None:
        def hand_over(sock: socket.socket, unread: bytes, ended: Callable[[], None]) -> None:
            connections.start_soon(self._serve_handed_over, sock, unread, ended)

        lane = self._lane = Lane(listener, self._router, self._settings, hand_over)
        connections.start_soon(lane.run)
        task_status.started()
        await self._draining.wait()
        lane.stop()

    async def _serve_handed_over(self, sock: socket.socket, unread: bytes, ended: Callable[[], None]) -> None:
        try:
            await self.serve_connection(trio.SocketStream(trio.socket.from_stdlib_socket(sock)), unread)
        finally:
            ended()

    async def _serve_directly(self, listener: socket.socket, connections: trio.Nursery, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(self._accept, trio.SocketListener(trio.socket.from_stdlib_socket(listener)), connections)
            task_status.started()
            await self._draining.wait()
            accepting.cancel_scope.cancel()

    async def _accept(self, listening: trio.SocketListener, connections: trio.Nursery) -> None:
        async with listening:
            while True:
                if self._accepted >= self._settings.connections_max:
                    count_limit("connections_max")
                while self._accepted >= self._settings.connections_max:
                    await self._wait_for_one_fewer()
                try:
                    stream = await listening.accept()
                except OSError as error:  # no descriptor left, most likely
                    log.warning("accepting pauses", extra={"error": error.strerror, "connections": len(self._connections)})
                    await trio.sleep(ACCEPT_PAUSE_SECONDS)
                else:
                    self._accepted += 1
                    self._accepted_ever += 1
                    connections.start_soon(self._serve_accepted, stream)

    async def _serve_accepted(self, stream: trio.SocketStream) -> None:
        try:
            await self.serve_connection(stream)
        finally:
            self._accepted -= 1
            self._one_fewer.set()

    async def serve_connection(self, stream: trio.SocketStream, unread: bytes = b"") -> None:
        """Serve one connection until its end, with bytes that were read from it before. Raises nothing."""
        stall, head = self._settings.request_seconds_max, self._settings.header_seconds_max
        if self._certificates is None:
            connection = Connection(stream, stall, head, unread, self._limits, self._turnstile)
        else:
            connection = SecureConnection(stream, self._certificates.context(), stall, head, self._limits, self._turnstile)
        self._connections[connection] = scope = trio.CancelScope()
        CURRENT_CONNECTION.set(connection)  # of this task and those that Hypercorn starts in it
        try:
            with scope:
                await _ConnectionServer(self._app, self._config, self._context, self._state, cast("Any", connection))
        except* Exception:
            log.exception("a connection failed")
        finally:
            connection.abort()
            del self._connections[connection]
            self._one_fewer.set()

    async def _cut_off_the_stalled(self) -> None:
        """Abort connections whose client lets no answer pass: Hypercorn would wait for ever where that is HTTP/2's own window."""
        while True:
            await trio.sleep(min(1.0, self._settings.request_seconds_max / STALL_LOOKS))
            for connection, scope in list(self._connections.items()):
                if connection.stalled:
                    log.debug("a client does not read its answers")
                    count_limit("request_seconds_max")
                    connection.abort()
                    scope.cancel()  # who waits for a window hears nothing of the socket

    async def _wait_closed(self) -> None:
        """Wait until no connection is left. Those that owe nothing are not waited for: some kinds never end by themselves."""
        while self._connections or not (self._lane is None or self._lane.empty):
            for connection, scope in list(self._connections.items()):
                if connection.owes_nothing(DRAIN_QUIET_SECONDS):
                    connection.abort()
                    scope.cancel()  # not all that Hypercorn waits for ends with the socket
            with trio.move_on_after(DRAIN_QUIET_SECONDS / 5):
                await self._wait_for_one_fewer()

    async def _wait_for_one_fewer(self) -> None:
        self._one_fewer = trio.Event()
        await self._one_fewer.wait()
