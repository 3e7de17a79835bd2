"""What holds of every store that keeps rows of the records beside them. Part of `exercise.py`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proteus_shards.core.model import RECORD_BYTES_MAX, RECORD_NAME_BYTES_MAX, Batch, Kind, Record, RecordKey, Row, RowKey
from proteus_shards.core.placement import SLOTS, shard_of, slots_of
from proteus_shards.errors import StoreFenced, StorePermanent
from tests.store.backing import Backing, kind_of
from tests.store.exercise_rows import CHUNK_BYTES_MAX, NAMES
from tests.store.rows import (
    as_dict,
    commit_all,
    deleting,
    in_asyncio,
    inserting,
    key_of,
    load_all,
    load_records,
    make_mark,
    make_record,
    make_row,
    marked,
    opened,
    record_key_of,
    recorded,
    recording,
    records_of,
    size_of,
)

# beside those that a job may have: a record's name may be several of them with something between, and much longer
RECORD_NAMES = (
    *NAMES,
    "a\x01b",
    "a\x1fb",
    "\n",
    "\x7f",
    "a" * RECORD_NAME_BYTES_MAX,
    "a" * (RECORD_NAME_BYTES_MAX - 1) + "b",
    "\U0001f4ec" * (RECORD_NAME_BYTES_MAX // 4),
    "\U0001f4ec" * (RECORD_NAME_BYTES_MAX // 4 - 1) + "\U0001f4ed",
)


class RecordsExercise:
    """Records: written, written anew, removed, found, loaded, and never apart from the rows of their batch."""

    @in_asyncio
    async def test_records_are_there_after_closing_and_opening(self, backing: Backing) -> None:
        """With the values that were written last, without those that were removed, and apart from the rows."""
        first, second, third = (make_record(name) for name in "abc")
        anew = make_record("b", b"new")
        gone = make_record("c", None)
        row = make_row(1)
        async with opened(backing.store()) as store:
            await store.commit(Batch([], [row], [], [first, second]))
            await store.commit(recording(anew, third))
            await store.commit(recording(gone))
        async with opened(backing.store()) as store:
            assert await load_records(store) == as_dict(first, anew)
            assert await load_all(store) == [row]
            assert await store.read_records([record_key_of(record) for record in (first, anew, gone)]) == as_dict(first, anew)

    @in_asyncio
    async def test_a_record_may_be_removed_that_is_not_there(self, backing: Backing) -> None:
        """Once, again, and beside others."""
        gone = make_record("a", None)
        async with opened(backing.store()) as store:
            await store.commit(recording(gone))
            await store.commit(recording(gone, make_record("b")))
            await store.commit(recording(gone, make_record("b", None)))

            assert await load_records(store) == {}

    @in_asyncio
    async def test_slot_kind_and_name_tell_records_apart(self, backing: Backing) -> None:
        """Each of them alone."""
        records = [
            Record(slot, int(kind), name, f"{slot} {kind} {name}".encode()) for slot in (0, 1, 1023) for kind in Kind for name in "ab"
        ]
        async with opened(backing.store()) as store:
            await commit_all(store, recording(*records))
            await store.commit(recording(Record(1, 2, "a", None), Record(1023, 5, "b", b"")))
        async with opened(backing.store()) as store:
            expected = as_dict(*records) | {RecordKey(1023, 5, "b"): b""}
            del expected[RecordKey(1, 2, "a")]
            assert await load_records(store) == expected

    @in_asyncio
    async def test_two_names_are_two_records(self, backing: Backing) -> None:
        """Of whatever characters, and however long they are alike."""
        records = [make_record(name, b"%d" % number) for number, name in enumerate(RECORD_NAMES)]
        same_slot = [make_record(name, b"%d" % number, slot=7, kind=int(Kind.ANSWER)) for number, name in enumerate(RECORD_NAMES)]
        async with opened(backing.store()) as store:
            await commit_all(store, recording(*records, *same_slot))
            await commit_all(store, recording(*(make_record(name, None) for name in RECORD_NAMES[::3])))
            expected = as_dict(*(record for n, record in enumerate(records) if n % 3), *same_slot)
            assert await store.read_records([record_key_of(record) for record in (*records, *same_slot)]) == expected
        async with opened(backing.store()) as store:
            assert await load_records(store) == expected

    @in_asyncio
    async def test_a_value_may_be_empty_and_as_large_as_the_model_says(self, backing: Backing) -> None:
        """And each become the other."""
        largest = bytes(range(256)) * (RECORD_BYTES_MAX // 256)
        name = "n" * RECORD_NAME_BYTES_MAX
        async with opened(backing.store()) as store:
            await commit_all(store, recording(make_record("empty", b""), make_record(name, largest), make_record("other", largest)))
            assert await store.read_records([record_key_of(make_record("empty"))]) == as_dict(make_record("empty", b""))
            await commit_all(store, recording(make_record("empty", largest), make_record(name, b""), make_record("other", None)))
        async with opened(backing.store()) as store:
            assert await load_records(store) == as_dict(make_record("empty", largest), make_record(name, b""))

    @pytest.mark.parametrize("fault", ["row", "record"])
    @in_asyncio
    async def test_a_batch_that_is_refused_leaves_neither_rows_nor_records(self, backing: Backing, fault: str) -> None:
        """Whichever of them it is refused for, the store goes on, and no message says what was in it."""
        kept, record, other = make_row(1), make_record("a", b"old"), make_record("b", b"old")
        batch = Batch([key_of(kept)], [make_row(2)], [], [make_record("a", b"new"), make_record("b", None), make_record("c")])
        if fault == "row":
            batch.inserts.append(make_row(3, id="\ud800"))
        else:
            batch.records.append(Record(3, 1, "\ud800", b"value"))
        async with opened(backing.store()) as store:
            await store.commit(Batch([], [kept], [], [record, other]))
            with pytest.raises(StorePermanent) as raised:
                await store.commit(batch)
            assert "\ud800" not in str(raised.value)
            await store.commit(recording(make_record("d")))
        async with opened(backing.store()) as store:
            assert await load_records(store) == as_dict(record, other, make_record("d"))
            assert await load_all(store) == [kept]

    @in_asyncio
    async def test_a_stale_owner_writes_no_record(self, backing: Backing) -> None:
        """Neither a new one, nor another value, nor a removal, nor one beside a row."""
        record = make_record("a")
        batches = (
            recording(make_record("b")),
            recording(make_record("a", b"other")),
            recording(make_record("a", None)),
            Batch([], [make_row(1)], [], [make_record("b")]),
        )
        async with opened(backing.store()) as store:
            await store.commit(recording(record))
            await backing.usurp(store)
            for batch in batches:
                with pytest.raises(StoreFenced):
                    await store.commit(batch)
        async with opened(backing.store()) as store:
            assert await load_records(store) == as_dict(record)
            assert await load_all(store) == []

    @in_asyncio
    async def test_a_store_finds_its_records_after_reopen(self, backing: Backing) -> None:
        """Those of the batch before it too, and writes more."""
        async with opened(backing.store()) as store:
            await store.commit(recording(make_record("a"), make_record("b")))
            await store.commit(recording(make_record("a", b"new"), make_record("b", None)))
            await store.reopen()
            keys = [record_key_of(make_record(name)) for name in "abc"]
            assert await store.read_records(keys) == as_dict(make_record("a", b"new"))
            await store.commit(recording(make_record("c")))
            assert await store.read_records(keys) == as_dict(make_record("a", b"new"), make_record("c"))

    @in_asyncio
    async def test_many_records_are_written_found_and_loaded(self, backing: Backing) -> None:
        """In batches of any size, with rows or without."""
        records = [make_record(f"record {number}", b"%d" % number) for number in range(3000)]
        rows = [make_row(seq) for seq in range(100)]
        async with opened(backing.store()) as store:
            start = 0
            for size in (1, 2, 511, 513, 1973):
                await commit_all(store, recording(*records[start : start + size]))
                start += size
            anew = [make_record(record.name, b"new") for record in records[1000:1500]]
            gone = [make_record(record.name, None) for record in records[1500:2000]]
            await commit_all(store, Batch([], rows, [], [*anew, *gone]))
            expected = as_dict(*records[:1000], *anew, *records[2000:])
            asked = [record_key_of(record) for record in records[500:2500]]
            assert await store.read_records(asked) == {key: expected[key] for key in asked if key in expected}
            assert await store.read_records([]) == {}
        async with opened(backing.store()) as store:
            assert await load_records(store) == expected
            assert await load_all(store) == rows

    @in_asyncio
    async def test_large_records_are_loaded_in_chunks_that_fit_memory(self, backing: Backing) -> None:
        """However few records that are."""
        records = [make_record(f"record {number}", bytes([number]) * RECORD_BYTES_MAX) for number in range(80)]
        sizes = []
        found: list[Record] = []
        async with opened(backing.store()) as store:
            await commit_all(store, recording(*records))
        async with opened(backing.store()) as store:
            async for chunk in store.load_records():
                some = [item for item in chunk if isinstance(item, Record)]
                sizes.append(sum(map(size_of, some)))
                found += some

        assert as_dict(*found) == as_dict(*records)
        assert len(found) == len(records)
        assert max(sizes) <= CHUNK_BYTES_MAX
        assert 0 not in sizes

    @in_asyncio
    async def test_a_batch_as_large_as_the_store_allows_may_be_of_rows_and_records(self, backing: Backing) -> None:
        """In number and bytes at once."""
        store = backing.store()
        count = min(store.batch_rows_max or 1000, 1000)
        each = min((store.batch_bytes_max or 4_000_000) // count, RECORD_BYTES_MAX)
        records = [make_record(f"{number:06}", bytes(each - 6)) for number in range(count // 2)]
        rows = [make_row(seq, payload=bytes(each - 20)) for seq in range(count - len(records))]
        async with opened(store):
            await store.commit(Batch([], rows, [], records))
            gone = [make_record(record.name, None) for record in records]
            await store.commit(Batch([], [], [make_mark(row) for row in rows], gone))
            await store.commit(Batch([key_of(row) for row in rows], [], [], records))
        async with opened(backing.store()) as store:
            assert await load_records(store) == as_dict(*records)
            assert await load_all(store) == []

    @settings(
        deadline=None,
        max_examples=25,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    @given(data=st.data())
    @in_asyncio
    async def test_records_do_what_a_dict_would(self, new_backing: Callable[[], Backing], data: st.DataObject) -> None:
        """Whatever the batches are, however often the store is closed and opened or reached anew between them."""
        backing = new_backing()
        model: dict[RecordKey, bytes] = {}
        rows: list[Row] = []
        seq = 0
        for _ in range(data.draw(st.integers(1, 3), label="runs")):
            async with opened(backing.store()) as store:
                assert await load_records(store) == model
                for _ in range(data.draw(st.integers(1, 4), label="batches")):
                    records = data.draw(records_of(list(model)))
                    deletes = [RowKey(row.slot, row.seq, row.queue, row.id) for row in rows if data.draw(st.booleans())]
                    rows = [row for row in rows if key_of(row) not in deletes]
                    marks = [make_mark(row, extras_set=True, extras=b"%d" % seq) for row in rows]
                    inserts = [make_row(seq + n, queue=f"q{n}") for n in range(data.draw(st.integers(0, 2)))]
                    seq += len(inserts)
                    await store.commit(Batch(deletes, inserts, marks, records))
                    rows = [marked(row, mark) for row, mark in zip(rows, marks, strict=True)] + inserts
                    recorded(model, records)
                    if data.draw(st.booleans(), label="reopen"):
                        await store.reopen()
                    asked = [record_key_of(record) for record in records]
                    assert await store.read_records(asked) == {key: model[key] for key in asked if key in model}
                assert await store.read_records(list(model)) == model
                assert await store.read([key_of(row) for row in rows]) == {key_of(row): row for row in rows}

    @in_asyncio
    async def test_another_number_of_shards_keeps_every_record_where_its_slot_is(self, backing: Backing) -> None:
        """Each shard loads those of its own slots, the edges of ranges too; what is written and removed meanwhile counts."""
        slots = sorted({*range(0, SLOTS, 37), *(slot for shards in (2, 3, 5) for n in range(shards) for slot in edges(n, shards))})
        records = [Record(slot, int(kind), f"{slot} {int(kind)}", b"%d" % slot) for slot in slots for kind in (Kind.QUEUE, Kind.DECISION)]
        model = as_dict(*records)
        async with opened(backing.store()) as store:
            await commit_all(store, Batch([], [make_row(1)], [], records))
        for shards in (1, 3, 2, 5, 5, 1):
            await backing.prepare(shards)
            seen: dict[RecordKey, bytes] = {}
            changes: list[Record] = []
            jobs = 0
            for shard in range(shards):
                own = slots_of(shard, shards)
                change = [Record(own.start, 3, f"of {shards}", b"new"), Record(own.start, 1, f"{own.start} 1", None)]
                async with opened(backing.store(shard, shards)) as store:
                    found = await load_records(store)
                    jobs += len(await load_all(store))
                    await store.commit(recording(*change))
                assert all(shard_of(key.slot, shards) == shard for key in found)
                seen |= found
                changes += change
            assert (seen, jobs) == (model, 1)
            recorded(model, changes)

    @in_asyncio
    async def test_a_trial_disturbs_no_record(self, backing: Backing) -> None:
        """It sees none of the store's, and leaves none."""
        kind = kind_of(backing)
        record = make_record("a")
        async with opened(backing.store()) as store:
            await store.commit(recording(record))
        for _ in range(2):
            async with opened(kind.trial(backing.url)) as trial:
                assert await load_records(trial) == {}
                await trial.commit(recording(make_record("a", b"trial"), make_record("b")))
                assert await trial.read_records([record_key_of(record)]) == as_dict(make_record("a", b"trial"))
        async with opened(backing.store()) as store:
            assert await load_records(store) == as_dict(record)

    @in_asyncio
    async def test_shards_have_their_records_apart(self, backing: Backing) -> None:
        """An owner of one shard's slots loads and writes only what lies there, and is fenced for itself."""
        await backing.prepare(2)
        first, second = backing.store(0, 2), backing.store(1, 2)
        low, high = Record(0, 1, "a", b"low"), Record(1023, 1, "a", b"high")
        async with opened(first), opened(second):
            await first.commit(recording(low))
            await second.commit(Batch([], [], [], [high]))
            assert await load_records(first) == as_dict(low)
            assert await load_records(second) == as_dict(high)

    @in_asyncio
    async def test_rows_come_and_go_beside_records(self, backing: Backing) -> None:
        """To delete the last row leaves the records, and the other way round."""
        row, record = make_row(1), make_record("q")
        async with opened(backing.store()) as store:
            await store.commit(Batch([], [row], [], [record]))
            await store.commit(deleting(row))
            assert await load_records(store) == as_dict(record)
            await store.commit(inserting(row))
            await store.commit(recording(make_record("q", None)))
            assert await load_all(store) == [row]
            assert await load_records(store) == {}


def edges(shard: int, shards: int) -> tuple[int, int]:
    """Return the first and the last slot of a shard."""
    slots = slots_of(shard, shards)
    return slots.start, slots.stop - 1
