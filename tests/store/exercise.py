"""What holds of every store, as tests. A store's test file gives a `Backing` and inherits the rest.

`Exercise` is for all stores, `KeepingExercise` for those that keep rows, with the cases of `exercise_rows.py`, `exercise_records.py` and
`exercise_owners.py`. A fault found in one store becomes a case here.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proteus_shards.core.extras import Extras, pack_extras
from proteus_shards.core.model import Batch, Row, RowKey, Status, job_of
from proteus_shards.core.placement import shard_of, slots_of
from proteus_shards.errors import StoreError, StoreFenced, StorePermanent
from tests.store.backing import Backing
from tests.store.exercise_owners import OwnersExercise
from tests.store.exercise_records import RecordsExercise
from tests.store.exercise_rows import RowsExercise
from tests.store.rows import (
    commit_all,
    deleting,
    in_asyncio,
    in_order,
    inserting,
    key_of,
    load_all,
    load_records,
    make_mark,
    make_record,
    make_row,
    marked,
    marking,
    marks_of,
    opened,
    record_key_of,
    rows_of,
)

__all__ = ["Backing", "Exercise", "KeepingExercise"]

# every example gets a backing of its own; the suite is one, its runs are many
examples = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors, HealthCheck.too_slow],
)


class Exercise:
    """What holds even of a store that keeps nothing."""

    @pytest.fixture
    def new_backing(self) -> Callable[[], Backing]:
        """Return a function that makes backings."""
        raise NotImplementedError

    @pytest.fixture
    def backing(self, new_backing: Callable[[], Backing]) -> Backing:
        """Return one backing."""
        return new_backing()

    @in_asyncio
    async def test_each_open_takes_a_higher_epoch(self, backing: Backing) -> None:
        """Also after the store was closed, and by a reopen."""
        epochs = []
        for _ in range(3):
            store = backing.store()
            epochs += [await store.open(), await store.reopen()]
            await store.close()

        assert sorted(set(epochs)) == epochs

    @in_asyncio
    async def test_a_new_store_is_empty(self, backing: Backing) -> None:
        """Nothing is loaded, nothing found."""
        async with opened(backing.store()) as store:
            assert await load_records(store) == {}
            assert await load_all(store) == []
            assert await store.read([key_of(make_row(1))]) == {}
            assert await store.read_records([record_key_of(make_record("a"))]) == {}

    @in_asyncio
    async def test_an_empty_batch_is_committed(self, backing: Backing) -> None:
        """It changes nothing and raises nothing."""
        async with opened(backing.store()) as store:
            await store.commit(Batch([], [], []))

    @in_asyncio
    async def test_a_store_may_be_closed_twice_and_before_it_is_open(self, backing: Backing) -> None:
        """Whoever ends a shard need not know how far it came."""
        unopened, store = backing.store(), backing.store()
        await unopened.close()
        await store.open()
        await store.close()
        await store.close()

    def test_a_store_says_what_it_is(self, backing: Backing) -> None:
        """Its kind, its durability, and the largest row it takes."""
        store = backing.store()

        assert store.kind
        assert store.durability.value in {"weak", "memory", "process", "machine", "replica"}
        assert store.row_bytes_max is None or store.row_bytes_max >= 64 * 1024


class KeepingExercise(OwnersExercise, RecordsExercise, RowsExercise, Exercise):
    """What holds of a store that keeps rows."""

    @in_asyncio
    async def test_what_is_committed_is_there_after_closing_and_opening(self, backing: Backing) -> None:
        """All of it, and nothing else."""
        rows = [make_row(seq) for seq in range(1, 6)]
        async with opened(backing.store()) as store:
            await store.commit(inserting(*rows))
            await store.commit(deleting(rows[2]))
        async with opened(backing.store()) as store:
            assert await load_all(store) == rows[:2] + rows[3:]

    @examples
    @given(data=st.data())
    @in_asyncio
    async def test_every_field_comes_back_byte_for_byte(self, new_backing: Callable[[], Backing], data: st.DataObject) -> None:
        """Any unicode, any bytes, every number in its range, nothing and empty told apart."""
        rows = [data.draw(rows_of(seq)) for seq in range(data.draw(st.integers(1, 8)))]
        backing = new_backing()
        async with opened(backing.store()) as store:
            await store.commit(inserting(*rows))
            assert await store.read([key_of(row) for row in rows]) == {key_of(row): row for row in rows}
        async with opened(backing.store()) as store:
            assert await load_all(store) == in_order(rows)

    @in_asyncio
    async def test_what_is_loaded_makes_a_job(self, backing: Backing) -> None:
        """The types are those of the model, not the driver's own."""
        packed = pack_extras(Extras(key="k", priority=-3))
        row = make_row(1, status=Status.IN_FLIGHT, run_id=bytes(16), run_at=7, state=b"{}", extras=packed)
        async with opened(backing.store()) as store:
            await store.commit(inserting(row))
            (loaded,) = await load_all(store)

        assert isinstance(loaded, Row)
        assert job_of(loaded).payload == row.payload
        assert job_of(loaded).extras == Extras(key="k", priority=-3)
        assert {type(loaded.payload), type(loaded.state), type(loaded.run_id), type(loaded.extras)} == {bytes}

    @in_asyncio
    async def test_a_payload_and_a_state_of_a_megabyte_come_back(self, backing: Backing) -> None:
        """Or, where the store takes less, as much as it takes."""
        store = backing.store()
        size = min(1_000_000, ((store.row_bytes_max or 4_000_000) - 1000) // 2)
        row = make_row(1, payload=bytes(range(256)) * (size // 256), state=b"s" * size)
        mark = make_mark(row)
        async with opened(store):
            await store.commit(inserting(make_row(0), row, make_row(2)))
            await store.commit(marking(mark))
            assert await store.read([key_of(row)]) == {key_of(row): marked(row, mark)}
            await store.commit(deleting(row))
            assert await load_all(store) == [make_row(0), make_row(2)]

    @in_asyncio
    async def test_a_batch_deletes_then_inserts_then_marks(self, backing: Backing) -> None:
        """An id may pass from one row to the next within a batch."""
        first, second, third = make_row(1, id="a"), make_row(2, id="b"), make_row(3, id="c")
        heir = make_row(4, id="a")
        async with opened(backing.store()) as store:
            await store.commit(inserting(first, second, third))
            mark = make_mark(second)
            await store.commit(Batch([key_of(first)], [heir], [mark]))

            assert await load_all(store) == [marked(second, mark), third, heir]

    @pytest.mark.parametrize("part", ["state", "extras"])
    @in_asyncio
    async def test_a_mark_changes_the_state_and_the_extras_only_if_it_says_so(self, backing: Backing, part: str) -> None:
        """Each may be set, cleared, or left, from any to any other, and the other stays."""
        values = (None, b"", b"short", b"l" * 5000)
        cases = list(product(values, values, (True, False)))
        other = {"state": "extras", "extras": "state"}[part]
        rows = [make_row(seq, "q", **{part: old, other: b"stays"}) for seq, (old, _, _) in enumerate(cases)]
        marks = [make_mark(row, **{part: new, f"{part}_set": is_set}) for row, (_, new, is_set) in zip(rows, cases, strict=True)]
        expected = [marked(row, mark) for row, mark in zip(rows, marks, strict=True)]
        async with opened(backing.store()) as store:
            await commit_all(store, inserting(*rows))
            await commit_all(store, marking(*marks))
            assert await store.read([key_of(row) for row in rows]) == {key_of(row): row for row in expected}

        assert [getattr(row, part) for row in expected] == [new if is_set else old for old, new, is_set in cases]

    @in_asyncio
    async def test_marks_of_all_sorts_go_together(self, backing: Backing) -> None:
        """Some set the state, some the extras, some both, some neither, small and large."""
        sorts = list(product((True, False), (True, False), (b"s", b"l" * 3000), (None, b"e", b"x" * 3000)))
        rows = [make_row(seq, extras=b"old" if seq % 3 else None) for seq in range(2 * len(sorts))]
        marks = [
            make_mark(row, state_set=state_set, state=state, extras_set=extras_set, extras=extras)
            for row, (state_set, extras_set, state, extras) in zip(rows, sorts, strict=False)
        ]
        async with opened(backing.store()) as store:
            await commit_all(store, inserting(*rows))
            await commit_all(store, marking(*marks))
            expected = [marked(row, mark) for row, mark in zip(rows, marks, strict=False)] + rows[len(marks) :]
            assert await load_all(store) == expected

    @in_asyncio
    async def test_a_load_is_ordered_by_ready_at_and_then_seq(self, backing: Backing) -> None:
        """In whatever order the rows came in."""
        rows = [make_row(seq, ready_at=NOW + seq * 7919 % 13, queue=f"q{seq % 5}") for seq in range(1, 500)]
        async with opened(backing.store()) as store:
            for start in range(0, len(rows), 50):
                await commit_all(store, inserting(*reversed(rows[start : start + 50])))

            assert await load_all(store) == in_order(rows)

    @in_asyncio
    async def test_a_batch_that_cannot_be_stored_leaves_nothing(self, backing: Backing) -> None:
        """Not its good rows either, and the store goes on."""
        kept = make_row(1)
        batch = Batch([key_of(kept)], [make_row(2), make_row(3, id="\ud800"), make_row(4)], [])
        async with opened(backing.store()) as store:
            await store.commit(inserting(kept))
            with pytest.raises(StorePermanent) as raised:
                await store.commit(batch)
            await store.commit(inserting(make_row(5)))

            assert "\ud800" not in str(raised.value)
            assert await load_all(store) == [kept, make_row(5)]

    @in_asyncio
    async def test_a_stale_owner_writes_nothing(self, backing: Backing) -> None:
        """Neither once nor later: it is told that it is fenced, and the rows stay as they are."""
        row, more = make_row(1), make_row(2)
        async with opened(backing.store()) as store:
            await store.commit(inserting(row))
            await backing.usurp(store)
            for batch in (inserting(more), deleting(row), marking(make_mark(row)), Batch([], [], [])):
                with pytest.raises(StoreFenced):
                    await store.commit(batch)
        async with opened(backing.store()) as store:
            assert await load_all(store) == [row]

    @in_asyncio
    async def test_read_finds_the_rows_that_exist(self, backing: Backing) -> None:
        """A row that is gone, or another job of the same id, is not among them."""
        rows = [make_row(seq, queue=f"q{seq % 3}") for seq in range(1, 2000)]
        gone = RowKey(rows[0].slot, 5000, rows[0].queue, rows[0].id)
        async with opened(backing.store()) as store:
            await commit_all(store, inserting(*rows))
            await store.commit(deleting(rows[10]))
            asked = [key_of(row) for row in rows[:1500]] + [gone]

            assert await store.read(asked) == {key_of(row): row for row in rows[:1500] if row is not rows[10]}
            assert await store.read([]) == {}

    @in_asyncio
    async def test_a_store_goes_on_after_reopen(self, backing: Backing) -> None:
        """With its rows, and under its new epoch."""
        async with opened(backing.store()) as store:
            await store.commit(inserting(make_row(1)))
            await store.reopen()
            await store.commit(inserting(make_row(2)))

            assert await store.read([key_of(make_row(1)), key_of(make_row(2))]) == {key_of(make_row(n)): make_row(n) for n in (1, 2)}

    @in_asyncio
    async def test_a_closed_store_refuses(self, backing: Backing) -> None:
        """With an error of its own, not the driver's."""
        store = backing.store()
        await store.open()
        await store.close()

        with pytest.raises(StoreError):
            await store.commit(inserting(make_row(1)))

    @in_asyncio
    async def test_ten_thousand_queues(self, backing: Backing) -> None:
        """One job in each, in batches of any size."""
        rows = [make_row(seq, queue=f"queue-{seq}") for seq in range(10_000)]
        async with opened(backing.store()) as store:
            start = 0
            for size in (1, 2, 511, 512, 513, 1023, 2437, 5001):
                await commit_all(store, inserting(*rows[start : start + size]))
                start += size
            marks = [make_mark(row) for row in rows[:3333]]
            await commit_all(store, Batch([key_of(row) for row in rows[5000:7777]], [], marks))
        async with opened(backing.store()) as store:
            expected = [marked(row, mark) for row, mark in zip(rows, marks, strict=False)] + rows[3333:5000] + rows[7777:]
            assert await load_all(store) == expected

    @examples
    @given(data=st.data())
    @in_asyncio
    async def test_batches_do_what_a_dict_would(self, new_backing: Callable[[], Backing], data: st.DataObject) -> None:
        """Whatever the batches are, and however often the store is closed and opened between them."""
        backing = new_backing()
        model: dict[RowKey, Row] = {}
        seq = 0
        for _ in range(data.draw(st.integers(1, 3), label="runs")):
            async with opened(backing.store()) as store:
                assert await load_all(store) == in_order(model.values())
                for _ in range(data.draw(st.integers(1, 4), label="batches")):
                    known = data.draw(st.permutations(list(model)))
                    cut = data.draw(st.integers(0, len(known)))
                    deletes = known[:cut]
                    marks = [data.draw(marks_of(model[key])) for key in known[cut : data.draw(st.integers(cut, len(known)))]]
                    inserts = [data.draw(rows_of(seq + n)) for n in range(data.draw(st.integers(0, 4)))]
                    seq += len(inserts)
                    await store.commit(Batch(deletes, inserts, marks))
                    for key in deletes:
                        del model[key]
                    model |= {key_of(row): row for row in inserts}
                    for mark in marks:
                        key = RowKey(mark.slot, mark.seq, mark.queue, mark.id)
                        model[key] = marked(model[key], mark)
                assert await store.read(list(model)) == model

    @in_asyncio
    async def test_another_number_of_shards_keeps_every_row_and_the_order_of_each_queue(self, backing: Backing) -> None:
        """Each shard loads the rows of its own slots, dead letters and runs in flight too."""
        rows = [
            make_row(
                seq,
                queue=f"q{seq % 17}",
                ready_at=NOW + seq // 3,
                status=(2, 3, 4)[seq % 3],
                run_id=bytes(16) if seq % 3 == 1 else None,
                extras=b"extras %d" % seq if seq % 2 else None,
            )
            for seq in range(1, 300)
        ]
        for shards in (1, 3, 2, 5, 5):
            await backing.prepare(shards)
            seen: list[Row] = []
            for shard in range(shards):
                async with opened(backing.store(shard, shards)) as store:
                    if shards == 1:
                        await commit_all(store, inserting(*rows))
                    loaded = await load_all(store)
                assert all(isinstance(row, Row) and row.slot in slots_of(shard, shards) for row in loaded)
                seen += [row for row in loaded if isinstance(row, Row)]

            assert jobs_by_queue(seen) == jobs_by_queue(rows)
            assert all(0 <= shard_of(row.slot, shards) < shards for row in seen)


NOW = make_row(0).ready_at


def jobs_by_queue(rows: list[Row]) -> dict[str, list[tuple[object, ...]]]:
    """Return the jobs of each queue in order, without the number that a store may give anew."""
    found: dict[str, list[tuple[object, ...]]] = {}
    for row in in_order(rows):
        found.setdefault(row.queue, []).append((row.id, row.status, row.ready_at, row.run_id, row.payload, row.state, row.extras))
    return found
