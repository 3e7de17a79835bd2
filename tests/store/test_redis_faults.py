"""What each trouble of a real Redis server is told as, and what is in the store afterwards."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

import pytest
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as LostError

from proteus_shards.errors import StoreError, StoreFailed, StoreFenced, StoreRefused, StoreUnknown
from proteus_shards.store.contract import Durability
from proteus_shards.store.redis import RedisStore
from proteus_shards.store.redis_errors import ServerSaid, Unanswered, code_of, fault_of
from tests.conftest import eventually
from tests.servers.redis import RedisServer, StartRedis
from tests.store.redis_backing import RedisBacking, outcome_of, owning, redis_url
from tests.store.rows import deleting, in_asyncio, inserting, key_of, load_all, make_row

# --- a server that does not take it now --------------------------------------------------------------------------


@in_asyncio
async def test_a_replica_takes_nothing_and_the_store_heals_once_it_is_the_primary_again(start_redis: StartRedis) -> None:
    """READONLY is a refusal, and nothing is written."""
    server = start_redis()
    backing = RedisBacking(server)
    async with owning(backing.store()) as store:
        await store.commit(inserting(make_row(1)))
        server.ask("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StoreRefused, match="replica"):
            await store.commit(inserting(make_row(2)))
        with pytest.raises(StoreRefused, match="replica"):
            await store.reopen()
        server.ask("REPLICAOF", "NO", "ONE")
        await store.reopen()
        await store.commit(inserting(make_row(2)))
        assert await load_all(store) == [make_row(1), make_row(2)]


@in_asyncio
async def test_a_server_that_lacks_replicas_refuses(start_redis: StartRedis) -> None:
    """NOREPLICAS comes before anything is written; Redis 6 does not ask for replicas where a script writes."""
    server = start_redis(min_replicas_to_write="1")
    if server.major < 7:
        pytest.skip("scripts are not asked for replicas before Redis 7")
    server.ask("CONFIG", "SET", "min-replicas-to-write", "0")
    backing = RedisBacking(server)
    async with owning(backing.store()) as store:
        server.ask("CONFIG", "SET", "min-replicas-to-write", "1")
        with pytest.raises(StoreRefused, match="too few replicas"):
            await store.commit(inserting(make_row(1)))
        server.ask("CONFIG", "SET", "min-replicas-to-write", "0")
        assert await load_all(store) == []


@in_asyncio
async def test_a_server_that_cannot_save_refuses(start_redis: StartRedis) -> None:
    """MISCONF comes before anything is written."""
    server = start_redis()
    backing = RedisBacking(server)
    async with owning(backing.store()) as store:
        server.ask("CONFIG", "SET", "save", "3600 1")
        (server.folder / "dump.rdb").mkdir()  # where the snapshot is to be
        server.ask("BGSAVE")
        eventually(lambda: b"rdb_last_bgsave_status:err" in server.ask("INFO", "persistence"))
        with pytest.raises(StoreRefused, match="MISCONF"):
            await store.commit(inserting(make_row(1)))
        server.ask("CONFIG", "SET", "save", "")  # with it, the server would not stop until it has saved
        server.ask("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
        await store.commit(inserting(make_row(2)))
        assert await load_all(store) == [make_row(2)]


@in_asyncio
async def test_a_server_that_loads_its_data_refuses_and_then_has_it_all(start_redis: StartRedis) -> None:
    """The store heals once it has loaded."""
    server = start_redis()
    backing = RedisBacking(server)
    async with owning(backing.store()) as store:
        await store.commit(inserting(make_row(1)))
        for number in range(30):
            server.ask("EVAL", "for i = 1, 100 do redis.call('SET', 'filler' .. (ARGV[1] * 100 + i), 'x') end", "0", str(number))
        server.kill()
        server.settings["key-load-delay"] = "700"  # µs for each
        server.launch()
        eventually(lambda: loading(server) is True)
        with pytest.raises(StoreRefused, match=r"loading|no answer|no connection"):
            await store.reopen()
        eventually(lambda: loading(server) is False)
        await store.reopen()
        assert await store.read([key_of(make_row(1))]) == {key_of(make_row(1)): make_row(1)}


def loading(server: RedisServer) -> bool | None:
    """Say whether a server is loading its data; None: it does not answer."""
    try:
        return b"LOADING" in server.ask("GET", "filler1")
    except OSError:
        return None


@in_asyncio
async def test_a_server_busy_with_a_script_refuses(start_redis: StartRedis) -> None:
    """BUSY: nothing was run of ours."""
    server = start_redis(lua_time_limit="10")
    backing = RedisBacking(server)
    async with owning(backing.store()) as store:
        looping = asyncio.create_task(asyncio.to_thread(server.ask, "EVAL", "while true do end", "0"))
        while b"BUSY" not in await asyncio.to_thread(server.ask, "GET", "x"):
            await asyncio.sleep(0)
        with pytest.raises(StoreRefused, match="another script"):
            await store.commit(inserting(make_row(1)))
        await asyncio.to_thread(server.ask, "SCRIPT", "KILL")
        await looping
        await store.commit(inserting(make_row(1)))


@in_asyncio
async def test_a_script_that_the_server_forgot_is_brought_along(start_redis: StartRedis) -> None:
    """NOSCRIPT is no outage."""
    server = start_redis()
    backing = RedisBacking(server)
    async with owning(backing.store()) as store:
        for seq in (1, 2):
            server.ask("SCRIPT", "FLUSH")
            await store.commit(inserting(make_row(seq)))
        assert await load_all(store) == [make_row(1), make_row(2)]


# --- who may, and how it is kept ---------------------------------------------------------------------------------


@in_asyncio
async def test_no_password_and_a_wrong_one_are_refused_for_good_and_never_repeated(start_redis: StartRedis) -> None:
    """Neither in a message nor in what Python shows of the URL."""
    server = start_redis(requirepass="s3cret/+?")
    right = RedisBacking(server)
    async with owning(right.store()) as store:
        await store.commit(inserting(make_row(1)))
    server.password = "wr0ng"
    wrong = redis_url(server.url(right.url.prefix))
    server.password = ""
    missing = redis_url(server.url(right.url.prefix))
    told = [repr(right.url), str(wrong)]
    for url in (wrong, missing):
        store = RedisStore(url, 0, 1)
        with pytest.raises(StoreError, match="password") as raised:
            await store.open()
        await store.close()
        assert not isinstance(raised.value, StoreRefused)
        told += [str(raised.value), repr(raised.value.__cause__), repr(store._wire)]

    assert not [text for text in told if "wr0ng" in text or "s3cret" in text]


@pytest.mark.parametrize(
    ("settings", "durability", "told"),
    [
        ({"appendfsync": "everysec"}, Durability.WEAK, "appendfsync=everysec"),
        ({"appendonly": "no"}, Durability.WEAK, "no append-only file"),
        ({"no_appendfsync_on_rewrite": "yes"}, Durability.WEAK, "not synced during a rewrite"),
        ({"user": "default on nopass ~* &* +@all -config"}, Durability.WEAK, "CONFIG may not be read"),
    ],
    ids=["everysec", "no-aof", "rewrite", "no-config"],
)
@in_asyncio
async def test_what_is_not_synced_at_each_commit_is_weak(
    start_redis: StartRedis, settings: dict[str, Any], durability: Durability, told: str
) -> None:
    """And so is what may not be known; the terms say which it is."""
    backing = RedisBacking(start_redis(**settings))
    async with owning(backing.store()) as store:
        assert store.durability is durability
        assert told in store.terms


@in_asyncio
async def test_too_few_replicas_are_an_unknown_outcome(start_redis: StartRedis) -> None:
    """The batch is written, but not where it should be; with a replica there the commit is confirmed."""
    primary = start_redis()
    backing = RedisBacking(primary, wait_replicas="1", timeout="1")
    async with owning(backing.store()) as store:
        with pytest.raises(StoreUnknown, match="0 of 1 replicas"):
            await store.commit(inserting(make_row(1)))
        await store.reopen()
        assert await store.read([key_of(make_row(1))]) == {key_of(make_row(1)): make_row(1)}
        replica = start_redis(replicaof=f"127.0.0.1 {primary.port}")
        eventually(lambda: b"master_link_status:up" in replica.ask("INFO", "replication"))
        eventually(lambda: b"state=online" in primary.ask("INFO", "replication"))
        assert await eventually_confirmed(store)


async def eventually_confirmed(store: RedisStore) -> bool:
    """Commit until a replica has it: one that has just come may still be busy."""
    for seq in range(10, 20):
        if await outcome_of(store.commit(inserting(make_row(seq)))) is None:
            return True
        await store.reopen()
    return False


# --- a server that goes away -------------------------------------------------------------------------------------


@in_asyncio
async def test_what_was_acknowledged_survives_the_death_of_the_server(start_redis: StartRedis) -> None:
    """The next commit says that nothing was written, or that it is unknown; after reopen the store goes on under a new epoch."""
    server = start_redis()
    backing = RedisBacking(server)
    async with owning(backing.store()) as store:
        await store.commit(inserting(make_row(1)))
        server.kill()
        assert await outcome_of(store.commit(inserting(make_row(2)))) in {StoreRefused, StoreUnknown}
        assert await outcome_of(store.commit(inserting(make_row(2)))) is StoreRefused
        assert await outcome_of(store.reopen()) is StoreRefused
        server.start()
        assert await store.reopen() == 2
        await store.commit(inserting(make_row(3)))
        assert await load_all(store) == [make_row(1), make_row(3)]


@in_asyncio
async def test_a_batch_that_was_cut_in_the_middle_is_not_written(start_redis: StartRedis) -> None:
    """Half of it was sent when the connection was lost: the outcome is unknown, and reading tells that nothing of it is there."""
    server = start_redis()
    backing = RedisBacking(server)
    large = [make_row(seq, payload=bytes(1_000_000)) for seq in range(10, 20)]
    async with owning(backing.store()) as store:
        await store.commit(inserting(make_row(1)))
        server.pause()
        cut = asyncio.create_task(outcome_of(store.commit(inserting(*large))))
        await asyncio.sleep(0)
        store._wire._connection._writer.transport.abort()
        assert await cut is StoreUnknown
        server.resume()
        await store.reopen()
        assert await store.read([key_of(row) for row in large]) == {}
        await store.commit(inserting(*large))
        assert await load_all(store) == [make_row(1), *large]


@in_asyncio
async def test_an_idle_connection_that_the_server_closed_is_made_anew(start_redis: StartRedis) -> None:
    """No job pays for it."""
    server = start_redis()
    backing = RedisBacking(server)
    async with owning(backing.store()) as store:
        await store.commit(inserting(make_row(1)))
        assert store._wire.usable
        server.ask("CLIENT", "KILL", "TYPE", "normal")
        while store._wire.usable:
            await asyncio.sleep(0)
        await store.commit(inserting(make_row(2)))
        assert await load_all(store) == [make_row(1), make_row(2)]


@in_asyncio
async def test_a_hanging_server_costs_no_more_than_the_timeout(start_redis: StartRedis) -> None:
    """A commit is then unknown, a reopen refused; once it goes on, what was sent is fenced or written, and reading tells which."""
    server = start_redis()
    backing = RedisBacking(server, timeout="0.3", connect_timeout="0.3")
    async with owning(backing.store()) as store:
        await store.commit(inserting(make_row(1)))
        server.pause()
        with pytest.raises(StoreUnknown, match=r"0\.3 s"):
            await store.commit(inserting(make_row(2)))
        for _ in range(2):
            with pytest.raises(StoreRefused, match=r"0\.3 s"):
                await store.reopen()
        server.resume()
        await store.reopen()
        truth = await store.read([key_of(make_row(2))])
        await store.commit(deleting(make_row(1)))
        assert await load_all(store) == list(truth.values())


@in_asyncio
async def test_a_server_that_comes_back_older_than_it_was_ends_the_owner(start_redis: StartRedis) -> None:
    """Here its files are those of an earlier time. Memory would hold jobs that are in no store."""
    server = start_redis()
    backing = RedisBacking(server)
    async with owning(backing.store()) as store:
        await store.commit(inserting(make_row(1)))
        older = server.folder.with_name("older")
        shutil.copytree(server.folder, older)
        await store.commit(inserting(make_row(2)))
        server.kill()
        shutil.rmtree(server.folder)
        shutil.copytree(older, server.folder)
        server.start()
        with pytest.raises(StoreFailed, match="older than it was"):
            await store.reopen()
    async with owning(backing.store()) as store:
        assert await load_all(store) == [make_row(1)]


@in_asyncio
async def test_a_server_that_keeps_nothing_comes_back_without_the_shard(start_redis: StartRedis) -> None:
    """The owner ends, instead of filling an empty store with half of what was."""
    server = start_redis(appendonly="no")
    backing = RedisBacking(server)
    async with owning(backing.store()) as store:
        await store.commit(inserting(make_row(1)))
        server.kill()
        server.start()
        with pytest.raises(StoreFenced):
            await store.reopen()


@in_asyncio
async def test_a_commit_whose_answer_never_came_is_told_by_reading(start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written or not: after reopen it is what it is."""
    import proteus_shards.store.redis_wire as wire_module

    server = start_redis()
    backing = RedisBacking(server)
    real = wire_module._answer

    async def lost(connection: Any) -> Any:
        await real(connection)
        raise OSError("the answer is lost")

    async with owning(backing.store()) as store:
        monkeypatch.setattr(wire_module, "_answer", lost)
        with pytest.raises(StoreUnknown) as raised:
            await store.commit(inserting(make_row(1)))
        monkeypatch.undo()
        await store.reopen()
        assert await store.read([key_of(make_row(1))]) == {key_of(make_row(1)): make_row(1)}
        await store.commit(deleting(make_row(1)))

    assert isinstance(raised.value.__cause__, Unanswered)


@pytest.mark.parametrize(
    ("error", "code", "fault"),
    [
        (ResponseError("MISCONF Redis is configured to save RDB snapshots"), "MISCONF", StoreRefused),
        (
            ResponseError("Error running script (call to f_0): @user_script:1: @user_script: 1: -READONLY You can't"),
            "READONLY",
            StoreRefused,
        ),
        (ResponseError("Error running script (call to f_0): @user_script:1: WRONGTYPE Operation against a key"), "WRONGTYPE", StoreFailed),
        (ResponseError("max number of clients reached"), "MAXCLIENTS", StoreRefused),
        (ResponseError("unknown command 'EVALSHA', with args beginning with: 'LOADING'"), "ERR", StoreUnknown),
        (ResponseError("SURPRISE of a later version"), "SURPRISE", StoreUnknown),
        (AuthenticationError("Authentication required."), "NOAUTH", StoreRefused),
        (AuthenticationError("invalid username-password pair or user is disabled."), "WRONGPASS", StoreRefused),
        (LostError("Error while reading"), None, None),
    ],
)
def test_what_an_answer_means_is_told_by_its_first_word(error: RedisError, code: str | None, fault: type[StoreError] | None) -> None:
    """Or by one that is known, behind the sentence of Redis 6 about scripts. What nobody has foreseen is not trusted to have written nothing."""
    assert code_of(error) == code
    if code is not None:
        told = fault_of(ServerSaid(code), "redis here", committing=True)
        assert type(told) is fault
        assert str(error) not in str(told)
