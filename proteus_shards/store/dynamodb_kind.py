"""What the registry asks of DynamoDB."""

from __future__ import annotations

from collections.abc import AsyncIterator

from proteus_shards.cluster.model import Claim
from proteus_shards.store.dynamodb import DynamodbStore
from proteus_shards.store.dynamodb_doctor import examine as examine_table
from proteus_shards.store.dynamodb_prepare import prepare as prepare_table
from proteus_shards.store.dynamodb_prepare import prepared_shards as shards_of_table
from proteus_shards.store.dynamodb_register import DynamodbRegister
from proteus_shards.store.dynamodb_url import DynamodbUrl
from proteus_shards.store.findings import Finding
from proteus_shards.store.urls import StoreUrl


def make(url: StoreUrl, shard: int, shards: int) -> DynamodbStore:
    """Return the store of one shard."""
    assert isinstance(url, DynamodbUrl)
    return DynamodbStore(url, shard, shards)


def make_claimed(url: StoreUrl, shard: int, shards: int, claim: Claim) -> DynamodbStore:
    """Return the store of one shard that opens only for a claim."""
    assert isinstance(url, DynamodbUrl)
    return DynamodbStore(url, shard, shards, claim)


def register(url: StoreUrl) -> DynamodbRegister:
    """Return the register of the hosts."""
    assert isinstance(url, DynamodbUrl)
    return DynamodbRegister(url)


def trial(url: StoreUrl) -> DynamodbStore:
    """Return a store whose lease and rows lie under keys that no shard asks for."""
    assert isinstance(url, DynamodbUrl)
    return DynamodbStore(url, 0, None)


async def prepare(url: StoreUrl, shards: int) -> str | None:
    """Make the table, or settle it for another number of shards."""
    assert isinstance(url, DynamodbUrl)
    return await prepare_table(url, shards)


async def prepare_shared(url: StoreUrl, shards: int) -> str | None:
    """Do the same for a cluster of servers."""
    assert isinstance(url, DynamodbUrl)
    return await prepare_table(url, shards, cluster=True)


async def prepared_shards(url: StoreUrl) -> int | None:
    """Return the number of shards of the layout."""
    assert isinstance(url, DynamodbUrl)
    return await shards_of_table(url)


def examine(url: StoreUrl) -> AsyncIterator[Finding]:
    """Look at credentials, region, table, rights, clock, speed and cost."""
    assert isinstance(url, DynamodbUrl)
    return examine_table(url)
