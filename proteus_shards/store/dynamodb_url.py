"""The URL of a Dynamodb store."""

from __future__ import annotations

import msgspec

from proteus_shards.errors import SettingError
from proteus_shards.store.url_parts import Options


class DynamodbUrl(msgspec.Struct, frozen=True):
    """Keep the rows in Dynamodb."""

    timeout_seconds: float = 10.0


def read_dynamodb(_place: str, _options: Options) -> DynamodbUrl:
    """Return what the URL means. Raises `SettingError`."""
    raise SettingError("store: dynamodb is not available in this version")
