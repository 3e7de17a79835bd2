"""Making a table ready: its making, another number of shards, and every place where that may be interrupted."""

from __future__ import annotations

import asyncio

import pytest

from proteus_shards.core.placement import slots_of
from proteus_shards.errors import SettingError, StoreError, StoreFenced
from proteus_shards.store.dynamodb_prepare import STEPS, prepare, prepared_shards
from proteus_shards.store.dynamodb_url import DynamodbUrl
from proteus_shards.store.urls import read_url
from tests.servers.strict_dynamodb import StrictServer
from tests.store.dynamodb_backing import DynamodbBacking
from tests.store.rows import in_asyncio, inserting, load_all, make_row, opened

pytest_plugins = ["tests.servers.dynamodb_fixtures"]


class Interrupted(BaseException):
    """The process was killed here."""


@pytest.fixture
def double(strict_dynamodb: StrictServer) -> StrictServer:
    """Return the double, with no faults."""
    strict_dynamodb.release()
    strict_dynamodb.ask(reset=True)
    return strict_dynamodb


@pytest.fixture
def backing(double: StrictServer) -> DynamodbBacking:
    """Return a place where no table is yet."""
    return DynamodbBacking(double, prepared=False)


async def rows_by_shards(backing: DynamodbBacking, shards: int) -> list[int]:
    """Return the seqs of all rows, as so many shards load them."""
    seqs = []
    for shard in range(shards):
        async with opened(backing.store(shard, shards)) as store:
            seqs += [row.seq or 0 for row in await load_all(store)]
    return sorted(seqs)


@in_asyncio
async def test_a_table_is_made_once_and_found_ready_after_that(double: StrictServer, backing: DynamodbBacking) -> None:
    """The second time asks three times, for the hosts of a cluster too, and writes nothing."""
    assert await prepared_shards(backing.url) is None
    assert await prepare(backing.url, 2) is None
    assert await prepared_shards(backing.url) == 2
    double.ask(reset=True)
    assert await prepare(backing.url, 2) is None

    assert double.ask()["calls"] == {"DescribeTable": 1, "GetItem": 1, "Query": 1}


@in_asyncio
async def test_many_that_start_at_once_make_one_table(double: StrictServer, backing: DynamodbBacking) -> None:
    """None of them fails, and none of them fences the others' shards once it is ready."""
    assert await asyncio.gather(*(prepare(backing.url, 3) for _ in range(5))) == [None] * 5
    layout = double.ask(items=backing.table)["items"]["layout"]["layout"]

    assert (layout["shards"], layout["settled"], layout["turn"]) == ({"N": "3"}, {"BOOL": True}, {"N": "1"})


@in_asyncio
async def test_another_number_of_shards_moves_no_row_and_ends_the_old_owners(backing: DynamodbBacking) -> None:
    """Both those that keep their number and those that lose it."""
    rows = [make_row(seq, queue=f"q{seq}") for seq in range(60)]
    await backing.prepare(2)
    old = [backing.store(shard, 2) for shard in range(2)]
    for shard, store in enumerate(old):
        await store.open()
        await store.commit(inserting(*(row for row in rows if row.slot in slots_of(shard, 2))))

    assert await prepare(backing.url, 3) == "from 2 to 3 shards; no row had to move"
    for store in old:
        with pytest.raises(StoreFenced):
            await store.commit(inserting(make_row(100)))
        with pytest.raises(StoreFenced):
            await store.reopen()
        await store.close()
    assert await rows_by_shards(backing, 3) == list(range(60))
    late = backing.store(0, 2)
    with pytest.raises(StoreError, match="is not ready for 2 shards"):
        await late.open()
    await late.close()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("then", [2, 4])
@in_asyncio
async def test_wherever_it_is_interrupted_the_next_start_goes_on(backing: DynamodbBacking, step: str, then: int) -> None:
    """With the old number or with a third: every row is there, and old owners are out."""

    def interrupt(reached: str) -> None:
        if reached == step:
            raise Interrupted

    rows = [make_row(seq, queue=f"q{seq}") for seq in range(20)]
    if step == "created":
        with pytest.raises(Interrupted):
            await prepare(backing.url, 2, interrupt)
        assert await prepare(backing.url, then) is None
        return
    await backing.prepare(2)
    old = backing.store(0, 2)
    await old.open()
    await old.commit(inserting(*(row for row in rows if row.slot in slots_of(0, 2))))
    with pytest.raises(Interrupted):
        await prepare(backing.url, 3, interrupt)
    await prepare(backing.url, then)

    assert await prepared_shards(backing.url) == then
    assert await rows_by_shards(backing, then) == [row.seq for row in rows if row.slot in slots_of(0, 2)]
    with pytest.raises(StoreFenced):
        await old.commit(inserting(make_row(100)))
    await old.close()


@in_asyncio
async def test_two_numbers_at_once_end_in_one_of_them(backing: DynamodbBacking) -> None:
    """Whatever each of the two is told."""
    await backing.prepare(1)
    told = await asyncio.gather(prepare(backing.url, 2), prepare(backing.url, 3), return_exceptions=True)
    shards = await prepared_shards(backing.url)

    assert shards in {2, 3}
    assert all(each is None or isinstance(each, str | StoreError) for each in told)
    async with opened(backing.store(0, shards)) as store:
        assert await load_all(store) == []


@in_asyncio
async def test_create_no_makes_nothing(double: StrictServer) -> None:
    """It says what is missing."""
    backing = DynamodbBacking(double, prepared=False, create="no")
    with pytest.raises(StoreError, match=f"there is no table {backing.table} in us-east-1.*create=no"):
        await prepare(backing.url, 1)

    assert "CreateTable" not in double.ask()["calls"]


@in_asyncio
async def test_a_table_of_another_kind_is_refused_and_left_alone(double: StrictServer, backing: DynamodbBacking) -> None:
    """One with other keys, and one that a later version wrote."""
    await prepare(backing.url, 1)
    layout = double.ask(items=backing.table)["items"]["layout"]["layout"]
    double.ask(changes=[([backing.table, "layout", "layout"], {**layout, "version": {"N": "3"}})])
    with pytest.raises(StoreError, match=r"written by a newer version \(layout 3, this one knows 2\)"):
        await prepare(backing.url, 1)
    other = DynamodbBacking(double, prepared=False)
    double.ask(table=other.table)
    with pytest.raises(StoreError, match="its keys are not the texts pk"):
        await prepare(other.url, 1)


@in_asyncio
async def test_billing_is_what_the_url_says(double: StrictServer) -> None:
    """On demand, or so many units."""
    backing = DynamodbBacking(double, prepared=False, billing="provisioned", read_units="7", write_units="8")
    await prepare(backing.url, 1)

    assert double.ask(describe=backing.table)["table"]["ProvisionedThroughput"] == {"ReadCapacityUnits": 7, "WriteCapacityUnits": 8}


# --- the URL ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("dynamodb://jobs", DynamodbUrl("jobs")),
        ("dynamodb://my.jobs_1-x?region=eu-central-1", DynamodbUrl("my.jobs_1-x", region="eu-central-1")),
        ("dynamodb://jobs?endpoint=http://127.0.0.1:8000/", DynamodbUrl("jobs", endpoint="http://127.0.0.1:8000")),
        ("dynamodb://jobs?endpoint=https%3A%2F%2Fhost&profile=a%20b", DynamodbUrl("jobs", endpoint="https://host", profile="a b")),
        ("dynamodb://jobs?create=no", DynamodbUrl("jobs", create=False)),
        ("dynamodb://jobs?billing=on_demand", DynamodbUrl("jobs")),
        ("dynamodb://jobs?billing=provisioned&read_units=5&write_units=6", DynamodbUrl("jobs", read_units=5, write_units=6)),
        (
            "dynamodb://jobs?timeout=3&connect_timeout=0.5&create_timeout=9",
            DynamodbUrl("jobs", timeout_seconds=3, connect_seconds=0.5, create_seconds=9),
        ),
    ],
)
def test_a_url_means_one_thing(url: str, expected: DynamodbUrl) -> None:
    """What is absent is left to the AWS environment."""
    assert read_url(url) == expected


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("dynamodb:jobs", "write dynamodb://TABLE"),
        ("dynamodb://", "3 to 255 letters"),
        ("dynamodb://ab", "3 to 255 letters"),
        ("dynamodb://AKIA:secret@jobs", "3 to 255 letters"),
        ("dynamodb://jobs/x", "3 to 255 letters"),
        ("dynamodb://jobs?region=EU", "option region must be"),
        ("dynamodb://jobs?region=", "must not be empty"),
        ("dynamodb://jobs?endpoint=host:8000", "option endpoint must be"),
        ("dynamodb://jobs?endpoint=http://AKIA:secret@host", "option endpoint must be"),
        ("dynamodb://jobs?endpoint=http://host/path", "option endpoint must be"),
        ("dynamodb://jobs?endpoint=http://host:secret", "option endpoint must be"),
        ("dynamodb://jobs?endpoint=ftp://host", "option endpoint must be"),
        ("dynamodb://jobs?create=maybe", "create must be yes or no"),
        ("dynamodb://jobs?billing=provisioned", "needs the options read_units and write_units"),
        ("dynamodb://jobs?read_units=5", "go with billing=provisioned"),
        ("dynamodb://jobs?timeout=0", "timeout must be a number of seconds"),
        ("dynamodb://jobs?timeout=301", "timeout must be a number of seconds"),
        ("dynamodb://jobs?secret_access_key=secret", "dynamodb has no option 'secret_access_key'"),
    ],
)
def test_what_is_not_understood_is_refused(url: str, told: str) -> None:
    """The message names the option, and never repeats a value."""
    with pytest.raises(SettingError, match=r"^store\b") as raised:
        read_url(url)

    assert told in str(raised.value)
    assert "AKIA" not in str(raised.value)
    assert "=secret" not in str(raised.value)
