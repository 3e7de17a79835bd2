"""What becomes of a call that is refused, lost, late or doubtful: the DynamoDB store against the strict double."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proteus_shards.core.model import Row
from proteus_shards.errors import StoreError, StoreFailed, StoreFenced, StorePermanent, StoreRefused, StoreUnknown
from proteus_shards.store.contract import Damaged, Durability
from proteus_shards.store.dynamodb import DynamodbStore
from tests.conftest import eventually
from tests.servers.strict_dynamodb import StrictServer
from tests.store.dynamodb_backing import DynamodbBacking
from tests.store.rows import commit_all, deleting, in_asyncio, in_order, inserting, key_of, load_all, make_mark, make_row, marking, opened

pytest_plugins = ["tests.servers.dynamodb_fixtures"]

FIRST, SECOND = make_row(1), make_row(2)


@pytest.fixture
def double(strict_dynamodb: StrictServer) -> Iterator[StrictServer]:
    """Return the double, with no faults before and after."""
    strict_dynamodb.release()
    strict_dynamodb.ask(reset=True)
    yield strict_dynamodb
    strict_dynamodb.release()


@pytest.fixture
def backing(double: StrictServer) -> DynamodbBacking:
    """Return a table; its calls have little time."""
    return DynamodbBacking(double, timeout="2")


def items_of(backing: DynamodbBacking) -> list[str]:
    """Return the ids of the rows that are there."""
    assert isinstance(backing.server, StrictServer)
    partitions = backing.server.ask(items=backing.table)["items"]
    return sorted(item["id"]["S"] for pk, partition in partitions.items() if pk.startswith("rows#") for item in partition.values())


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lose", "fail_after", "drop", "fail"])
@in_asyncio
async def test_a_commit_whose_answer_is_lost_is_asked_for_again_and_done_once(
    double: StrictServer, backing: DynamodbBacking, kind: str
) -> None:
    """Its token tells the service that it is the same one."""
    async with opened(backing.store()) as store:
        await store.commit(inserting(FIRST))
        double.ask(reset=True)
        double.fault("TransactWriteItems", kind)
        await store.commit(deleting(FIRST))
        double.fault("TransactWriteItems", kind)
        await store.commit(inserting(SECOND))

        assert double.ask()["calls"]["TransactWriteItems"] >= 4
        assert await load_all(store) == [SECOND]


@in_asyncio
async def test_a_condition_that_meets_an_earlier_attempt_is_a_doubt_not_a_disagreement(
    double: StrictServer, backing: DynamodbBacking
) -> None:
    """Where the token was forgotten meanwhile, the rows are to be read back."""
    async with opened(backing.store()) as store:
        double.fault("TransactWriteItems", "lose", forget=True)
        with pytest.raises(StoreUnknown):
            await store.commit(inserting(FIRST))
        await store.reopen()

        assert await store.read([key_of(FIRST)]) == {key_of(FIRST): FIRST}


@in_asyncio
async def test_a_condition_that_does_not_hold_at_once_means_that_memory_and_store_disagree(backing: DynamodbBacking) -> None:
    """For a row to insert, to delete or to mark; nothing of the batch is written."""
    async with opened(backing.store()) as store:
        await store.commit(inserting(FIRST))
        batches = [inserting(SECOND, FIRST), deleting(SECOND), marking(make_mark(SECOND))]
        for batch in batches:
            with pytest.raises(StoreFailed, match="memory and store do not agree"):
                await store.commit(batch)

    assert items_of(backing) == ["job-1"]


# --- throttling and conflicts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "code"), [("throttle", ""), ("cancel", "TransactionConflict"), ("cancel", "ThrottlingError")])
@in_asyncio
async def test_what_is_asked_to_wait_is_tried_again_within_its_time(
    double: StrictServer, backing: DynamodbBacking, kind: str, code: str
) -> None:
    """Throttled calls and transactions cancelled by a conflict."""
    async with opened(backing.store()) as store:
        double.fault("TransactWriteItems", kind, times=3, code=code)
        await store.commit(inserting(FIRST))

    assert items_of(backing) == ["job-1"]


@pytest.mark.parametrize(("kind", "code"), [("throttle", ""), ("cancel", "TransactionConflict")])
@in_asyncio
async def test_what_is_refused_until_its_time_is_over_is_surely_not_done(
    double: StrictServer, backing: DynamodbBacking, kind: str, code: str
) -> None:
    """`StoreRefused`; the store goes on once it may."""
    async with opened(backing.store()) as store:
        double.fault("*", kind, times=10_000, code=code)
        with pytest.raises(StoreRefused):
            await store.commit(inserting(FIRST))
        with pytest.raises(StoreRefused):
            await store.reopen() if kind == "throttle" else await store.commit(inserting(FIRST))
        double.release()
        assert items_of(backing) == []
        await store.reopen()
        await store.commit(inserting(SECOND))

    assert items_of(backing) == ["job-2"]


@in_asyncio
async def test_reads_are_tried_again_too(double: StrictServer, backing: DynamodbBacking) -> None:
    """A load whose queries are throttled, lost or failed, and a read whose keys are left unprocessed."""
    rows = [make_row(seq) for seq in range(150)]
    async with opened(backing.store()) as store:
        await commit_all(store, inserting(*rows))
        for kind in ("throttle", "drop", "fail"):
            double.fault("Query", kind, times=7)
        assert await load_all(store) == rows
        for keys in (0, 3, 60, 0):
            double.fault("BatchGetItem", "unprocessed", keys=keys)
        assert await store.read([key_of(row) for row in rows]) == {key_of(row): row for row in rows}
        double.fault("BatchGetItem", "unprocessed", times=10_000, keys=0)
        with pytest.raises(StoreRefused, match="slower"):
            await store.read([key_of(FIRST)])


@in_asyncio
async def test_a_load_follows_pages_in_every_partition(double: StrictServer) -> None:
    """An answer holds a megabyte at most."""
    backing = DynamodbBacking(double)
    rows = [make_row(seq, payload=b"x" * 300_000) for seq in [*range(0, 32 * 5, 32), 1, 2, *range(3, 32 * 5, 32)]]
    async with opened(backing.store()) as store:
        await commit_all(store, inserting(*rows))

        assert await load_all(store) == in_order(rows)


# --- doubt -----------------------------------------------------------------------------------------------------------


@in_asyncio
async def test_a_transaction_that_stays_under_way_is_a_doubt_that_reopen_decides(double: StrictServer, backing: DynamodbBacking) -> None:
    """It holds the lease; the next epoch is taken only when it has ended, and then it is there."""
    async with opened(backing.store()) as store:
        double.fault("TransactWriteItems", "hold")
        with pytest.raises(StoreUnknown):
            await store.commit(inserting(FIRST))
        with pytest.raises(StoreRefused):
            await store.reopen()
        double.release()
        await store.reopen()

        assert await store.read([key_of(FIRST)]) == {key_of(FIRST): FIRST}


@in_asyncio
async def test_a_batch_that_arrives_after_reopen_is_not_written(double: StrictServer, backing: DynamodbBacking) -> None:
    """However long it was on its way: it names the old epoch."""
    async with opened(backing.store()) as store:
        double.fault("TransactWriteItems", "late", times=3)
        with pytest.raises(StoreUnknown):
            await store.commit(inserting(FIRST))
        await store.reopen()
        assert await store.read([key_of(FIRST)]) == {}
        double.release()
        await asyncio.to_thread(eventually, lambda: double.ask()["holding"] == 0)
        await store.commit(inserting(SECOND))

    assert items_of(backing) == ["job-2"]


@in_asyncio
async def test_an_epoch_whose_taking_was_not_answered_is_ours(double: StrictServer, backing: DynamodbBacking) -> None:
    """A store knows its own name in the lease, at the first time and later."""
    store = backing.store()
    await backing.prepare(1)
    double.fault("TransactWriteItems", "lose", forget=True)
    first = await store.open()
    double.fault("TransactWriteItems", "lose", forget=True)
    second = await store.reopen()
    await store.commit(inserting(FIRST))
    await store.close()

    assert second == first + 1


@in_asyncio
async def test_a_store_that_was_replaced_does_not_take_its_place_back(backing: DynamodbBacking) -> None:
    """Reopening ends it; its successor goes on."""
    async with opened(backing.store()) as old, opened(backing.store()) as new:
        with pytest.raises(StoreFenced):
            await old.reopen()
        with pytest.raises(StoreFenced):
            await old.commit(inserting(FIRST))
        await new.commit(inserting(SECOND))

    assert items_of(backing) == ["job-2"]


@in_asyncio
async def test_a_server_that_dies_and_comes_back_is_found_again(tmp_path: Path) -> None:
    """What was acknowledged is there, what was under way is not; no new store object is needed."""
    double = StrictServer(tmp_path / "double")
    double.start()
    backing = DynamodbBacking(double, timeout="3")
    try:
        async with opened(backing.store()) as store:
            await store.commit(inserting(FIRST))
            double.fault("TransactWriteItems", "hold")
            doubtful = asyncio.create_task(store.commit(inserting(SECOND)))
            await asyncio.to_thread(eventually, lambda: double.ask()["holding"] == 1)
            double.kill()
            with pytest.raises(StoreUnknown):
                await doubtful
            with pytest.raises(StoreRefused):
                await store.reopen()
            double.start()
            await store.reopen()

            assert await store.read([key_of(FIRST), key_of(SECOND)]) == {key_of(FIRST): FIRST}
            await store.commit(inserting(SECOND))
            assert await load_all(store) == [FIRST, SECOND]
    finally:
        double.stop()


@in_asyncio
async def test_a_server_that_is_not_there_refuses_at_once(tmp_path: Path) -> None:
    """Nothing is sent, so nothing is in doubt, and whoever waits learns it soon. Only a connection that was there lets one doubt."""
    double = StrictServer(tmp_path / "double")
    double.start()
    backing = DynamodbBacking(double)
    async with opened(backing.store()) as store:
        double.stop()
        with pytest.raises((StoreRefused, StoreUnknown)):
            await store.commit(inserting(FIRST))
        async with asyncio.timeout(5):  # a call has ten seconds
            for call in (store.reopen(), store.commit(inserting(FIRST))):
                with pytest.raises(StoreRefused, match="cannot be reached"):
                    await call


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "starting", "working"),
    [
        ("ValidationException", StorePermanent, StorePermanent),
        ("ItemCollectionSizeLimitExceededException", StorePermanent, StorePermanent),
        ("AccessDeniedException", StoreError, StoreRefused),
        ("ExpiredTokenException", StoreError, StoreRefused),
        ("UnrecognizedClientException", StoreError, StoreRefused),
        ("ResourceNotFoundException", StoreError, StoreRefused),
        ("SomethingNewException", StoreError, StoreRefused),
    ],
)
@in_asyncio
async def test_a_refusal_means_one_thing_at_the_start_and_one_later(
    double: StrictServer, backing: DynamodbBacking, code: str, starting: type[StoreError], working: type[StoreError]
) -> None:
    """What someone must see to ends a start and is waited for later. No message repeats the service's own, which may hold a secret."""
    await backing.prepare(1)
    store = backing.store()
    told = []
    double.fault("TransactWriteItems", "refuse", code=code)
    with pytest.raises(StoreError) as raised:
        await store.open()
    assert type(raised.value) is starting
    told.append(str(raised.value))
    await store.open()
    double.fault("TransactWriteItems", "refuse", code=code)
    with pytest.raises(StoreError) as raised:
        await store.commit(inserting(FIRST))
    assert type(raised.value) is working
    told.append(str(raised.value))
    await store.reopen()
    await store.commit(inserting(FIRST))
    await store.close()

    assert all(code in message and "secret" not in message and "AKIA" not in message for message in told)


@in_asyncio
async def test_no_credentials_end_a_start_with_a_word_about_them(
    backing: DynamodbBacking, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So do a profile that is not there, and no region."""
    await backing.prepare(1)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    store = backing.store()
    with pytest.raises(StoreError, match="no AWS credentials were found") as raised:
        await store.open()
    await store.close()

    assert type(raised.value) is StoreError


@in_asyncio
async def test_credentials_that_were_renewed_are_found_at_the_next_reopen(
    double: StrictServer, backing: DynamodbBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the old ones were refused."""
    async with opened(backing.store()) as store:
        double.fault("TransactWriteItems", "refuse", code="ExpiredTokenException")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIARENEWED")
        with pytest.raises(StoreRefused):
            await store.commit(inserting(FIRST))
        await store.reopen()
        await store.commit(inserting(FIRST))

        assert double.ask()["credential"] == "AKIARENEWED"


# --- rows ------------------------------------------------------------------------------------------------------------


@in_asyncio
async def test_what_is_no_row_is_said_and_left_where_it_is(double: StrictServer, backing: DynamodbBacking) -> None:
    """With its place and its fault, and never what it holds."""
    async with opened(backing.store()) as store:
        await store.commit(inserting(FIRST))
    item = double.ask(items=backing.table)["items"]["rows#01"][f"{FIRST.slot:04d}#{1:019d}"]
    damaged = {
        ("rows#02", f"{FIRST.slot:04d}#{2:019d}"): {name: value for name, value in item.items() if name != "payload"},
        ("rows#03", f"{FIRST.slot:04d}#{3:019d}"): {**item, "attempt": {"N": "1.5"}},
        ("rows#04", f"{FIRST.slot:04d}#{4:019d}"): {**item, "status": {"S": "secret"}},
        ("rows#05", f"{FIRST.slot:04d}#{6:019d}"): item,
        ("rows#07", "secret"): item,
    }
    changes = [([backing.table, pk, sk], {**held, "pk": {"S": pk}, "sk": {"S": sk}}) for (pk, sk), held in damaged.items()]
    double.ask(changes=changes)
    async with opened(backing.store()) as store:
        loaded = await load_all(store)
    found = [each for each in loaded if isinstance(each, Damaged)]

    assert [each for each in loaded if isinstance(each, Row)] == [FIRST]
    assert sorted((each.seq or 0) for each in found) == [0, 2, 3, 4, 6]
    assert all(backing.table in each.where and "secret" not in each.where + each.fault for each in found)


@in_asyncio
async def test_a_trial_leaves_nothing_and_disturbs_nobody(double: StrictServer, backing: DynamodbBacking) -> None:
    """Its rows are no shard's, and the shard keeps its epoch."""
    async with opened(backing.store()) as store:
        await store.commit(inserting(FIRST))
        before = double.ask(items=backing.table)["items"]
        trial = DynamodbStore(backing.url, 0, None)
        await trial.open()
        await trial.commit(inserting(FIRST, SECOND))
        await trial.commit(deleting(FIRST))
        assert await load_all(trial) == [SECOND]
        assert await load_all(store) == [FIRST]
        await trial.close()
        await store.commit(inserting(SECOND))
        await store.commit(deleting(SECOND))

    assert double.ask(items=backing.table)["items"] == before


@in_asyncio
async def test_an_endpoint_that_is_not_of_aws_promises_nothing(backing: DynamodbBacking) -> None:
    """What stands behind it may keep everything in memory; the terms say so."""
    async with opened(backing.store()) as store:
        assert store.durability is Durability.WEAK
        assert "not of AWS" in store.terms


def test_a_driver_that_is_not_installed_is_named_with_its_extra() -> None:
    """As a setting that cannot be used."""
    code = (
        "import sys; sys.modules['aioboto3'] = None\n"
        "from proteus_shards.errors import SettingError\n"
        "from proteus_shards.store.registry import make_store\n"
        "try: make_store('dynamodb://jobs', 0, 1)\n"
        "except SettingError as error: sys.exit(str(error))"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])

    assert "pip install '.[dynamodb]' in the clone" in ran.stderr
