"""`proteus-shards import-relay`: all jobs of a relay database (PostgreSQL, first or second generation) into an empty store.

Both servers must be stopped: relay, since its jobs would run on both sides, and ours, since a shard's rows have one owner. The database is read in one
snapshot, twice: first to see that every job can be taken over, then to take them. It stays as it is.

**Order** is relay's: by run_at, and where that is the same by created_at, queue and id.

**A run goes on.** A job in flight stays so, with its run_id (the first generation has none, and needs none: its runs are named by their job). It gets its whole
timeout from our server's start on; until then its worker can heartbeat and complete it, and nobody else gets it. So a fleet of workers may stay as it is
while the address changes hands. Retries are counted on: what relay has spent is spent.

**Never twice in silence.** The target must hold no jobs; and it keeps a note of an import, so that one which has been worked off meanwhile is not filled with
the same jobs again, unless `again` says so. An import that was interrupted leaves a target that holds jobs.

**Layouts** are told by their columns. Payloads are `jsonb` (first and second generation) or `bytea` (their latest); times are without a zone and mean UTC.
A job whose names, timeout or times our server could not hold, or that is too large for the target, ends the import before anything is written; with
`skip_unfit` it is left behind.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import msgspec

from proteus_shards.core.model import (
    MAX_RETRIES_MAX,
    SECOND_US,
    TIMEOUT_SECONDS_MAX,
    Batch,
    Kind,
    Record,
    Row,
    Status,
    job_of,
)
from proteus_shards.core.placement import shard_of, slot_of
from proteus_shards.errors import RowError, SettingError, StoreError
from proteus_shards.store.contract import Damaged, Store
from proteus_shards.store.open_files import allow_open_files
from proteus_shards.store.registry import check_alone, make_store, prepare_store, prepared_shards

BATCH_ROWS_MAX = 1000
BATCH_BYTES_MAX = 4 * 1024 * 1024
FETCH_ROWS = 500
UNFIT_NAMED = 20
FILES_PER_STORE = 4
CONNECT_SECONDS_MAX = 30.0
SCHEMES = ("postgres://", "postgresql://")

_NEEDED = {"id", "queue", "timeout", "max_retries", "retries_remaining", "data", "state", "in_flight", "updated_at", "created_at"}
_JOBS = """
SELECT id, queue, extract(epoch FROM timeout)::float8 AS timeout, max_retries, retries_remaining, {data} AS payload,
    {state} AS state, coalesce(in_flight, false) AS in_flight, {run_id} AS run_id, {run_at_us} AS run_at,
    {updated_at} AS updated_at, {created_at} AS created_at
FROM jobs ORDER BY {run_at}, created_at, queue, id
"""  # what stands in braces is put there by this module
_COLUMNS = """
SELECT column_name, data_type FROM information_schema.columns
WHERE table_name = 'jobs' AND table_schema = ANY (current_schemas(false))
"""


class Found(msgspec.Struct, kw_only=True):
    """What there is to import, or was."""

    generation: int
    jobs: int = 0
    scheduled: int = 0
    in_flight: int = 0
    endless: int = 0  # with retries without end
    queues: int = 0
    unfit: int = 0
    size: int = 0

    @property
    def summary(self) -> str:
        """One line."""
        left = f", {self.unfit:,} unfit ones left out" if self.unfit else ""
        return (
            f"{self.jobs:,} jobs of relay v{self.generation} in {self.queues:,} queues ({self.scheduled:,} scheduled, {self.in_flight:,} in flight, "
            f"{self.endless:,} with retries without end; {self.size / 1e6:,.1f} MB){left}"
        )


def run(source: str, target: str, shards: int, *, dry: bool, again: bool, skip_unfit: bool, tell: Callable[[str], None]) -> Found:
    """Import, in an event loop of its own. `shards` counts for a target that was never prepared. Raises `SettingError` and `StoreError`."""
    return asyncio.run(_import(source, target, shards, dry=dry, again=again, skip_unfit=skip_unfit, tell=tell))


async def _import(source: str, target: str, shards: int, *, dry: bool, again: bool, skip_unfit: bool, tell: Callable[[str], None]) -> Found:
    if not source.startswith(SCHEMES):
        raise SettingError("FROM must be the URL of a PostgreSQL database: postgres://USER@HOST/DATABASE")
    sample = make_store(target, 0, 1)
    if not sample.keeps:
        raise SettingError("store: this one keeps no jobs, there is nothing to import into")
    shards = await prepared_shards(target) or shards
    allow_open_files(FILES_PER_STORE * shards + 64)
    async with _snapshot(source) as (connection, query, generation):
        found = Found(generation=generation)
        await _survey(connection, query, found, sample, tell)
        if dry:
            return found
        if found.unfit and not skip_unfit:
            raise StoreError(f"{found.unfit:,} jobs cannot be taken over; nothing was written. To leave them behind, add --skip-unfit")
        await check_alone(target)
        await _check_target(target, shards, again=again)
        await prepare_store(target, shards)
        tell(found.summary)
        await _write(connection, query, target, shards, sample.row_bytes_max)
    await _read_back(target, shards, found.jobs)
    return found


# --- relay's side --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _snapshot(source: str) -> AsyncIterator[tuple[Any, str, int]]:
    """Give a connection that sees one moment, the query of all jobs in order, and relay's generation."""
    try:
        connection = await asyncpg.connect(source, timeout=CONNECT_SECONDS_MAX, command_timeout=None)
    except (OSError, ValueError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StoreError(f"FROM cannot be reached: {_word(error)}") from error
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            columns = {row["column_name"]: row["data_type"] for row in await connection.fetch(_COLUMNS)}
            if not columns:
                raise StoreError("FROM has no table `jobs`: it is no database of relay")
            if missing := sorted(_NEEDED - columns.keys()):
                raise StoreError(
                    f"the table `jobs` of FROM is not relay's, or of a layout that is not known: it has no {', '.join(missing)}"
                )
            yield connection, _query(columns), 2 if "run_id" in columns else 1
    except asyncpg.PostgresError as error:
        raise StoreError(f"FROM could not be read to the end: {_word(error)}") from error
    finally:
        await connection.close(timeout=CONNECT_SECONDS_MAX)


def _word(error: Exception) -> str:
    """Name an error without its words, which may be values of rows or parts of a URL."""
    return f"SQLSTATE {error.sqlstate}" if isinstance(error, asyncpg.PostgresError) else type(error).__name__


def _query(columns: dict[str, str]) -> str:
    run_at = "coalesce(run_at, created_at)" if "run_at" in columns else "created_at"
    run_id = "run_id" if "run_id" in columns else "NULL::uuid"
    micros = "(extract(epoch FROM {})::numeric * 1000000)::bigint"
    text = {name: f"convert_to({name}::text, 'UTF8')" if columns[name] != "bytea" else name for name in ("data", "state")}
    times = {name: micros.format(name) for name in ("updated_at", "created_at")}
    return _JOBS.format(run_at=run_at, run_at_us=micros.format(run_at), run_id=run_id, **text, **times)


def _row_of(record: Any, seq: int) -> Row:
    """Return the row of a job of relay's. Raises `RowError` for one that cannot be held."""
    endless = record["max_retries"] is None or record["max_retries"] < 0
    max_retries = -1 if endless else min(record["max_retries"], MAX_RETRIES_MAX)
    remaining = record["retries_remaining"]
    spent = 0 if endless or remaining is None else max(0, max_retries - remaining)
    in_flight = record["in_flight"]
    run_id = None if not in_flight else record["run_id"].bytes if record["run_id"] is not None else os.urandom(16)
    timeout = record["timeout"]
    if not math.isfinite(timeout):
        raise RowError("timeout must be finite")
    state = record["state"]
    row = Row(
        slot=slot_of(record["queue"]),
        seq=seq,
        queue=record["queue"],
        id=record["id"],
        status=int(Status.IN_FLIGHT if in_flight else Status.READY),
        ready_at=record["run_at"],
        run_at=record["run_at"],
        timeout=max(0, min(math.ceil(timeout), TIMEOUT_SECONDS_MAX)),
        max_retries=max_retries,
        attempt=spent + in_flight,
        run_id=run_id,
        reason=None,
        created_at=record["created_at"],
        updated_at=record["updated_at"],
        payload=record["payload"],
        state=None if state in (None, b"null") else state,
    )
    job_of(row)
    return row


async def _rows(connection: Any, query: str, row_bytes_max: int | None, unfit: Callable[[str], None]) -> AsyncIterator[Row]:
    seq = 0
    async for record in connection.cursor(query, prefetch=FETCH_ROWS):
        seq += 1
        try:
            row = _row_of(record, seq)
        except RowError as error:
            unfit(f"job {seq:,} in order: {error}")
            continue
        if row_bytes_max is not None and _size(row) > row_bytes_max:
            unfit(f"job {seq:,} in order: it has {_size(row):,} bytes, more than the store can take ({row_bytes_max:,})")
        else:
            yield row


def _size(row: Row) -> int:
    return len(row.queue.encode()) + len(row.id.encode()) + len(row.payload) + len(row.state or b"")


async def _survey(connection: Any, query: str, found: Found, sample: Store, tell: Callable[[str], None]) -> None:
    now = time.time_ns() // 1000
    queues: Counter[str] = Counter()

    def note_unfit(text: str) -> None:
        found.unfit += 1
        if found.unfit <= UNFIT_NAMED:
            tell(f"unfit: {text}")

    async for row in _rows(connection, query, sample.row_bytes_max, note_unfit):
        found.jobs += 1
        found.size += _size(row)
        found.in_flight += row.status == Status.IN_FLIGHT
        found.scheduled += row.status == Status.READY and row.ready_at > now + SECOND_US
        found.endless += row.max_retries < 0
        queues[row.queue] += 1
    found.queues = len(queues)


# --- our side ------------------------------------------------------------------------------------------------------


async def _check_target(target: str, shards: int, *, again: bool) -> None:
    """Raise unless the target is empty, and was never imported into. Writes nothing."""
    if await prepared_shards(target) is None:
        return
    for shard in range(shards):
        store = make_store(target, shard, shards)
        try:
            await store.open()
            async for records in store.load_records():
                if not again and any(isinstance(each, Record) and each.kind == Kind.IMPORT for each in records):
                    raise StoreError("the store was filled by an import before; nothing was written. To import once more, add --again")
            async for rows in store.load():
                if rows:
                    raise StoreError("the store holds jobs already, of a server or of an import that was interrupted; nothing was written")
        finally:
            await store.close()


async def _write(connection: Any, query: str, target: str, shards: int, row_bytes_max: int | None) -> None:
    async with AsyncExitStack() as opened:
        stores: list[Store] = []
        for shard in range(shards):
            store = make_store(target, shard, shards)
            opened.push_async_callback(store.close)
            await store.open()
            async for _ in store.load_records():
                pass
            async for _ in store.load():
                pass
            stores.append(store)
        batches = [Batch([], [], []) for _ in stores]
        sizes = [0] * shards
        rows_max = min(BATCH_ROWS_MAX, stores[0].batch_rows_max or BATCH_ROWS_MAX)
        bytes_max = min(BATCH_BYTES_MAX, stores[0].batch_bytes_max or BATCH_BYTES_MAX)
        async for row in _rows(connection, query, row_bytes_max, lambda _: None):
            shard = shard_of(row.slot, shards)
            size = _size(row)
            if len(batches[shard]) == rows_max or (len(batches[shard]) and sizes[shard] + size > bytes_max):
                await stores[shard].commit(batches[shard])
                batches[shard], sizes[shard] = Batch([], [], []), 0
            batches[shard].inserts.append(row)
            sizes[shard] += size
        for store, batch in zip(stores, batches, strict=True):
            if len(batch):
                await store.commit(batch)
        note = msgspec.json.encode({"at": int(time.time())})
        await stores[0].commit(Batch([], [], [], [Record(0, Kind.IMPORT, "relay", note)]))


async def _read_back(target: str, shards: int, jobs: int) -> None:
    count = 0
    for shard in range(shards):
        store = make_store(target, shard, shards)
        try:
            await store.open()
            async for _ in store.load_records():
                pass
            async for rows in store.load():
                count += sum(not isinstance(row, Damaged) for row in rows)
        finally:
            await store.close()
    if count != jobs:
        raise StoreError(f"{jobs:,} jobs were written, and {count:,} are there: do not use this store")
