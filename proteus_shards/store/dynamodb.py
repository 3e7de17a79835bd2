"""One shard's rows and records in a table of DynamoDB.

What a row is there, and why its key is what it is, stands in `dynamodb_rows.py`, what a record is in `dynamodb_records.py`; who may write in `dynamodb_owner.py`; what is sent again and how a call
ends in `dynamodb_client.py`.

**Commit** is one TransactWriteItems: a check that the epoch is ours, and up to 99 writes, those of rows with a condition each. One is under way per shard, so that two never
conflict; more throughput comes from more shards. A condition that does not hold means:

* the first, on the lease: another has taken over (`StoreFenced`). A new row of a stale owner would meet no condition of its own, so this one is needed;
* that of a row, at the first attempt: memory and store do not agree on which rows exist (`StoreFailed`: a restart reads what the store says);
* that of a row, after an attempt that may have been done: that attempt may be what the condition met, where the token is no longer known. The caller reads
  the rows back (`StoreUnknown`).

**Load.** 32 queries for rows and 8 for records, one for each partition, up to 16 at a time, strongly consistent. What rows they give is sorted in memory by `(ready_at, seq)`, and handed
over in chunks that are let go of at once: the payloads are in memory once, as a job will have them anyway.

**Durability** is that of AWS, which keeps three copies in different data centers before it answers. An endpoint that is not of AWS may keep nothing at all:
what is behind it cannot be asked, so the class is "weak".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from proteus_shards.cluster.model import Claim
from proteus_shards.core.model import Batch, Record, RecordKey, Row, RowKey
from proteus_shards.core.placement import SLOTS, slots_of
from proteus_shards.errors import StoreError, StoreFailed, StoreFenced, StoreUnknown
from proteus_shards.store.contract import Damaged, Durability
from proteus_shards.store.dynamodb_client import Client, Unmet, run_all
from proteus_shards.store.dynamodb_owner import (
    LAYOUT_VERSION,
    Lease,
    lease_check,
    lease_key,
    lease_of,
    owner_name,
    read_layout,
    take_lease,
    transaction,
)
from proteus_shards.store.dynamodb_prepare import prepare
from proteus_shards.store.dynamodb_reads import get_all, query_range
from proteus_shards.store.dynamodb_records import (
    RECORD_PARTITIONS,
    place_of_records,
    record_bytes,
    record_writes_of,
    records_of,
    wanted_records_of,
)
from proteus_shards.store.dynamodb_rows import (
    BATCH_BYTES_MAX,
    BATCH_ROWS_MAX,
    PARTITIONS,
    ROW_BYTES_MAX,
    Item,
    partition,
    range_of,
    rows_of,
    wanted_of,
    writes_of,
)
from proteus_shards.store.dynamodb_url import DynamodbUrl

LOAD_ROWS = 5000  # in a chunk
LOAD_BYTES = 8 * 1024 * 1024

_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
_Made = TypeVar("_Made")


class DynamodbStore:
    """Implements `contract.Store`."""

    kind = "dynamodb"
    keeps = True
    row_bytes_max: int | None = ROW_BYTES_MAX
    batch_rows_max: int | None = BATCH_ROWS_MAX
    batch_bytes_max: int | None = BATCH_BYTES_MAX

    def __init__(self, url: DynamodbUrl, shard: int, shards: int | None, claim: Claim | None = None) -> None:
        self.durability = Durability.WEAK
        self.terms = ""
        self._url = url
        self._client = Client(url)
        self._shards = shards  # None: a trial
        self._claim = claim
        self._slots = range(SLOTS) if shards is None else slots_of(shard, shards)
        self._owner = owner_name()
        self._lease_name = lease_of(shard) if shards is not None else f"trial#{self._owner}"
        self._place = "rows" if shards is not None else f"trial#{self._owner}"
        self._records_place = place_of_records(self._place)
        self._lease: Lease | None = None
        self._closed = False
        self._left: dict[tuple[str, str], None] = {}  # of a trial: the keys of what is to be removed

    async def open(self) -> int:
        """Connect and take the next epoch, of a table that is of this version by then."""
        if not self._closed and self._shards is not None:
            await self._client.connect()
            layout = await read_layout(self._client)
            if layout is not None and (layout.version < LAYOUT_VERSION and layout.shards == self._shards):
                await prepare(self._url, self._shards)  # for a command that starts no server, and so has not done it
        return await self._take()

    async def load(self) -> AsyncIterator[Sequence[Row | Damaged]]:
        """Yield all rows in order."""
        found: list[Row | Damaged] = []
        await run_all(self._query(self._place, number, rows_of, found) for number in range(PARTITIONS))
        found.sort(key=_last_first)
        for chunk in _chunks(found, _row_bytes):
            yield chunk

    async def load_records(self) -> AsyncIterator[Sequence[Record | Damaged]]:
        """Yield all records."""
        found: list[Record | Damaged] = []
        await run_all(self._query(self._records_place, number, records_of, found) for number in range(RECORD_PARTITIONS))
        for chunk in _chunks(found, record_bytes):
            yield chunk

    async def commit(self, batch: Batch) -> None:
        """Write a batch."""
        lease = self._held()
        assert len(batch) <= BATCH_ROWS_MAX, "a batch larger than the store's limit"
        check = lease_check(self._url.table, self._lease_name, lease)
        writes = writes_of(batch, self._url.table, self._place)
        if batch.records:
            writes += record_writes_of(batch.records, self._url.table, self._records_place)
        if self._shards is None:
            self._left |= {(put["Item"]["pk"]["S"], put["Item"]["sk"]["S"]): None for put in _parts(writes, "Put")}
        outcome = await self._client.call("transact_write_items", transaction([check, *writes]), doubt=StoreUnknown)
        if not isinstance(outcome, Unmet):
            if self._shards is None:
                for delete in _parts(writes, "Delete"):
                    self._left.pop((delete["Key"]["pk"]["S"], delete["Key"]["sk"]["S"]), None)
            return
        if outcome.at(0):
            raise StoreFenced(f"epoch {lease.epoch} of {self._lease_name} is over: another has taken over")
        unmet = sum(map(outcome.at, range(len(outcome.reasons))))
        if outcome.doubtful:
            raise StoreUnknown("an earlier attempt may have been written: DynamoDB no longer knows the token")
        raise StoreFailed(
            f"{unmet} of {len(batch)} rows are there and should not be, or the other way round: memory and store do not agree"
        )

    async def reopen(self) -> int:
        """Take the next epoch, unless another has taken over."""
        return await self._take()

    async def read(self, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        """Return the rows that exist among `keys`."""
        self._held()
        found: list[Row | Damaged] = []
        await self._get_all(wanted_of(keys, self._place), self._place, rows_of, found)
        by_place = {(key.slot, key.seq): key for key in keys}
        rows: dict[RowKey, Row] = {}
        for row in found:
            if isinstance(row, Damaged):
                raise StoreFailed(f"{row.where}: {row.fault}")
            key = by_place[row.slot, row.seq]
            if (row.queue, row.id) == (key.queue, key.id):
                rows[key] = row
        return rows

    async def read_records(self, keys: Sequence[RecordKey]) -> dict[RecordKey, bytes]:
        """Return the values of the records that exist among `keys`."""
        self._held()
        found: list[Record | Damaged] = []
        await self._get_all(wanted_records_of(keys, self._records_place), self._records_place, records_of, found)
        values: dict[RecordKey, bytes] = {}
        for record in found:
            if isinstance(record, Damaged):
                raise StoreFailed(f"{record.where}: {record.fault}")
            assert record.value is not None
            values[RecordKey(record.slot, record.kind, record.name)] = record.value
        return values

    async def close(self) -> None:
        """Let go of the connections; a trial removes what it wrote."""
        try:
            if self._shards is None and self._lease is not None and not self._closed:
                await self._clear()
        finally:
            self._closed = True
            await self._client.close()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _held(self) -> Lease:
        if self._lease is None or self._closed:
            raise StoreError("the store is closed" if self._closed else "the store is not open")
        return self._lease

    async def _take(self) -> int:
        if self._closed:
            raise StoreError("the store is closed")
        await self._client.connect()
        self._lease = await take_lease(self._client, self._lease_name, self._owner, self._shards, self._lease, self._claim)
        self._client.started = True
        of_aws = (urlsplit(self._client.endpoint).hostname or "").endswith(_AWS_DOMAINS)
        self.durability = Durability.REPLICA if of_aws else Durability.WEAK
        self.terms = (
            f"DynamoDB in {self._client.region}" if of_aws else "DynamoDB behind an endpoint that is not of AWS, which promises nothing"
        )
        return self._lease.epoch

    async def _query(self, place: str, number: int, made_of: Callable[[msgspec.Raw, str, str], list[_Made]], found: list[_Made]) -> None:
        """Read what one partition has of this shard."""
        self._held()
        low, high = range_of(self._slots)
        await query_range(
            self._client, partition(place, number), low, high, lambda items: found.extend(made_of(items, self._url.table, place))
        )

    async def _get_all(
        self,
        wanted: Iterable[tuple[str, str]],
        place: str,
        made_of: Callable[[msgspec.Raw, str, str], list[_Made]],
        found: list[_Made],
    ) -> None:
        """Read items by their keys."""
        await get_all(self._client, wanted, lambda items: found.extend(made_of(items, self._url.table, place)))

    async def _clear(self) -> None:
        """Remove what a trial wrote."""
        keys = [{"pk": {"S": pk}, "sk": {"S": sk}} for pk, sk in self._left] + [lease_key(self._lease_name)]
        for key in keys:
            await self._client.call("delete_item", {"TableName": self._url.table, "Key": key})


def _parts(writes: list[Item], kind: str) -> Iterator[Item]:
    return (write[kind] for write in writes if kind in write)


def _chunks(found: list[_Made], size_of: Callable[[_Made], int]) -> Iterator[list[_Made]]:
    """Yield a list in parts, from its end, and let go of what was yielded."""
    while found:
        chunk: list[_Made] = []
        size = 0
        while found and len(chunk) < LOAD_ROWS and size < LOAD_BYTES:
            item = found.pop()
            chunk.append(item)
            size += size_of(item)
        yield chunk


def _row_bytes(row: Row | Damaged) -> int:
    return len(row.payload) + len(row.state or b"") + len(row.extras or b"") if isinstance(row, Row) else 0


def _last_first(row: Row | Damaged) -> tuple[int, int]:
    return (-row.ready_at, -row.seq) if isinstance(row, Row) else (0, -(row.seq or 0))
