"""Another number of shards in Redis: interrupted at each step, by a crash or by another who does the same, no row is lost."""

from __future__ import annotations

import pytest

from proteus_shards.core.model import Batch, Mark, RecordKey, Row
from proteus_shards.errors import StoreError, StoreFenced, StoreRefused
from proteus_shards.store.redis_place import Manifest, common_key
from proteus_shards.store.redis_prepare import _CANCEL, Preparation, Wires, prepare, prepared_shards
from proteus_shards.store.redis_rows import field_of
from tests.servers.redis import RedisPlace
from tests.store.exercise import jobs_by_queue
from tests.store.redis_backing import RedisBacking, apart, owning
from tests.store.rows import (
    as_dict,
    commit_all,
    in_asyncio,
    inserting,
    load_all,
    load_records,
    make_mark,
    make_record,
    make_row,
    marked,
)

STEPS = 16  # of a move from 2 to 3 shards: entered, sealed, created, copied 10×, counted, flipped, cleaned


RECORDS = [make_record(f"q{number}", b"%d" % number) for number in range(50)]


class Killed(BaseException):
    """Stands for the end of the process: nothing is done any more but that the connection ends."""


@pytest.fixture
def backing(redis_server: RedisPlace) -> RedisBacking:
    """Return a place prepared for one shard."""
    return RedisBacking(redis_server)


def some_rows() -> tuple[list[Row], list[Row]]:
    """Return rows of many queues, and what a mark makes of each."""
    rows = [make_row(seq, queue=f"q{seq % 37}", ready_at=make_row(seq // 2).ready_at) for seq in range(1, 400)]
    return rows, [marked(row, mark_of(row)) for row in rows[::3]]


def mark_of(row: Row) -> Mark:
    """Return the mark of a row, with a state or extras or both or neither."""
    return make_mark(row, state_set=row.seq % 2 == 0, state=b"s%d" % row.seq, extras_set=row.seq % 5 < 2, extras=b"e%d" % row.seq)


async def fill(backing: RedisBacking) -> list[Row]:
    """Store rows, marks, states, extras and records in one shard; return the rows that are then there."""
    rows, changed = some_rows()
    async with owning(backing.store()) as store:
        await commit_all(store, inserting(*rows))
        await commit_all(store, Batch([], [], [mark_of(row) for row in rows[::3]], RECORDS))
    return sorted([*changed, *(row for number, row in enumerate(rows) if number % 3)], key=lambda row: row.seq)


async def all_rows(backing: RedisBacking, shards: int) -> list[Row]:
    """Return what all shards load, by seq. Where there are rows, there are all the records too."""
    found: list[Row] = []
    records: dict[RecordKey, bytes] = {}
    for shard in range(shards):
        async with owning(backing.store(shard, shards)) as store:
            records |= await load_records(store)
            loaded = await load_all(store)
        found += [row for row in loaded if isinstance(row, Row)]
        assert len(found) == len({(row.slot, row.seq) for row in found})
    assert records == (as_dict(*RECORDS) if found else {})
    return sorted(found, key=lambda row: row.seq)


async def keys_of(backing: RedisBacking) -> set[str]:
    """Return the generations and common keys that there are."""
    async with owning(backing.store(0, await prepared_shards(backing.url) or 1)) as store:
        found = await store._wire.call("KEYS", f"{{{backing.url.prefix}[:}}]*")
    return {key.decode().split("}")[0].rpartition(":s")[0] or key.decode() for key in found}


@pytest.mark.parametrize("crash", range(1, STEPS + 1))
@in_asyncio
async def test_a_move_that_is_killed_after_any_step_loses_nothing(backing: RedisBacking, crash: int) -> None:
    """Neither when the next start asks for the old number nor for the new one; and what was left behind goes."""
    rows = await fill(backing)
    await backing.prepare(2)
    for wanted in (2, 3):
        left = crash

        def step(_name: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        before = await prepared_shards(backing.url)
        try:
            await prepare(backing.url, 3, step)
        except Killed:
            pass
        else:
            assert before == 3
        assert await prepared_shards(backing.url) in {2, 3}
        await prepare(backing.url, wanted)
        assert await prepared_shards(backing.url) == wanted
        assert await all_rows(backing, wanted) == rows
        common = {f"{{{backing.url.prefix}}}:{name}" for name in ("manifest", "moves", "claims")}
        assert len(await keys_of(backing) - common) == 1


@in_asyncio
async def test_the_steps_of_a_move(backing: RedisBacking) -> None:
    """What the test above is killed after."""
    await fill(backing)
    await backing.prepare(2)
    steps: list[str] = []
    await prepare(backing.url, 3, steps.append)

    copied = [f"copied {name}" for name in ("marks", "states", "extras", "records", "rows") for _ in range(2)]
    assert steps == ["entered", "sealed", "created", *copied, "counted", "flipped", "cleaned"]
    assert len(steps) == STEPS


@in_asyncio
async def test_a_move_says_what_it_moved_and_does_nothing_twice(backing: RedisBacking) -> None:
    """With the number that it has, a store is left as it is."""
    rows = await fill(backing)

    assert await prepare(backing.url, 3) == f"moved {len(rows)} stored jobs from 1 to 3 shards"
    assert await prepare(backing.url, 3) is None
    assert jobs_by_queue(await all_rows(backing, 3)) == jobs_by_queue(rows)


@in_asyncio
async def test_an_owner_of_the_old_shards_writes_nothing_once_a_move_has_begun(backing: RedisBacking) -> None:
    """Neither before the flip, when its rows are being copied, nor after it; and it cannot take them back."""
    row = make_row(1)
    for moment in ("sealed", "flipped"):
        shards = await prepared_shards(backing.url) or 1
        async with owning(backing.store(0, shards)) as owner:

            def step(name: str, owner: object = owner, moment: str = moment) -> None:
                assert owner is not None
                if name == moment:
                    raise Killed

            with pytest.raises(Killed):
                await prepare(backing.url, shards + 1, step)
            with pytest.raises(StoreFenced):
                await owner.commit(inserting(row))
            with pytest.raises(StoreFenced):
                await owner.reopen()
        await prepare(backing.url, shards + 1)
    assert await all_rows(backing, await prepared_shards(backing.url) or 1) == []


@in_asyncio
async def test_a_shard_is_not_taken_while_its_rows_are_moved(backing: RedisBacking) -> None:
    """It is refused, and a retry helps: the move ends, or is given up."""
    opened_meanwhile: list[object] = []

    async def try_to_open() -> object:
        store = backing.store()
        try:
            await store.open()
        except StoreRefused as refusal:
            return str(refusal)
        finally:
            await store.close()
        return None

    def step(name: str) -> None:
        if name == "created":
            opened_meanwhile.append(apart(try_to_open))

    await prepare(backing.url, 2, step)

    assert "being moved to another number" in str(opened_meanwhile[0])


@pytest.mark.parametrize("moment", ["entered", "sealed", "created", "copied rows", "counted"])
@in_asyncio
async def test_of_two_moves_at_once_the_later_one_wins(backing: RedisBacking, moment: str) -> None:
    """The earlier one can no longer be completed, whatever it is doing; nothing is lost, and nothing of it stays."""
    rows = await fill(backing)
    begun: list[str] = []

    def step(name: str) -> None:
        if name == moment and not begun:
            begun.append(name)
            apart(lambda: prepare(backing.url, 2))

    with pytest.raises((StoreRefused, StoreError)):
        await prepare(backing.url, 3, step)

    assert await prepared_shards(backing.url) == 2
    assert await all_rows(backing, 2) == rows
    assert len([key for key in await keys_of(backing) if ":g" in key]) == 1


@pytest.mark.parametrize("moment", ["entered", "sealed", "created", "copied rows", "counted"])
@in_asyncio
async def test_a_start_with_the_old_number_gives_a_move_up(backing: RedisBacking, moment: str) -> None:
    """Though the manifest stays the same, the move can no longer be completed: its keys are gone."""
    rows = await fill(backing)
    begun: list[str] = []

    def step(name: str) -> None:
        if name == moment and not begun:
            begun.append(name)
            apart(lambda: prepare(backing.url, 1))

    with pytest.raises((StoreRefused, StoreError)):
        await prepare(backing.url, 3, step)

    assert await all_rows(backing, 1) == rows
    assert len([key for key in await keys_of(backing) if ":g" in key]) == 1


@pytest.mark.parametrize("before", [None, 1])
@in_asyncio
async def test_a_move_that_another_overtook_is_refused(backing: RedisBacking, monkeypatch: pytest.MonkeyPatch, before: int | None) -> None:
    """It has read a manifest that is no longer in force, or that there was none."""
    rows = await fill(backing)
    if before is None:
        async with owning(backing.store()) as store:
            names = [common_key(backing.url, name) for name in ("manifest", "moves")]
            await store._wire.call("DEL", *names, *backing.keys.all)
        rows = []
    real = Preparation._enter

    async def overtaken(preparation: Preparation, old: Manifest | None, shards: int) -> int:
        monkeypatch.undo()
        apart(lambda: prepare(backing.url, 2))
        return await real(preparation, old, shards)

    monkeypatch.setattr(Preparation, "_enter", overtaken)
    with pytest.raises(StoreRefused, match="another process"):
        await prepare(backing.url, 3)

    assert await all_rows(backing, 2) == rows
    await prepare(backing.url, 3)
    assert await all_rows(backing, 3) == rows


@in_asyncio
async def test_a_completed_move_cannot_be_given_up(backing: RedisBacking) -> None:
    """Not by one who saw it while it was under way: its generation is the one that counts."""
    rows = await fill(backing)
    await backing.prepare(2)
    wires = Wires(backing.url)
    try:
        assert await wires.run(_CANCEL, (common_key(backing.url, "moves"),), 2, "filling 2", "rubbish 2") == b"CHANGED"
    finally:
        await wires.close()
    await backing.prepare(2)

    assert await all_rows(backing, 2) == rows


@in_asyncio
async def test_a_new_place_that_two_prepare_at_once_is_prepared_once(redis_server: RedisPlace) -> None:
    """The loser is refused, and finds it done when it tries again."""
    backing = RedisBacking(redis_server)
    async with owning(backing.store()) as store:
        await store._wire.call("DEL", common_key(backing.url, "manifest"), common_key(backing.url, "moves"), *backing.keys.all)
    begun: list[str] = []

    def step(name: str) -> None:
        if name == "created" and not begun:
            begun.append(name)
            apart(lambda: prepare(backing.url, 4))

    with pytest.raises(StoreRefused, match="another process prepared"):
        await prepare(backing.url, 4, step)
    assert await prepare(backing.url, 4) is None


@in_asyncio
async def test_a_field_that_belongs_to_no_slot_stops_a_move_before_anything_is_lost(backing: RedisBacking) -> None:
    """The old number goes on with it."""
    async with owning(backing.store()) as store:
        await store.commit(inserting(make_row(1)))
        await store._wire.call("HSET", backing.keys.rows, field_of(5000, 1), b"x")
    with pytest.raises(StoreError, match="is no row's"):
        await backing.prepare(2)
    async with owning(backing.store()) as store:
        assert make_row(1) in await load_all(store)
        await store._wire.call("HDEL", backing.keys.rows, field_of(5000, 1))
        await store._wire.call("HSET", backing.keys.records, b"\x00\x01\x00\x01", b"x")
    with pytest.raises(StoreError, match="is no record's"):
        await backing.prepare(2)


@in_asyncio
async def test_a_damaged_row_moves_as_it_is(backing: RedisBacking) -> None:
    """Where it belongs is in its field: nothing else of it need be understood."""
    row = make_row(1)
    async with owning(backing.store()) as store:
        await store._wire.call("HSET", backing.keys.rows, field_of(row.slot, 1), b"\xc1")
    await backing.prepare(2)
    async with owning(backing.store(row.slot * 2 // 1024, 2)) as store:
        (damaged,) = await load_all(store)

    assert not isinstance(damaged, Row)
    assert damaged.seq == 1


@in_asyncio
async def test_a_manifest_that_is_gone_is_not_taken_for_a_new_place(backing: RedisBacking) -> None:
    """The message has what brings it back."""
    rows = await fill(backing)
    await backing.prepare(2)
    key = common_key(backing.url, "manifest")
    async with owning(backing.store(0, 2)) as store:
        await store._wire.call("DEL", key)
        for act in (prepare(backing.url, 2), prepare(backing.url, 3), prepared_shards(backing.url), backing.store(0, 2).open()):
            with pytest.raises(StoreError, match="is gone") as raised:
                await act
        _, _, value = str(raised.value).partition(f"SET {key} ")
        await store._wire.call("SET", key, value.strip("'"))

    assert await prepare(backing.url, 3) == f"moved {len(rows)} stored jobs from 2 to 3 shards"


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        ("not json", "no manifest of ours"),
        ('{"layout":9,"row_version":1,"generation":1,"shards":1}', "newer version"),
        ('{"layout":1,"row_version":9,"generation":1,"shards":1}', "newer version"),
        ('{"layout":1,"row_version":1,"generation":1,"shards":0}', "cannot be"),
    ],
)
@in_asyncio
async def test_a_manifest_that_is_not_understood_is_left_alone(backing: RedisBacking, manifest: str, told: str) -> None:
    """By whoever meets it, and for good."""
    async with owning(backing.store()) as store:
        await store._wire.call("SET", common_key(backing.url, "manifest"), manifest)
    for act in (prepare(backing.url, 2), prepared_shards(backing.url), backing.store().open()):
        with pytest.raises(StoreError, match=told) as raised:
            await act
        assert not isinstance(raised.value, StoreRefused)
