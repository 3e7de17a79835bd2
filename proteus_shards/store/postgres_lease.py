"""Changing the row of a lease: an epoch that is taken, a shard that is handed over.

A commit locks that row until it ends, and so a change waits for it. Where a session holds the lock and is stuck (its process is stopped with half a statement
sent, say), the wait ends after 2 s, that session is ended by the number that it left in the lease, and the change is tried again.
"""

from __future__ import annotations

import logging
from typing import Any

import asyncpg

from proteus_shards.store.postgres_errors import LOCKED
from proteus_shards.store.postgres_session import query

log = logging.getLogger("proteus_shards.store")

TAKE_ATTEMPTS = 3


def lease_of(shard: int) -> str:
    """Return the name of a shard's lease."""
    return f"shard-{shard}"


async def change_lease(connection: Any, statement: str, lease: str, *arguments: Any) -> int | None:
    """Run a statement that changes a lease, and return the epoch that it returns; None: it found no such row."""
    for attempt in range(TAKE_ATTEMPTS):
        try:
            epoch: int | None = await connection.fetchval(statement, lease, *arguments)
        except asyncpg.PostgresError as error:
            if error.sqlstate != LOCKED or attempt == TAKE_ATTEMPTS - 1:
                raise
            ended = await connection.fetch(query("end_holder"), lease)
            log.warning("lease is held by a session that does not end by itself", extra={"lease": lease, "sessions_ended": len(ended)})
        else:
            return epoch
    raise AssertionError
