"""The store that keeps nothing, against the shared suite."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proteus_shards.core.model import Batch
from proteus_shards.store.contract import Durability, Store
from proteus_shards.store.memory import MemoryStore
from proteus_shards.store.urls import MemoryUrl
from tests.store.exercise import Backing, Exercise
from tests.store.rows import in_asyncio, make_row


class MemoryBacking:
    """Nowhere."""

    url = MemoryUrl()

    def store(self, shard: int = 0, shards: int = 1) -> Store:  # noqa: ARG002  # no shard has rows
        return MemoryStore()

    async def prepare(self, shards: int) -> None:
        raise NotImplementedError

    async def usurp(self, store: Store) -> None:
        raise NotImplementedError


class TestMemory(Exercise):
    """The part of the suite that needs no rows."""

    @pytest.fixture
    def new_backing(self) -> Callable[[], Backing]:
        return MemoryBacking

    def test_it_says_that_it_keeps_nothing(self) -> None:
        """So that a job with persist_data is refused."""
        store = MemoryStore()

        assert (store.keeps, store.durability) == (False, Durability.MEMORY)

    @in_asyncio
    async def test_a_row_is_a_bug(self) -> None:
        """It must not be dropped in silence."""
        with pytest.raises(AssertionError):
            await MemoryStore().commit(Batch([], [make_row(1)], []))
