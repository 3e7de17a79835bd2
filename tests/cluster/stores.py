"""A real store in a site of its own: started there, reached by its address, and hurt from anywhere.

Signals know no network, so only a start has to happen inside. The server listens on all addresses of its site: on loopback for whoever starts it there and waits
until it answers, on the site's own for the hosts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

from tests.cluster.network import Site
from tests.faults.places import STORE_SECONDS, NotHere, Place
from tests.servers import redis
from tests.servers.postgres import PostgresServer
from tests.servers.server import StoreServer
from tests.servers.strict_dynamodb import StrictServer

KINDS = ("postgres", "redis", "dynamodb")
CONNECTIONS_MAX = 300
EVERYWHERE = "0.0.0.0"
SLOW_SECONDS = {"timeout": "3", "connect_timeout": "1"}  # of a double that is one Python process for all hosts


class InSite:
    """Implements `StoreServer` for one that is started in a site."""

    def __init__(self, server: StoreServer, site: Site) -> None:
        self.server = server
        self.site = site
        self.port = server.port

    def url(self, name: str, **options: str) -> str:
        return self.url_by_way_of(self.port, name, **options)

    def url_by_way_of(self, port: int, name: str, **options: str) -> str:
        return self.server.url_by_way_of(port, name, **options).replace("127.0.0.1", self.site.address)

    def start(self) -> None:
        with self.site.entered():
            self.server.start()

    def kill(self) -> None:
        self.server.kill()

    def pause(self) -> None:
        self.server.pause()

    def resume(self) -> None:
        self.server.resume()

    def stop(self) -> None:
        self.server.stop()


@contextmanager
def open_store(kind: str, folder: Path, site: Site, name: str = "cluster") -> Iterator[Place]:
    """Start a store of a kind in a site, and remove it. Raises `NotHere`."""
    with ExitStack() as stack:
        server: StoreServer
        if kind == "postgres":
            server = _postgres(stack)
        elif kind == "redis":
            server = _redis(folder)
        else:
            server = cast("StoreServer", StrictServer(folder / "dynamodb", EVERYWHERE))
        placed = InSite(server, site)
        stack.callback(server.stop)
        placed.start()
        yield Place(kind, placed.url(name, **(SLOW_SECONDS if kind == "dynamodb" else STORE_SECONDS)), placed.url(name), placed)


def _postgres(stack: ExitStack) -> StoreServer:
    server = PostgresServer(listen_addresses="*", max_connections=str(CONNECTIONS_MAX))
    stack.callback(server.remove)
    with (server.data / "pg_hba.conf").open("a", encoding="utf-8") as rules:
        rules.write(f"host all all {EVERYWHERE}/0 trust\n")
    return server


def _redis(folder: Path) -> StoreServer:
    binary = next(iter(redis.binaries().values()), None)
    if binary is None:
        raise NotHere("no Redis server is installed")
    return cast("StoreServer", redis.RedisServer(binary, folder / "redis", {"bind": EVERYWHERE}))
