"""The hosts of a cluster in Redis: the shared suite on a single server, behind TLS and on the nodes of a Redis cluster, and what only Redis has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from proteus_shards.errors import SettingError, StoreFailed, StoreFenced, StoreRefused, StoreUnknown
from proteus_shards.store.redis import RedisStore
from proteus_shards.store.redis_kind import examine
from proteus_shards.store.redis_place import common_key
from proteus_shards.store.redis_prepare import prepare, prepared_shards
from proteus_shards.store.redis_register import RedisRegister
from proteus_shards.store.register import Register
from tests.conftest import eventually
from tests.servers.redis import RedisCluster, RedisPlace, StartRedis, binaries, running
from tests.store.exercise_register import SHARDS, A, B, RegisterExercise, SharedBacking, hand_to, opened_register, queue_of_shard
from tests.store.redis_backing import RedisSharedBacking, apart, owning, redis_url
from tests.store.rows import in_asyncio, inserting, load_all, make_row, opened
from tests.store.takeovers import looking_first_in_redis, take_over
from tests.store.test_redis_access import certificates, speaks_tls
from tests.store.test_redis_cluster import cluster, node_id
from tests.store.test_redis_memory import fill

__all__ = ["certificates", "cluster"]  # fixtures


class TestRedisRegister(RegisterExercise):
    """On a single server."""

    @pytest.fixture
    def new_shared(self, redis_server: RedisPlace) -> Callable[[], SharedBacking]:
        return lambda: RedisSharedBacking(redis_server)


class TestRedisClusterRegister(RegisterExercise):
    """On three nodes."""

    @pytest.fixture
    def new_shared(self, cluster: RedisCluster) -> Callable[[], SharedBacking]:  # the fixture
        return lambda: RedisSharedBacking(cluster)


@pytest.fixture
def backing(redis_server: RedisPlace) -> RedisSharedBacking:
    """Return a place of hosts, empty."""
    return RedisSharedBacking(redis_server)


@in_asyncio
async def test_a_register_talks_tls_as_the_store_does(tmp_path: Path, certificates: Path) -> None:  # the fixture
    """The URL says so."""
    speakers = [binary for binary in binaries().values() if speaks_tls(binary, tmp_path)]
    if not speakers:
        pytest.skip("no server here was built with TLS")
    with running(speakers[-1], tmp_path / "redis", tls=certificates) as server:
        shared = RedisSharedBacking(server, ca=str(certificates / "ca.pem"))
        async with opened_register(shared) as register:
            await register.join(A)
            async with opened(shared.claimed(0, await hand_to(register, 0, A.address))) as store:
                await store.commit(inserting(make_row(1, queue=queue_of_shard(0))))
            assert (await register.look()).hosts == (A,)


# --- many leases, many nodes -------------------------------------------------------------------------------------


@in_asyncio
async def test_a_look_finds_all_leases_on_whatever_node_they_are(cluster: RedisCluster) -> None:  # the fixture
    """The nodes are learnt from one, and each is asked once."""
    shared = RedisSharedBacking(cluster, shards=64)
    async with opened_register(shared) as register:
        assert isinstance(register, RedisRegister)
        for shard in range(64):
            assert await register.hand(shard, 0, f"10.0.0.{shard}:1")
        holdings = (await register.look()).holdings
        assert {node[1] for node in register._nodes._wires} == {node.port for node in cluster.nodes}

    assert [(holding.shard, holding.host, holding.turn) for holding in holdings] == [(shard, f"10.0.0.{shard}:1", 1) for shard in range(64)]


@in_asyncio
async def test_a_register_follows_a_lease_to_another_node(cluster: RedisCluster) -> None:  # the fixture
    """While its slot is on the way, and afterwards."""
    shared = RedisSharedBacking(cluster)
    lease = shared.lease(0)
    source = cluster.node_of(lease)
    target = next(node for node in cluster.nodes if node is not source)
    slot = source.ask("CLUSTER", "KEYSLOT", lease).decode().strip(":\r\n")
    async with opened_register(shared) as register:
        claim = await hand_to(register, 0, A.address)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(target))
        assert source.ask("MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", lease).startswith(b"+OK")
        assert (await register.look()).holdings[0].host == A.address
        assert await register.hand(0, claim.turn, B.address)
        for node in cluster.nodes:
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", node_id(target))
        assert (await register.look()).holdings[0].host == B.address
        assert await register.hand(0, claim.turn + 1, A.address)
        holding = (await register.look()).holdings[0]

    assert (holding.host, holding.turn) == (A.address, claim.turn + 2)


@in_asyncio
async def test_a_look_takes_in_as_many_shards_as_there_may_be(redis_server: RedisPlace) -> None:
    """In one breath."""
    shared = RedisSharedBacking(redis_server, shards=1024)
    async with opened_register(shared) as register:
        await register.hand(1023, 0, A.address)
        holdings = (await register.look()).holdings

    assert [holding.shard for holding in holdings] == list(range(1024))
    assert holdings[1023].host == A.address


# --- failovers ---------------------------------------------------------------------------------------------------


@in_asyncio
async def test_after_a_failover_to_an_older_lease_no_two_owners_write(backing: RedisSharedBacking) -> None:
    """The turn is used a second time: whoever opened in it before is fenced all the same, by its token."""
    async with opened_register(backing) as register:
        claim = await hand_to(register, 0, A.address)
        older = await backing.ask("HGETALL", backing.lease(0))
        assert isinstance(older, list)
        lost = await hand_to(register, 0, B.address)
        async with opened(backing.claimed(0, lost)) as before:
            await before.commit(inserting(make_row(1, queue=queue_of_shard(0))))
            await backing.ask("DEL", backing.lease(0))
            await backing.ask("HSET", backing.lease(0), *older)
            late = backing.claimed(0, lost)
            with pytest.raises(StoreFenced):
                await late.open()
            await late.close()
            async with opened(backing.claimed(0, claim)):
                assert await hand_to(register, 0, B.address) == lost
            async with opened(backing.claimed(0, lost)) as heir:
                for act in (before.commit(inserting(make_row(2, queue=queue_of_shard(0)))), before.reopen()):
                    with pytest.raises(StoreFenced):
                        await act
                await heir.reopen()


@in_asyncio
async def test_a_primary_that_was_made_a_replica_is_not_looked_at(start_redis: StartRedis) -> None:
    """It may be behind; the connection outlives the change. It takes no hand either."""
    server = start_redis()
    shared = RedisSharedBacking(server)
    async with opened_register(shared) as register:
        await register.join(A)
        server.ask("REPLICAOF", "127.0.0.1", "1")
        for call in (register.look, lambda: register.beat(A), lambda: register.hand(0, 0, A.address)):
            with pytest.raises(StoreRefused, match="replica"):
                await call()
        server.ask("REPLICAOF", "NO", "ONE")
        assert await register.beat(A)
        assert (await register.look()).hosts == (A,)


@in_asyncio
async def test_a_hand_waits_for_replicas_where_a_commit_does(start_redis: StartRedis) -> None:
    """It is written, but a failover may take it back."""
    primary = start_redis()
    shared = RedisSharedBacking(primary, wait_replicas="1", timeout="1")
    async with opened_register(shared) as register:
        with pytest.raises(StoreUnknown, match="0 of 1 replicas"):
            await register.hand(0, 0, A.address)
        assert (await register.look()).holdings[0].turn == 1
        replica = start_redis(replicaof=f"127.0.0.1 {primary.port}")
        eventually(lambda: b"master_link_status:up" in replica.ask("INFO", "replication"))
        eventually(lambda: b"state=online" in primary.ask("INFO", "replication"))
        await hand_surely(register, 1)
        assert (await register.look()).holdings[1].host == A.address


async def hand_surely(register: Register, shard: int) -> None:
    """Hand a shard over until a replica has it: one that has just come may still be busy."""
    for _ in range(100):
        try:
            await hand_to(register, shard, A.address)
        except StoreUnknown:
            continue
        return
    pytest.fail("no replica ever had it")


@in_asyncio
async def test_a_hand_that_was_not_answered_perhaps_happened(start_redis: StartRedis) -> None:
    """It is said so, and the next call connects anew."""
    server = start_redis()
    shared = RedisSharedBacking(server, timeout="0.5")
    async with opened_register(shared) as register:
        server.pause()
        with pytest.raises(StoreUnknown):
            await register.hand(0, 0, A.address)
        with pytest.raises(StoreRefused):
            await register.look()
        server.resume()
        eventually(server.answers)
        turn = (await register.look()).holdings[0].turn
        assert await register.hand(0, turn, B.address)
        server.kill()
        with pytest.raises((StoreRefused, StoreUnknown)):
            await register.hand(0, turn + 1, A.address)
        server.start()
        assert (await register.look()).holdings[0].host == B.address


@in_asyncio
async def test_a_full_memory_stops_no_cluster(start_redis: StartRedis) -> None:
    """Hosts join, beat and drain, and shards are handed over and opened."""
    server = start_redis(maxmemory="6mb")
    shared = RedisSharedBacking(server)
    async with opened_register(shared) as register:
        async with owning(shared.claimed(0, None)) as store:
            await fill(store)
        await register.join(A)
        await register.join(B)
        assert await register.beat(A)
        assert await register.drain(B.address, True)
        assert await register.want(1, A.address)
        async with opened(shared.claimed(0, await hand_to(register, 0, A.address))):
            assert (await register.look()).holdings[0].host == A.address


@in_asyncio
async def test_a_key_of_another_type_is_left_as_it_is(backing: RedisSharedBacking) -> None:
    """Nothing is written before all types are known, and it is said which mistake it looks like."""
    async with opened_register(backing) as register:
        await backing.ask("SET", common_key(backing.url, "draining"), "x")
        with pytest.raises(StoreRefused, match="another type"):
            await register.join(A)
        assert await backing.ask("EXISTS", common_key(backing.url, "hosts")) == 0


@in_asyncio
async def test_a_lease_that_is_gone_is_no_holding(backing: RedisSharedBacking) -> None:
    """Nobody could be told who holds that shard: it is said, with its key."""
    await backing.ask("DEL", backing.lease(1))
    async with opened_register(backing) as register:
        with pytest.raises(StoreFailed, match=r"s1}:lease is gone"):
            await register.look()
        with pytest.raises(StoreRefused, match=r"s1}:lease is gone"):
            await register.hand(1, 0, A.address)


@in_asyncio
async def test_no_commit_of_an_older_owner_comes_after_the_next_one_has_loaded(backing: RedisSharedBacking) -> None:
    """However often shards change hands; `python -m tests.store.takeovers redis` does it 300 times."""
    figures = await take_over(backing, 30)

    assert (figures.takeovers, figures.fenced + figures.unknown, figures.wrong) == (30, 30, 0)


@in_asyncio
async def test_commits_that_look_at_the_lease_beforehand_would_be_found(backing: RedisSharedBacking) -> None:
    """The same with a planted fault."""
    with looking_first_in_redis():
        figures = await take_over(backing, 30)

    assert figures.wrong > 0


# --- preparing ---------------------------------------------------------------------------------------------------


@in_asyncio
async def test_several_hosts_may_prepare_a_new_place_at_once(redis_server: RedisPlace) -> None:
    """One makes it, and the others find it made; any time later it is none of their business."""
    url = redis_url(redis_server.url("new"))
    assert await asyncio.gather(*(prepare(url, 8, cluster=True) for _ in range(4))) == [None] * 4
    assert await prepared_shards(url) == 8


@in_asyncio
async def test_preparing_again_ends_no_owner(backing: RedisSharedBacking) -> None:
    """A host that starts disturbs none that works."""
    async with opened_register(backing) as register:
        await register.join(A)
        async with opened(backing.claimed(0, await hand_to(register, 0, A.address))) as store:
            assert await asyncio.gather(*(prepare(backing.url, SHARDS, cluster=True) for _ in range(4))) == [None] * 4
            await store.commit(inserting(make_row(1, queue=queue_of_shard(0))))


@in_asyncio
async def test_the_number_of_shards_is_fixed_while_hosts_are_registered(backing: RedisSharedBacking) -> None:
    """Another is refused, with the setting and what to write; once all hosts have left, it changes, nobody holds a shard, and no turn comes twice."""
    async with opened_register(backing) as register:
        await register.join(A)
        claim = await hand_to(register, 0, A.address)
        with pytest.raises(SettingError, match=rf"^shards: .* {SHARDS} shards.* --shards {SHARDS};.*{A.address}"):
            await prepare(backing.url, SHARDS + 1, cluster=True)
        assert await prepared_shards(backing.url) == SHARDS
        await register.leave(A.address)
        assert await prepare(backing.url, 2, cluster=True) is not None
    async with opened_register(backing) as register:
        holdings = (await register.look()).holdings

    assert [(holding.shard, holding.host, holding.turn) for holding in holdings] == [(0, "", claim.turn), (1, "", claim.turn)]


@in_asyncio
async def test_a_host_that_joins_during_a_move_ends_the_move(backing: RedisSharedBacking) -> None:
    """The last step of a move sees it; the shards stay as they are."""

    def joined(step: str) -> None:
        if step == "counted":
            apart(join)

    async def join() -> None:
        async with opened_register(backing) as register:
            await register.join(A)

    with pytest.raises(SettingError, match=r"^shards: "):
        await prepare(backing.url, 5, joined, cluster=True)
    assert await prepared_shards(backing.url) == SHARDS
    async with opened_register(backing) as register, opened(backing.claimed(0, await hand_to(register, 0, A.address))) as store:
        await store.commit(inserting(make_row(1, queue=queue_of_shard(0))))


@in_asyncio
async def test_a_register_of_before_a_move_says_so(backing: RedisSharedBacking) -> None:
    """It does not go on with shards that are no longer there."""
    async with opened_register(backing) as register:
        await prepare(backing.url, 5, cluster=True)
        with pytest.raises(StoreFailed, match="among 5 shards"):
            await register.look()
        with pytest.raises(StoreRefused, match="moved or removed"):
            await register.hand(0, 0, A.address)


@in_asyncio
async def test_a_server_alone_does_not_start_where_hosts_are_registered(backing: RedisSharedBacking) -> None:
    """It is told what to do instead, and nothing changes."""
    async with opened_register(backing) as register:
        await register.join(A)
        for shards in (SHARDS, 1):
            with pytest.raises(SettingError, match=rf"^cluster: .*{A.address}.*--cluster.*proteus-shards cluster forget"):
                await prepare(backing.url, shards)
        await register.leave(A.address)
        assert await prepare(backing.url, SHARDS) is None


@in_asyncio
async def test_a_cluster_starts_on_what_a_server_alone_has_left(backing: RedisSharedBacking) -> None:
    """Its rows are there, and its number of shards is changed, as no host is there yet."""
    row = make_row(1)
    await prepare(backing.url, 1)
    async with opened(RedisStore(backing.url, 0, 1)) as store:
        await store.commit(inserting(row))
    await prepare(backing.url, SHARDS, cluster=True)
    found = []
    async with opened_register(backing) as register:
        for shard in range(SHARDS):
            async with opened(backing.claimed(shard, await hand_to(register, shard, A.address))) as store:
                found += await load_all(store)

    assert found == [row]


@in_asyncio
async def test_the_doctor_names_hosts_and_holdings(backing: RedisSharedBacking) -> None:
    """What they are is for all stores to say alike."""
    async with opened_register(backing) as register:
        await register.join(A)
        await hand_to(register, 0, A.address)
        told = [finding.what for finding in [finding async for finding in examine(backing.url)]]

    assert [what for what in told if A.address in what or "no host" in what] == [
        f"host {A.address} (version 1.0) holds 1 shards",
        "2 shards are held by no host",
    ]
