"""A table that version 1 wrote, and that this one goes on with.

`dynamodb_version_1.json` has all items of a table of a server of version 1, with two shards: eight jobs, of which one was completed, two run, one is dead, and
three have a state, an old or a new one.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from proteus_shards.core.model import Batch, Row, Status
from proteus_shards.core.placement import slots_of
from proteus_shards.errors import StoreError, StoreFenced
from proteus_shards.store.dynamodb import DynamodbStore
from proteus_shards.store.dynamodb_doctor import examine
from proteus_shards.store.dynamodb_owner import LAYOUT_VERSION, Lease
from proteus_shards.store.dynamodb_prepare import prepare, prepared_shards
from tests.servers.strict_dynamodb import StrictServer
from tests.store.dynamodb_backing import DynamodbBacking
from tests.store.rows import (
    as_dict,
    in_asyncio,
    in_order,
    inserting,
    load_all,
    load_records,
    make_mark,
    make_record,
    make_row,
    marked,
    opened,
)

pytest_plugins = ["tests.servers.dynamodb_fixtures"]

ITEMS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("dynamodb_version_1.json").read_text())
SHARDS = 2
STEPS = ("active", "begun", "fenced", "settled")


class Interrupted(BaseException):
    """The process was killed here."""


def rows_of_version_1() -> list[Row]:
    """Return the jobs that are there."""
    rows = [make_row(seq, queue=f"q{seq}", state=b"old" if seq % 2 else None) for seq in range(7)]
    rows[1] = marked(rows[1], make_mark(rows[1], state_set=True, state=b"new"))
    rows[2] = marked(rows[2], make_mark(rows[2], status=Status.READY, run_id=None))
    rows[3] = marked(rows[3], make_mark(rows[3], state_set=True, state=None))
    rows[4] = marked(rows[4], make_mark(rows[4], status=Status.DEAD, run_id=None, reason="timeout"))
    return rows


@pytest.fixture
def double(strict_dynamodb: StrictServer) -> StrictServer:
    """Return the double, with no faults."""
    strict_dynamodb.release()
    strict_dynamodb.ask(reset=True)
    return strict_dynamodb


@pytest.fixture
def backing(double: StrictServer) -> DynamodbBacking:
    """Return a table as version 1 left it."""
    made = DynamodbBacking(double)
    changes: list[Any] = [([made.table, item["pk"]["S"], item["sk"]["S"]], item) for item in ITEMS]
    double.ask(changes=[([made.table, "lease#0000", "lease"], None), *changes])
    return made


async def all_rows(backing: DynamodbBacking, shards: int) -> list[Row]:
    """Return what all shards load."""
    found: list[Row] = []
    for shard in range(shards):
        async with opened(backing.store(shard, shards)) as store:
            assert await load_records(store) == {}
            found += [row for row in await load_all(store) if isinstance(row, Row)]
    return in_order(found)


@in_asyncio
async def test_a_table_of_version_1_is_taken_over(double: StrictServer, backing: DynamodbBacking) -> None:
    """Every job is there, and an old row takes extras as a new one does, and lets go of them."""
    assert await prepared_shards(backing.url) == SHARDS
    assert await prepare(backing.url, SHARDS) is None
    assert double.ask(items=backing.table)["items"]["layout"]["layout"]["version"] == {"N": str(LAYOUT_VERSION)}
    assert await all_rows(backing, SHARDS) == rows_of_version_1()
    row = rows_of_version_1()[5]
    mark, record = make_mark(row, extras_set=True, extras=b"extras"), make_record(row.queue)
    shard = next(shard for shard in range(SHARDS) if row.slot in slots_of(shard, SHARDS))
    async with opened(backing.store(shard, SHARDS)) as store:
        await store.commit(Batch([], [], [mark], [record]))
    async with opened(backing.store(shard, SHARDS)) as store:
        assert await load_records(store) == as_dict(record)
        assert marked(row, mark) in await load_all(store)
        await store.commit(Batch([], [], [make_mark(row, extras_set=True, extras=None)]))
        assert marked(row, make_mark(row)) in await load_all(store)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("then", [SHARDS, 3])
@in_asyncio
async def test_wherever_it_is_interrupted_the_next_start_goes_on(backing: DynamodbBacking, step: str, then: int) -> None:
    """With the number of version 1 or with another: every row is there."""

    def interrupt(reached: str) -> None:
        if reached == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        await prepare(backing.url, SHARDS, interrupt)
    await prepare(backing.url, then)

    assert await prepared_shards(backing.url) == then
    assert await all_rows(backing, then) == rows_of_version_1()


@in_asyncio
async def test_a_change_of_shards_that_version_1_left_half_done_is_completed(double: StrictServer, backing: DynamodbBacking) -> None:
    """In the layout of today."""
    layout = next(item for item in ITEMS if item["pk"] == {"S": "layout"})
    unsettled = {**layout, "settled": {"BOOL": False}, "turn": {"N": "2"}, "shards": {"N": "3"}, "leases": {"N": "3"}}
    double.ask(changes=[([backing.table, "layout", "layout"], unsettled)])
    await prepare(backing.url, 3)

    assert await all_rows(backing, 3) == rows_of_version_1()


@in_asyncio
async def test_an_owner_of_version_1_writes_nothing_more(double: StrictServer, backing: DynamodbBacking) -> None:
    """The epoch of each lease is above the one that it has, before anybody opens; and the layout that it would take another by is gone."""
    lease = double.ask(items=backing.table)["items"]["lease#0000"]["lease"]
    old = DynamodbStore(backing.url, 0, SHARDS)
    await old._client.connect()
    old._lease = Lease(int(lease["epoch"]["N"]), lease["owner"]["S"])  # as if it were the one that wrote all this
    await old.commit(Batch([], [], []))
    await prepare(backing.url, SHARDS)
    for act in (old.commit(inserting(make_row(100))), old.reopen()):
        with pytest.raises(StoreFenced):
            await act
    await old.close()


@in_asyncio
async def test_looking_at_a_table_of_version_1_leaves_it_so(double: StrictServer, backing: DynamodbBacking) -> None:
    """Neither the doctor nor who asks for the number of shards changes it; nor does one who opens it for another number."""
    before = double.ask(items=backing.table)["items"]
    told = [finding.what async for finding in examine(backing.url)]
    store = backing.store(0, 3)
    with pytest.raises(StoreError, match="is not ready for 3 shards"):
        await store.open()
    await store.close()

    assert await prepared_shards(backing.url) == SHARDS
    assert f"table {backing.table} is ready for 2 shards of an older version" in told
    assert double.ask(items=backing.table)["items"] == before


@in_asyncio
async def test_whoever_opens_a_table_of_version_1_takes_it_over_too(double: StrictServer, backing: DynamodbBacking) -> None:
    """All shards at once, or one after the other: a copy of the jobs is made without a start of a server."""
    stores = [backing.store(shard, SHARDS) for shard in range(SHARDS)]
    await asyncio.gather(*(store.open() for store in stores))
    for store in stores:
        await store.commit(Batch([], [], []))
        await store.close()

    assert await all_rows(backing, SHARDS) == rows_of_version_1()
    assert double.ask(items=backing.table)["items"]["layout"]["layout"]["version"] == {"N": str(LAYOUT_VERSION)}


@in_asyncio
async def test_an_item_whose_name_is_not_that_of_its_key_is_damaged(double: StrictServer) -> None:
    """One that was put there by hand, one without a value, one with another sort key; the good one is loaded."""
    backing = DynamodbBacking(double)
    record = make_record("a", b"")
    async with opened(backing.store()) as store:
        await store.commit(Batch([], [], [], [record, make_record("b"), make_record("c")]))
        items = double.ask(items=backing.table)["items"]
        places = {item["name"]["S"]: [backing.table, pk, sk] for pk in items if pk.startswith("records#") for sk, item in items[pk].items()}
        wrong = {name: items[place[1]][place[2]] for name, place in places.items()}
        sideways = [backing.table, "records#00", "0001#x"]
        double.ask(
            changes=[
                (places["b"], {**wrong["b"], "name": {"S": "other"}}),
                (places["c"], {key: value for key, value in wrong["c"].items() if key != "value"}),
                (sideways, {**wrong["a"], "pk": {"S": sideways[1]}, "sk": {"S": sideways[2]}}),
            ]
        )
        loaded = [item async for chunk in store.load_records() for item in chunk]

    assert {getattr(item, "fault", item) for item in loaded} == {
        record,
        "its keys are not those of its name",
        "Object missing required field `value`",
        "its sort key is not that of a record",
    }
