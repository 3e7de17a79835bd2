"""The `store` setting: a URL, read into what it means.

    memory:                                   nothing is kept
    sqlite:///relative/folder                 below the folder that the server was started in
    sqlite:////absolute/folder?check=none     options follow a question mark
    postgres://… redis://… dynamodb://…       as the module of each says: postgres_url.py, redis_url.py, dynamodb_url.py

Reading a URL loads no driver: the supervisor does it too, to refuse a wrong setting before anything starts. What it cannot
understand it refuses, an unknown option included, since a misspelt one would silently weaken what is promised. No message repeats
more of a URL than its scheme and the names of its options: the rest may hold a password.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

import msgspec

from proteus_shards.errors import SettingError
from proteus_shards.store.dynamodb_url import DynamodbUrl, read_dynamodb
from proteus_shards.store.postgres_url import PostgresUrl, read_postgres
from proteus_shards.store.redis_url import RedisUrl, read_redis, read_rediss
from proteus_shards.store.url_parts import Options

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


class MemoryUrl(msgspec.Struct, frozen=True):
    """Keep nothing."""


class SqliteUrl(msgspec.Struct, frozen=True):
    """Keep a SQLite file per shard in a folder."""

    folder: Path
    synchronous: str = "full"  # normal: a loss of power may take the last commits with it
    check: str = "quick"  # what is done to see damage when a file is opened


StoreUrl: TypeAlias = MemoryUrl | SqliteUrl | PostgresUrl | RedisUrl | DynamodbUrl


def read_url(url: str) -> StoreUrl:
    """Return what a store URL means. Raises `SettingError`."""
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    if not colon or not _SCHEME.fullmatch(scheme):
        raise SettingError("store must be a URL: sqlite:///FOLDER, postgres://…, redis://…, dynamodb://TABLE or memory:")
    if scheme not in SCHEMES:
        raise SettingError(f"store: there is no store of the scheme {scheme!r}; there are {', '.join(SCHEMES)}")
    if "#" in rest:
        raise SettingError("store: a # inside the URL must be written %23")
    place, _, query = rest.partition("?")
    options = Options(scheme, query)
    meant = _READERS[scheme](place, options)
    options.finish()
    return meant


def _memory(place: str, _options: Options) -> MemoryUrl:
    if place:
        raise SettingError("store: nothing may follow memory:")
    return MemoryUrl()


def _sqlite(place: str, options: Options) -> SqliteUrl:
    synchronous = options.choice("synchronous", ("full", "normal"), "full")
    check = options.choice("check", ("quick", "none"), "quick")
    return SqliteUrl(_folder(place), synchronous, check)


def _folder(place: str) -> Path:
    if not place.startswith("///"):
        raise SettingError("store: write sqlite:///FOLDER for a relative folder, or sqlite:////FOLDER for an absolute one")
    try:
        path = unquote(place[3:], errors="strict")
    except UnicodeDecodeError as error:
        raise SettingError("store: the folder of the URL is not UTF-8 once its %-escapes are decoded") from error
    if not path.strip("/"):
        raise SettingError("store: the URL names no folder")
    if "\0" in path:
        raise SettingError("store: the folder of the URL must not hold a NUL")
    return Path(path)


_READERS: dict[str, Callable[[str, Options], StoreUrl]] = {
    "sqlite": _sqlite,
    "postgres": read_postgres,
    "postgresql": read_postgres,
    "redis": read_redis,
    "rediss": read_rediss,
    "dynamodb": read_dynamodb,
    "memory": _memory,
}
SCHEMES = tuple(_READERS)
