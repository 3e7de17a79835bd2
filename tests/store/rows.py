"""Rows and records for tests of stores: made by hand, by Hypothesis, and as a dict says they should be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, ParamSpec

import msgspec
from hypothesis import strategies as st

from proteus_shards.core.model import (
    MAX_RETRIES_MAX,
    TIME_US_MAX,
    TIMEOUT_SECONDS_MAX,
    Batch,
    Kind,
    Mark,
    Record,
    RecordKey,
    Row,
    RowKey,
    Status,
)
from proteus_shards.core.placement import slot_of
from proteus_shards.store.contract import Damaged, Store

NOW_US = 1_800_000_000_000_000

_P = ParamSpec("_P")


def in_asyncio(scenario: Callable[_P, Coroutine[Any, Any, None]]) -> Callable[_P, None]:
    """Turn a coroutine function into a test that runs it in an asyncio loop of its own (an `async def` test would run in trio)."""
    import asyncio
    import functools

    @functools.wraps(scenario)
    def test(*args: _P.args, **kwargs: _P.kwargs) -> None:
        asyncio.run(scenario(*args, **kwargs))

    return test


def make_row(seq: int, queue: str = "q", **changes: Any) -> Row:
    """Return a ready job's row."""
    row = Row(
        slot=slot_of(queue),
        seq=seq,
        queue=queue,
        id=f"job-{seq}",
        status=Status.READY,
        ready_at=NOW_US + seq,
        run_at=None,
        timeout=60,
        max_retries=3,
        attempt=0,
        run_id=None,
        reason=None,
        created_at=NOW_US + seq,
        updated_at=NOW_US + seq,
        payload=b'{"n": %d}' % seq,
        state=None,
    )
    return msgspec.structs.replace(row, **changes)


def key_of(row: Row) -> RowKey:
    """Return the key of a row."""
    return RowKey(row.slot, row.seq, row.queue, row.id)


def make_mark(row: Row, **changes: Any) -> Mark:
    """Return the mark of a delivery."""
    mark = Mark(
        slot=row.slot,
        seq=row.seq,
        queue=row.queue,
        id=row.id,
        status=Status.IN_FLIGHT,
        attempt=row.attempt + 1,
        run_id=row.seq.to_bytes(16, "big"),
        reason=None,
        updated_at=row.updated_at + 1,
        state_set=False,
        state=None,
    )
    return msgspec.structs.replace(mark, **changes)


def marked(row: Row, mark: Mark) -> Row:
    """Return what a mark makes of a row."""
    state = mark.state if mark.state_set else row.state
    extras = mark.extras if mark.extras_set else row.extras
    names = ("status", "attempt", "run_id", "reason", "updated_at")
    return msgspec.structs.replace(row, state=state, extras=extras, **{name: getattr(mark, name) for name in names})


def make_record(name: str, value: bytes | None = b"value", **changes: Any) -> Record:
    """Return what a record shall be: that of the settings of a queue, unless `changes` says otherwise."""
    return msgspec.structs.replace(Record(slot_of(name), int(Kind.QUEUE), name, value), **changes)


def record_key_of(record: Record) -> RecordKey:
    """Return the key of a record."""
    return RecordKey(record.slot, record.kind, record.name)


def as_dict(*records: Record) -> dict[RecordKey, bytes]:
    """Return the values of records by their keys."""
    return {record_key_of(record): record.value for record in records if record.value is not None}


def recorded(model: dict[RecordKey, bytes], records: Iterable[Record]) -> None:
    """Do to a dict what a batch with these records does to a store."""
    for record in records:
        if record.value is None:
            model.pop(record_key_of(record), None)
        else:
            model[record_key_of(record)] = record.value


def recording(*records: Record) -> Batch:
    """Return a batch that writes records."""
    return Batch([], [], [], list(records))


def inserting(*rows: Row) -> Batch:
    """Return a batch that inserts."""
    return Batch([], list(rows), [])


def deleting(*rows: Row) -> Batch:
    """Return a batch that deletes."""
    return Batch([key_of(row) for row in rows], [], [])


def marking(*marks: Mark) -> Batch:
    """Return a batch that marks."""
    return Batch([], [], list(marks))


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Return rows as a load must give them."""
    return sorted(rows, key=lambda row: (row.ready_at, row.seq))


async def commit_all(store: Store, batch: Batch) -> None:
    """Commit a batch, in as many as the store's limits make of it."""
    entries: list[RowKey | Mark | Row | Record] = [*batch.deletes, *batch.marks, *batch.inserts, *batch.records]
    rows_max = store.batch_rows_max or len(batch) or 1
    bytes_max = store.batch_bytes_max or sum(map(size_of, entries)) or 1
    piece = Batch([], [], [])
    size = 0
    for entry in entries:
        if len(piece) and (len(piece) == rows_max or size + size_of(entry) > bytes_max):
            await store.commit(piece)
            piece, size = Batch([], [], []), 0
        size += size_of(entry)
        match entry:
            case RowKey():
                piece.deletes.append(entry)
            case Mark():
                piece.marks.append(entry)
            case Row():
                piece.inserts.append(entry)
            case Record():
                piece.records.append(entry)
    await store.commit(piece)


def size_of(entry: RowKey | Mark | Row | Record) -> int:
    """Return how many bytes an entry of a batch counts for: names, payload, state and extras, or a record's name and value."""
    if isinstance(entry, Record):
        return len(entry.name.encode()) + len(entry.value or b"")
    parts = (getattr(entry, name, None) or b"" for name in ("payload", "state", "extras"))
    return len(entry.queue.encode()) + len(entry.id.encode()) + sum(map(len, parts))


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[Store]:
    """Open a store, and close it at the end."""
    try:
        await store.open()
        yield store
    finally:
        await store.close()


async def load_all(store: Store) -> list[Row | Damaged]:
    """Return all that a load yields."""
    return [item async for chunk in store.load() for item in chunk]


async def load_records(store: Store) -> dict[RecordKey, bytes]:
    """Return all records that a store has. None is damaged, and none comes twice."""
    found: dict[RecordKey, bytes] = {}
    async for chunk in store.load_records():
        for item in chunk:
            assert isinstance(item, Record), item
            assert type(item.value) is bytes
            assert record_key_of(item) not in found
            found[record_key_of(item)] = item.value
    return found


# names as core.model.name_fault allows them, and bytes of any kind
names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
times_us = st.integers(0, TIME_US_MAX)
blobs = st.one_of(
    st.binary(max_size=8),
    st.just(b"\x00\xff\xfe{"),
    st.builds(lambda part, times: part * times, st.binary(min_size=1, max_size=4), st.integers(500, 3000)),
)
run_ids = st.integers(0, 2**32).map(lambda number: number.to_bytes(16, "big"))


@st.composite
def rows_of(draw: st.DrawFn, seq: int) -> Row:
    """Draw a row with this seq and anything else."""
    queue = draw(names)
    status = draw(st.sampled_from([Status.READY, Status.IN_FLIGHT, Status.DEAD]))
    return Row(
        slot=slot_of(queue),
        seq=seq,
        queue=queue,
        id=draw(names),
        status=int(status),
        ready_at=draw(st.one_of(times_us, st.integers(0, 3))),
        run_at=draw(st.none() | times_us),
        timeout=draw(st.integers(0, TIMEOUT_SECONDS_MAX)),
        max_retries=draw(st.integers(-1, MAX_RETRIES_MAX)),
        attempt=draw(st.integers(0, 2**31)),
        run_id=draw(run_ids) if status is Status.IN_FLIGHT else None,
        reason=draw(names) if status is Status.DEAD else None,
        created_at=draw(times_us),
        updated_at=draw(times_us),
        payload=draw(blobs),
        state=draw(st.none() | blobs),
        extras=draw(st.none() | blobs),
    )


@st.composite
def marks_of(draw: st.DrawFn, row: Row) -> Mark:
    """Draw any change of a row."""
    return make_mark(
        row,
        status=int(draw(st.sampled_from([Status.READY, Status.IN_FLIGHT, Status.DEAD]))),
        attempt=draw(st.integers(0, 2**31)),
        run_id=draw(st.none() | run_ids),
        reason=draw(st.none() | names),
        updated_at=draw(times_us),
        state_set=draw(st.booleans()),
        state=draw(st.none() | blobs),
        extras_set=draw(st.booleans()),
        extras=draw(st.none() | blobs),
    )


# names as core.model.RecordKey allows them, few enough to be met again
record_characters = st.characters(codec="utf-8", exclude_characters="\0")
record_names = st.one_of(st.sampled_from(["a", "b", "\x01", "\x7f\n", "{a}", "a:b"]), st.text(record_characters, min_size=1, max_size=4))


@st.composite
def records_of(draw: st.DrawFn, known: list[RecordKey]) -> list[Record]:
    """Draw what a batch may say of records: of some that are known, of others, each once, written or removed."""
    some = draw(st.lists(st.sampled_from(known), max_size=4)) if known else []
    new = draw(st.lists(st.builds(RecordKey, st.sampled_from([0, 1, 511, 1023]), st.integers(1, 5), record_names), max_size=4))
    return [Record(key.slot, key.kind, key.name, draw(st.none() | blobs)) for key in dict.fromkeys(some + new)]
