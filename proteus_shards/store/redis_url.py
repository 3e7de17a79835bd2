"""The URL of a Redis store.

    redis://user:password@host:6379/0         user, password, port and number of the database may be left out
    rediss://…?ca=FILE&cert=FILE&key=FILE     the same behind TLS; verify=no: without asking who answers
    redis://h1,h2:7000/?cluster=yes           any nodes of a cluster, the others are found through them
    redis:///0?socket=/run/redis.sock         a Unix socket

Options: `prefix` (how every key begins: one for each server that shares a Redis), `timeout` and `connect_timeout` (seconds), `wait_replicas` (a commit
counts only once so many replicas have it), `allow_eviction` (start even where Redis may throw rows away to make room).
"""

from __future__ import annotations

import re
from urllib.parse import unquote

import msgspec

from proteus_shards.errors import SettingError
from proteus_shards.store.url_parts import Options

PORT = 6379
PREFIX = "proteus-shards"
DATABASE_MAX = 65_535
REPLICAS_MAX = 100
SECONDS_MAX = 3600.0

_HOST = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?")
_PREFIX = re.compile(r"[A-Za-z0-9._:/-]{1,100}")


class Tls(msgspec.Struct, frozen=True):
    """How to talk TLS. Without `ca` the system's certificate authorities count."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    verify: bool = True


class RedisUrl(msgspec.Struct, frozen=True):
    """Keep the rows in Redis."""

    nodes: tuple[tuple[str, int], ...] = (("localhost", PORT),)
    socket: str | None = None  # a path: then `nodes` does not count
    database: int = 0
    user: str | None = None
    password: str | None = None
    tls: Tls | None = None
    cluster: bool = False
    prefix: str = PREFIX
    timeout_seconds: float = 10.0
    connect_seconds: float = 2.0
    wait_replicas: int = 0
    allow_eviction: bool = False

    def __repr__(self) -> str:
        return f"RedisUrl({self.where})"  # a generated one would hold the password

    @property
    def where(self) -> str:
        """Where the server is, for a message."""
        return self.socket or ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes)


def read_redis(place: str, options: Options) -> RedisUrl:
    """Return what the URL means. Raises `SettingError`."""
    return _read(place, options, None)


def read_rediss(place: str, options: Options) -> RedisUrl:
    """Return what the URL of a server behind TLS means. Raises `SettingError`."""
    tls = Tls(options.text("ca"), options.text("cert"), options.text("key"), options.switch("verify", default=True))
    if tls.key is not None and tls.cert is None:
        raise SettingError("store: the option key needs the option cert")
    if tls.ca is not None and not tls.verify:
        raise SettingError("store: the option ca has no meaning with verify=no")
    return _read(place, options, tls)


def _read(place: str, options: Options, tls: Tls | None) -> RedisUrl:
    if not place.startswith("//"):
        raise SettingError("store: write redis://HOST:PORT/DATABASE, or rediss://… for TLS")
    authority, _, path = place[2:].partition("/")
    login, _, hosts = authority.rpartition("@")
    user, colon, password = login.partition(":")
    if login and not (colon and password):
        raise SettingError("store: before the @ of a redis URL stands user:password, or :password")
    cluster = options.switch("cluster", default=False)
    socket = options.text("socket") if tls is None else None
    nodes = tuple(_node(host) for host in hosts.split(","))
    if socket is not None and (hosts or cluster):
        raise SettingError("store: the option socket goes with no host and with no cluster: write redis:///DATABASE?socket=/PATH")
    if len(nodes) > 1 and not cluster:
        raise SettingError("store: several hosts are the nodes of a cluster: add cluster=yes, or name one")
    database = _database(path)
    if cluster and database:
        raise SettingError("store: a cluster has database 0 only")
    prefix = options.text("prefix", PREFIX)
    if prefix is None or not _PREFIX.fullmatch(prefix):
        raise SettingError("store: the option prefix must be 1 to 100 letters, digits and any of . _ : / -")
    return RedisUrl(
        nodes=nodes,
        socket=socket,
        database=database,
        user=_decoded(user, "user") or None,
        password=_decoded(password, "password") or None,
        tls=tls,
        cluster=cluster,
        prefix=prefix,
        timeout_seconds=options.seconds("timeout", 10.0, SECONDS_MAX),
        connect_seconds=options.seconds("connect_timeout", 2.0, SECONDS_MAX),
        wait_replicas=options.count("wait_replicas", 0, 0, REPLICAS_MAX),
        allow_eviction=options.switch("allow_eviction", default=False),
    )


def _node(text: str) -> tuple[str, int]:
    if not text:
        return "localhost", PORT
    found = _HOST.fullmatch(text)
    if found is None or int(found["port"] or PORT) not in range(1, 65_536):
        raise SettingError(
            "store: the host of a redis URL must be HOST, HOST:PORT or [IPv6]:PORT; %-escape what the password has of @ / ? # :"
        )
    return found["six"] or found["name"], int(found["port"] or PORT)


def _database(path: str) -> int:
    if not path:
        return 0
    if not (path.isascii() and path.isdigit() and len(path) <= 5 and int(path) <= DATABASE_MAX):
        raise SettingError("store: after the host of a redis URL comes the number of a database, like /0")
    return int(path)


def _decoded(text: str, what: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        pass
    raise SettingError(f"store: the {what} of the URL is not UTF-8 once its %-escapes are decoded")
