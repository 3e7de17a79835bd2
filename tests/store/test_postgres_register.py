"""The hosts of a cluster in Postgres: the shared suite, and what only Postgres has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from proteus_shards.config import Ready, Settings, ShardBoot
from proteus_shards.errors import SettingError, StoreError, StoreFailed, StoreFenced, StoreRefused, StoreUnknown
from proteus_shards.shard import prepare as holding
from proteus_shards.store import copy as copying
from proteus_shards.store.postgres import PostgresStore
from proteus_shards.store.postgres_errors import Doing
from proteus_shards.store.postgres_kind import examine
from proteus_shards.store.postgres_prepare import prepare, prepared_shards
from proteus_shards.store.postgres_register import PostgresRegister
from proteus_shards.store.postgres_session import session
from proteus_shards.store.registry import prepare_store
from tests.servers.postgres import PostgresPlace
from tests.store.exercise_register import (
    SHARDS,
    A,
    B,
    RegisterExercise,
    SharedBacking,
    hand_to,
    opened_register,
    queue_of_shard,
)
from tests.store.postgres_backing import ClusterBacking, until, way_to
from tests.store.rows import in_asyncio, inserting, load_all, make_row, opened
from tests.store.takeovers import take_over, without_for_share


class TestPostgresRegister(RegisterExercise):
    """All of it."""

    @pytest.fixture
    def new_shared(self, postgres_server: PostgresPlace) -> Callable[[], SharedBacking]:
        return lambda: ClusterBacking(postgres_server)


@pytest.fixture
def backing(postgres_server: PostgresPlace) -> ClusterBacking:
    """Return a place of hosts, empty."""
    return ClusterBacking(postgres_server)


@in_asyncio
async def test_an_owner_that_is_stuck_with_the_lock_holds_up_neither_a_hand_over_nor_the_next_owner(backing: ClusterBacking) -> None:
    """Its session is ended, as that of an owner outside a cluster is."""
    async with asyncio.timeout(20), opened_register(backing) as register:
        claim = await hand_to(register, 0, A.address)
        async with opened(backing.claimed(0, claim)) as store:
            assert isinstance(store, PostgresStore)
            await store._connection.execute("BEGIN; SELECT FROM lease FOR SHARE")
            claim = await hand_to(register, 0, B.address)
            with pytest.raises((StoreUnknown, StoreRefused)):
                await store.commit(inserting(make_row(1, queue=queue_of_shard(0))))
            async with opened(backing.claimed(0, claim)) as heir:
                assert await load_all(heir) == []
            with pytest.raises(StoreFenced):
                await store.reopen()


@in_asyncio
async def test_a_wish_ends_no_session(backing: ClusterBacking) -> None:
    """Whoever holds the lease for longer than a lock is waited for goes on, and the wish is refused."""
    async with opened_register(backing) as register, opened(backing.claimed(0, None)) as store:
        assert isinstance(store, PostgresStore)
        await store._connection.execute("BEGIN; SELECT FROM lease FOR SHARE")
        with pytest.raises(StoreRefused, match="55P03"):
            await register.want(0, A.address)
        await store._connection.execute("ROLLBACK")
        await store.commit(inserting(make_row(1, queue=queue_of_shard(0))))


@in_asyncio
async def test_a_claim_that_waited_for_a_hand_over_finds_itself_too_late(backing: ClusterBacking) -> None:
    """The row is looked at again after the wait, in the same statement."""
    async with opened_register(backing) as register, session(backing.url, Doing.READING) as other:
        claim = await hand_to(register, 0, A.address)
        late = backing.claimed(0, claim)
        async with other.transaction():
            await other.execute("UPDATE lease SET host = 'b', turn = turn + 1 WHERE name = 'shard-0'")
            opening = asyncio.ensure_future(late.open())
            await until(
                backing.url, "EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'transactionid' AND query LIKE 'UPDATE lease SET%')"
            )
        with pytest.raises(StoreFenced):
            await opening
        await late.close()


@pytest.mark.parametrize("trouble", ["lose request", "lose answer"])
@in_asyncio
async def test_a_change_that_was_not_answered_perhaps_happened(backing: ClusterBacking, trouble: str) -> None:
    """It is said so, and the next call connects anew."""
    async with way_to(backing.url) as way:
        register = PostgresRegister(msgspec.structs.replace(backing.url, hosts=(("127.0.0.1", way.port),)))
        try:
            await register.open()
            before = (await hand_to(register, 0, B.address)).turn  # the statement is known to the server by now
            way.trouble = trouble
            with pytest.raises(StoreUnknown):
                await register.hand(0, before, A.address)
            way.trouble = ""
            turn = (await register.look()).holdings[0].turn
        finally:
            await register.close()

    assert turn - before == (1 if trouble == "lose answer" else 0)


@in_asyncio
async def test_a_lease_that_is_gone_is_no_holding(backing: ClusterBacking) -> None:
    """Nobody could be told who holds that shard: it is said, with its number."""
    await backing.run("DELETE FROM lease WHERE name = 'shard-1'")
    async with opened_register(backing) as register:
        with pytest.raises(StoreFailed, match="lease of shard 1"):
            await register.look()


@in_asyncio
async def test_no_commit_of_an_older_owner_comes_after_the_next_one_has_loaded(backing: ClusterBacking) -> None:
    """However often shards change hands; `python -m tests.store.takeovers postgres` does it 300 times."""
    figures = await take_over(backing, 15)

    assert (figures.takeovers, figures.fenced + figures.unknown, figures.wrong) == (15, 15, 0)


@in_asyncio
async def test_commits_that_do_not_lock_the_lease_would_be_found(backing: ClusterBacking) -> None:
    """The same with a planted fault."""
    with without_for_share():
        figures = await take_over(backing, 45)

    assert figures.late > 0


# --- preparing ---------------------------------------------------------------------------------------------------


@in_asyncio
async def test_several_hosts_may_prepare_a_cluster_at_once(backing: ClusterBacking) -> None:
    """And any time later, while others work."""
    async with opened_register(backing) as register:
        await register.join(A)
        claim = await hand_to(register, 0, A.address)
        async with opened(backing.claimed(0, claim)) as store:
            assert await asyncio.gather(*(prepare(backing.url, SHARDS, cluster=True) for _ in range(4))) == [None] * 4
            await store.commit(inserting(make_row(1, queue=queue_of_shard(0))))


@in_asyncio
async def test_the_number_of_shards_is_fixed_while_hosts_are_registered(backing: ClusterBacking) -> None:
    """Another is refused, with the setting and what to write; once all hosts have left, it changes, and nobody holds a shard."""
    async with opened_register(backing) as register:
        await register.join(A)
        await hand_to(register, 0, A.address)
        with pytest.raises(SettingError, match=f"^shards: .* {SHARDS} shards.* --shards {SHARDS};.*{A.address}"):
            await prepare(backing.url, SHARDS + 1, cluster=True)
        assert await prepared_shards(backing.url) == SHARDS
        await register.leave(A.address)
        assert await prepare(backing.url, 2, cluster=True) is not None
        assert [(holding.shard, holding.host) for holding in (await register.look()).holdings] == [(0, ""), (1, "")]


@in_asyncio
async def test_a_server_alone_does_not_start_where_hosts_are_registered(backing: ClusterBacking) -> None:
    """It is told what to do instead, and nothing changes."""
    async with opened_register(backing) as register:
        await register.join(A)
        for shards in (SHARDS, 1):
            with pytest.raises(SettingError, match=f"^cluster: .*{A.address}.*--cluster.*proteus-shards cluster forget"):
                await prepare(backing.url, shards)
        await register.leave(A.address)
        assert await prepare(backing.url, SHARDS) is None


@in_asyncio
async def test_a_cluster_starts_on_what_a_server_alone_has_left(backing: ClusterBacking) -> None:
    """Its rows are there, and its number of shards is changed, as no host is there yet."""
    row = make_row(1)
    await prepare(backing.url, 1)
    async with opened(backing.store()) as store:
        await store.commit(inserting(row))
    await prepare(backing.url, SHARDS, cluster=True)
    found = []
    async with opened_register(backing) as register:
        for shard in range(SHARDS):
            async with opened(backing.claimed(shard, await hand_to(register, shard, A.address))) as store:
                found += await load_all(store)

    assert found == [row]


@in_asyncio
async def test_nothing_is_copied_from_or_to_a_cluster(backing: ClusterBacking, tmp_path: Path) -> None:
    """Its hosts are named, and its owners go on; once they have left, it is copied."""
    folder = f"sqlite:///{tmp_path}/jobs"
    async with opened_register(backing) as register:
        await register.join(A)
        claim = await hand_to(register, 0, A.address)
        async with opened(backing.claimed(0, claim)) as store:
            for source, target in ((backing.text, folder), (folder, backing.text)):
                if source == folder:
                    await prepare_store(folder, SHARDS)
                with pytest.raises(StoreError, match=f"shared by the hosts {A.address} of a cluster; nothing was done"):
                    await copying.copy(source, target, skip_damaged=False, tell=lambda _: None)
            await store.commit(inserting(make_row(1, queue=queue_of_shard(0))))
        await register.leave(A.address)
    done = await copying.copy(backing.text, f"{folder}-2", skip_damaged=False, tell=lambda _: None)

    assert (done.jobs, done.shards) == (1, SHARDS)


# --- the doctor --------------------------------------------------------------------------------------------------


@in_asyncio
async def test_the_doctor_names_hosts_and_holdings(backing: ClusterBacking) -> None:
    """Those who hold shards and are not registered, too."""
    async with opened_register(backing) as register:
        await register.join(A)
        await register.join(B)
        await register.drain(B.address, True)
        await hand_to(register, 0, A.address)
        await hand_to(register, 1, "10.0.0.3:7000")
        told = [finding.what for finding in [finding async for finding in examine(backing.url)]]

    assert [what for what in told if "10.0.0" in what or "no host" in what] == [
        f"host {A.address} (version 1.0) holds 1 shards",
        f"host {B.address} (version 1.0) holds 0 shards, and is to give them away",
        "1 shards are held by no host",
        "1 shards are held by 10.0.0.3:7000, which is not registered",
    ]


@in_asyncio
async def test_of_servers_that_start_on_one_store_at_once_one_holds_all(backing: ClusterBacking) -> None:
    """The others are told so then, or find it out when they open the rows: never is each of them replaced by another."""
    settings = Settings(store=backing.text, shards=SHARDS)
    for turn in range(10):
        boots = [ShardBoot(settings, 0, "", server=f"alone-{turn}-{number}") for number in range(3)]
        ends = await asyncio.gather(*(holding.prepare(boot) for boot in boots), return_exceptions=True)
        async with opened_register(backing) as register:
            (name,) = {each.host for each in (await register.look()).holdings}
        (last,) = [end for boot, end in zip(boots, ends, strict=True) if boot.server == name]

        assert isinstance(last, Ready)
        assert {type(end) for end in ends} <= {Ready, StoreFenced}
