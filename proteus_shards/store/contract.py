"""What a shard asks of a backing store, and nothing more.

The shard's core decides; a store loads rows and commits batches. Five rules make any of them safe behind it:

1. `commit` is atomic: all of a batch or nothing, and it returns only when the batch is as durable as `durability` says.
2. `open` takes a new epoch (fencing token), higher than every one before it for these slots. A commit under an older epoch
   raises `StoreFenced` and writes nothing, whatever the older owner believes.
3. A commit that raises says which of four things happened: `StoreRefused` (surely nothing written, a retry may help),
   `StorePermanent` (surely nothing written, no retry helps), `StoreUnknown` (perhaps written), or `StoreFenced` /
   `StoreFailed` (this process must end). When in doubt it is `StoreUnknown`; a failed fsync is never less than `StoreFailed`.
4. `load` yields every row of the shard's slots exactly once, ordered by `(ready_at, seq)`, as of the epoch just taken. A row
   that cannot be read as one is yielded as `Damaged`, and left where it is. `load_records` yields every record likewise, in any order.
5. After `StoreUnknown` the shard calls `reopen`, then `read` and `read_records`. Once `reopen` has returned, the doubtful batch has either been
   written or never will be (a new epoch fences it), so that what they return is the truth.

The shard has one commit in flight at a time, and calls no other method meanwhile.

Records lie beside the rows, in the same batches and under the same epoch, and go with their slots when the number of shards changes. What an older version
of this program has written is brought up to date by the kind's `prepare`, or at the latest by `open`, as a whole or not at all; what a newer
one has written is refused.

**Durability** may change while a store is open: someone changes a setting of the server. Where it can be asked for, a commit asks again once `LOOK_SECONDS` are over,
before it writes anything. A store that promises less than it did is `StoreRefused`, once: the shard then calls `reopen`, and goes on only if what is left is
as much as is required.

Every call ends within a time that the store's URL sets: a store that hangs is away. A commit that runs out of time is `StoreUnknown`, every other
call `StoreRefused`. No message of an error holds a secret, a payload, or a driver's words about either.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

from proteus_shards.core.model import Batch, Record, RecordKey, Row, RowKey
from proteus_shards.errors import StoreWeak

LOOK_SECONDS = 60.0  # after which a commit asks anew what its server promises


class Durability(StrEnum):
    """What an acknowledged write survives. Each class includes those before it, but `WEAK`, which promises nothing certain."""

    WEAK = "weak"  # may lose an acknowledged tail even when only the store's process ends
    MEMORY = "memory"  # nothing is kept
    PROCESS = "process"  # the end of any process, by any signal
    MACHINE = "machine"  # loss of power too
    REPLICA = "replica"  # loss of a store node too

    def covers(self, wanted: Durability) -> bool:
        """Say whether a store of this class does where one of class `wanted` is asked for."""
        return _RANK[self] >= _RANK[wanted]


def check_durability(store: Store, required: Durability) -> None:
    """Raise `StoreWeak` unless an open store is of the class that is required."""
    if not store.durability.covers(required):
        raise StoreWeak(
            f"the {store.kind} store is of durability {store.durability} ({store.terms}), weaker than what --require-durability asks for "
            f"({required}): change the store's own settings, or ask for less"
        )


_RANK = {Durability.MEMORY: 0, Durability.WEAK: 1, Durability.PROCESS: 2, Durability.MACHINE: 3, Durability.REPLICA: 4}


class Damaged(msgspec.Struct, frozen=True):
    """A stored row that is not a job, or a record that cannot be read: where it lies and what is wrong with it, never what it holds."""

    where: str
    fault: str
    seq: int | None = None  # the number that it takes up, where it can be told: no new row may have it


class Store(Protocol):
    """One shard's rows. Every coroutine may raise the `StoreError`s of `errors.py`, and nothing else of its driver's."""

    kind: str  # "sqlite", …: the scheme of the store's URL
    durability: Durability  # as found out by `open` and each `reopen`, and now and then by `commit`; before that the weakest that it may turn out to be
    terms: str  # what the durability rests on, one line: the server's version and settings, but no host, path or name, as /health shows it. Known after `open`
    keeps: bool  # False for the memory store: persist_data jobs are refused
    row_bytes_max: int | None  # a row's names, payload, state and extras together; larger jobs are refused with INVALID before any write
    batch_rows_max: int | None  # deletes, inserts, marks and records of one batch; no larger one is given to `commit`
    batch_bytes_max: (
        int | None
    )  # names, payloads, states and extras of all rows of one batch, those of marked ones as they are in memory; names and values of records

    async def open(self) -> int:
        """Connect and take a new epoch, which is returned. The store was prepared for this number of shards.

        Raises `StoreLocked` where another process holds the rows, `StoreRefused` while the store is away, and `StoreError` where no retry helps.
        """
        ...

    def load(self) -> AsyncIterator[Sequence[Row | Damaged]]:
        """Yield all rows of this shard in order, in chunks. Called once, right after `load_records`."""
        ...

    def load_records(self) -> AsyncIterator[Sequence[Record | Damaged]]:
        """Yield all records of this shard, in chunks. Called once, right after `open`."""
        ...

    async def commit(self, batch: Batch) -> None:
        """Write a batch, atomically and durably."""
        ...

    async def reopen(self) -> int:
        """Reach the store again after an outage or an unknown outcome: reconnect, take a new epoch, return it. Raises `StoreRefused` while the store is away."""
        ...

    async def read(self, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        """Return the rows that exist among `keys`."""
        ...

    async def read_records(self, keys: Sequence[RecordKey]) -> dict[RecordKey, bytes]:
        """Return the values of the records that exist among `keys`."""
        ...

    async def close(self) -> None:
        """Let go of everything. Safe to call twice, and after any error."""
        ...
