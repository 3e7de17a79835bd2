"""`python -m proteus_shards.shard.prepare`: make the store ready for this number of shards, once, before any of them starts.

A process of its own, so that a driver's event loop never meets the supervisor's, and a crash here is seen as one.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from proteus_shards import logs
from proteus_shards.boot import read_boot, report
from proteus_shards.config import Failed, Ready, ShardBoot
from proteus_shards.errors import ProteusError, StoreRefused, StoreUnknown
from proteus_shards.shard.locks import patiently
from proteus_shards.store.registry import prepare_store

log = logging.getLogger("proteus_shards.shard")


def main() -> int:
    """Prepare the store, report, and return the exit status."""
    boot = read_boot(ShardBoot)
    logs.setup(boot.settings, "prepare")
    try:
        moved = asyncio.run(patiently(lambda: prepare_store(boot.settings.store, boot.settings.shards)))
    except ProteusError as error:
        report(Failed(str(error), final=not isinstance(error, StoreRefused | StoreUnknown)))
        return 1
    if moved:
        log.info("store prepared", extra={"detail": moved})
    report(Ready(moved or ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
