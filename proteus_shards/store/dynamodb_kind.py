"""What the registry asks of DynamoDB."""

from __future__ import annotations

from collections.abc import AsyncIterator

from proteus_shards.store.dynamodb import DynamodbStore
from proteus_shards.store.dynamodb_doctor import examine as examine_table
from proteus_shards.store.dynamodb_prepare import prepare as prepare_table
from proteus_shards.store.dynamodb_prepare import prepared_shards as shards_of_table
from proteus_shards.store.dynamodb_url import DynamodbUrl
from proteus_shards.store.findings import Finding
from proteus_shards.store.urls import StoreUrl


def make(url: StoreUrl, shard: int, shards: int) -> DynamodbStore:
    """Return the store of one shard."""
    assert isinstance(url, DynamodbUrl)
    return DynamodbStore(url, shard, shards)


def trial(url: StoreUrl) -> DynamodbStore:
    """Return a store whose lease and rows lie under keys that no shard asks for."""
    assert isinstance(url, DynamodbUrl)
    return DynamodbStore(url, 0, None)


async def prepare(url: StoreUrl, shards: int) -> str | None:
    """Make the table, or settle it for another number of shards."""
    assert isinstance(url, DynamodbUrl)
    return await prepare_table(url, shards)


async def prepared_shards(url: StoreUrl) -> int | None:
    """Return the number of shards of the layout."""
    assert isinstance(url, DynamodbUrl)
    return await shards_of_table(url)


def examine(url: StoreUrl) -> AsyncIterator[Finding]:
    """Look at credentials, region, table, rights, clock, speed and cost."""
    assert isinstance(url, DynamodbUrl)
    return examine_table(url)
