"""The URL of a Redis store."""

from __future__ import annotations

import msgspec

from proteus_shards.errors import SettingError
from proteus_shards.store.url_parts import Options


class RedisUrl(msgspec.Struct, frozen=True):
    """Keep the rows in Redis."""

    timeout_seconds: float = 10.0


def read_redis(_place: str, _options: Options) -> RedisUrl:
    """Return what the URL means. Raises `SettingError`."""
    raise SettingError("store: redis is not available in this version")


def read_rediss(_place: str, _options: Options) -> RedisUrl:
    """Return what the URL of a server behind TLS means. Raises `SettingError`."""
    raise SettingError("store: rediss is not available in this version")
