"""Producers and runners as they are in life: most do well, some are slow, some go silent, some come back from the dead.

Each queue has producers and runners of its own. Some queues hold persisted and memory-only jobs mixed, some memory-only ones alone, since only there
an outage of the store must not be felt at all. Most ids are unique; a tenth comes from a small pool, so that ids meet. Producers hold back while
much waits, so that the queues neither run dry nor grow without end. All that is random comes from one seeded generator, though what
the server makes of it depends on when things happen.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from proteus_shards.core.placement import SLOTS, slot_of
from tests.faults.client import Client
from tests.faults.history import NO_STATE, Given, Line, Recorder

REFUSED_SECONDS = 0.03  # pause after a refusal
DRAIN_SECONDS_MAX = 60.0
DRAIN_SLACK_SECONDS = 0.5
LATE_TASKS_MAX = 200  # runners that are late at one time


class Shape(msgspec.Struct, frozen=True):
    """What the clients do. Seconds, shares of 1, and counts per queue."""

    mixed_queues: int = 4
    memory_queues: int = 2
    producers: int = 1
    runners: int = 2
    jobs_per_second: float = 450.0  # that all producers together try for
    backlog_max: int = 200
    timeouts: tuple[int, ...] = (1,)
    max_retries: tuple[int, ...] = (200,)
    pool_ids: int = 3
    pool_share: float = 0.1
    persist_share: float = 0.7  # in mixed queues
    silent_share: float = 0.03
    late_share: float = 0.03
    beat_share: float = 0.25
    runner_pause_seconds: float = 0.0  # after each answer that brought jobs
    backlog_first: int = 0  # jobs that wait before the first runner asks
    request_seconds_max: float = 10.0
    leave_share: float = 0.0  # of refusals after which a client connects anew, perhaps to another server

    def queues(self) -> list[str]:
        """Return the names of all queues, the mixed ones first."""
        return spread("mixed", self.mixed_queues) + spread("memory", self.memory_queues)


def spread(kind: str, count: int) -> list[str]:
    """Return queue names that lie in all quarters of the slots by turns, so that any few shards share them."""
    quarters = [(0, 2, 1, 3)[place % 4] for place in range(count)]
    names: list[str] = []
    number = 0
    while len(names) < count:
        name = f"{kind} {number}"
        if slot_of(name) * 4 // SLOTS == quarters[len(names)]:
            names.append(name)
        number += 1
    return names


FEW_RETRIES = Shape(max_retries=(0, 1, 2), silent_share=0.1)


class Load:
    """All clients of one run."""

    def __init__(
        self, shape: Shape, seed: int, recorder: Recorder, where: Callable[[], tuple[str, int]], shard_of: Callable[[str], int]
    ) -> None:
        self.shape = shape
        self.queues = shape.queues()
        self.operations = 0
        self.oks: Counter[str] = Counter()
        self.enqueued: dict[str, int] = dict.fromkeys(
            self.queues, 0
        )  # when the last one was accepted (persisted, where the queue has such)
        self.trouble: list[str] = []
        self._random = random.Random(seed)
        self._recorder = recorder
        self._where = where
        self._shard_of = shard_of
        self._stop_producing = asyncio.Event()
        self._stop = asyncio.Event()
        self._waiting: Counter[str] = Counter()
        self._late: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._numbers: defaultdict[str, int] = defaultdict(int)

    def client(self) -> Client:
        """Return a client that is not connected yet."""
        return Client(self._where, self._recorder, self._shard_of, self.shape.request_seconds_max, self._watch)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run all producers and runners. At the end the producers stop, the runners finish what they hold, and late ones have their say."""
        async with asyncio.TaskGroup() as group:
            for queue in self.queues:
                for _ in range(self.shape.producers):
                    group.create_task(self._produce(queue))
                for _ in range(self.shape.runners):
                    group.create_task(self._run(queue))
            yield
            self._stop_producing.set()
            self._stop.set()
            await asyncio.gather(*self._late)

    async def wait_healed(self, since: int, seconds_max: float) -> bool:
        """Wait until each queue has accepted a job after `since`; returns whether that was in time."""
        deadline = time.monotonic() + seconds_max
        while any(t < since for t in self.enqueued.values()):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    async def wait_operations(self, per_queue: int, seconds_max: float) -> None:
        """Wait until each queue has so many more operations that are ok."""
        wanted = {queue: self.oks[queue] + per_queue for queue in self.queues}
        deadline = time.monotonic() + seconds_max
        while any(self.oks[queue] < want for queue, want in wanted.items()) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    # --- producers -----------------------------------------------------------------------------------------------

    async def _produce(self, queue: str) -> None:
        client, chance, shape = self.client(), self._random, self.shape
        pause = shape.producers * len(self.queues) / shape.jobs_per_second
        again: str | None = None
        while not self._stop_producing.is_set():
            await asyncio.sleep(pause * chance.uniform(0.5, 1.5))
            if self._waiting[queue] >= shape.backlog_max:
                continue
            over = await client.enqueue(*self._job(client, queue, again))
            again = over.id if over.type == "unknown" and chance.random() < 0.5 else None
            if over.type != "ok" and over.http_status != 409:
                await self._pause_refused(client)
        client.close()

    def _job(self, client: Client, queue: str, again: str | None) -> tuple[Line, bytes]:
        chance, shape = self._random, self.shape
        self._numbers[queue] += 1
        number = self._numbers[queue]
        uid = f"{queue}#{number}"
        job_id = again or (f"pool {chance.randrange(shape.pool_ids)}" if chance.random() < shape.pool_share else uid)
        line = client.line(
            "enqueue",
            queue,
            id=job_id,
            uid=uid,
            persist=queue.startswith("mixed") and chance.random() < shape.persist_share,
            timeout=chance.choice(shape.timeouts),
            max_retries=chance.choice(shape.max_retries),
            state=f'{{"born":"{uid}"}}' if chance.random() < 0.1 else None,
        )
        payload = f'{{"uid":"{uid}", "n":{number}.50e+1,  "text":"ü\\u00e9 \\/","pad":"{"x" * chance.randrange(200)}"}}'
        return line, payload.encode()

    # --- runners -------------------------------------------------------------------------------------------------

    async def _run(self, queue: str) -> None:
        client, chance = self.client(), self._random
        while self._waiting[queue] < self.shape.backlog_first and not self._stop.is_set():
            await asyncio.sleep(0.02)
        while not self._stop.is_set():
            over = await client.next(queue, chance.choice((0.0, 0.2, 0.5)), chance.choice((0, 0, 0, 3)))
            for given in over.jobs:
                await self._work(client, given)
            if over.jobs:
                await asyncio.sleep(self.shape.runner_pause_seconds)
            if over.type != "ok":
                await self._pause_refused(client)
            elif not over.jobs:
                await asyncio.sleep(0.005)
        client.close()

    async def _pause_refused(self, client: Client) -> None:
        """Hold back after a refusal, and perhaps turn to another server."""
        if self.shape.leave_share and self._random.random() < self.shape.leave_share:
            client.close()
        await asyncio.sleep(REFUSED_SECONDS)

    async def _work(self, client: Client, given: Given) -> None:
        chance, shape = self._random, self.shape
        draw = chance.random()
        if draw < shape.silent_share:
            return
        if draw < shape.silent_share + shape.late_share and len(self._late) < LATE_TASKS_MAX and not self._stop.is_set():
            task = asyncio.get_running_loop().create_task(self._work_late(given))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            return
        if chance.random() < shape.beat_share:
            for _ in range(chance.randrange(1, 3)):
                await self._beat(client, given)
            if chance.random() < 4 * shape.silent_share:
                return
        over = await client.complete(given, named=chance.random() < 0.7)
        if over.type != "ok" and over.http_status != 404 and chance.random() < 0.5:
            await client.complete(given, named=True)

    async def _work_late(self, given: Given) -> None:
        """Work beyond the timeout, with or without a heartbeat in between, and then speak up."""
        client, chance = self.client(), self._random
        if chance.random() < 0.5:
            await asyncio.sleep(given.timeout * 0.7)
            await self._beat(client, given)
            await asyncio.sleep(given.timeout * 0.7)
        else:
            await asyncio.sleep(given.timeout * chance.uniform(0.9, 1.3))
        if chance.random() < 0.5:
            await self._beat(client, given)
        await client.complete(given, named=chance.random() < 0.9)
        client.close()

    async def _beat(self, client: Client, given: Given) -> None:
        chance = self._random
        self._numbers["state"] += 1
        state = chance.choice((None, NO_STATE, *[f'{{"step": {self._numbers["state"]}, "of":1e2}}'] * 4))
        await client.heartbeat(given, named=chance.random() < 0.8, state=state)

    # --- the end -------------------------------------------------------------------------------------------------

    async def drain(self) -> bool:
        """Take and complete everything, until each queue was empty for longer than any timeout. Returns whether that came about."""
        self._recorder.note("drain", phase="start")
        drained = await asyncio.gather(*(self._drain(queue) for queue in self.queues))
        if all(drained):
            self._recorder.note("drain", phase="stop")
        return all(drained)

    async def _drain(self, queue: str) -> bool:
        client = self.client()
        deadline = time.monotonic() + DRAIN_SECONDS_MAX
        quiet_seconds = max(self.shape.timeouts) + DRAIN_SLACK_SECONDS
        quiet_since = time.monotonic()
        try:
            while (now := time.monotonic()) < deadline:
                left = quiet_since + quiet_seconds - now
                over = await client.next(queue, max(0.0, round(left, 3)), 100)
                for given in over.jobs:
                    while (await client.complete(given, named=True)).type == "unknown" and time.monotonic() < deadline:
                        await asyncio.sleep(REFUSED_SECONDS)
                if over.type != "ok":
                    await self._pause_refused(client)
                if over.type != "ok" or over.jobs:
                    quiet_since = time.monotonic()
                elif left <= 0:
                    return all(page.type == "ok" for page in await client.dead(queue))
            return False
        finally:
            client.close()

    def _watch(self, asked: Line, over: Line) -> None:
        self.operations += 1
        queue = asked.queue
        if over.type == "ok":
            self.oks[queue] += 1
            if asked.f == "enqueue":
                self._waiting[queue] += 1
                if asked.persist or queue.startswith("memory"):
                    self.enqueued[queue] = over.t
            elif asked.f == "complete":
                self._waiting[queue] = max(0, self._waiting[queue] - 1)
            elif asked.f == "next" and not over.jobs:
                self._waiting[queue] = 0  # whatever was lost with a shard's memory
        elif over.http_status not in {0, 404, 409, 429, 500, 503} or over.http_status == 500:
            self.trouble.append(f"{asked.f} {asked.queue} {asked.id}: {over.http_status}")
