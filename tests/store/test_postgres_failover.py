"""A Postgres standby, and what becomes of an owner when it is promoted."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from proteus_shards.errors import StoreFailed, StoreRefused
from proteus_shards.store.postgres import store_of_shard
from tests.servers.postgres import PostgresServer
from tests.store.postgres_backing import PostgresBacking, postgres_url, until
from tests.store.rows import in_asyncio, inserting, load_all, make_row, opened


@pytest.fixture
def standby(own_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """Return a standby of the test's own server."""
    server = PostgresServer(standby_of=own_postgres)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@in_asyncio
async def test_an_owner_ends_when_a_standby_takes_the_place_of_its_primary(own_postgres: PostgresServer, standby: PostgresServer) -> None:
    """The standby may lack the last commits: only who reads everything anew may go on. Until it is promoted it is never written to."""
    backing = PostgresBacking(own_postgres)
    url = msgspec.structs.replace(backing.url, hosts=(("127.0.0.1", standby.port), ("127.0.0.1", own_postgres.port)))
    only_standby = msgspec.structs.replace(backing.url, hosts=(("127.0.0.1", standby.port),))
    copy = postgres_url(standby.url(backing.url.schema))
    async with opened(store_of_shard(url, 0, 1)) as store:
        await store.commit(inserting(make_row(1)))
        await store.reopen()
        await until(backing.url, "count(*) > 0 AND bool_and(replay_lsn >= pg_current_wal_flush_lsn()) FROM pg_stat_replication")
        refused = store_of_shard(only_standby, 0, 1)
        with pytest.raises(StoreRefused, match="no host of the URL is a primary"):
            await refused.open()
        await refused.close()
        own_postgres.kill()
        with pytest.raises(StoreRefused):
            await store.reopen()
        standby.promote()
        with pytest.raises(StoreFailed, match="standby has become the primary"):
            await store.reopen()
    async with opened(store_of_shard(copy, 0, 1)) as heir:
        assert await load_all(heir) == [make_row(1)]
