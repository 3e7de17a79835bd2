"""The Redis store in a cluster of three nodes: the shared suite, and keys that move while a shard works on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from proteus_shards.errors import StoreError, StoreRefused
from proteus_shards.store.redis import RedisStore
from proteus_shards.store.redis_place import shard_keys
from tests.servers.redis import RedisCluster, RedisServer, binaries
from tests.store.backing import Backing
from tests.store.exercise_owners import OwnersExercise
from tests.store.exercise_records import RecordsExercise
from tests.store.exercise_rows import RowsExercise
from tests.store.redis_backing import RedisBacking, owning, redis_url
from tests.store.rows import in_asyncio, inserting, load_all, make_row


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Return a cluster of the newest server that there is."""
    started = RedisCluster(list(binaries().values())[-1], tmp_path_factory.mktemp("redis-cluster"))
    try:
        started.start()
        yield started
    finally:
        started.stop()


class TestRedisCluster(OwnersExercise, RecordsExercise, RowsExercise):
    """The shared suite, but for what the number of nodes is nothing to."""

    @pytest.fixture
    def new_backing(self, cluster: RedisCluster) -> Callable[[], Backing]:
        """Return a function that makes backings."""
        return lambda: RedisBacking(cluster)

    @pytest.fixture
    def backing(self, cluster: RedisCluster) -> Backing:
        """Return one backing."""
        return RedisBacking(cluster)


@in_asyncio
async def test_shards_are_on_several_nodes(cluster: RedisCluster) -> None:
    """Each has a hash tag of its own."""
    backing = RedisBacking(cluster)
    await backing.prepare(16)

    assert {cluster.node_of(shard_keys(backing.url, 2, shard).lease).port for shard in range(16)} == {node.port for node in cluster.nodes}


@in_asyncio
async def test_a_shard_follows_its_keys_to_another_node(cluster: RedisCluster) -> None:
    """While they are on the way the store refuses (two nodes have some of them each); afterwards it goes to where they are."""
    backing = RedisBacking(cluster)
    keys = backing.keys.all
    source = cluster.node_of(keys[0])
    target = next(node for node in cluster.nodes if node is not source)
    slot = source.ask("CLUSTER", "KEYSLOT", keys[0]).decode().strip(":\r\n")
    async with owning(backing.store()) as store:
        await store.commit(inserting(make_row(1)))
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(target))
        assert source.ask("MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", *keys).startswith(b"+OK")
        with pytest.raises(StoreRefused, match="the cluster is moving these keys"):
            await store.commit(inserting(make_row(2)))
        await store.reopen()
        for node in cluster.nodes:
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", node_id(target))
        await store.commit(inserting(make_row(3)))
        assert await load_all(store) == [make_row(1), make_row(3)]
        assert store._wire.node == ("127.0.0.1", target.port)


def node_id(node: RedisServer) -> str:
    """Return the name that a node has in its cluster."""
    return node.ask("CLUSTER", "MYID").split(b"\r\n")[1].decode()


@in_asyncio
async def test_a_shard_finds_its_node_though_the_one_of_the_url_is_gone(cluster: RedisCluster) -> None:
    """It has learnt of the others when it was opened."""
    backing = RedisBacking(cluster)
    async with owning(backing.store()) as store:
        store._wire.node = None
        assert len(store._wire._seeds) == 3
        store._wire._seeds = [("127.0.0.1", 1), *store._wire._seeds[1:]]
        await store.reopen()
        await store.commit(inserting(make_row(1)))


@in_asyncio
async def test_a_cluster_and_a_single_server_are_not_taken_for_each_other(cluster: RedisCluster) -> None:
    """For good: the URL says which it is."""
    alone = redis_url(cluster.nodes[0].url("alone"))
    store = RedisStore(alone, 0, None)
    with pytest.raises(StoreError, match="add the option cluster=yes") as raised:
        await store.open()
    await store.close()

    assert not isinstance(raised.value, StoreRefused)
