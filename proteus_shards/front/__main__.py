"""A front process: `python -m proteus_shards.front`, started by the supervisor.

Standard input brings one line of JSON, a `FrontBoot`, and then stays open as the lifeline: its end means that the supervisor is gone.
Standard output takes one line, `Ready` or `Failed`, and signs of life. Logs go to standard error.

A front serves once its links are up, so that nobody who was told that it is ready is refused. It waits a moment only: where a shard
is away, it serves without, and answers 429 for that shard's queues.

SIGTERM, or the end of the lifeline, drains: accept no more, answer waiting polls with "no job", finish what is under way, give back
what was not delivered, exit 0. A drain that takes longer than drain_seconds_max is cut off with 1, as by a second SIGTERM. SIGINT is the supervisor's to act
on: a terminal sends it to every process of the group, and the front must outlive the requests in it.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import trio

from proteus_shards import logs
from proteus_shards.boot import STDIN, beat, read_boot, report
from proteus_shards.config import BEAT_SECONDS, Failed, FrontBoot, Ready, Settings, is_loopback, socket_path
from proteus_shards.errors import SettingError
from proteus_shards.front.access import Access
from proteus_shards.front.app import make_app
from proteus_shards.front.hosts import names_of
from proteus_shards.front.link import SETTLE_SECONDS_MAX, Link
from proteus_shards.front.metrics import Page
from proteus_shards.front.owners import Cluster
from proteus_shards.front.router import Router
from proteus_shards.front.server import Server
from proteus_shards.front.spans import find_left
from proteus_shards.front.viewers import Viewers

LINKS_SECONDS_MAX = 1.0
LOOK_SECONDS = 2.0  # between two looks for steps that were left
SPARE_DESCRIPTORS = 128  # for links, logs and what libraries keep open

log = logging.getLogger("proteus_shards.front")


def main() -> None:
    """Run a front process from its boot line to its exit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    boot = read_boot(FrontBoot)
    logs.setup(boot.settings, f"front-{boot.front}")
    listening = inherited(boot.listen_fd)
    metrics = inherited(boot.metrics_fd) if boot.metrics_fd is not None else None
    allow_descriptors(boot.settings.connections_max + SPARE_DESCRIPTORS)
    trio.run(serve, boot, listening, metrics)


def inherited(descriptor: int) -> socket.socket:
    """Return the socket behind a descriptor. Where it does not listen, the process ends."""
    try:
        listening = socket.socket(fileno=descriptor)
        listening.setblocking(False)
        listens = bool(listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except (OSError, ValueError):
        listens = False
    if not listens:
        report(Failed(f"descriptor {descriptor} is no socket that listens", final=True))
        sys.exit(1)
    return listening


def allow_descriptors(wanted: int) -> int:
    """Raise this process's limit of open files to `wanted`, as far as that is allowed, and return the limit. It is never lowered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < ceiling:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
            soft = ceiling
        except (OSError, ValueError) as error:  # macOS has a ceiling of its own below "infinity"
            log.warning("the limit of open files could not be raised", extra={"limit": soft, "wanted": ceiling, "error": str(error)})
    if soft != resource.RLIM_INFINITY and soft < wanted:
        log.debug("connections_max is more than the limit of open files allows", extra={"limit": soft, "wanted": wanted})
    return soft


def apart_of(settings: Settings) -> Settings:
    """Return the settings of the server on metrics_port: plain, for all, and under any name unless it stands on loopback as the other does."""
    any_host = names_of(settings) is None or not is_loopback(settings.metrics_host)
    return msgspec.structs.replace(settings, tls_cert="", tls_key="", tls_client_ca="", fast_lane=False, insecure=any_host)


async def serve(boot: FrontBoot, listener: socket.socket, metrics: socket.socket | None = None) -> None:
    """Serve until drained; the page of metrics on a port of its own, too, where there is one."""
    settings = boot.settings
    router = _router_of(boot)
    links, access = router.links, router.access
    page = Page(router, settings, boot.run_dir, boot.front)
    viewers = Viewers(router, settings, page, boot.run_dir) if settings.dashboard else None
    metrics_server: Server | None = None
    if metrics is not None:
        apart = apart_of(settings)
        metrics_server = Server(make_app(router, apart, page, metrics_only=True), router, apart)
    try:
        server = Server(make_app(router, settings, page, viewers), router, settings)
    except SettingError as error:
        report(Failed(str(error), final=True))
        sys.exit(1)
    page.more.append(partial(server.samples, str(boot.front)))
    flush = telemetry(router, settings, boot.front)
    server_drain_seconds = max(settings.drain_seconds_max - 2 * SETTLE_SECONDS_MAX, settings.drain_seconds_max / 2)

    def drain(reason: str) -> None:
        if router.draining:
            return
        log.info("draining", extra={"reason": reason, "connections": server.connections})
        exit_after(settings.drain_seconds_max)
        router.drain()
        if viewers is not None:
            viewers.drain()
        server.drain()
        if metrics_server is not None:
            metrics_server.drain()

    async with trio.open_nursery() as nursery:
        await nursery.start(watch_signals, drain)
        nursery.start_soon(watch_lifeline, drain)
        works: list[Callable[[], Awaitable[None]]] = [beat_forever, page.keep_forever, partial(carry_on_forever, router)]
        works += [access.watch_forever] if access is not None else []
        works += [viewers.run] if viewers is not None else []
        works += [router.cluster.run] if router.cluster is not None else []
        for work in (*works, *(link.run for link in links)):
            nursery.start_soon(work)
        with trio.move_on_after(LINKS_SECONDS_MAX):
            for link in links:
                await link.wait_connected()
        async with trio.open_nursery() as serving:
            # The links have the last word: what was not delivered goes back before the exit.
            await serving.start(server.serve, listener, server_drain_seconds)
            if metrics_server is not None:
                await serving.start(metrics_server.serve, metrics, server_drain_seconds)
            log.info("serving", extra={"shards": settings.shards})
            report(Ready())
        await router.wait_settled()
        page.keep()
        if flush is not None:
            await flush()
        log.info("drained")
        nursery.cancel_scope.cancel()


def _router_of(boot: FrontBoot) -> Router:
    """Return the links of this front: to each shard's own socket, or wherever the node of this host says."""
    settings = boot.settings
    links = [Link("" if settings.cluster else socket_path(boot.run_dir, shard), shard, settings) for shard in range(settings.shards)]
    router = Router(links, _access_of(settings), settings)
    if settings.cluster:
        router.cluster = Cluster(boot.run_dir, links, settings.request_seconds_max)
    return router


def _access_of(settings: Settings) -> Access | None:
    """Return who may ask what, where a file says so."""
    try:
        return Access(settings.tokens_file) if settings.tokens_file else None
    except SettingError as error:
        report(Failed(str(error), final=True))
        sys.exit(1)


def telemetry(router: Router, settings: Settings, front: int) -> Callable[[], Awaitable[None]] | None:
    """Let a collector be told, where one is named. Returns what tells it the rest in the end."""
    if not settings.otel_endpoint:
        return None
    try:
        from proteus_shards.front.telemetry import Telemetry  # noqa: PLC0415 an extra brings what it needs
    except ImportError as error:
        report(Failed(f"otel_endpoint needs the extra otel, which brings {error.name}: pip install '.[otel]' in the clone", final=True))
        sys.exit(1)
    told = Telemetry(settings.otel_endpoint, front)
    router.watches += (told,)
    return told.flush


async def watch_signals(drain: Callable[[str], None], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Drain at the first SIGTERM, exit at the second."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        task_status.started()
        terminated = False
        async for _ in signals:
            if terminated:
                log.warning("exit at once, at the second SIGTERM")
                os._exit(1)
            terminated = True
            drain("SIGTERM")


async def watch_lifeline(drain: Callable[[str], None]) -> None:
    """Drain when standard input ends: the supervisor is gone."""
    async with trio.lowlevel.FdStream(os.dup(STDIN)) as lifeline:
        try:
            while await lifeline.receive_some():
                pass
        except (OSError, trio.BrokenResourceError) as error:
            log.warning("the lifeline failed", extra={"error": str(error)})
    drain("the supervisor is gone")


async def beat_forever() -> None:
    """Show the supervisor that this event loop turns."""
    while True:
        beat()
        await trio.sleep(BEAT_SECONDS)


async def carry_on_forever(router: Router) -> None:
    """Take steps over several shards to their end that another front has left; those, too, that were left before there was only one shard."""
    while True:
        await trio.sleep(LOOK_SECONDS)
        find_left(router, [link for link in router.links_here() if link.connected])


def exit_after(seconds: float) -> None:
    """End the process after some seconds, whatever it does then. A drain that has not ended until then never will."""

    def end() -> None:
        log.error("exit before the drain has ended (drain_seconds_max)")
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main()
