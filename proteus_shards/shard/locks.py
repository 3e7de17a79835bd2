"""Waiting a moment for a store that another process holds.

After a supervisor was killed, its shards notice, finish what they do and end, which takes a moment. A server that is started
in that moment should not fail for it. One that meets a living server should, soon and clearly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from proteus_shards.errors import StoreLocked

PATIENCE_SECONDS = 5.0
PAUSE_SECONDS = 0.1

T = TypeVar("T")

log = logging.getLogger("proteus_shards.shard")


async def patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Do the work, again and again for a while where it meets `StoreLocked`, which it then raises."""
    patience_end = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    told = False
    while True:
        try:
            return await work()
        except StoreLocked as error:
            if asyncio.get_running_loop().time() >= patience_end:
                raise
            if not told:
                log.warning("store is held, trying again", extra={"error": str(error), "seconds": PATIENCE_SECONDS})
                told = True
        await asyncio.sleep(PAUSE_SECONDS)
