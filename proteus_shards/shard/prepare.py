"""`python -m proteus_shards.shard.prepare`: make the store ready for this number of shards, once, before any of them starts.

With the argument `again`, beside shards that have served: a place that is empty by now is prepared, and one that was prepared for another number of shards,
by another server, is left alone.

**One server on a store.** Where hosts could share the store, a server that runs alone holds its shards there too, in the way that a host of a cluster does
(`store/register.py`), under a name that is drawn at its start. Whichever is started last, be it a host of a cluster, takes all holdings. The one before is
fenced at its next commit, its shard cannot open the rows again, the store is prepared `again`, which finds out why, and the supervisor ends: without that two
servers would take the rows from each other for ever. Whatever else takes an epoch (`store copy`) leaves the holdings alone, and a shard that was fenced comes back.
A later turn is a later server's even where nobody holds the shard any more: that server has left. An earlier turn than this server's own is no later
server's: the store has lost its last writes (a failover, an old snapshot), and is held anew.

A process of its own, so that a driver's event loop never meets the supervisor's, and a crash here is seen as one.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from proteus_shards import logs
from proteus_shards.boot import read_boot, report
from proteus_shards.config import Failed, Ready, ShardBoot
from proteus_shards.errors import ProteusError, SharedError, StoreFenced, StoreRefused, StoreUnknown
from proteus_shards.shard.locks import patiently
from proteus_shards.store.registry import can_be_shared, make_register, prepare_store, prepared_shards

log = logging.getLogger("proteus_shards.shard")

REPLACED = "another server was started on this store and has its shards now: this one ends, as only one may run there"
LEFT = "another server was started on this store, and has left it again: this one ends, as what it remembers is not what is stored by now"


async def prepare(boot: ShardBoot) -> Ready:
    """Make the store ready, hold its shards, and return what was moved."""
    settings = boot.settings
    moved = await prepare_store(settings.store, settings.shards, settings.cluster)
    return Ready(moved or "", await _hold(boot, again=False))


async def prepare_again(boot: ShardBoot) -> Ready:
    """Make a store that a running server has lost ready for it."""
    settings = boot.settings
    found = await prepared_shards(settings.store)
    if found is None:
        log.error("the store is empty and is prepared anew: what was acknowledged before is gone")
    elif found != settings.shards:
        raise StoreFenced(f"the store is prepared for {found} shards by now, not {settings.shards}: it is another server's")
    try:
        moved = await prepare_store(settings.store, settings.shards, settings.cluster)
    except SharedError as error:  # there was no host when this server was started
        raise StoreFenced(REPLACED) from error
    return Ready(moved or "", await _hold(boot, again=True))


async def _hold(boot: ShardBoot, *, again: bool) -> tuple[int, ...]:
    """Take all holdings, and return their turns; `again`: only those that nobody has taken since. Raises `StoreFenced` where a server that started later has taken one.

    Of two that start at once one goes on: who has held a shard and finds it held by another was the earlier one, and both cannot be.
    """
    if boot.settings.cluster or not can_be_shared(boot.settings.store):
        return ()
    register = make_register(boot.settings.store)
    held: set[int] = set()
    try:
        await register.open()
        while True:
            holdings = (await register.look()).holdings
            others = [holding for holding in holdings if holding.host != boot.server]
            later = [each for each in others if each.shard in held or (again and each.turn > _turn_of(boot, each.shard))]
            if later:
                raise StoreFenced(REPLACED if any(each.host for each in later) else LEFT)
            if not others:
                return tuple(holding.turn for holding in holdings)
            for holding in others:
                if not await register.hand(holding.shard, holding.turn, boot.server):
                    break
                held.add(holding.shard)
    finally:
        await register.close()


def _turn_of(boot: ShardBoot, shard: int) -> int:
    """Return at which turn the server has held a shard; 0: never."""
    return boot.turns[shard] if shard < len(boot.turns) else 0


def main() -> int:
    """Prepare the store, report, and return the exit status."""
    boot = read_boot(ShardBoot)
    logs.setup(boot.settings, "prepare")
    try:
        work = prepare_again if sys.argv[1:] == ["again"] else prepare
        ready = asyncio.run(patiently(lambda: work(boot)))
    except ProteusError as error:
        fenced = isinstance(error, StoreFenced)
        report(Failed(str(error), final=not isinstance(error, StoreRefused | StoreUnknown), fenced=fenced))
        return 1
    if ready.detail:
        log.info("store prepared", extra={"detail": ready.detail})
    report(ready)
    return 0


if __name__ == "__main__":
    sys.exit(main())
