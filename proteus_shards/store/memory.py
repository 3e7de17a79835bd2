"""The store that keeps nothing.

With it, a job with persist_data is refused, and so no batch ever has a row. It exists so that a shard needs no second way of working. Records
(settings of queues, schedules, …) are taken, so that all that can be set works without a store, for as long as the shard lives.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import count

from proteus_shards.core.model import Batch, Record, RecordKey, Row, RowKey
from proteus_shards.store.contract import Damaged, Durability

_epochs = count(1)


class MemoryStore:
    """Implements `contract.Store`. Its epochs count within the process: nothing outlives that which could be fenced."""

    kind = "memory"
    durability = Durability.MEMORY
    terms = "nothing is kept"
    keeps = False
    row_bytes_max: int | None = None
    batch_rows_max: int | None = None
    batch_bytes_max: int | None = None

    async def open(self) -> int:
        """Return the next epoch."""
        return next(_epochs)

    async def load(self) -> AsyncIterator[Sequence[Row | Damaged]]:
        """Yield nothing."""
        return
        yield []

    async def load_records(self) -> AsyncIterator[Sequence[Record | Damaged]]:
        """Yield nothing."""
        return
        yield []

    async def commit(self, batch: Batch) -> None:
        """Take a batch without rows. What records it has is forgotten."""
        assert not batch.inserts, "a store that keeps nothing was given a row"

    async def reopen(self) -> int:
        """Return the next epoch."""
        return await self.open()

    async def read(self, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        """Return nothing: there are no rows."""
        assert keys is not None
        return {}

    async def read_records(self, keys: Sequence[RecordKey]) -> dict[RecordKey, bytes]:
        """Return nothing: there are no records."""
        assert keys is not None
        return {}

    async def close(self) -> None:
        """Let go of nothing."""
