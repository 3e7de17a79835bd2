"""What each trouble of a Postgres server, or of the way to it, means for the rows: provoked for real, one at a time."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from proteus_shards.core.model import Batch
from proteus_shards.errors import StoreError, StoreFailed, StorePermanent, StoreRefused, StoreUnknown
from proteus_shards.store.postgres import PostgresStore, store_of_shard
from proteus_shards.store.postgres_errors import Doing, StandbyMet, fault_of
from proteus_shards.store.postgres_session import session
from proteus_shards.store.postgres_url import PostgresUrl
from tests.servers.postgres import NOBODY, PostgresPlace, PostgresServer
from tests.store.postgres_backing import PostgresBacking, Way, number_of, until, way_to
from tests.store.rows import as_dict, deleting, in_asyncio, inserting, key_of, load_all, make_record, make_row, opened, record_key_of

SECRET = "geheim-17"


@pytest.fixture
def backing(postgres_server: PostgresPlace) -> PostgresBacking:
    """Return a schema."""
    return PostgresBacking(postgres_server)


async def outcome_of(store: PostgresStore, batch: Batch) -> StoreError | None:
    """Commit, and return what it raised."""
    error: StoreError | None = None
    try:
        await store.commit(batch)
    except StoreError as raised:
        error = raised
    assert error is None or SECRET not in str(error) + repr(error.__cause__)
    return error


# --- what the server answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("40001", StoreRefused),
        ("40P01", StoreRefused),
        ("53000", StoreRefused),
        ("53100", StoreRefused),
        ("53200", StoreRefused),
        ("53300", StoreRefused),
        ("55P03", StoreRefused),
        ("57014", StoreRefused),
        ("58030", StoreRefused),
        ("25006", StoreRefused),
        ("42501", StoreRefused),
        ("22021", StorePermanent),
        ("22001", StorePermanent),
        ("23502", StorePermanent),
        ("23514", StorePermanent),
        ("54000", StorePermanent),
        ("08006", StoreUnknown),
        ("23505", StoreFailed),
        ("42P01", StoreFailed),
        ("42703", StoreFailed),
        ("XX000", StoreFailed),
        ("XX001", StoreFailed),
        ("P0001", StoreFailed),
    ],
)
@in_asyncio
async def test_each_state_means_one_thing(backing: PostgresBacking, state: str, expected: type[StoreError]) -> None:
    """No message repeats a word of the server's, and nothing of the batch is there."""
    await backing.before_each_insert(f"RAISE EXCEPTION '{SECRET}' USING ERRCODE = '{state}', DETAIL = '{SECRET}', HINT = '{SECRET}'")
    async with opened(backing.store()) as store:
        assert isinstance(store, PostgresStore)
        outcome = await outcome_of(store, inserting(make_row(1)))
        assert type(outcome) is expected
        assert state in str(outcome) or state == "23505"
        await store.reopen()
        assert await load_all(store) == []


@pytest.mark.parametrize(
    "changes",
    [{"slot": 2000}, {"slot": 2**40}, {"timeout": 2**31}, {"attempt": 2**63}, {"payload": "text"}, {"id": "\ud800"}, {"queue": "a\0b"}],
    ids=str,
)
@in_asyncio
async def test_a_value_that_does_not_fit_is_refused_for_good(backing: PostgresBacking, changes: dict[str, Any]) -> None:
    """Whether the driver says so or the server; the store goes on."""
    async with opened(backing.store()) as store:
        assert isinstance(store, PostgresStore)
        outcome = await outcome_of(store, inserting(make_row(1, **({"reason": SECRET} | changes))))
        assert type(outcome) is StorePermanent
        await store.commit(inserting(make_row(2)))


@in_asyncio
async def test_a_lock_that_is_held_too_long_refuses(postgres_server: PostgresPlace) -> None:
    """It is waited for less long than for an answer, so that the outcome is known."""
    backing = PostgresBacking(postgres_server, timeout="1.5")
    async with opened(backing.store()) as store, session(backing.url, Doing.READING) as other:
        assert isinstance(store, PostgresStore)
        async with other.transaction():
            await other.execute("LOCK TABLE job")
            assert "55P03" in str(await outcome_of(store, inserting(make_row(1))))
        await store.commit(inserting(make_row(1)))


@in_asyncio
async def test_a_statement_that_takes_too_long_is_ended_by_the_server(postgres_server: PostgresPlace) -> None:
    """A little before this side gives up: nothing is in doubt."""
    backing = PostgresBacking(postgres_server, timeout="1")
    await backing.before_each_insert("PERFORM pg_sleep(60)")
    async with opened(backing.store()) as store:
        assert isinstance(store, PostgresStore)
        outcome = await outcome_of(store, inserting(make_row(1)))
        assert type(outcome) is StoreRefused
        assert "57014" in str(outcome)


@in_asyncio
async def test_a_session_that_is_ended_in_the_middle_of_a_commit_leaves_it_unknown(backing: PostgresBacking) -> None:
    """FATAL may come when all was done; reading back tells."""
    await backing.before_each_insert("PERFORM pg_sleep(60)")
    async with opened(backing.store()) as store:
        assert isinstance(store, PostgresStore)
        pid = number_of(store)
        committing = asyncio.ensure_future(outcome_of(store, inserting(make_row(1))))
        await until(backing.url, "wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $1", pid)
        await backing.run("SELECT pg_terminate_backend($1)", pid)
        assert type(await committing) is StoreUnknown
        await store.reopen()
        assert await store.read([key_of(make_row(1))]) == {}


@in_asyncio
async def test_a_session_that_was_lost_between_commits_refuses(backing: PostgresBacking) -> None:
    """Nothing was under way, and so nothing is in doubt."""
    async with opened(backing.store()) as store:
        assert isinstance(store, PostgresStore)
        connection = store._connection
        await backing.run("SELECT pg_terminate_backend($1)", number_of(store))
        async with asyncio.timeout(20):
            while not connection.is_closed():
                await asyncio.sleep(0.01)
        assert type(await outcome_of(store, inserting(make_row(1)))) is StoreRefused
        await store.reopen()
        await store.commit(inserting(make_row(1)))


@in_asyncio
async def test_a_server_that_became_read_only_refuses(backing: PostgresBacking) -> None:
    """As a primary that was demoted does."""
    async with opened(backing.store()) as store:
        assert isinstance(store, PostgresStore)
        await store._connection.execute("SET default_transaction_read_only = on")
        outcome = await outcome_of(store, inserting(make_row(1)))
        assert type(outcome) is StoreRefused
        assert "25006" in str(outcome)


@pytest.mark.parametrize("statement", ["ALTER TABLE job DROP COLUMN state", "DROP TABLE job"])
@in_asyncio
async def test_a_table_that_was_changed_fails_the_store(backing: PostgresBacking, statement: str) -> None:
    """Memory is not what is stored there."""
    async with opened(backing.store()) as store:
        assert isinstance(store, PostgresStore)
        await backing.run(statement)
        assert type(await outcome_of(store, inserting(make_row(1)))) is StoreFailed


# --- logging in --------------------------------------------------------------------------------------------------


async def make_user(backing: PostgresBacking, options: str, *privileges: str) -> PostgresUrl:
    """Make a user, and return the URL of the schema for that user."""
    user = f"user-{uuid4()}"
    await backing.run(f"CREATE ROLE \"{user}\" LOGIN PASSWORD '{SECRET}' {options}")
    await backing.run(f'GRANT USAGE ON SCHEMA "{backing.url.schema}" TO "{user}"')
    for privilege in privileges:
        await backing.run(f'GRANT {privilege} ON ALL TABLES IN SCHEMA "{backing.url.schema}" TO "{user}"')
    return msgspec.structs.replace(backing.url, user=user, password=SECRET)


@in_asyncio
async def test_a_server_without_a_free_connection_is_away(backing: PostgresBacking) -> None:
    """And takes the rows' owner when there is one again."""
    url = await make_user(backing, "CONNECTION LIMIT 1", "ALL")
    store, other = store_of_shard(url, 0, 1), store_of_shard(url, 0, 1)
    await store.open()
    with pytest.raises(StoreRefused, match="53300"):
        await other.open()
    await store.close()
    await until(backing.url, "count(*) = 0 FROM pg_stat_activity WHERE usename = $1", url.user)
    await other.open()
    await other.close()


@in_asyncio
async def test_a_privilege_that_is_taken_away_refuses_until_it_is_back(backing: PostgresBacking) -> None:
    """A restart would not help, and nothing is lost by waiting."""
    url = await make_user(backing, "", "ALL")
    async with opened(store_of_shard(url, 0, 1)) as store:
        assert isinstance(store, PostgresStore)
        await backing.run(f'REVOKE INSERT ON job FROM "{url.user}"')
        outcome = await outcome_of(store, inserting(make_row(1)))
        assert type(outcome) is StoreRefused
        await backing.run(f'GRANT INSERT ON job TO "{url.user}"')
        await store.reopen()
        await store.commit(inserting(make_row(1)))


@pytest.mark.parametrize(
    ("changes", "state"), [({"database": "no such"}, "3D000"), ({"user": "no such"}, "28000")], ids=["database", "user"]
)
@in_asyncio
async def test_a_wrong_setting_is_told_at_once(backing: PostgresBacking, changes: dict[str, str], state: str) -> None:
    """No retry would mend it, and no message holds the password."""
    store = store_of_shard(msgspec.structs.replace(backing.url, password=SECRET, **changes), 0, 1)
    with pytest.raises(StoreError, match=state) as raised:
        await store.open()
    await store.close()

    assert type(raised.value) is StoreError
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(("port", "told"), [(1, "connection failed")], ids=["closed port"])
@in_asyncio
async def test_a_server_that_is_not_there_is_away(port: int, told: str) -> None:
    """It may come."""
    store = store_of_shard(PostgresUrl(hosts=(("127.0.0.1", port),), password=SECRET), 0, 1)
    with pytest.raises(StoreRefused, match=told) as raised:
        await store.open()
    await store.close()

    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "doing", "expected"),
    [
        (TimeoutError(), Doing.COMMITTING, StoreUnknown),
        (TimeoutError(), Doing.READING, StoreRefused),
        (ConnectionResetError(104, "reset"), Doing.COMMITTING, StoreUnknown),
        (asyncpg.ConnectionDoesNotExistError(SECRET), Doing.COMMITTING, StoreUnknown),
        (asyncpg.ConnectionDoesNotExistError(SECRET), Doing.READING, StoreRefused),
        (asyncpg.InterfaceError(SECRET), Doing.COMMITTING, StoreUnknown),
        (asyncpg.InternalClientError(SECRET), Doing.COMMITTING, StoreUnknown),
        (asyncpg.InternalClientError(SECRET), Doing.READING, StoreRefused),
        (asyncpg.UnsupportedClientFeatureError(SECRET), Doing.COMMITTING, StoreFailed),
        (asyncpg.TargetServerAttributeNotMatched(SECRET), Doing.OPENING, StandbyMet),
        (asyncpg.CannotConnectNowError(SECRET), Doing.OPENING, StoreRefused),
        (asyncpg.InvalidPasswordError(SECRET), Doing.OPENING, StoreError),
        (asyncpg.InvalidPasswordError(SECRET), Doing.READING, StoreRefused),
        (asyncpg.ClientConfigurationError(SECRET), Doing.OPENING, StoreError),
        (asyncpg.InvalidCachedStatementError(SECRET), Doing.COMMITTING, StoreRefused),
    ],
    ids=lambda value: value.name if isinstance(value, Doing) else type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_cannot_easily_be_provoked_has_its_meaning_too(error: Exception, doing: Doing, expected: type[StoreError]) -> None:
    """By the class of the error and what was under way."""
    fault = fault_of(error, doing)

    assert type(fault) is expected
    assert SECRET not in str(fault)


def test_a_bug_is_raised_on() -> None:
    """It is no store's trouble."""
    with pytest.raises(ZeroDivisionError):
        fault_of(ZeroDivisionError(), Doing.COMMITTING)


# --- the way there -----------------------------------------------------------------------------------------------


def by_way_of(url: PostgresUrl, way: Way, seconds: float = 1.0) -> PostgresUrl:
    """Return the URL through a proxy, with little patience."""
    return msgspec.structs.replace(url, hosts=(("127.0.0.1", way.port),), timeout_seconds=seconds, connect_timeout_seconds=seconds / 2)


@pytest.mark.parametrize(("trouble", "written"), [("lose request", False), ("lose answer", True), ("hang", True)])
@in_asyncio
async def test_a_commit_without_an_answer_is_unknown_and_then_read_back(backing: PostgresBacking, trouble: str, written: bool) -> None:
    """Whether the request was lost, or its answer, or nothing comes at all; row and record are there once or not at all."""
    row, kept = make_row(1), make_row(2)
    old, new = make_record("a", b"old"), make_record("a", b"new")
    async with way_to(backing.url) as way, opened(store_of_shard(by_way_of(backing.url, way), 0, 1)) as store:
        assert isinstance(store, PostgresStore)
        await store.commit(Batch([], [kept], [], [old]))
        way.trouble = trouble
        assert type(await outcome_of(store, Batch([], [row], [], [new]))) is StoreUnknown
        if trouble == "hang":
            with pytest.raises(StoreRefused):
                await store.reopen()
        way.trouble = ""
        epoch = await store.reopen()
        assert await store.read([key_of(row)]) == ({key_of(row): row} if written else {})
        assert await store.read_records([record_key_of(old)]) == as_dict(new if written else old)
        await store.commit(deleting(kept))
        assert await load_all(store) == [row] * written
        assert await backing.run("SELECT epoch FROM lease") == [(epoch,)]


@in_asyncio
async def test_a_read_without_an_answer_refuses(backing: PostgresBacking) -> None:
    """It may be asked again, after reopening."""
    async with way_to(backing.url) as way, opened(store_of_shard(by_way_of(backing.url, way), 0, 1)) as store:
        await store.commit(inserting(make_row(1)))
        way.trouble = "hang"
        with pytest.raises(StoreRefused):
            await store.read([key_of(make_row(1))])
        way.trouble = ""
        await store.reopen()
        assert len(await store.read([key_of(make_row(1))])) == 1


@in_asyncio
async def test_an_epoch_that_was_taken_without_an_answer_is_our_own(backing: PostgresBacking) -> None:
    """A reopen that did not come back must not make the next one believe in another owner."""
    async with way_to(backing.url) as way, opened(store_of_shard(by_way_of(backing.url, way), 0, 1)) as store:
        await backing.run("UPDATE lease SET epoch = epoch + 1")  # as that reopen did
        before = await backing.run("SELECT epoch FROM lease")
        epoch = await store.reopen()
        await store.commit(inserting(make_row(1)))

        assert before == [(epoch - 1,)]


# --- the server --------------------------------------------------------------------------------------------------


@in_asyncio
async def test_a_server_that_is_killed_and_started_again_has_what_was_acknowledged(own_postgres: PostgresServer) -> None:
    """In between it is away, and afterwards the store goes on without being made anew."""
    backing = PostgresBacking(own_postgres, timeout="2")
    acknowledged = []
    async with opened(backing.store()) as store:
        assert isinstance(store, PostgresStore)

        async def write() -> StoreError:
            for seq in range(1_000_000):
                if (outcome := await outcome_of(store, inserting(make_row(seq)))) is not None:
                    return outcome
                acknowledged.append(make_row(seq))
            raise AssertionError

        writing = asyncio.ensure_future(write())
        await until(backing.url, "count(*) > 20 FROM job")
        own_postgres.kill()
        assert isinstance(await writing, StoreUnknown | StoreRefused)
        with pytest.raises(StoreRefused):
            await store.reopen()
        own_postgres.start()
        await store.reopen()
        doubtful = make_row(len(acknowledged))
        found = await store.read([key_of(doubtful)])
        await store.commit(inserting(make_row(10**9)))
        assert await load_all(store) == [*acknowledged, *found.values(), make_row(10**9)]


@in_asyncio
async def test_a_server_that_stands_still_is_away_within_the_time_of_the_url(own_postgres: PostgresServer) -> None:
    """A commit, a reopen and an open end; when it goes on, so does the store."""
    backing = PostgresBacking(own_postgres, timeout="1", connect_timeout="0.5")
    async with opened(backing.store()) as store:
        assert isinstance(store, PostgresStore)
        own_postgres.pause()
        try:
            async with asyncio.timeout(10):
                assert type(await outcome_of(store, inserting(make_row(1)))) is StoreUnknown
                for _ in range(2):
                    with pytest.raises(StoreRefused):
                        await store.reopen()
        finally:
            own_postgres.resume()
        await store.reopen()
        assert set(await store.read([key_of(make_row(1))])) <= {key_of(make_row(1))}
        await store.commit(inserting(make_row(2)))


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """Return a folder with room for 3 MB that a server run by the tests can write to."""
    folder = Path("/tmp") / f"proteus-small-disk-{uuid4()}"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=False, capture_output=True)
    try:
        if mounted.returncode:
            pytest.skip("a file system may not be mounted here")
        os.chown(folder, NOBODY, NOBODY)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)
        folder.rmdir()


@in_asyncio
async def test_a_full_disk_refuses_and_heals_when_there_is_room(own_postgres: PostgresServer, small_disk: Path) -> None:
    """What was acknowledged stays, what was refused is nowhere, and nothing need be started anew."""
    backing = PostgresBacking(own_postgres)
    await backing.run(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    await backing.run("ALTER TABLE job SET TABLESPACE small")
    rows = [make_row(seq, payload=os.urandom(200_000)) for seq in range(40)]
    acknowledged = []
    async with opened(backing.store()) as store:
        assert isinstance(store, PostgresStore)
        for row in rows:
            if (outcome := await outcome_of(store, inserting(row))) is not None:
                break
            acknowledged.append(row)
        assert type(outcome) is StoreRefused
        assert "53100" in str(outcome)
        await store.reopen()
        assert await load_all(store) == acknowledged
        await store.commit(deleting(acknowledged[0]))
        await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
        await store.reopen()
        await store.commit(inserting(*rows[len(acknowledged) :]))
        assert await load_all(store) == rows[1:]
