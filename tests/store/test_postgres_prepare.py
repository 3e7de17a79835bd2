"""Making a schema of Postgres ready, by whom, and how often."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from uuid import uuid4

import msgspec
import pytest

from proteus_shards.core.model import Batch
from proteus_shards.errors import StoreError
from proteus_shards.store.postgres import store_of_shard
from proteus_shards.store.postgres_doctor import examine
from proteus_shards.store.postgres_prepare import prepare, prepared_shards
from proteus_shards.store.postgres_url import PostgresUrl
from tests.conftest import StartServer, server_environ
from tests.servers.postgres import PostgresPlace
from tests.store.postgres_backing import PostgresBacking, execute, postgres_url
from tests.store.rows import in_asyncio, make_record, make_row, opened

TABLES = "SELECT relname::text FROM pg_class WHERE relnamespace = $1::text::regnamespace AND relkind = 'r' ORDER BY 1"


@pytest.fixture
def text(postgres_server: PostgresPlace) -> str:
    """Return the URL of a schema that there is not yet."""
    return postgres_server.url(f'test "{uuid4()}"')


@pytest.fixture
def url(text: str) -> PostgresUrl:
    """Return what it means."""
    return postgres_url(text)


@in_asyncio
async def test_preparing_twice_is_preparing_once(url: PostgresUrl) -> None:
    """Nothing is said and nothing written the second time."""
    assert await prepared_shards(url) is None
    assert await prepare(url, 2) is None
    before = await execute(url, "SELECT xmin, * FROM lease")
    assert await prepare(url, 2) is None

    assert await prepared_shards(url) == 2
    assert await execute(url, "SELECT xmin, * FROM lease") == before


@in_asyncio
async def test_asking_for_the_number_makes_nothing(url: PostgresUrl) -> None:
    """Not even the schema."""
    assert await prepared_shards(url) is None
    assert await execute(url, "SELECT FROM pg_namespace WHERE nspname = $1", url.schema) == []


def test_several_hosts_may_start_at_once(text: str, url: PostgresUrl) -> None:
    """One makes the tables, the others find them."""
    code = "import asyncio, sys; from proteus_shards.store.registry import prepare_store; asyncio.run(prepare_store(sys.argv[1], 3))"
    command = [sys.executable, "-c", code, text]
    processes = [subprocess.Popen(command, env=server_environ({}), stderr=subprocess.PIPE, text=True) for _ in range(5)]

    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 5
    assert asyncio.run(prepared_shards(url)) == 3


@in_asyncio
async def test_many_change_the_number_at_once(url: PostgresUrl) -> None:
    """Each waits for the others; the last one's number stays, and the epochs only rise."""
    await prepare(url, 1)
    async with opened(store_of_shard(url, 0, 1)) as store:
        epoch = await store.reopen()
    said = await asyncio.gather(*(prepare(url, number) for number in (2, 3, 4, 5)))
    ((least, leases),) = await execute(url, "SELECT min(epoch), count(*) FROM lease")

    assert all(said)
    assert f"made ready for {await prepared_shards(url)} shards" in " ".join(map(str, said))
    assert least == epoch + 4 or leases < 5
    assert least > epoch


@in_asyncio
async def test_the_number_changes_although_an_owner_is_stuck(postgres_server: PostgresPlace) -> None:
    """Its session is ended."""
    backing = PostgresBacking(postgres_server)
    store = backing.store()
    await store.open()
    await store._connection.execute("BEGIN; SELECT FROM lease FOR SHARE")

    assert await prepare(backing.url, 2) == "made ready for 2 shards instead of 1; no row was moved"
    await store.close()


@in_asyncio
async def test_a_newer_schema_is_refused(url: PostgresUrl) -> None:
    """By whatever looks at it, and it stays as it is."""
    await prepare(url, 1)
    await execute(url, "UPDATE layout SET version = version + 1")
    with pytest.raises(StoreError, match="newer version of proteus-shards"):
        await prepare(url, 2)
    with pytest.raises(StoreError, match="newer version of proteus-shards"):
        await store_of_shard(url, 0, 1).open()

    assert await prepared_shards(url) == 1


@in_asyncio
async def test_a_user_who_may_create_nothing_works_on_a_schema_that_is_ready(url: PostgresUrl) -> None:
    """And may even change the number of shards; on one that is not ready the doctor says what is missing."""
    schema = url.schema.replace('"', '""')
    user = f"user-{uuid4()}"
    await execute(url, f'CREATE ROLE "{user}" LOGIN')
    limited = msgspec.structs.replace(url, user=user)
    with pytest.raises(StoreError, match="42501"):
        await prepare(limited, 1)
    await prepare(url, 1)
    assert await doctor_of(limited) == [f'user "{user}" may not use the schema "{schema}"']
    await execute(url, f'GRANT USAGE ON SCHEMA "{schema}" TO "{user}"')
    all_four = "SELECT, INSERT, UPDATE, DELETE"
    for privilege, table in (
        ("SELECT, UPDATE", "layout"),
        (all_four, "lease"),
        (all_four, "record"),
        (all_four, "host"),
        ("SELECT, INSERT, DELETE", "job"),
    ):
        assert await doctor_of(limited) != []
        await execute(url, f'GRANT {privilege} ON {table} TO "{user}"')
    assert await doctor_of(limited) == [f'user "{user}" lacks UPDATE on the table job']
    await execute(url, f'GRANT UPDATE ON job TO "{user}"')
    assert await doctor_of(limited) == []

    assert await prepare(limited, 1) is None
    assert await prepare(limited, 2) is not None
    async with opened(store_of_shard(limited, 0, 2)) as store:
        await store.commit(Batch([], [make_row(1)], [], [make_record("q")]))


async def doctor_of(url: PostgresUrl) -> list[str]:
    """Return the faults that the doctor finds."""
    return [finding.what async for finding in examine(url) if finding.level == "fault"]


def test_a_server_keeps_its_jobs_in_postgres(text: str, start_server: StartServer) -> None:
    """After kill -9 of all of it, and with another number of shards; the password is in no log."""
    text += "&password=geheim-17"
    server = start_server("--store", text)
    for number in range(6):
        job = {"queue": f"q{number % 2}", "id": f"job-{number}", "timeout": 600, "persist_data": True, "payload": f"\0 {number}"}
        assert server.request("POST", "/enqueue", job).status == 202
    assert server.request("GET", "/next?queue=q0").json()["payload"] == "\0 0"
    server.kill()
    log = server.log()
    server = start_server("--store", text, "--shards", "3")
    rest = server.request("GET", "/next?queue=q0&num_jobs=9").json() + server.request("GET", "/next?queue=q1&num_jobs=9").json()

    assert [job["payload"] for job in rest] == [f"\0 {number}" for number in (2, 4, 1, 3, 5)]
    assert server.request("DELETE", "/complete?queue=q0&job_id=job-0").status == 200
    assert "geheim-17" not in log + server.log()
