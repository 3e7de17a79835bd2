"""A store in the same schema that disturbs no shard: for the doctor, which wants to know how fast a commit is.

Its rows and records have slot 1024, which no shard has, and numbers from a base of its own, which its lease has in its name, or names that begin with the
lease's. What a trial that was killed has left,
the next one removes after an hour. Where the schema has no tables yet, or those of an older version, the trial makes a schema of its own, and drops it: to
make the real one is for the server that will know its number of shards.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from proteus_shards.core.model import Batch, Record, RecordKey, Row, RowKey
from proteus_shards.core.placement import SLOTS, slot_of
from proteus_shards.store.contract import Damaged
from proteus_shards.store.postgres import SCHEMA_VERSION, PostgresStore
from proteus_shards.store.postgres_errors import Doing
from proteus_shards.store.postgres_prepare import prepare
from proteus_shards.store.postgres_session import query, session
from proteus_shards.store.postgres_url import PostgresUrl

SLOT = SLOTS
SEQ_BITS = 31  # of the numbers of one trial's rows

_replace = msgspec.structs.replace


class PostgresTrial(PostgresStore):
    """A `PostgresStore` on a lease of its own, which is removed with all its rows when it is closed."""

    def __init__(self, url: PostgresUrl) -> None:
        self._base = secrets.randbits(62 - SEQ_BITS) << SEQ_BITS
        self._made = False
        self._own_schema = False
        super().__init__(url, f"trial-{self._base}", range(SLOT, SLOT + 1), None)

    async def open(self) -> int:
        """Make the lease and take it."""
        async with session(self._url, Doing.OPENING) as connection, asyncio.timeout(self._url.timeout_seconds):
            self._own_schema = self._own_schema or not await _is_ready(connection)
        if self._own_schema and not self._made:
            self._url = _replace(self._url, schema=f"proteus_shards_trial_{secrets.token_hex(8)}")
            await prepare(self._url, 1)
        self._made = True
        async with session(self._url, Doing.OPENING) as connection, asyncio.timeout(self._url.timeout_seconds):
            await connection.execute(query("remove_old_trials"), 2**SEQ_BITS - 1)
            await connection.execute(query("begin_trial"), self._lease, self._owner)
        return await super().open()

    async def commit(self, batch: Batch) -> None:
        """Write a batch where it disturbs nobody."""
        base = self._base
        inserts = [_replace(row, slot=SLOT, seq=base + row.seq) for row in batch.inserts]
        marks = [_replace(mark, slot=SLOT, seq=base + mark.seq) for mark in batch.marks]
        records = [_replace(record, slot=SLOT, name=self._name(record)) for record in batch.records]
        await super().commit(Batch([self._moved(key) for key in batch.deletes], inserts, marks, records))

    async def load(self) -> AsyncIterator[Sequence[Row | Damaged]]:
        """Yield this trial's rows in order."""
        async for chunk in super().load():
            own = [row for row in chunk if isinstance(row, Row) and row.seq >> SEQ_BITS == self._base >> SEQ_BITS]
            if own:
                yield [_replace(row, slot=slot_of(row.queue), seq=row.seq - self._base) for row in own]

    async def load_records(self) -> AsyncIterator[Sequence[Record | Damaged]]:
        """Yield this trial's records."""
        own = f"{self._lease} "
        async for chunk in super().load_records():
            found = [self._record(record) for record in chunk if isinstance(record, Record) and record.name.startswith(own)]
            if found:
                yield found

    async def read(self, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        """Return the rows that exist among `keys`."""
        found = await super().read([self._moved(key) for key in keys])
        moved = {self._moved(key): key for key in keys}
        return {moved[key]: _replace(row, slot=moved[key].slot, seq=moved[key].seq) for key, row in found.items()}

    async def read_records(self, keys: Sequence[RecordKey]) -> dict[RecordKey, bytes]:
        """Return the values of the records that exist among `keys`."""
        moved = {_replace(key, slot=SLOT, name=self._name(key)): key for key in keys}
        found = await super().read_records(list(moved))
        return {moved[key]: value for key, value in found.items()}

    async def close(self) -> None:
        """Remove what was written, and disconnect."""
        try:
            if self._made:
                self._made = False
                async with session(self._url, Doing.READING) as connection, asyncio.timeout(self._url.timeout_seconds):
                    if self._own_schema:
                        await connection.execute(f'DROP SCHEMA "{self._url.schema}" CASCADE')
                    else:
                        await connection.execute(query("remove_trial"), self._lease, self._base, self._base + 2**SEQ_BITS - 1)
        finally:
            await super().close()

    def _moved(self, key: RowKey) -> RowKey:
        return _replace(key, slot=SLOT, seq=self._base + key.seq)

    def _name(self, record: Record | RecordKey) -> str:
        return f"{self._lease} {record.slot} {record.name}"

    def _record(self, record: Record) -> Record:
        """Return what a stored record was before it was moved."""
        _, slot, name = record.name.split(" ", 2)
        return _replace(record, slot=int(slot), name=name)


async def _is_ready(connection: Any) -> bool:
    """Say whether the schema has all tables. One of a newer version is left to those who refuse it."""
    layout = await connection.fetchrow(query("layout")) if await connection.fetchval(query("has_layout")) else None
    return layout is not None and layout["version"] >= SCHEMA_VERSION
