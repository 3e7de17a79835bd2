"""Tables for tests of the DynamoDB store."""

from __future__ import annotations

from itertools import count

from proteus_shards.store.contract import Store
from proteus_shards.store.dynamodb import DynamodbStore
from proteus_shards.store.dynamodb_prepare import prepare
from proteus_shards.store.dynamodb_url import DynamodbUrl
from proteus_shards.store.urls import read_url
from tests.servers.dynamodb import Process

_tables = count()


class DynamodbBacking:
    """A table of its own."""

    def __init__(self, server: Process, **options: str) -> None:
        self.server = server
        self.table = f"table-{next(_tables)}"
        url = read_url(server.url(self.table, **options))
        assert isinstance(url, DynamodbUrl)
        self.url = url
        self._prepared = False

    def store(self, shard: int = 0, shards: int = 1) -> DynamodbStore:
        return Prepared(self, shard, shards)

    async def prepare(self, shards: int) -> None:
        self._prepared = True
        await prepare(self.url, shards)

    async def usurp(self, store: Store) -> None:
        """Let another store take the lease."""
        assert isinstance(store, DynamodbStore)
        other = DynamodbStore(self.url, 0, 1)
        await other.open()
        await other.close()

    async def have_table(self) -> None:
        """Make the table at its first use, as a coroutine may only then be run."""
        if not self._prepared:
            await self.prepare(1)


class Prepared(DynamodbStore):
    """A store whose table is made when it is opened."""

    def __init__(self, backing: DynamodbBacking, shard: int, shards: int) -> None:
        super().__init__(backing.url, shard, shards)
        self._backing = backing

    async def open(self) -> int:
        await self._backing.have_table()
        return await super().open()
