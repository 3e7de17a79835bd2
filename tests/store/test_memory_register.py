"""The register that tests of others use, against the shared suite."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proteus_shards.cluster.model import Claim
from proteus_shards.errors import StoreRefused
from proteus_shards.store.contract import Store
from proteus_shards.store.register import Register
from tests.store.exercise_register import SHARDS, RegisterExercise, SharedBacking
from tests.store.memory_register import MemoryPlace, MemoryRegister, MemoryRows


async def away(_call: str) -> None:
    """Be a store that is away."""
    raise StoreRefused


class MemoryBacking:
    """A place in memory."""

    def __init__(self) -> None:
        self.place = MemoryPlace(SHARDS)

    def register(self) -> Register:
        return MemoryRegister(self.place)

    def claimed(self, shard: int, claim: Claim | None) -> Store:
        return MemoryRows(self.place, shard, claim)

    def lost(self) -> Register:
        return MemoryRegister(self.place, away)

    async def damage(self, address: str) -> None:
        self.place.damaged.add(address)


class TestMemoryRegister(RegisterExercise):
    """All of it."""

    @pytest.fixture
    def new_shared(self) -> Callable[[], SharedBacking]:
        return MemoryBacking
