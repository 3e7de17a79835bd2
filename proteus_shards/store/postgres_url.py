"""The URL of a Postgres store."""

from __future__ import annotations

import msgspec

from proteus_shards.errors import SettingError
from proteus_shards.store.url_parts import Options


class PostgresUrl(msgspec.Struct, frozen=True):
    """Keep the rows in Postgres."""

    timeout_seconds: float = 10.0


def read_postgres(_place: str, _options: Options) -> PostgresUrl:
    """Return what the URL means. Raises `SettingError`."""
    raise SettingError("store: postgres is not available in this version")
