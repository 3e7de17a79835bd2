"""`python -m proteus_shards.shard`: one shard process, started by the supervisor.

It ends by itself: with 0 after SIGTERM or when the supervisor is gone (its standard input closes), everything under way
being committed first; with 1 where its store or a bug makes going on unsafe. The supervisor starts it again, and it recovers.

In a cluster it has a claim. It leaves luggage when it ends in order, and takes in what it is given (`luggage.py`). Where another owner has the shard, it says so (`Failed.fenced`),
for it must not be started again under that claim.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from proteus_shards import logs
from proteus_shards.boot import STDIN, beat, read_boot, report
from proteus_shards.config import BEAT_SECONDS, Failed, Ready, Settings, ShardBoot, socket_path
from proteus_shards.core.holdings import Limits
from proteus_shards.core.shard import Shard
from proteus_shards.errors import ProteusError, StoreFenced, StoreRefused, StoreUnknown
from proteus_shards.memory import Memory
from proteus_shards.shard.calendar import CronCalendar
from proteus_shards.shard.listener import Listener
from proteus_shards.shard.locks import patiently
from proteus_shards.shard.luggage import leave_luggage, take_luggage
from proteus_shards.shard.meter import Meter
from proteus_shards.shard.pump import Pump
from proteus_shards.shard.queues_file import first_settings
from proteus_shards.shard.sessions import session_limits
from proteus_shards.store.contract import Durability
from proteus_shards.store.registry import make_store
from proteus_shards.tally import TICK_SECONDS, WRITE_TICKS, Tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from proteus_shards.store.contract import Store

log = logging.getLogger("proteus_shards.shard")

RUN_IDS_AT_ONCE = 256


def read_clocks() -> tuple[int, int]:
    """Return (monotonic, wall) time in microseconds."""
    return time.monotonic_ns() // 1000, time.time_ns() // 1000


def run_ids() -> Callable[[], bytes]:
    """Return a source of random UUIDs (version 4) as 16 bytes, which asks the kernel for many at a time."""
    pool: list[bytes] = []

    def refill() -> bytes:
        raw = bytearray(os.urandom(16 * RUN_IDS_AT_ONCE))
        for start in range(0, len(raw), 16):
            raw[start + 6] = raw[start + 6] & 0x0F | 0x40
            raw[start + 8] = raw[start + 8] & 0x3F | 0x80
            pool.append(bytes(raw[start : start + 16]))
        return pool.pop()

    def new_run_id() -> bytes:
        return pool.pop() if pool else refill()

    return new_run_id


def limits_of(settings: Settings, store: Store) -> Limits:
    """Return the core's limits under these settings and this store."""
    return Limits(
        shard_pending_max=settings.shard_pending_max,
        polls_max=settings.polls_max,
        queue_jobs_max=settings.queue_jobs_max,
        shard_jobs_max=settings.shard_jobs_max,
        shard_bytes_max=settings.shard_bytes_max,
        queues_max=settings.queues_max,
        dead_letters_max=settings.dead_letters_max,
        dead_letters_us_max=int(settings.dead_letters_seconds_max * 1_000_000),
        schedules_max=settings.schedules_max,
        keeps=store.keeps,
        row_bytes_max=store.row_bytes_max,
        batch_rows_max=store.batch_rows_max,
        batch_bytes_max=store.batch_bytes_max,
        idempotency_keys_max=settings.idempotency_keys_max,
        idempotency_us_max=int(settings.idempotency_seconds * 1_000_000),
    )


async def serve(boot: ShardBoot) -> int:
    """Recover, listen, and work until told to end. Returns the exit status."""
    settings = boot.settings
    store = make_store(settings.store, boot.shard, settings.shards, boot.opens_under)
    required = Durability(settings.require_durability)
    meter = Meter(Tally(boot.run_dir, f"shard-{boot.shard}"), settings.metrics_queues_max)
    core = Shard(limits_of(settings, store), run_ids(), random.random, CronCalendar())
    pump = Pump(core, store, read_clocks, index=boot.shard, required=required, meter=meter, moves=boot.claim is not None)
    ending = asyncio.Event()
    _watch_lifeline(ending)
    asyncio.get_running_loop().set_exception_handler(fail_stop)
    beating = asyncio.create_task(_beat_forever())
    try:
        await patiently(partial(pump.recover, partial(take_luggage, core, boot)))
        pump.carry_out(first_settings(boot))
        gc.collect()
        gc.freeze()  # what was recovered is no garbage, and should not be looked through for it
        listener = Listener(pump, socket_path(boot.run_dir, boot.shard), boot.shard, settings.shards, session_limits(settings))
        await listener.start()
    except ProteusError as error:
        log.error("shard cannot start", extra={"error": str(error)})  # noqa: TRY400  # an expected fault, told in one line
        report(_failed(boot, error))
        await store.close()
        beating.cancel()
        return 1
    report(Ready(f"{pump.recovered} rows in {pump.recovery_seconds} s, {store.durability}"))
    counting = asyncio.create_task(_count_forever(pump))
    pumping = asyncio.create_task(pump.run())
    stopping = asyncio.create_task(ending.wait())
    await asyncio.wait({pumping, stopping}, return_when=asyncio.FIRST_COMPLETED)
    failed = await end_shard(boot, pump, listener, pumping)
    stopping.cancel()
    await listener.close()
    await store.close()
    counting.cancel()
    pump.measures()
    beating.cancel()
    return int(failed)


def _failed(boot: ShardBoot, error: ProteusError) -> Failed:
    """Return what the supervisor is told of a start that failed."""
    if isinstance(error, StoreFenced) and boot.claim is not None:
        return Failed(str(error), fenced=True)
    return Failed(str(error), final=not isinstance(error, StoreRefused | StoreUnknown))


async def end_shard(boot: ShardBoot, pump: Pump, listener: Listener, pumping: asyncio.Task[None]) -> bool:
    """Drain, unless the pump has ended with an error, and leave luggage where there is a claim. Returns whether it has failed."""
    moves = boot.claim is not None
    listener.stop_accepting()
    if not pumping.done():
        if moves:
            listener.tell_moving()
        draining = asyncio.create_task(pump.drain())
        await asyncio.wait({pumping, draining}, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
    if pumping.done():
        fault = pumping.exception()
        if not isinstance(fault, StoreFenced):
            log.critical("shard ends", exc_info=fault)
            return True
        log.warning("shard ends", extra={"error": f"StoreFenced: {fault}"})  # as it should where another owner has its rows
        if moves:
            report(Failed(str(fault), fenced=True))
        return True
    pumping.cancel()
    if moves:
        pump.stop()
        await leave_luggage(pump.shard, boot)
        await listener.wait_left()
    return False


def fail_stop(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """End the process after a bug in a callback: memory that may be half changed serves nobody. A restart recovers from the store."""
    error = context.get("exception")
    if error is None or isinstance(error, OSError):
        log.error("event loop", extra={"detail": context["message"], "error": str(error) if error else None})
        return
    log.critical("shard ends after a fault inside", exc_info=error)
    os._exit(1)


async def _beat_forever() -> None:
    while True:
        beat()
        await asyncio.sleep(BEAT_SECONDS)


async def _count_forever(pump: Pump) -> None:
    """Look how late the event loop is, see that what is counted outlives this process, and give back the memory of a backlog that is gone."""
    memory = Memory()
    while True:
        pump.measures()
        memory.look(sum(pump.shard.totals[1:]), pump.shard.bytes)
        for _ in range(WRITE_TICKS):
            due = time.monotonic() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            pump.meter.tally.note_lag(max(0.0, time.monotonic() - due))


def _watch_lifeline(ending: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def read() -> None:
        if not os.read(STDIN, 4096):
            loop.remove_reader(STDIN)
            ending.set()

    loop.add_reader(STDIN, read)
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the supervisor's to handle


def main() -> int:
    """Run one shard process and return its exit status."""
    boot = read_boot(ShardBoot)
    logs.setup(boot.settings, f"shard-{boot.shard}")
    try:
        import uvloop  # noqa: PLC0415  # optional: not there on every platform
    except ImportError:
        return asyncio.run(serve(boot))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(boot))


if __name__ == "__main__":
    sys.exit(main())
