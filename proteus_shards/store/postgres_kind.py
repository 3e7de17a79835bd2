"""What the registry asks of Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator

from proteus_shards.cluster.model import Claim
from proteus_shards.store.findings import Finding
from proteus_shards.store.postgres import PostgresStore, store_of_shard
from proteus_shards.store.postgres_doctor import examine as examine_server
from proteus_shards.store.postgres_prepare import prepare as prepare_schema
from proteus_shards.store.postgres_prepare import prepared_shards as shards_of_schema
from proteus_shards.store.postgres_register import PostgresRegister
from proteus_shards.store.postgres_trial import PostgresTrial
from proteus_shards.store.postgres_url import PostgresUrl
from proteus_shards.store.urls import StoreUrl


def make(url: StoreUrl, shard: int, shards: int) -> PostgresStore:
    """Return the store of one shard."""
    assert isinstance(url, PostgresUrl)
    return store_of_shard(url, shard, shards)


def make_claimed(url: StoreUrl, shard: int, shards: int, claim: Claim) -> PostgresStore:
    """Return the store of one shard, for a claim."""
    assert isinstance(url, PostgresUrl)
    return store_of_shard(url, shard, shards, claim)


def register(url: StoreUrl) -> PostgresRegister:
    """Return the register of the hosts."""
    assert isinstance(url, PostgresUrl)
    return PostgresRegister(url)


def trial(url: StoreUrl) -> PostgresTrial:
    """Return a store on a lease of its own."""
    assert isinstance(url, PostgresUrl)
    return PostgresTrial(url)


async def prepare(url: StoreUrl, shards: int) -> str | None:
    """Create the schema, or change its number of shards."""
    assert isinstance(url, PostgresUrl)
    return await prepare_schema(url, shards)


async def prepare_shared(url: StoreUrl, shards: int) -> str | None:
    """Create the schema, or change its number of shards while no host is registered."""
    assert isinstance(url, PostgresUrl)
    return await prepare_schema(url, shards, cluster=True)


async def prepared_shards(url: StoreUrl) -> int | None:
    """Return the number that the schema was made ready for."""
    assert isinstance(url, PostgresUrl)
    return await shards_of_schema(url)


def examine(url: StoreUrl) -> AsyncIterator[Finding]:
    """Look at the server and the schema."""
    assert isinstance(url, PostgresUrl)
    return examine_server(url)
