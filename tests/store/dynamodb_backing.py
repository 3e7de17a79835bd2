"""Tables for tests of the DynamoDB store."""

from __future__ import annotations

from itertools import count
from typing import Protocol
from urllib.parse import urlencode
from uuid import uuid4

from proteus_shards.store.contract import Store
from proteus_shards.store.dynamodb import DynamodbStore
from proteus_shards.store.dynamodb_prepare import prepare
from proteus_shards.store.dynamodb_url import DynamodbUrl
from proteus_shards.store.urls import read_url

_tables = count()


class Places(Protocol):
    """Where tables are made."""

    def url(self, name: str, **options: str) -> str:
        """Return the URL of a table of that name."""
        ...


class Foreign:
    """A service that the environment names: `PROTEUS_TEST_DYNAMODB_URL`, whose table is the beginning of the names of all. They are left there."""

    def __init__(self, url: str) -> None:
        place, _, query = url.partition("?")
        self._url = f"{place}-{uuid4().hex[:8]}"
        self._query = query

    def url(self, name: str, **options: str) -> str:
        return f"{self._url}-{name}?{'&'.join(filter(None, [self._query, urlencode(options)]))}"


class DynamodbBacking:
    """A table of its own."""

    def __init__(self, server: Places, **options: str) -> None:
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
