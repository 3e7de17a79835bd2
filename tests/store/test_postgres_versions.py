"""A schema that version 1 made, and that this one goes on with. See `postgres_version_1.sql`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from proteus_shards.core.model import Batch, Row
from proteus_shards.errors import StoreError, StoreFailed
from proteus_shards.store import postgres as postgres_module
from proteus_shards.store.contract import Damaged, Durability
from proteus_shards.store.doctor import diagnose
from proteus_shards.store.postgres import SCHEMA_VERSION, store_of_shard
from proteus_shards.store.postgres_doctor import examine
from proteus_shards.store.postgres_errors import Doing
from proteus_shards.store.postgres_prepare import prepare, prepared_shards
from proteus_shards.store.postgres_register import PostgresRegister
from proteus_shards.store.postgres_session import session
from proteus_shards.store.postgres_trial import PostgresTrial
from proteus_shards.store.postgres_url import PostgresUrl
from tests.servers.postgres import PostgresPlace
from tests.store.postgres_backing import execute, postgres_url
from tests.store.rows import as_dict, in_asyncio, key_of, load_all, load_records, make_mark, make_record, marked, opened
from tests.store.version_1 import ROWS

SCHEMA = Path(postgres_module.__file__).with_name("postgres_schema_1.sql")
TABLES = "SELECT tablename::text FROM pg_tables WHERE schemaname = $1 ORDER BY 1"


@pytest.fixture
def text(postgres_server: PostgresPlace) -> str:
    """Return the URL of a schema of version 1."""
    text = postgres_server.url(f"test {uuid4()}")

    async def make() -> None:
        url = postgres_url(text)
        async with session(url, Doing.OPENING) as connection:
            await connection.execute(f'CREATE SCHEMA "{url.schema}"')
            await connection.execute(SCHEMA.read_text(encoding="utf-8"))
            await connection.execute(Path(__file__).with_name("postgres_version_1.sql").read_text(encoding="utf-8"))

    asyncio.run(make())
    return text


@pytest.fixture
def url(text: str) -> PostgresUrl:
    """Return what it means."""
    return postgres_url(text)


async def state_of(url: PostgresUrl) -> tuple[int, list[str], list[str]]:
    """Return the version of a schema, its tables, and the columns of its jobs."""
    ((version,),) = await execute(url, "SELECT version FROM layout")
    columns = "SELECT attname::text FROM pg_attribute WHERE attrelid = 'job'::regclass AND attnum > 0 ORDER BY attnum"
    return version, [name for (name,) in await execute(url, TABLES, url.schema)], [name for (name,) in await execute(url, columns)]


@in_asyncio
async def test_a_schema_of_version_1_is_taken_over(url: PostgresUrl) -> None:
    """With every job, and from then on with extras and records; whoever wrote to it before can no more."""
    before = await execute(url, "SELECT epoch, owner FROM lease WHERE name = 'shard-0'")
    assert await prepared_shards(url) == 1
    with pytest.raises(StoreFailed, match=f"of version 1, and must be brought to {SCHEMA_VERSION} first: start the server, which does it"):
        await store_of_shard(url, 0, 1).open()
    assert await prepare(url, 1) is None
    ((epoch, owner),) = await execute(url, "SELECT epoch, owner FROM lease WHERE name = 'shard-0'")
    assert (epoch > before[0]["epoch"], owner != before[0]["owner"]) == (True, True)
    assert await prepare(url, 1) is None
    assert [(epoch, owner)] == [tuple(lease) for lease in await execute(url, "SELECT epoch, owner FROM lease WHERE name = 'shard-0'")]
    mark = make_mark(ROWS[0], extras_set=True, extras=b"e" * 5000)
    async with opened(store_of_shard(url, 0, 1)) as store:
        assert await load_records(store) == {}
        assert await load_all(store) == ROWS
        await store.commit(Batch([key_of(ROWS[2])], [], [mark], [make_record("q")]))
    async with opened(store_of_shard(url, 0, 1)) as store:
        assert await load_records(store) == as_dict(make_record("q"))
        assert await load_all(store) == [marked(ROWS[0], mark), ROWS[1], *ROWS[3:]]


@in_asyncio
async def test_the_shards_of_version_1_are_held_by_no_host(url: PostgresUrl) -> None:
    """A cluster may start on it as on any other."""
    await prepare(url, 1, cluster=True)
    register = PostgresRegister(url)
    await register.open()
    try:
        ((holding,), hosts) = ((await register.look()).holdings, (await register.look()).hosts)
    finally:
        await register.close()

    assert (hosts, holding.host, holding.wanted) == ((), "", "")


@in_asyncio
async def test_a_schema_of_version_1_may_get_another_number_of_shards_at_once(url: PostgresUrl) -> None:
    """By the first start."""
    assert await prepare(url, 3) == "made ready for 3 shards instead of 1; no row was moved"
    found: list[Row | Damaged] = []
    for shard in range(3):
        async with opened(store_of_shard(url, shard, 3)) as store:
            assert await load_records(store) == {}
            found += await load_all(store)

    assert sorted((row for row in found if isinstance(row, Row)), key=lambda row: row.seq) == ROWS


@in_asyncio
async def test_several_hosts_may_bring_a_schema_up_to_date_at_once(url: PostgresUrl) -> None:
    """One does it, the others find it done."""
    assert await asyncio.gather(*(prepare(url, 1) for _ in range(4))) == [None] * 4
    version, tables, columns = await state_of(url)

    assert (version, tables, columns[-1]) == (SCHEMA_VERSION, ["host", "job", "layout", "lease", "record"], "extras")


@in_asyncio
async def test_a_way_to_the_newest_version_that_fails_changes_nothing(url: PostgresUrl) -> None:
    """Not the tables, not the version, not the leases; once the reason is gone, it succeeds."""
    await execute(url, "CREATE TABLE record ()")
    before = await state_of(url), await execute(url, "SELECT xmin, * FROM lease")
    with pytest.raises(StoreError):
        await prepare(url, 1)
    assert before == (await state_of(url), await execute(url, "SELECT xmin, * FROM lease"))
    await execute(url, "DROP TABLE record")
    await prepare(url, 1)

    assert (await state_of(url))[0] == SCHEMA_VERSION


@in_asyncio
async def test_the_doctor_knows_a_schema_of_version_1(text: str, url: PostgresUrl) -> None:
    """It says what will be done, tries the server in a schema of its own, and leaves all as it is."""
    before = await state_of(url), await execute(url, "SELECT xmin, * FROM lease")
    findings = [finding async for finding in examine(url)]
    assert [finding.what for finding in findings if finding.level == "fault"] == []
    assert any(f"is of version 1, and must be brought to {SCHEMA_VERSION} first" in finding.what for finding in findings)
    report = await diagnose(text, Durability.PROCESS)
    assert (report.sound, len(report.rates) > 0) == (True, True)

    assert before == (await state_of(url), await execute(url, "SELECT xmin, * FROM lease"))


@in_asyncio
async def test_what_a_trial_of_version_1_has_left_is_removed(url: PostgresUrl) -> None:
    """By the first trial after the way to the newest version."""
    await prepare(url, 1)
    await execute(url, "UPDATE lease SET taken_at = taken_at - interval '2 hours'")
    async with opened(PostgresTrial(url)):
        pass

    assert await execute(url, "SELECT FROM job WHERE slot = 1024") == []
    assert await execute(url, "SELECT FROM lease WHERE name LIKE 'trial-%'") == []
