"""The Redis store: the shared suite on each server that there is, and what its keys must look like."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from proteus_shards.core.model import Batch, Record
from proteus_shards.errors import StoreError, StoreFailed, StoreFenced, StoreRefused
from proteus_shards.store.contract import Damaged, Durability
from proteus_shards.store.redis import BATCH_ROWS_MAX, RedisStore
from proteus_shards.store.redis_place import Scan, common_key
from proteus_shards.store.redis_rows import field_of, pairs_packed
from tests.servers.redis import RedisPlace
from tests.store.exercise import Backing, KeepingExercise
from tests.store.redis_backing import RedisBacking, owning
from tests.store.rows import (
    as_dict,
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
    marking,
    recording,
)


class TestRedis(KeepingExercise):
    """The shared suite."""

    @pytest.fixture
    def new_backing(self, redis_server: RedisPlace) -> Callable[[], Backing]:
        return lambda: RedisBacking(redis_server)


@pytest.fixture
def backing(redis_server: RedisPlace) -> RedisBacking:
    """Return a prepared place."""
    return RedisBacking(redis_server)


# --- keys --------------------------------------------------------------------------------------------------------


@in_asyncio
async def test_all_keys_of_a_shard_are_under_one_hash_tag(backing: RedisBacking) -> None:
    """So that a cluster keeps them on one node, and one script may touch them."""
    row = make_row(1)
    async with owning(backing.store()) as store:
        await store.commit(inserting(row))
        mark = make_mark(row, state_set=True, state=b"1", extras_set=True, extras=b"e")
        await store.commit(Batch([], [], [mark], [make_record("a")]))
        found = await store._wire.call("KEYS", f"*{backing.url.prefix}*")

    tag = f"{{{backing.url.prefix}:g1:s0}}:"
    common = {f"{{{backing.url.prefix}}}:{name}" for name in ("manifest", "moves", "claims")}
    assert {key.decode() for key in found} == common | {tag + name for name in ("lease", "rows", "marks", "states", "extras", "records")}


@in_asyncio
async def test_what_is_deleted_leaves_no_key(backing: RedisBacking) -> None:
    """Not of its marks either: with no job, the store holds no more than the lease."""
    rows = [make_row(seq) for seq in range(3)]
    async with owning(backing.store()) as store:
        await store.commit(inserting(*rows))
        marks = [make_mark(row, state_set=True, state=b"1", extras_set=True, extras=b"e") for row in rows]
        await store.commit(Batch([], [], marks, [make_record("a")]))
        await store.commit(deleting(*rows))
        await store.commit(recording(make_record("a", None)))

        assert await store._wire.call("EXISTS", *backing.keys.all[1:]) == 0


@in_asyncio
async def test_a_mark_does_not_write_the_payload_again(backing: RedisBacking) -> None:
    """A heartbeat on a job of a megabyte is as cheap as any."""
    row = make_row(1, payload=bytes(1_000_000))
    async with owning(backing.store()) as store:
        await store.commit(inserting(row))
        before = await store._wire.call("HGET", backing.keys.rows, field_of(row.slot, row.seq))
        await store.commit(marking(make_mark(row)))
        after = await store._wire.call("HGET", backing.keys.rows, field_of(row.slot, row.seq))
        mark = await store._wire.call("HGET", backing.keys.marks, field_of(row.slot, row.seq))

    assert before == after
    assert len(mark) < 64


@in_asyncio
async def test_the_largest_batch_is_one_script(backing: RedisBacking) -> None:
    """As many deletes, marks with states and extras, inserts and records as a batch may have, of rows at the ends of all ranges."""
    part = BATCH_ROWS_MAX // 5
    old = [make_row(2**62 - seq, queue=f"q{seq}", ready_at=253_402_300_799_999_999 - seq) for seq in range(2 * part)]
    new = [make_row(seq, queue=f"q{seq}") for seq in range(part)]
    marks = [make_mark(row, state_set=True, state=b"{}", extras_set=True, extras=b"e") for row in old[part:]]
    gone = [make_record(f"gone {number}", b"old") for number in range(part)]
    records = [make_record(f"kept {number}") for number in range(part)]
    async with owning(backing.store()) as store:
        await store.commit(Batch([], old, [], gone))
        removed = [make_record(record.name, None) for record in gone]
        await store.commit(Batch([key_of(row) for row in old[:part]], new, marks, [*removed, *records]))

        left = [marked(row, mark) for row, mark in zip(old[part:], marks, strict=True)]
        assert await load_all(store) == [*new, *reversed(left)]
        assert await load_records(store) == as_dict(*records)


# --- what is not as it should be ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows", "marks", "states", "extras", "records", "lease"])
@in_asyncio
async def test_a_key_of_another_type_in_our_place_stops_the_commit_before_its_first_write(backing: RedisBacking, name: str) -> None:
    """Another program uses our prefix: nothing of it is touched, and this process ends."""
    row = make_row(1)
    async with owning(backing.store()) as store:
        key = getattr(backing.keys, name)
        await store._wire.call("DEL", key)
        await store._wire.call("SET", key, "theirs")
        with pytest.raises(StoreFailed, match="of another type"):
            await store.commit(Batch([], [row], [make_mark(make_row(2), extras_set=True, extras=b"e")], [make_record("a")]))

        assert await store._wire.call("GET", key) == b"theirs"
        assert await store._wire.call("EXISTS", *(set(backing.keys.all) - {key, backing.keys.lease})) == 0
        with pytest.raises(StoreFailed):
            await store.commit(inserting(row))


@pytest.mark.parametrize("what", ["delete", "mark", "insert"])
@in_asyncio
async def test_rows_that_are_not_as_this_process_knows_them_stop_the_commit_before_its_first_write(
    backing: RedisBacking, what: str
) -> None:
    """A delete or a mark of what is not there, an insert of what is: the batch is refused as a whole, and the process must start over."""
    kept, missing, new = make_row(1), make_row(2), make_row(3)
    batch = {
        "delete": Batch([key_of(kept), key_of(missing)], [new], []),
        "mark": Batch([key_of(kept)], [new], [make_mark(missing)]),
        "insert": Batch([], [new, kept], []),
    }[what]
    async with owning(backing.store()) as store:
        await store.commit(inserting(kept))
        with pytest.raises(StoreFailed, match="do not agree"):
            await store.commit(batch)
        with pytest.raises(StoreFailed, match="do not agree"):
            await store.reopen()
    async with owning(backing.store()) as store:
        assert await load_all(store) == [kept]


@in_asyncio
async def test_what_is_no_row_is_said_and_left_where_it_is(backing: RedisBacking) -> None:
    """Bytes of anything, a row under another's field, another shard's row, a mark without a row; the good ones are loaded."""
    good = make_row(1)
    values = msgspec.structs.astuple(make_row(2))
    pack = msgspec.msgpack.encode
    rows = {
        field_of(good.slot, 2): pack((*values[:4], "ready", *values[5:])),
        field_of(good.slot, 3): pack(values),
        field_of(good.slot, 4): b"\xc1",
        field_of(good.slot, 5): pack(msgspec.structs.astuple(make_row(5))).replace(b"job-5", b"\xff\xff\xff\xff\xff"),
        field_of(2000, 6): pack((2000, 6, *values[2:])),
        b"theirs": b"\xc1",
    }
    async with owning(backing.store()) as store:
        await store.commit(inserting(good))
        await store._wire.call("HSET", backing.keys.rows, *(piece for pair in rows.items() for piece in pair))
        await store._wire.call("HSET", backing.keys.marks, field_of(good.slot, 7), pack((2, 0, None, None, 0)))
        loaded = await load_all(store)
        assert await store._wire.call("HLEN", backing.keys.rows) == len(rows) + 1

    damaged = [item for item in loaded if isinstance(item, Damaged)]
    assert [item for item in loaded if not isinstance(item, Damaged)] == [good]
    assert {item.seq for item in damaged} == {2, 3, 4, 5, 6, 7, None}
    assert {item.fault for item in damaged} == {
        "Expected `int`, got `str` - at status",
        "slot and seq of the row are not those that it is kept under",
        "it is not MessagePack",
        "a text is not UTF-8",
        "Expected `int` <= 1023 - at slot",
        "there is a mark, a state or extras, but no row",
    }
    assert all(item.where.startswith(backing.keys.rows) for item in damaged)


@in_asyncio
async def test_what_is_no_record_is_said_and_left_where_it_is(backing: RedisBacking) -> None:
    """No name, a name that is no text, another shard's slot; the good ones are loaded, of any kind and value."""
    good = [make_record("a", b"\xc1"), make_record("b", b"", kind=60_000)]
    fields = {b"\x00\x01\x00\x01": b"no name", b"\x00\x01\x00\x01\xff": b"no text", b"\x07\xd0\x00\x01a": b"slot", b"x": b"short"}
    async with owning(backing.store()) as store:
        await store.commit(recording(*good))
        await store._wire.call("HSET", backing.keys.records, *(piece for pair in fields.items() for piece in pair))
        loaded = [item async for chunk in store.load_records() for item in chunk]
        assert await store._wire.call("HLEN", backing.keys.records) == len(fields) + len(good)

    damaged = [item for item in loaded if isinstance(item, Damaged)]
    assert sorted(item.name for item in loaded if isinstance(item, Record)) == ["a", "b"]
    assert sorted(item.fault for item in damaged) == [
        "its field is not that of a record",
        "its field is not that of a record",
        "its name is not UTF-8",
        "its slot is not one of this shard's",
    ]
    assert {item.where for item in damaged} == {f"{backing.keys.records} field {field.hex()}" for field in fields}


@in_asyncio
async def test_a_load_that_was_not_given_all_rows_is_refused(backing: RedisBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan that goes on at another node, after a failover, may pass over some: no shard starts without them."""
    rows = [make_row(seq, payload=bytes(100)) for seq in range(600)]
    async with owning(backing.store()) as store:
        await store.commit(inserting(*rows))
    real = Scan.next

    async def next_but_for_one(scan: Scan) -> list[bytes]:
        found = await real(scan)
        return found[2:] if scan.done else found

    monkeypatch.setattr(Scan, "next", next_but_for_one)
    async with owning(backing.store()) as store:
        with pytest.raises(StoreRefused, match=r"\(599, 0, 0, 0\) .* of \(600, 0, 0, 0\)"):
            await load_all(store)
        monkeypatch.undo()
        await store.commit(recording(*(make_record(f"record {number}") for number in range(600))))
        monkeypatch.setattr(Scan, "next", next_but_for_one)
        with pytest.raises(StoreRefused, match=r"\(599,\) records .* of \(600,\)"):
            await load_records(store)


@in_asyncio
async def test_a_damaged_row_that_is_read_back_ends_the_process(backing: RedisBacking) -> None:
    """What the truth about it is cannot be said."""
    row = make_row(1)
    async with owning(backing.store()) as store:
        await store.commit(inserting(row))
        await store._wire.call("HSET", backing.keys.rows, field_of(row.slot, row.seq), b"\xc1")
        with pytest.raises(StoreFailed):
            await store.read([key_of(row)])


def test_a_script_takes_any_bytes() -> None:
    """Redis's own decoder of MessagePack knows no type for bytes: they go as text."""
    assert pairs_packed([b"\xff", b""]) == b"\xdd\x00\x00\x00\x02" + b"\xdb\x00\x00\x00\x01\xff" + b"\xdb\x00\x00\x00\x00"


# --- owners ------------------------------------------------------------------------------------------------------


@in_asyncio
async def test_whoever_was_taken_over_does_not_take_back(backing: RedisBacking) -> None:
    """Not by reopen either: its memory is older than the rows."""
    async with owning(backing.store()) as first, owning(backing.store()) as second:
        with pytest.raises(StoreFenced):
            await first.reopen()
        await second.commit(inserting(make_row(1)))


@in_asyncio
async def test_nothing_of_an_old_owner_is_written_after_a_new_one_has_loaded(backing: RedisBacking) -> None:
    """However often owners change while each writes as fast as it can."""
    seq = 0

    async def write(store: RedisStore) -> None:
        nonlocal seq
        while True:
            seq += 1
            await store.commit(inserting(make_row(seq)))

    owner = backing.store()
    await owner.open()
    for _ in range(25):
        writing = asyncio.create_task(write(owner))
        written = seq
        while seq < written + 3 and not writing.done():
            await asyncio.sleep(0)
        heir = backing.store()
        await heir.open()
        seen = await load_all(heir)
        with pytest.raises(StoreFenced):
            await writing
        assert await load_all(heir) == seen
        await owner.close()
        owner = heir
    await owner.close()


@in_asyncio
async def test_an_older_lease_that_came_back_lets_nobody_write(backing: RedisBacking) -> None:
    """As after a failover to a replica that was behind: tokens are compared for being equal, not for being newer."""
    async with owning(backing.store()) as first:
        older = await first._wire.call("HGETALL", backing.keys.lease)
        async with owning(backing.store()) as second:
            await second.commit(inserting(make_row(1)))
            await second._wire.call("DEL", backing.keys.lease)
            await second._wire.call("HSET", backing.keys.lease, *older)
            for act in (second.commit(inserting(make_row(2))), second.reopen()):
                with pytest.raises(StoreFenced):
                    await act
    async with owning(backing.store()) as third:
        assert third._epoch >= 2


@in_asyncio
async def test_a_lost_tail_of_commits_is_seen(backing: RedisBacking) -> None:
    """The lease is still ours, but the last commit that it knows of is not the last one that was acknowledged."""
    for act in ("commit", "reopen"):
        async with owning(backing.store()) as store:
            await store.commit(inserting(make_row(store._epoch)))
            await store._wire.call("HINCRBY", backing.keys.lease, "batch", -1)
            with pytest.raises(StoreFailed, match="lost acknowledged commits"):
                await (store.commit(Batch([], [], [])) if act == "commit" else store.reopen())


@in_asyncio
async def test_an_emptied_server_ends_the_owner(backing: RedisBacking) -> None:
    """What memory holds is gone; a new owner is told that nothing is prepared."""
    async with owning(backing.store()) as store:
        await store._wire.call("DEL", *backing.keys.all, *(common_key(backing.url, name) for name in ("manifest", "moves")))
        with pytest.raises(StoreFenced):
            await store.commit(inserting(make_row(1)))
    with pytest.raises(StoreError, match="nothing is prepared") as raised:
        async with owning(backing.store()):
            pass
    assert not isinstance(raised.value, StoreRefused)


@in_asyncio
async def test_another_number_of_shards_than_prepared_is_refused(backing: RedisBacking) -> None:
    """The message says for how many it is."""
    store = backing.store(0, 2)
    with pytest.raises(StoreError, match="among 1 shards, not 2"):
        await store.open()
    await store.close()


@in_asyncio
async def test_the_durability_is_what_the_server_is_set_to(backing: RedisBacking) -> None:
    """Known once it is open, with a line that says why."""
    store = backing.store()
    found = [store.durability]
    async with owning(store):
        found.append(store.durability)
        assert "appendfsync=always" in store.terms

    assert found == [Durability.WEAK, Durability.MACHINE]
