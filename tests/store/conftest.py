"""The servers that tests of stores share."""

from __future__ import annotations

from tests.servers.postgres import own_postgres, postgres_server
from tests.servers.redis import redis_server, start_redis

__all__ = ["own_postgres", "postgres_server", "redis_server", "start_redis"]
