"""A place in Redis that version 1 wrote, and that this one goes on with.

`redis_version_1.json` is all that a server of version 1 had under the prefix `version-1`, with two shards, bytes in hexadecimal: eight jobs, of which one was
completed, two run, one is dead, and three have a state, an old or a new one.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from proteus_shards.core.model import Batch, Row, Status
from proteus_shards.core.placement import slots_of
from proteus_shards.errors import StoreError, StoreRefused
from proteus_shards.store import redis_kind
from proteus_shards.store.redis_place import LAYOUT, Manifest, ShardKeys, common_key, shard_keys
from proteus_shards.store.redis_prepare import Preparation, prepare, prepared_shards
from proteus_shards.store.redis_url import RedisUrl
from proteus_shards.store.redis_wire import Wire
from tests.servers.redis import RedisPlace
from tests.store.redis_backing import RedisBacking, apart, owning
from tests.store.rows import (
    as_dict,
    in_asyncio,
    in_order,
    load_all,
    load_records,
    make_mark,
    make_record,
    make_row,
    marked,
)

STORED: dict[str, str | dict[str, str]] = json.loads(Path(__file__).with_name("redis_version_1.json").read_text())
SHARDS = 2
STEPS_TO_THREE = 17  # raised, and those of a move from 2 to 3 shards


class Killed(BaseException):
    """Stands for the end of the process."""


def rows_of_version_1() -> list[Row]:
    """Return the jobs that are there."""
    rows = [make_row(seq, queue=f"q{seq}", state=b"old" if seq % 2 else None) for seq in range(7)]
    rows[1] = marked(rows[1], make_mark(rows[1], state_set=True, state=b"new"))
    rows[2] = marked(rows[2], make_mark(rows[2], status=Status.READY, run_id=None))
    rows[3] = marked(rows[3], make_mark(rows[3], state_set=True, state=None))
    rows[4] = marked(rows[4], make_mark(rows[4], status=Status.DEAD, run_id=None, reason="timeout"))
    return rows


async def ask(url: RedisUrl, *command: str | bytes) -> object:
    """Send one command."""
    wire = Wire(url)
    try:
        await wire.connect()
        return await wire.call(*command)
    finally:
        await wire.close()


@pytest.fixture
def backing(redis_server: RedisPlace) -> RedisBacking:
    """Return a place as version 1 left it."""
    made = RedisBacking(redis_server)

    async def restore() -> None:
        names = (common_key(made.url, name) for name in ("manifest", "moves", "claims"))
        await ask(made.url, "DEL", *names, *made.keys.all)
        for name, value in STORED.items():
            key = name.replace("version-1", made.url.prefix)
            if isinstance(value, str):
                await ask(made.url, "SET", key, bytes.fromhex(value))
            else:
                await ask(made.url, "HSET", key, *(bytes.fromhex(piece) for pair in value.items() for piece in pair))

    apart(restore)
    return made


async def all_rows(backing: RedisBacking, shards: int) -> list[Row]:
    """Return what all shards load."""
    found: list[Row] = []
    for shard in range(shards):
        async with owning(backing.store(shard, shards)) as store:
            assert await load_records(store) == {}
            found += [row for row in await load_all(store) if isinstance(row, Row)]
    return in_order(found)


async def manifest_of(backing: RedisBacking) -> Manifest:
    """Return what is in force, which its copy says too."""
    stored = await ask(backing.url, "GET", common_key(backing.url, "manifest"))
    assert isinstance(stored, bytes)
    assert await ask(backing.url, "HGET", common_key(backing.url, "moves"), "manifest") == stored
    return msgspec.json.decode(stored, type=Manifest)


@in_asyncio
async def test_a_place_of_version_1_is_taken_over(backing: RedisBacking) -> None:
    """Every job is there, none moved, and an old row takes extras as a new one does, and lets go of them."""
    assert await prepare(backing.url, SHARDS) is None
    assert await manifest_of(backing) == Manifest(LAYOUT, 2, 1, SHARDS)
    assert await all_rows(backing, SHARDS) == rows_of_version_1()
    row = rows_of_version_1()[5]
    mark, record = make_mark(row, extras_set=True, extras=b"extras"), make_record(row.queue)
    shard = next(shard for shard in range(SHARDS) if row.slot in slots_of(shard, SHARDS))
    async with owning(backing.store(shard, SHARDS)) as store:
        await store.commit(Batch([], [], [mark], [record]))
    async with owning(backing.store(shard, SHARDS)) as store:
        assert await load_records(store) == as_dict(record)
        assert marked(row, mark) in await load_all(store)
        await store.commit(Batch([], [], [make_mark(row, extras_set=True, extras=None)]))
        assert marked(row, make_mark(row)) in await load_all(store)


@in_asyncio
async def test_a_place_of_version_1_may_be_moved_at_once(backing: RedisBacking) -> None:
    """To another number of shards, whose rows stay as version 1 wrote them."""
    assert await prepare(backing.url, 3) == "moved 7 stored jobs from 2 to 3 shards"
    assert await all_rows(backing, 3) == rows_of_version_1()


@pytest.mark.parametrize("crash", range(1, STEPS_TO_THREE + 1))
@in_asyncio
async def test_killed_after_any_step_it_is_taken_up_again(backing: RedisBacking, crash: int) -> None:
    """With the old number or the new one, and no job is lost."""
    steps: list[str] = []

    def step(name: str) -> None:
        steps.append(name)
        if len(steps) == crash:
            raise Killed

    with pytest.raises(Killed):
        await prepare(backing.url, 3, step)
    for shards in (SHARDS, 3):
        await prepare(backing.url, shards)
        assert (await manifest_of(backing)).layout == LAYOUT
        assert await all_rows(backing, shards) == rows_of_version_1()


@in_asyncio
async def test_the_layout_is_raised_before_anything_moves(backing: RedisBacking) -> None:
    """So that nothing of layout 2 is ever left to a server that knows layout 1 only."""
    steps: list[str] = []
    await prepare(backing.url, 3, steps.append)

    assert (steps[0], len(steps)) == ("raised", STEPS_TO_THREE)


@in_asyncio
async def test_an_owner_of_today_shuts_the_door_behind_version_1(backing: RedisBacking) -> None:
    """Its processes look for the field `shards` in the lease before they take it: it goes with the first owner of this version."""
    await prepare(backing.url, SHARDS)
    lease = shard_keys(backing.url, 1, 0).lease
    before = await ask(backing.url, "HMGET", lease, "shards", "layout", "epoch")
    async with owning(backing.store(0, SHARDS)):
        after = await ask(backing.url, "HMGET", lease, "shards", "layout", "epoch")

    assert before == [b"2", None, b"1"]
    assert after == [None, b"2", b"2"]


@in_asyncio
async def test_looking_at_a_place_of_version_1_leaves_it_so(backing: RedisBacking) -> None:
    """Neither the doctor nor who asks for the number of shards changes it; nor does one who opens it for another number."""
    told = [finding.what async for finding in redis_kind.examine(backing.url)]
    store = backing.store(0, 3)
    with pytest.raises(StoreError, match="are split among 2 shards, not 3"):
        await store.open()
    await store.close()

    assert "an older version wrote it" in told
    assert await prepared_shards(backing.url) == SHARDS
    assert await manifest_of(backing) == Manifest(1, 1, 1, SHARDS)


@in_asyncio
async def test_whoever_opens_a_place_of_version_1_takes_it_over_too(backing: RedisBacking) -> None:
    """A copy of the jobs is made without a start of a server."""
    assert await all_rows(backing, SHARDS) == rows_of_version_1()
    assert await manifest_of(backing) == Manifest(LAYOUT, 2, 1, SHARDS)


@in_asyncio
async def test_of_two_that_raise_the_layout_at_once_one_is_told(backing: RedisBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has read a manifest that is no longer there."""
    real = Preparation._raise

    async def overtaken(preparation: Preparation, old: Manifest, stored: bytes) -> tuple[Manifest, bytes]:
        monkeypatch.undo()
        apart(lambda: prepare(backing.url, 3))
        return await real(preparation, old, stored)

    monkeypatch.setattr(Preparation, "_raise", overtaken)
    with pytest.raises(StoreRefused, match="another process"):
        await prepare(backing.url, SHARDS)

    assert await all_rows(backing, 3) == rows_of_version_1()


def test_there_are_no_keys_but_those_of_version_1() -> None:
    """What the other tests begin with has neither extras nor records."""
    names = {name.rpartition(":")[2] for name in STORED}

    assert names == {"manifest", "moves", "claims", *ShardKeys.__struct_fields__} - {"extras", "records"}
