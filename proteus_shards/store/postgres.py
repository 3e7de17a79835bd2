"""One shard's rows and records in Postgres.

**Commit** is one statement, and so one transaction and one round trip. It locks the shard's lease `FOR SHARE` under the epoch and the owner that
this store has, and whoever takes the lease over must wait for it; a commit that waited for a takeover looks at the lease again, and finds itself fenced.
Without that lock, late commits of an old owner were seen after the new one had read its rows. The owner is a random number beside the epoch: a
failover to a standby that lacks the last takeover could hand out the same epoch twice.

**Taking over** changes the lease; a session of the owner before that holds the lock and is stuck is ended (`postgres_lease.py`). In a cluster it is changed only while it
says what this process was started for.

**Reopening** is no taking over: it takes a new epoch only from itself. If another owner was there meanwhile, its rows are not what this memory holds, and
the store says `StoreFenced`. If the server's timeline has changed, a standby was promoted, which perhaps lacked the last commits; if the lease knows less
than it did, so it surely was. Then only reading everything anew is safe, and the store says `StoreFailed`.

**Plans.** A generic plan is made once a session and kept. One made while the table is empty would read the whole of it, and go on to do so when it holds a
million rows, until statistics are gathered. (Seen: a plain join that deleted 100 of 9,000 rows in 660 ms, and that with scans and hashes switched off: it
read the index from end to end instead.) So nothing is left to choose: what could scan is switched off, the keys are looked up
by a subquery that cannot be merged into the rest, and the rows are then written by their place (ctid), for which there is only one plan.

**Loading** asks first how many rows make up 16 MiB, again and again to the end, and then fetches so many at a time by a cursor in the same snapshot: payloads of
megabytes never fill the memory, and small ones are not fetched one by one. Where some row cannot be read, the rest is read by key, and what
is damaged is named.

Measured on 2 cores with the server on the same machine, an fsync of 0.15 ms, jobs of 110 bytes, rows per second in batches of 1, 64, 100, 500 and 1,000:
2,400, 76,000, 94,000, 132,000 and 132,000 inserted, 2,600, 68,000, 79,000, 116,000 and 104,000 changed, 2,600, 122,000, 159,000, 234,000 and
280,000 deleted. Of that this process takes 100 µs of its own a commit, and then 3.5 µs a row inserted, 2 a row changed, 0.5 a row deleted; the
rest is the server's. A load reads 290,000 rows a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import uuid4

from proteus_shards.cluster.model import Claim
from proteus_shards.core.model import Batch, Record, RecordKey, Row, RowKey
from proteus_shards.core.placement import slots_of
from proteus_shards.errors import StoreError, StoreFailed, StoreFenced, StoreRefused, StoreUnknown
from proteus_shards.store.contract import LOOK_SECONDS, Damaged, Durability
from proteus_shards.store.postgres_errors import Doing, cause_of, is_damage
from proteus_shards.store.postgres_lease import change_lease, lease_of
from proteus_shards.store.postgres_rows import damaged_record, damaged_row, keys_of, records_of, rows_of, statement_of
from proteus_shards.store.postgres_session import Facts, bounded, check_facts, check_layout, connect, disconnect, fault_in, look, query
from proteus_shards.store.postgres_upkeep import Upkeep
from proteus_shards.store.postgres_url import PostgresUrl

log = logging.getLogger("proteus_shards.store")

SCHEMA_VERSION = 3
LOAD_ROWS = 5000  # in a chunk
LOAD_BYTES = 16 * 1024 * 1024  # of payloads, states and extras in a chunk, or of records, and one row more
CAREFUL_ROWS = 50  # read at once where some row is damaged
READ_ROWS = 5000
READ_RECORDS = 256  # of which each may be large

_T = TypeVar("_T")
_Made = TypeVar("_Made", Row, Record)


class PostgresStore:
    """Implements `contract.Store`."""

    kind = "postgres"
    keeps = True
    row_bytes_max: int | None = None  # a value may have a gigabyte, far beyond the limit of a request's body
    batch_rows_max: int | None = 10_000
    batch_bytes_max: int | None = 64 * 1024 * 1024

    def __init__(self, url: PostgresUrl, lease: str, slots: range, shards: int | None, claim: Claim | None = None) -> None:
        self.durability = Durability.WEAK
        self.terms = "not connected yet"
        self._url = url
        self._lease = lease
        self._slots = slots
        self._shards = shards  # None: whatever they are
        self._claim = claim
        self._owner = uuid4()
        self._epoch = 0
        self._timeline = ""
        self._connection: Any = None
        self._look_due = 0.0  # of the monotonic clock
        self._warned = False
        self._closed = False
        self._upkeep = Upkeep(url)

    async def open(self) -> int:
        """Connect, check what is there, and take the rows over."""
        self._check_open()
        assert self._connection is None, "opened twice"
        connection = await connect(self._url, Doing.OPENING)
        try:
            async with bounded(connection, Doing.OPENING, self._url.timeout_seconds):
                facts = await self._check(connection)
                epoch = await self._take(connection, "take")
                if epoch is None and self._claim is not None and await connection.fetchval(query("has_lease"), self._lease):
                    raise StoreFenced(f"postgres: {self._lease} is held by another host, or by another process of this one")  # noqa: TRY301
        except BaseException:
            connection.terminate()
            raise
        if epoch is None:
            connection.terminate()
            raise StoreError("postgres: the schema has no lease for this shard: start the server, which makes it")
        return self._adopt(connection, facts, epoch)

    async def reopen(self) -> int:
        """Connect anew, and take a new epoch if nobody else has."""
        self._check_open()
        self._hang_up()
        if not self._epoch:
            return await self.open()
        connection = await connect(self._url, Doing.READING)
        try:
            async with bounded(connection, Doing.READING, self._url.timeout_seconds):
                facts = await self._check(connection)
                if facts.timeline != self._timeline:
                    raise StoreFailed("postgres: a standby has become the primary: what it has must be read anew")  # noqa: TRY301
                epoch = await self._take(connection, "retake", self._epoch)
        except BaseException:
            connection.terminate()
            raise
        if epoch is None:
            connection.terminate()
            raise StoreFenced("postgres: another owner has taken these rows over, or the server has lost what it knew of this one")
        return self._adopt(connection, facts, epoch)

    async def commit(self, batch: Batch) -> None:
        """Write a batch."""
        connection = self._live()
        if time.monotonic() > self._look_due:
            await self._look_again(connection)
        self._warned = False
        async with bounded(connection, Doing.COMMITTING, self._url.timeout_seconds):
            statement, arguments = statement_of(batch)
            ours = await connection.fetchval(query(statement), self._lease, self._epoch, self._owner, *arguments)
        if not ours:
            raise StoreFenced(f"postgres: another owner has taken these rows over from epoch {self._epoch}")
        self._upkeep.count(len(batch.deletes) + len(batch.marks) + len(batch.records))
        if self._warned:  # the one warning that a commit can bring: it stopped waiting for the standby
            raise StoreUnknown("postgres: the commit is on the primary, but perhaps on no standby")

    def load(self) -> AsyncIterator[Sequence[Row | Damaged]]:
        """Yield all rows in order."""
        return self._load_all(_ROWS)

    def load_records(self) -> AsyncIterator[Sequence[Record | Damaged]]:
        """Yield all records."""
        return self._load_all(_RECORDS)

    async def read(self, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        """Return the rows that exist among `keys`."""
        connection = self._live()
        wanted = {(key.slot, key.seq): key for key in keys}
        found: dict[RowKey, Row] = {}
        places = list(wanted)
        for start in range(0, len(places), READ_ROWS):
            for row in await self._read(connection, _ROWS, places[start : start + READ_ROWS]):
                if isinstance(row, Damaged):
                    raise StoreFailed(f"postgres: the row at {row.where} is damaged: {row.fault}")
                key = wanted[row.slot, row.seq]
                if (row.queue, row.id) == (key.queue, key.id):
                    found[key] = row
        return found

    async def read_records(self, keys: Sequence[RecordKey]) -> dict[RecordKey, bytes]:
        """Return the values of the records that exist among `keys`."""
        connection = self._live()
        wanted = [keys_of(key) for key in keys]
        found: dict[RecordKey, bytes] = {}
        for start in range(0, len(wanted), READ_RECORDS):
            for record in await self._read(connection, _RECORDS, wanted[start : start + READ_RECORDS]):
                if isinstance(record, Damaged):
                    raise StoreFailed(f"postgres: the record at {record.where} is damaged: {record.fault}")
                assert record.value is not None
                found[RecordKey(record.slot, record.kind, record.name)] = record.value
        return found

    async def close(self) -> None:
        """Disconnect."""
        self._closed = True
        await self._upkeep.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            await disconnect(connection)

    # --- the connection ----------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")

    def _live(self) -> Any:
        """Return the connection. One that was lost while nothing was under way leaves no doubt."""
        self._check_open()
        if self._connection is None or self._connection.is_closed():
            raise StoreRefused("postgres: the connection was lost")
        return self._connection

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def _adopt(self, connection: Any, facts: Facts, epoch: int) -> int:
        self._connection = connection
        connection.add_log_listener(self._hear)
        self.durability, self.terms = facts.durability, facts.terms
        self._timeline, self._epoch = facts.timeline, epoch
        self._look_due = time.monotonic() + LOOK_SECONDS
        return epoch

    async def _look_again(self, connection: Any) -> None:
        """Ask what the server promises by now, and raise `StoreRefused` where that is less than it was."""
        before = self.durability
        async with bounded(connection, Doing.READING, self._url.timeout_seconds):
            facts = await look(connection)
        self.durability, self.terms = facts.durability, facts.terms
        self._look_due = time.monotonic() + LOOK_SECONDS
        if not self.durability.covers(before):
            raise StoreRefused(f"postgres: the durability is {self.durability} now, and was {before} ({self.terms})")

    def _hear(self, _connection: Any, _message: Any) -> None:
        self._warned = True

    async def _check(self, connection: Any) -> Facts:
        facts = await look(connection)
        check_facts(facts)
        shards = await check_layout(connection, SCHEMA_VERSION)
        if self._shards is not None and shards != self._shards:
            if self._epoch:
                raise StoreFenced(f"postgres: the rows were taken over by a server of {shards} shards")
            raise StoreError(
                f"postgres: the schema was made ready for {shards} shards, not {self._shards}: start the server, which changes it"
            )
        return facts

    async def _take(self, connection: Any, statement: str, *more: Any) -> int | None:
        """Take an epoch, under the claim if there is one."""
        claim = self._claim
        holder = (None, None) if claim is None else (claim.host, claim.turn)
        return await change_lease(connection, query(statement), self._lease, self._owner, *holder, *more)

    # --- reading -----------------------------------------------------------------------------------------------

    async def _read(self, connection: Any, table: _Table[_Made], places: Sequence[tuple[Any, ...]]) -> list[_Made | Damaged]:
        async with bounded(connection, Doing.READING, self._url.timeout_seconds):
            return table.made(await connection.fetch(query(table.read), *zip(*places, strict=True)))

    async def _load_all(self, table: _Table[_Made]) -> AsyncIterator[list[_Made | Damaged]]:
        connection = self._live()
        given = 0
        steps = self._load(connection, table)
        try:
            async for chunk in steps:
                yield chunk
                given += len(chunk)
        except _Unreadable:  # something in the next chunk
            async for chunk in self._load_carefully(connection, table, given):
                yield chunk
        finally:
            await steps.aclose()

    async def _load(self, connection: Any, table: _Table[_Made]) -> AsyncGenerator[list[_Made | Damaged], None]:
        bounds = (self._slots.start, self._slots.stop - 1)
        async with self._snapshot(connection):
            parts = [part for (part,) in await self._step(connection, connection.fetch(query(table.plan), *bounds, LOAD_BYTES))]
            cursor = await self._step(connection, connection.cursor(query(table.load), *bounds))
            for part in parts:
                for start in range(0, part, LOAD_ROWS):
                    yield table.made(await self._step(connection, cursor.fetch(min(LOAD_ROWS, part - start))))

    async def _load_carefully(self, connection: Any, table: _Table[_Made], given: int) -> AsyncIterator[list[_Made | Damaged]]:
        """Read what is left by key. Nobody else writes here, so that it is still what the snapshot had."""
        bounds = (self._slots.start, self._slots.stop - 1)
        async with self._snapshot(connection):
            places = [tuple(place) for place in await self._step(connection, connection.fetch(query(table.keys), *bounds, given))]
        for start in range(0, len(places), CAREFUL_ROWS):
            yield await self._read_carefully(connection, table, places[start : start + CAREFUL_ROWS])

    async def _read_carefully(self, connection: Any, table: _Table[_Made], places: Sequence[tuple[Any, ...]]) -> list[_Made | Damaged]:
        try:
            return table.made(await self._step(connection, connection.fetch(query(table.read), *zip(*places, strict=True))))
        except _Unreadable as error:
            if len(places) == 1:
                return [table.damaged(places[0], str(error))]
        return [item for place in places for item in await self._read_carefully(connection, table, [place])]

    @asynccontextmanager
    async def _snapshot(self, connection: Any) -> AsyncIterator[None]:
        await self._step(connection, connection.execute(query("begin_load")))
        try:
            await self._step(connection, connection.fetch(query("configure_load"), str(round(self._url.load_timeout_seconds * 1000))))
            yield
        finally:
            if not connection.is_closed():
                await self._step(connection, connection.execute(query("end_load")))

    async def _step(self, connection: Any, work: Awaitable[_T]) -> _T:
        """Do one step of a load."""
        try:
            async with asyncio.timeout(self._url.load_timeout_seconds):
                return await work
        except Exception as error:  # noqa: BLE001  # as above
            if is_damage(error):
                raise _Unreadable("it cannot be read: the database is damaged") from None
            raise fault_in(connection, error, Doing.READING) from cause_of(error)
        except BaseException:
            connection.terminate()
            raise


class _Table(NamedTuple, Generic[_Made]):
    """How a table is read: its statements, and what its rows stand for."""

    plan: str
    load: str
    keys: str
    read: str
    made: Callable[[Sequence[Any]], list[_Made | Damaged]]
    damaged: Callable[[tuple[Any, ...], str], Damaged]


_ROWS = _Table("plan_load", "load", "load_keys", "read", rows_of, damaged_row)
_RECORDS = _Table("plan_load_records", "load_records", "load_record_keys", "read_records", records_of, damaged_record)


class _Unreadable(Exception):
    """Some row of what was asked for cannot be read."""


def store_of_shard(url: PostgresUrl, shard: int, shards: int, claim: Claim | None = None) -> PostgresStore:
    """Return the store of one shard."""
    return PostgresStore(url, lease_of(shard), slots_of(shard, shards), shards, claim)
