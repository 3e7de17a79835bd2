"""What holds of every store that keeps rows whatever is in them: names, sizes, the limits that a store sets itself. Part of `exercise.py`."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest

from proteus_shards.core.model import NAME_LENGTH_MAX, Batch, Row, Status, name_fault
from proteus_shards.errors import StorePermanent
from tests.store.backing import Backing
from tests.store.rows import (
    NOW_US,
    commit_all,
    deleting,
    in_asyncio,
    in_order,
    inserting,
    key_of,
    load_all,
    make_mark,
    make_row,
    marked,
    marking,
    opened,
    size_of,
)

CHUNK_BYTES_MAX = 16 * 1024 * 1024  # of names, payloads and states that a load may give at once, a single larger row aside

# Names that some store, driver or index may be tempted to change, cut, compare loosely, or take for syntax.
NAMES = (
    "\U0001f4ec",  # outside the basic plane
    "\U0010ffff",
    "\uffff",  # a noncharacter
    "\ufffd",
    "\ufeffmail",  # a byte order mark
    "e\u0301",  # decomposed
    "\u00e9",  # the same, composed
    "a\u0300\u0316\u0334" * 50,  # many combining marks
    "\u202email\u202c",  # right to left
    "שלום",
    "a\u200bb",  # a space of no width
    "ab",
    "a b",
    "ab ",
    " ab",
    "AB",
    "Ab",
    "ß",
    "ss",
    "ı",
    "i",
    "İ",
    "\u00a0",
    " ",
    "NULL",
    "0",
    "00",
    "a-b",
    "a:b",
    "{a}",
    "}{",
    "%",
    "_",
    "'; --",
    '"',
    "\\",
    "$1",
    "#",
    "/",
    "..",
    "*",
    "\ue000",  # of private use
    "\U0001f4ec" * NAME_LENGTH_MAX,
    "\U0001f4ec" * (NAME_LENGTH_MAX - 1) + "\U0001f4ed",
)


class RowsExercise:
    """Names, sizes and limits."""

    def test_the_names_of_this_suite_are_allowed(self) -> None:
        """And all different."""
        assert [name for name in NAMES if name_fault(name) is not None] == []
        assert len(set(NAMES)) == len(NAMES)
        assert unicodedata.normalize("NFC", NAMES[5]) == NAMES[6]

    @in_asyncio
    async def test_any_two_different_names_are_two_queues_and_two_jobs(self, backing: Backing) -> None:
        """Whether they differ by case, by composition, by a space, or by their last character."""
        pairs = [(name, "job") for name in NAMES] + [("q", name) for name in NAMES] + [(name, name) for name in NAMES]
        pairs += [("a-b", "c"), ("a", "b-c"), ("a:b", "c"), ("a", "b:c"), ("", "")][:-1]
        rows = [make_row(seq, queue=queue, id=name) for seq, (queue, name) in enumerate(pairs)]
        marks = {row.seq: make_mark(row, reason=row.queue) for row in rows if row.seq % 2}
        gone = {row.seq for row in rows if row.seq % 3 == 0} - set(marks)
        expected = [marked(row, marks[row.seq]) if row.seq in marks else row for row in rows if row.seq not in gone]
        async with opened(backing.store()) as store:
            await commit_all(store, inserting(*rows))
            await commit_all(store, Batch([key_of(row) for row in rows if row.seq in gone], [], list(marks.values())))
            assert await store.read([key_of(row) for row in rows]) == {key_of(row): row for row in expected}
        async with opened(backing.store()) as store:
            assert await load_all(store) == expected

    @in_asyncio
    async def test_dead_letters_and_a_live_job_share_a_queue_and_an_id(self, backing: Backing) -> None:
        """A job may die, and its id be used anew, again and again; each row keeps to itself."""
        first, second, third = (make_row(seq, id="same", payload=b"%d" % seq) for seq in (1, 2, 3))
        dead = [make_mark(row, status=int(Status.DEAD), run_id=None, reason="timeout") for row in (first, second)]
        async with opened(backing.store()) as store:
            await store.commit(inserting(first))
            await store.commit(Batch([], [second], [dead[0]]))
            await store.commit(Batch([], [third], [dead[1]]))
            expected = [marked(first, dead[0]), marked(second, dead[1]), third]
            assert await store.read([key_of(row) for row in expected]) == {key_of(row): row for row in expected}
            await store.commit(deleting(expected[0]))
        async with opened(backing.store()) as store:
            assert await load_all(store) == expected[1:]
            await store.commit(deleting(expected[2]))
            assert await store.read([key_of(row) for row in expected]) == {key_of(expected[1]): expected[1]}

    @in_asyncio
    async def test_a_row_is_marked_again_and_again(self, backing: Backing) -> None:
        """The last mark counts, and a state that a later one leaves alone stays."""
        row = make_row(1, state=b"0")
        marks = [
            make_mark(row),
            make_mark(row, state_set=True, state=b"1"),
            make_mark(row, status=int(Status.READY), run_id=None, attempt=2),
            make_mark(row, attempt=3, state_set=True, state=None),
            make_mark(row, attempt=4, updated_at=NOW_US + 10),
        ]
        async with opened(backing.store()) as store:
            await store.commit(inserting(row))
            for mark in marks:
                await store.commit(marking(mark))
                row = marked(row, mark)
                assert await store.read([key_of(row)]) == {key_of(row): row}
        async with opened(backing.store()) as store:
            assert await load_all(store) == [row]

    @pytest.mark.parametrize("fault", ["insert", "mark"])
    @in_asyncio
    async def test_a_batch_that_is_refused_half_way_leaves_nothing(self, backing: Backing, fault: str) -> None:
        """Neither its deletes, nor its marks, nor its first inserts, however many statements it takes."""
        store = backing.store()
        count = min(store.batch_rows_max or 2000, 2000)
        rows = [make_row(seq) for seq in range(count)]
        third = count // 3
        batch = Batch(
            [key_of(row) for row in rows[:third]],
            [make_row(seq) for seq in range(count, count + third)],
            [make_mark(row) for row in rows[third : 2 * third]],
        )
        if fault == "insert":
            batch.inserts[-2] = make_row(2 * count, id="\ud800")
        else:
            batch.marks[-2] = make_mark(rows[2 * third], reason="\ud800")
        async with opened(store):
            await commit_all(store, inserting(*rows))
            with pytest.raises(StorePermanent) as raised:
                await store.commit(batch)
            assert "\ud800" not in str(raised.value)
            asked = [key_of(row) for row in [*rows, *batch.inserts] if row.id != "\ud800"]
            assert await store.read(asked) == {key_of(row): row for row in rows}
        async with opened(backing.store()) as store:
            assert await load_all(store) == rows

    @in_asyncio
    async def test_a_batch_as_large_as_the_store_allows_is_taken(self, backing: Backing) -> None:
        """In rows and bytes at once; and so is a row as large as it allows."""
        store = backing.store()
        count = min(store.batch_rows_max or 2000, 2000)
        bytes_max = min(store.batch_bytes_max or 8_000_000, 8_000_000)
        each = min(bytes_max // count, store.row_bytes_max or bytes_max)
        rows = [sized(make_row(seq), each) for seq in range(count)]
        largest = sized(make_row(count), min(store.row_bytes_max or bytes_max, bytes_max), state=True, extras=True)
        async with opened(store):
            await store.commit(inserting(*rows))
            await store.commit(inserting(largest))
        async with opened(backing.store()) as store:
            assert await load_all(store) == [*rows, largest]
            for start in range(0, count, count // 3):  # what is changed or deleted counts as it is in memory
                some = rows[start : start + count // 3]
                marks = [make_mark(row, state_set=True, state=row.payload[: len(row.payload) // 2]) for row in some]
                await store.commit(marking(*marks))
                assert list((await store.read([key_of(some[-1])])).values()) == [marked(some[-1], marks[-1])]
                await store.commit(deleting(*some))
            assert await store.read([key_of(row) for row in [*rows, largest]]) == {key_of(largest): largest}

    @in_asyncio
    async def test_a_load_of_large_rows_comes_in_chunks_that_fit_memory(self, backing: Backing) -> None:
        """However few rows that are; small ones come many at a time."""
        store = backing.store()
        size = min(200_000, store.row_bytes_max or 200_000)
        rows = [sized(make_row(seq), size, state=seq % 2 == 0) for seq in range(100)]
        sizes = []
        found: list[object] = []
        async with opened(store):
            await commit_all(store, inserting(*rows))
        async with opened(backing.store()) as store:
            async for chunk in store.load():
                sizes.append(sum(size_of(row) for row in chunk if isinstance(row, Row)))
                found += chunk

        assert found == in_order(rows)
        assert max(sizes) <= CHUNK_BYTES_MAX
        assert 0 not in sizes


def sized(row: Row, size: int, *, state: bool = False, extras: bool = False) -> Row:
    """Return a row of this queue and id that counts for so many bytes in all, a third of them its state and another its extras, if asked for."""
    rest = size - len(row.queue.encode()) - len(row.id.encode())
    part = rest // 3
    fill: Callable[[int], bytes] = lambda length: (b"%d." % row.seq * (length // 2 + 1))[:length]  # noqa: E731
    payload = fill(rest - part * (state + extras))
    return make_row(row.seq, payload=payload, state=fill(part) if state else None, extras=fill(part) if extras else None)
