"""Making a schema of Postgres ready: its tables, and for how many shards.

All of it is one transaction under a lock of its own (an advisory one, which needs no table), so that several hosts may start at once, and a crash leaves
what was there before. Nothing is written where nothing has to change: a user who may only read and write rows will do then.

The rows carry their slot, and stay where they are when the number of shards changes. But the slots pass from one lease to another then, and so all
leases get an epoch above every one there was, and lose their owner: a process of the old number can write no more. While hosts of a cluster are registered, the
number stays what it is.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg

from proteus_shards.errors import StoreError
from proteus_shards.store.postgres import SCHEMA_VERSION
from proteus_shards.store.postgres_errors import LOCKED, Doing
from proteus_shards.store.postgres_lease import TAKE_ATTEMPTS, lease_of
from proteus_shards.store.postgres_session import check_facts, layout_fault, look, query, session
from proteus_shards.store.postgres_url import PostgresUrl
from proteus_shards.store.sharing import check_sharing


async def prepare(url: PostgresUrl, shards: int, *, cluster: bool = False) -> str | None:
    """Make a schema ready for so many shards. Returns what changed, in one line, where it was ready for another number before.

    Raises `SettingError` where hosts are registered whose cluster has another number, or who should not be joined without `cluster`.
    """
    async with session(url, Doing.OPENING) as connection, asyncio.timeout(TAKE_ATTEMPTS * url.timeout_seconds):
        facts = await look(connection)
        check_facts(facts)
        for attempt in range(TAKE_ATTEMPTS):
            try:
                async with connection.transaction():
                    before = await _prepare(connection, url, shards, cluster=cluster)
            except asyncpg.PostgresError as error:
                if error.sqlstate != LOCKED or attempt == TAKE_ATTEMPTS - 1:
                    raise
                await connection.fetch(query("end_holders"))  # an old owner is stuck while it holds its lease
            else:
                return f"made ready for {shards} shards instead of {before}; no row was moved" if before not in {None, shards} else None
        raise AssertionError


async def prepared_shards(url: PostgresUrl) -> int | None:
    """Return for how many shards a schema was made ready, or None. Writes nothing."""
    async with session(url, Doing.OPENING) as connection, asyncio.timeout(url.timeout_seconds):
        if not await connection.fetchval(query("has_layout")):
            return None
        layout = await connection.fetchrow(query("layout"))
    return None if layout is None else layout["shards"]


async def _prepare(connection: Any, url: PostgresUrl, shards: int, *, cluster: bool) -> int | None:
    """Do it inside a transaction. Returns the number of shards before."""
    await connection.execute(query("patience"))
    await connection.fetchval(query("lock_schema"), url.schema)
    await connection.execute(query("impatience"))
    if not await connection.fetchval(query("has_layout")):
        if not await connection.fetchval(query("has_schema"), url.schema):
            quoted = url.schema.replace('"', '""')
            await connection.execute(f'CREATE SCHEMA "{quoted}"')
        await _migrate(connection, 0)
        await connection.execute(query("write_layout"), SCHEMA_VERSION, shards)
    layout = await connection.fetchrow(query("layout"))
    if layout is None:
        raise StoreError(
            "postgres: the table layout of the schema is empty: restore it from a backup, or drop the schema if it holds no jobs"
        )
    if layout["version"] > SCHEMA_VERSION:
        fault = layout_fault(layout["version"], SCHEMA_VERSION)
        assert fault is not None
        raise fault
    if layout["version"] < SCHEMA_VERSION:
        await _migrate(connection, layout["version"])
        await connection.execute(query("change_version"), SCHEMA_VERSION)
        await connection.execute(query("end_leases"), uuid4())
    before: int = layout["shards"]
    check_sharing([row["address"] for row in await connection.fetch(query("hosts"))], before, shards, cluster=cluster)
    if before != shards:
        await connection.execute(query("change_shards"), shards)
        await connection.execute(query("end_leases"), uuid4())
    names = [lease_of(shard) for shard in range(shards)]
    if await connection.fetchval(query("count_leases"), names) < shards:
        await connection.execute(query("make_leases"), names, uuid4())
    return before


async def _migrate(connection: Any, version: int) -> None:
    """Bring the tables from a version (0: there are none) to the newest."""
    for number in range(version + 1, SCHEMA_VERSION + 1):
        await connection.execute((Path(__file__).parent / f"postgres_schema_{number}.sql").read_text(encoding="utf-8"))
