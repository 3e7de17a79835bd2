"""`python -m proteus_shards.shard.prepare`: make the store ready for this number of shards, once, before any of them starts.

With the argument `again`, beside shards that have served: a place that is empty by now is prepared, and one that was prepared for another number of shards,
by another server, is left alone.

A process of its own, so that a driver's event loop never meets the supervisor's, and a crash here is seen as one.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from proteus_shards import logs
from proteus_shards.boot import read_boot, report
from proteus_shards.config import Failed, Ready, Settings, ShardBoot
from proteus_shards.errors import ProteusError, StoreError, StoreRefused, StoreUnknown
from proteus_shards.shard.locks import patiently
from proteus_shards.store.registry import prepare_store, prepared_shards

log = logging.getLogger("proteus_shards.shard")


async def prepare(settings: Settings) -> str | None:
    """Make the store ready, and return what was moved."""
    return await prepare_store(settings.store, settings.shards)


async def prepare_again(settings: Settings) -> str | None:
    """Make a store that a running server has lost ready for it."""
    found = await prepared_shards(settings.store)
    if found is None:
        log.error("the store is empty and is prepared anew: what was acknowledged before is gone")
    elif found != settings.shards:
        raise StoreError(f"the store is prepared for {found} shards by now, not {settings.shards}: it is another server's")
    return await prepare(settings)


def main() -> int:
    """Prepare the store, report, and return the exit status."""
    boot = read_boot(ShardBoot)
    logs.setup(boot.settings, "prepare")
    try:
        work = prepare_again if sys.argv[1:] == ["again"] else prepare
        moved = asyncio.run(patiently(lambda: work(boot.settings)))
    except ProteusError as error:
        report(Failed(str(error), final=not isinstance(error, StoreRefused | StoreUnknown)))
        return 1
    if moved:
        log.info("store prepared", extra={"detail": moved})
    report(Ready(moved or ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
