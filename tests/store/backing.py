"""A place for rows, as the shared suite asks for one."""

from __future__ import annotations

from typing import Protocol

from proteus_shards.store import registry
from proteus_shards.store.contract import Store
from proteus_shards.store.registry import Kind
from proteus_shards.store.urls import StoreUrl


class Backing(Protocol):
    """A place for rows, empty at first, and prepared for one shard."""

    @property
    def url(self) -> StoreUrl:
        """What the place's URL means."""
        ...

    def store(self, shard: int = 0, shards: int = 1) -> Store:
        """Return a store over this place, not yet open."""
        ...

    async def prepare(self, shards: int) -> None:
        """Make the place ready for so many shards. No store is open."""
        ...

    async def usurp(self, store: Store) -> None:
        """Let another owner take over the rows of an open store, as far as this kind of store can be taken over."""
        ...


def kind_of(backing: Backing) -> Kind:
    """Return what the registry knows of a place's kind."""
    return registry._kind(backing.url)
