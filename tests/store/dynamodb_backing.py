"""Tables for tests of the DynamoDB store."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Protocol
from urllib.parse import urlencode
from uuid import uuid4

import msgspec

from proteus_shards.cluster.model import Claim
from proteus_shards.store.contract import Store
from proteus_shards.store.dynamodb import DynamodbStore
from proteus_shards.store.dynamodb_prepare import prepare
from proteus_shards.store.dynamodb_register import HOSTS, DynamodbRegister
from proteus_shards.store.dynamodb_url import DynamodbUrl
from proteus_shards.store.urls import read_url
from tests.store.exercise_register import SHARDS

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

    def __init__(self, server: Places, *, prepared: bool = True, **options: str) -> None:
        self.server = server
        self.table = f"table-{next(_tables)}"
        url = read_url(server.url(self.table, **options))
        assert isinstance(url, DynamodbUrl)
        self.url = url
        if prepared:  # in a thread: an event loop may be running in this one
            with ThreadPoolExecutor(1) as thread:
                thread.submit(lambda: asyncio.run(self.prepare(1))).result()

    def store(self, shard: int = 0, shards: int = 1) -> DynamodbStore:
        return DynamodbStore(self.url, shard, shards)

    async def prepare(self, shards: int) -> None:
        await prepare(self.url, shards)

    async def usurp(self, store: Store) -> None:
        """Let another store take the lease."""
        assert isinstance(store, DynamodbStore)
        other = DynamodbStore(self.url, 0, 1)
        await other.open()
        await other.close()


class DynamodbSharedBacking(DynamodbBacking):
    """A table of its own, ready for a cluster of servers."""

    def __init__(self, server: Places, shards: int = SHARDS, **options: str) -> None:
        super().__init__(server, prepared=False, **options)
        self.shards = shards
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: asyncio.run(prepare(self.url, shards, cluster=True))).result()

    def register(self) -> DynamodbRegister:
        return DynamodbRegister(self.url)

    def claimed(self, shard: int, claim: Claim | None) -> DynamodbStore:
        return DynamodbStore(self.url, shard, self.shards, claim)

    def lost(self) -> DynamodbRegister:
        return DynamodbRegister(msgspec.structs.replace(self.url, endpoint="http://127.0.0.1:1"))

    async def damage(self, address: str) -> None:
        register = self.register()
        try:
            await register.open()
            item = {"pk": {"S": HOSTS}, "sk": {"S": address}}
            await register._client.call("put_item", {"TableName": self.url.table, "Item": item})
        finally:
            await register.close()
