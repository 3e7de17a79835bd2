"""Where the jobs of a run are kept: a store of one kind, its server if it has one, a proxy before that, and a way to fill it up."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from tests.faults.proxy import Proxy
from tests.servers import redis
from tests.servers.postgres import USER, PostgresServer
from tests.servers.server import StoreServer
from tests.servers.strict_dynamodb import StrictServer

KINDS = ("memory", "sqlite", "postgres", "redis", "dynamodb")
STORE_SECONDS = {"timeout": "1", "connect_timeout": "1"}  # a store that hangs is away after this
SQLITE_TMPFS_BYTES = 24 * 1024 * 1024
POSTGRES_TMPFS_BYTES = 320 * 1024 * 1024
THROTTLED_CALLS = 1_000_000
PIECE_BYTES = 64 * 1024
FILLER = "filler"


class NotHere(Exception):
    """This machine lacks what a store or a fault needs; says what."""


@dataclass
class Place:
    """A store and all there is around it."""

    kind: str
    url: str  # as the server is told it
    direct_url: str  # the same, past the proxy
    server: StoreServer | None = None
    proxy: Proxy | None = None
    full: tuple[Callable[[], None], Callable[[], None]] | None = None  # make it refuse writes, and take them again
    disk: bool = False  # whether its syncs are those of a shard, and can be made to fail
    size: Callable[[], int] | None = None  # how many bytes the store occupies, all that it could give back given back
    notes: list[str] = field(default_factory=list)  # what cannot be tried here, and why

    @property
    def keeps(self) -> bool:
        """Whether jobs are kept at all."""
        return self.kind != "memory"


@contextmanager
def open_place(kind: str, folder: Path) -> Iterator[Place]:
    """Make a place of a kind, and remove it. Raises `NotHere`."""
    with ExitStack() as stack:
        if kind == "memory":
            yield Place(kind, "memory:", "memory:")
        elif kind == "sqlite":
            yield _sqlite(folder, stack)
        else:
            make = {"postgres": _postgres, "redis": _redis, "dynamodb": _dynamodb}[kind]
            yield make(folder, stack)


def _sqlite(folder: Path, stack: ExitStack) -> Place:
    data = folder / "sqlite"
    data.mkdir()
    place = Place("sqlite", f"sqlite:///{data}", f"sqlite:///{data}", size=lambda: size_of(data), disk=shutil.which("strace") is not None)
    try:
        stack.enter_context(tmpfs(data, SQLITE_TMPFS_BYTES))
    except NotHere as reason:
        place.notes.append(f"full: {reason}")
    else:
        place.full = fill_of(data)
    return place


def _postgres(folder: Path, stack: ExitStack) -> Place:
    notes = []
    try:
        with tmpfs(folder, PIECE_BYTES):
            pass
        server = PostgresServer(tmpfs_bytes=POSTGRES_TMPFS_BYTES)
    except NotHere as reason:
        notes.append(f"full: {reason}")
        server = PostgresServer()
    stack.callback(server.remove)
    server.start()
    place = _behind_proxy("postgres", server, stack, **STORE_SECONDS)
    place.notes += notes
    place.size = lambda: vacuumed_size_of(server)
    if not notes:
        place.full = fill_of(server.data.parent)
    return place


def _redis(folder: Path, stack: ExitStack) -> Place:
    binary = next(iter(redis.binaries().values()), None)
    if binary is None:
        raise NotHere("no Redis server is installed")
    server = stack.enter_context(redis.running(binary, folder / "redis"))
    place = _behind_proxy("redis", server, stack, **STORE_SECONDS)

    def limit(memory: str) -> None:
        answer = server.ask("CONFIG", "SET", "maxmemory", memory)
        assert answer.startswith(b"+OK"), answer

    place.full = (lambda: limit("1"), lambda: limit("0"))
    place.size = lambda: int(server.ask("INFO", "memory").partition(b"used_memory:")[2].split()[0])
    return place


def _dynamodb(folder: Path, stack: ExitStack) -> Place:
    server = StrictServer(folder / "dynamodb")
    stack.callback(server.stop)
    server.start()
    place = _behind_proxy("dynamodb", server, stack, **STORE_SECONDS)
    place.full = (lambda: server.fault("*", "throttle", THROTTLED_CALLS), server.release)
    return place


def _behind_proxy(kind: str, server: StoreServer, stack: ExitStack, **options: str) -> Place:
    proxy = Proxy(server.port)
    stack.callback(proxy.close)
    return Place(kind, server.url_by_way_of(proxy.port, "faults", **options), server.url("faults"), server, proxy)


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[None]:
    """Put a small file system of its own on a folder. Raises `NotHere` where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        raise NotHere("only root can mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False, capture_output=True, text=True
    )
    if mounted.returncode != 0:
        raise NotHere(f"no tmpfs can be mounted: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def size_of(folder: Path) -> int:
    """Return how many bytes the files of a folder have."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != FILLER)


def vacuumed_size_of(server: PostgresServer) -> int:
    """Return how many bytes the tables of a Postgres have, once a vacuum has looked at them as it does by itself sooner or later."""

    async def vacuum() -> None:
        connection = await asyncpg.connect(host="127.0.0.1", port=server.port, user=USER, database="postgres")
        try:
            await connection.execute("VACUUM")
        finally:
            await connection.close()

    asyncio.run(vacuum())
    return size_of(server.data / "base")


def fill_of(folder: Path) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return how to fill a file system to the last byte, and how to free it again."""
    filler = folder / FILLER

    def fill() -> None:
        size = PIECE_BYTES
        with filler.open("ab", buffering=0) as file:
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2

    def free() -> None:
        with suppress(FileNotFoundError):
            filler.unlink()

    return fill, free
