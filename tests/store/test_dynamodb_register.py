"""The hosts of a cluster in DynamoDB: the shared suite over each double that is there, and what becomes of calls that are lost, refused or late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from proteus_shards.cluster.model import NOBODY
from proteus_shards.errors import SettingError, StoreError, StoreFailed, StoreFenced, StoreRefused, StoreUnknown
from proteus_shards.store.dynamodb import DynamodbStore
from proteus_shards.store.dynamodb_doctor import examine
from proteus_shards.store.dynamodb_prepare import prepare, prepared_shards
from proteus_shards.store.dynamodb_register import DynamodbRegister
from tests.conftest import eventually
from tests.servers.dynamodb import MotoServer
from tests.servers.dynamodb_local import DynamodbLocalServer
from tests.servers.strict_dynamodb import StrictServer
from tests.store.dynamodb_backing import DynamodbBacking, DynamodbSharedBacking
from tests.store.exercise_register import SHARDS, A, B, RegisterExercise, SharedBacking, hand_to, opened_register, queue_of_shard
from tests.store.rows import in_asyncio, inserting, load_all, make_row, opened
from tests.store.takeovers import looking_first_in_dynamodb, take_over

pytest_plugins = ["tests.servers.dynamodb_fixtures"]


class TestStrictRegister(RegisterExercise):
    """On the strict double."""

    @pytest.fixture
    def new_shared(self, strict_dynamodb: StrictServer) -> Callable[[], SharedBacking]:
        return lambda: DynamodbSharedBacking(strict_dynamodb)


class TestMotoRegister(RegisterExercise):
    """On moto."""

    @pytest.fixture
    def new_shared(self, moto_dynamodb: MotoServer) -> Callable[[], SharedBacking]:
        moto_dynamodb.reset()
        return lambda: DynamodbSharedBacking(moto_dynamodb)


class TestLocalRegister(RegisterExercise):
    """On DynamoDB Local."""

    @pytest.fixture
    def new_shared(self, local_dynamodb: DynamodbLocalServer) -> Callable[[], SharedBacking]:
        return lambda: DynamodbSharedBacking(local_dynamodb)


@pytest.fixture
def double(strict_dynamodb: StrictServer) -> Iterator[StrictServer]:
    """Return the double, with no faults before and after."""
    strict_dynamodb.release()
    strict_dynamodb.ask(reset=True)
    yield strict_dynamodb
    strict_dynamodb.release()


@pytest.fixture
def backing(double: StrictServer) -> DynamodbSharedBacking:
    """Return a place of hosts, empty; its calls have little time."""
    return DynamodbSharedBacking(double, timeout="2")


# --- looks -------------------------------------------------------------------------------------------------------


@in_asyncio
async def test_a_look_and_a_beat_cost_what_the_header_says(double: StrictServer) -> None:
    """A unit for each lease, two more, and one for a beat; leases come a hundred a call."""
    backing = DynamodbSharedBacking(double, shards=250)
    async with opened_register(backing) as register:
        costs: dict[str, tuple[int, int]] = {}
        calls: dict[str, Callable[[], Any]] = {
            "join": lambda: register.join(A),
            "look": register.look,
            "beat": lambda: register.beat(A),
            "hand": lambda: register.hand(249, 0, A.address),
        }
        for name, call in calls.items():
            double.ask(reset=True)
            await call()
            told = double.ask()
            costs[name] = (told["read_units"], told["write_units"])
            if name == "look":
                assert told["calls"] == {"BatchGetItem": 3, "Query": 1}
        view = await register.look()

    assert costs == {"join": (0, 4), "look": (252, 0), "beat": (0, 1), "hand": (0, 2)}
    assert [holding.shard for holding in view.holdings] == list(range(250))
    assert view.holdings[249].host == A.address


@in_asyncio
async def test_what_a_look_leaves_unprocessed_is_asked_for_again(double: StrictServer, backing: DynamodbSharedBacking) -> None:
    """And where the service leaves all of it for too long, it is a refusal."""
    async with opened_register(backing) as register:
        await hand_to(register, 2, A.address)
        double.fault("BatchGetItem", "unprocessed", times=2, keys=1)
        assert (await register.look()).holdings[2].host == A.address
        double.fault("BatchGetItem", "unprocessed", times=100_000, keys=0)
        with pytest.raises(StoreRefused, match="go slower"):
            await register.look()


@in_asyncio
async def test_a_lease_that_is_gone_is_no_holding(double: StrictServer, backing: DynamodbSharedBacking) -> None:
    """Nobody could be told who holds that shard: it is said, with its number."""
    async with opened_register(backing) as register:
        double.ask(changes=[((backing.url.table, "lease#0001", "lease"), None)])
        with pytest.raises(StoreFailed, match="lease of shard 1"):
            await register.look()


# --- answers that are lost, and others' success --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lose", "fail_after", "drop", "fail"])
@in_asyncio
async def test_a_hand_over_whose_answer_is_lost_is_asked_for_again_and_done_once(
    double: StrictServer, backing: DynamodbSharedBacking, kind: str
) -> None:
    """Its token tells the service that it is the same one."""
    async with opened_register(backing) as register:
        double.fault("TransactWriteItems", kind)
        assert await register.hand(0, 0, A.address) is True
        holding = (await register.look()).holdings[0]

    assert (holding.host, holding.turn) == (A.address, 1)


@in_asyncio
async def test_another_s_success_is_not_taken_for_one_s_own(double: StrictServer, backing: DynamodbSharedBacking) -> None:
    """One hands a shard to the same host while another's call is on its way; the late one is told that the turn is over."""
    async with opened_register(backing) as one, opened_register(backing) as two:
        double.fault("TransactWriteItems", "late")
        late = asyncio.ensure_future(two.hand(0, 0, A.address))
        await asyncio.to_thread(eventually, lambda: double.ask()["holding"] == 1)
        assert await one.hand(0, 0, A.address) is True
        double.release()
        assert await late is False
        assert (await one.look()).holdings[0].turn == 1


@in_asyncio
async def test_a_hand_over_whose_token_is_forgotten_is_in_doubt(double: StrictServer, backing: DynamodbSharedBacking) -> None:
    """The turn is over, perhaps by its own doing."""
    async with opened_register(backing) as register:
        double.fault("TransactWriteItems", "lose", forget=True)
        with pytest.raises(StoreUnknown):
            await register.hand(0, 0, A.address)


@pytest.mark.parametrize("call", ["beat", "join", "drain", "want", "leave"])
@in_asyncio
async def test_what_was_never_answered_is_in_doubt(double: StrictServer, backing: DynamodbSharedBacking, call: str) -> None:
    """Once the time of the call is over."""
    async with opened_register(backing) as register:
        await register.join(A)
        double.fault("*", "fail", times=100_000)
        calls: dict[str, Callable[[], Any]] = {
            "beat": lambda: register.beat(A),
            "join": lambda: register.join(A),
            "drain": lambda: register.drain(A.address, True),
            "want": lambda: register.want(0, A.address),
            "leave": lambda: register.leave(A.address, A.boot),
        }
        with pytest.raises(StoreUnknown):
            await calls[call]()


@in_asyncio
async def test_a_host_that_an_unanswered_attempt_may_have_removed_is_in_doubt(double: StrictServer, backing: DynamodbSharedBacking) -> None:
    """It is not there any more, whoever it was."""
    async with opened_register(backing) as register:
        await register.join(A)
        double.fault("DeleteItem", "lose")
        with pytest.raises(StoreUnknown):
            await register.leave(A.address)
        assert (await register.look()).hosts == ()


@in_asyncio
async def test_throttled_calls_are_refused_once_their_time_is_over(double: StrictServer, backing: DynamodbSharedBacking) -> None:
    """Nothing was written; a call that is throttled for a moment is done after all."""
    async with opened_register(backing) as register:
        await register.join(A)
        double.fault("*", "throttle", times=2)
        assert await register.beat(A)
        double.fault("*", "throttle", times=100_000)
        with pytest.raises(StoreRefused, match="slower"):
            await register.beat(A)
        with pytest.raises(StoreRefused, match="slower"):
            await register.hand(0, 0, A.address)
        double.release()
        assert (await register.look()).holdings[0].turn == 0


@in_asyncio
async def test_a_hand_over_waits_for_a_commit_that_is_under_way(double: StrictServer, backing: DynamodbSharedBacking) -> None:
    """The two conflict; the commit is whole, and the next owner loads it."""
    row = make_row(1, queue=queue_of_shard(0))
    async with opened_register(backing) as register, opened(backing.claimed(0, await hand_to(register, 0, A.address))) as store:
        double.fault("TransactWriteItems", "hold")
        committing = asyncio.ensure_future(store.commit(inserting(row)))
        await asyncio.to_thread(eventually, lambda: double.ask()["holding"] == 1)
        handing = asyncio.ensure_future(hand_to(register, 0, B.address))
        await asyncio.to_thread(eventually, lambda: double.ask()["calls"]["TransactWriteItems"] > 4)
        assert not handing.done()
        double.release()
        await committing
        async with opened(backing.claimed(0, await handing)) as heir:
            assert await load_all(heir) == [row]


@pytest.mark.parametrize("kind", ["lose", "fail_after"])
@in_asyncio
async def test_a_claimed_epoch_whose_answer_is_lost_is_known_again(double: StrictServer, backing: DynamodbSharedBacking, kind: str) -> None:
    """Not where the shard was handed on meanwhile: then it is fenced, though the epoch is its own."""
    async with opened_register(backing) as register:
        claim = await hand_to(register, 0, A.address)
        double.fault("TransactWriteItems", kind, forget=True)
        async with opened(backing.claimed(0, claim)) as store:
            await store.commit(inserting(make_row(1, queue=queue_of_shard(0))))
            await hand_to(register, 0, B.address)
            with pytest.raises(StoreFenced):
                await store.reopen()


@in_asyncio
async def test_no_commit_of_an_older_owner_comes_after_the_next_one_has_loaded(backing: DynamodbSharedBacking) -> None:
    """However often shards change hands; `python -m tests.store.takeovers dynamodb` does it 300 times."""
    figures = await take_over(backing, 6)

    assert (figures.takeovers, figures.fenced + figures.unknown, figures.wrong) == (6, 6, 0)


@in_asyncio
async def test_commits_that_look_at_the_lease_beforehand_would_be_found(backing: DynamodbSharedBacking) -> None:
    """The same with a planted fault."""
    with looking_first_in_dynamodb():
        figures = await take_over(backing, 6)

    assert figures.wrong > 0


# --- preparing ---------------------------------------------------------------------------------------------------


@in_asyncio
async def test_several_hosts_may_prepare_a_cluster_at_once(double: StrictServer) -> None:
    """A new one, and any time later, while others work."""
    backing = DynamodbBacking(double, prepared=False)
    assert await asyncio.gather(*(prepare(backing.url, SHARDS, cluster=True) for _ in range(4))) == [None] * 4
    shared = DynamodbSharedBacking(double)
    async with opened_register(shared) as register:
        await register.join(A)
        async with opened(shared.claimed(0, await hand_to(register, 0, A.address))) as store:
            assert await asyncio.gather(*(prepare(shared.url, SHARDS, cluster=True) for _ in range(4))) == [None] * 4
            await store.commit(inserting(make_row(1, queue=queue_of_shard(0))))


@in_asyncio
async def test_the_number_of_shards_is_fixed_while_hosts_are_registered(backing: DynamodbSharedBacking) -> None:
    """Another is refused, with the setting and what to write; once all hosts have left, it changes, and nobody holds a shard."""
    async with opened_register(backing) as register:
        await register.join(A)
        claim = await hand_to(register, 0, A.address)
        with pytest.raises(SettingError, match=rf"^shards: .* {SHARDS} shards.* --shards {SHARDS};.*{A.address}"):
            await prepare(backing.url, SHARDS + 1, cluster=True)
        assert await prepared_shards(backing.url) == SHARDS
        await register.leave(A.address)
        assert await prepare(backing.url, 2, cluster=True) is not None
        with pytest.raises(StoreFailed, match="start again"):
            await register.look()
    async with opened_register(backing) as register:
        holdings = (await register.look()).holdings
        late = DynamodbStore(backing.url, 0, 2, claim)
        with pytest.raises(StoreFenced):
            await late.open()
        await late.close()

    assert [(holding.shard, holding.host) for holding in holdings] == [(0, NOBODY), (1, NOBODY)]


@in_asyncio
async def test_a_host_that_joins_while_the_table_is_made_ready_is_seen_or_refused(
    double: StrictServer, backing: DynamodbSharedBacking
) -> None:
    """Before the layout is written: the number stays, and nobody is fenced. After that: the host is refused."""
    async with opened_register(backing) as register:
        claim = await hand_to(register, 0, A.address)
        async with opened(backing.claimed(0, claim)) as store:
            double.fault("PutItem", "late")
            preparing = asyncio.ensure_future(prepare(backing.url, 5, cluster=True))
            await asyncio.to_thread(eventually, lambda: double.ask()["holding"] == 1)
            await register.join(A)
            double.release()
            with pytest.raises(SettingError, match=r"^shards: "):
                await preparing
            assert await prepared_shards(backing.url) == SHARDS
            await store.commit(inserting(make_row(1, queue=queue_of_shard(0))))
            assert (await register.look()).hosts == (A,)
            await register.leave(A.address)
            await prepare(backing.url, 5, cluster=True)
            with pytest.raises(StoreFailed, match="start again"):
                await register.join(A)


@in_asyncio
async def test_a_server_alone_does_not_start_where_hosts_are_registered(backing: DynamodbSharedBacking) -> None:
    """It is told what to do instead, and nothing changes."""
    async with opened_register(backing) as register:
        await register.join(A)
        for shards in (SHARDS, 1):
            with pytest.raises(SettingError, match=rf"^cluster: .*{A.address}.*--cluster.*proteus-shards cluster forget"):
                await prepare(backing.url, shards)
        await register.leave(A.address)
        assert await prepare(backing.url, SHARDS) is None


@in_asyncio
async def test_a_register_of_a_place_that_was_never_prepared_says_so(double: StrictServer) -> None:
    """For good, where there is no table."""
    register = DynamodbBacking(double, prepared=False)
    asking = DynamodbRegister(register.url)
    with pytest.raises(StoreError, match="no such table") as raised:
        await asking.open()
    await asking.close()

    assert not isinstance(raised.value, StoreRefused)


@in_asyncio
async def test_the_doctor_names_hosts_and_holdings(backing: DynamodbSharedBacking) -> None:
    """What they are is for all stores to say alike."""
    async with opened_register(backing) as register:
        await register.join(A)
        await hand_to(register, 0, A.address)
        told = [finding.what for finding in [finding async for finding in examine(backing.url)]]

    assert [what for what in told if A.address in what or "no host" in what] == [
        f"host {A.address} (version 1.0) holds 1 shards",
        "2 shards are held by no host",
    ]
