"""Rows as items: their keys, their sizes, and the limits that follow."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from proteus_shards.core.model import (
    COUNT_MAX,
    NAME_LENGTH_MAX,
    RECORD_BYTES_MAX,
    RECORD_NAME_BYTES_MAX,
    TIME_US_MAX,
    TIME_US_MIN,
    Batch,
    Record,
    Row,
    Status,
)
from proteus_shards.core.placement import SLOTS, slots_of
from proteus_shards.store.dynamodb_records import record_writes_of, records_of
from proteus_shards.store.dynamodb_rows import (
    BATCH_BYTES_MAX,
    BATCH_ROWS_MAX,
    ITEM_BYTES_MAX,
    ROW_BYTES_MAX,
    TRANSACTION_BYTES_MAX,
    item_of,
    key_of,
    range_of,
    rows_of,
    size_of,
    writes_of,
)
from tests.servers.strict_dynamodb_table import item_bytes
from tests.store.rows import key_of as row_key
from tests.store.rows import make_mark, make_row, record_names
from tests.store.rows import rows_of as drawn_rows

LARGEST_NUMBERS: dict[str, Any] = {
    "status": Status.IN_FLIGHT,
    "ready_at": TIME_US_MIN,
    "run_at": TIME_US_MAX,
    "timeout": 2**31 - 1,
    "max_retries": -(2**31),
    "attempt": COUNT_MAX,
    "run_id": bytes(16),
    "created_at": TIME_US_MIN,
    "updated_at": TIME_US_MAX,
}


def counted(row: Row) -> int:
    """Return the size of a row's item, as AWS counts it."""
    return item_bytes(json.loads(msgspec.json.encode(item_of(row, "rows"))))


@settings(max_examples=200, deadline=None)
@given(row=st.integers(0, COUNT_MAX).flatmap(drawn_rows))
def test_a_row_comes_back_from_its_item(row: Row) -> None:
    """Through the JSON of the wire, and never larger than it was taken for."""
    raw = msgspec.Raw(msgspec.json.encode([item_of(row, "rows")]))

    assert rows_of(raw, "jobs", "rows") == [row]
    assert counted(row) <= size_of(row)


def test_every_row_within_the_limit_is_an_item_within_that_of_aws() -> None:
    """Whatever its numbers and its reason are, and wherever its bytes lie, its extras too."""
    name = "\U0001f600" * NAME_LENGTH_MAX
    reason = name
    names = 2 * len(name.encode())
    for payload, state in ((ROW_BYTES_MAX - names, 0), (0, ROW_BYTES_MAX - names), (1000, ROW_BYTES_MAX - names - 1000)):
        for extras in (0, payload // 2):
            values = {"payload": b"x" * (payload - extras), "state": b"x" * state, "extras": b"x" * extras}
            row = make_row(COUNT_MAX, queue=name, id=name, reason=reason, **values, **LARGEST_NUMBERS)

            assert counted(row) <= size_of(row) <= ITEM_BYTES_MAX


def test_every_batch_within_the_limits_is_a_transaction_within_that_of_aws() -> None:
    """The largest number of rows, and as many bytes as they may have."""
    size = BATCH_BYTES_MAX // BATCH_ROWS_MAX
    rows = [make_row(seq, id="i", payload=b"x" * (size - 2), reason="r" * 200, **LARGEST_NUMBERS) for seq in range(99)]

    assert sum(map(counted, rows)) + 1024 <= TRANSACTION_BYTES_MAX


def test_every_batch_of_records_within_the_limits_is_a_transaction_within_that_of_aws() -> None:
    """The largest number of them, with names as long as they may be; and the largest record is an item."""
    name = "n" * RECORD_NAME_BYTES_MAX
    value = bytes(BATCH_BYTES_MAX // BATCH_ROWS_MAX - len(name))
    most = [Record(1023, 65_535, name, value)] * BATCH_ROWS_MAX
    largest = Record(1023, 65_535, name, bytes(RECORD_BYTES_MAX))

    assert sum(map(counted_record, most)) + 1024 <= TRANSACTION_BYTES_MAX
    assert counted_record(largest) <= ITEM_BYTES_MAX


@settings(max_examples=100, deadline=None)
@given(name=record_names, slot=st.integers(0, 1023), value=st.binary())
def test_a_record_comes_back_from_its_item(name: str, slot: int, value: bytes) -> None:
    """Through the JSON of the wire; its sort key is short, and in the range of its slot alone."""
    record = Record(slot, 3, name, value)
    (put,) = (write["Put"]["Item"] for write in record_writes_of([record], "jobs", "records"))
    low, high = range_of(range(slot, slot + 1))

    assert records_of(msgspec.Raw(msgspec.json.encode([put])), "jobs", "records") == [record]
    assert low <= put["sk"]["S"] <= high
    assert len(put["sk"]["S"]) < 80


def counted_record(record: Record) -> int:
    """Return the size of a record's item, as AWS counts it."""
    (write,) = record_writes_of([record], "jobs", "records")
    return item_bytes(json.loads(msgspec.json.encode(write["Put"]["Item"])))


@given(shards=st.integers(1, SLOTS), slot=st.integers(0, SLOTS - 1), seq=st.integers(0, COUNT_MAX))
def test_a_key_lies_in_the_range_of_its_shard_and_of_no_other(shards: int, slot: int, seq: int) -> None:
    """For any number of shards."""
    sort_key = key_of(slot, seq, "rows")["sk"]["S"]
    owners = [
        shard for shard in {0, shards - 1, slot * shards // SLOTS, max(0, slot * shards // SLOTS - 1)} if slot in slots_of(shard, shards)
    ]
    holders = [
        shard
        for shard in {0, shards - 1, slot * shards // SLOTS, max(0, slot * shards // SLOTS - 1)}
        if range_of(slots_of(shard, shards))[0] <= sort_key <= range_of(slots_of(shard, shards))[1]
    ]

    assert holders == owners


def test_keys_sort_as_their_slots_and_numbers_do() -> None:
    """As texts, since that is what the service compares."""
    pairs = [(slot, seq) for slot in (0, 9, 10, 1023) for seq in (0, 9, 10, 2**62)]
    keys = [key_of(slot, seq, "rows")["sk"]["S"] for slot, seq in pairs]

    assert sorted(keys) == keys


def test_a_batch_is_deletes_then_marks_then_inserts() -> None:
    """Each an action with a condition."""
    batch = Batch([row_key(make_row(1))], [make_row(3)], [make_mark(make_row(2))])
    writes = writes_of(batch, "jobs", "rows")

    assert [next(iter(write)) for write in writes] == ["Delete", "Update", "Put"]
    assert all("ConditionExpression" in next(iter(write.values())) for write in writes)
