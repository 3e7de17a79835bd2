"""Who holds which shard, as the store says: the register of a cluster, asked by a bystander."""

from __future__ import annotations

import asyncio

from proteus_shards.cluster.model import Holding
from proteus_shards.errors import StoreError
from proteus_shards.store.register import Register


class Owners:
    """Asks, and opens the register when it is first asked. `alone`: there is no cluster, and nobody to ask."""

    def __init__(self, url: str, shards: int, *, alone: bool = False) -> None:
        self._url = url
        self._shards = shards
        self._alone = alone
        self._register: Register | None = None
        self._turn = asyncio.Lock()

    async def look(self) -> tuple[Holding, ...] | None:
        """Return all holdings; None where the store does not say, or not for all shards."""
        if self._alone:
            return None
        async with self._turn:
            try:
                view = await (await self._opened()).look()
            except StoreError:
                await self.close()
                return None
        return view.holdings if len(view.holdings) == self._shards else None

    async def close(self) -> None:
        """Let go of the register."""
        register, self._register = self._register, None
        if register is not None:
            await register.close()

    async def _opened(self) -> Register:
        if self._register is None:
            from proteus_shards.store import registry

            register: Register = registry.make_register(self._url)
            self._register = register
            await register.open()
        return self._register
