"""The program whose writes are recorded: it prepares a SQLite store, and may then work on it as a shard does, with the real core, pump and store.

    python -m tests.faults.power_cut_work '{"folder": …}'

All that a client could know goes to the file `told`, one write each: what is sent before it is sent, answers once they are given out. The batch
of a commit is told before the commit begins, so that whoever reads the record knows every state that the store may rightly be in.

The store's checkpoints and vacuums may be made to come early: with the real sizes, a run of some seconds would see few of them.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TypeAlias
from unittest import mock

import msgspec

from proteus_shards.core.commands import Command, Complete, Delivered, Done, Enqueue, Heartbeat, Next, Outcome, Refused, Undeliver
from proteus_shards.core.commands_control import SetQueue
from proteus_shards.core.model import Batch, Record, Row
from proteus_shards.core.shard import Shard
from proteus_shards.shard.pump import Pump
from proteus_shards.store import sqlite, sqlite_folder, sqlite_prepare
from proteus_shards.store.contract import Damaged
from proteus_shards.store.urls import SqliteUrl
from tests.shard.scripted import RecordingLink, limits

QUEUES = ("a", "b", "c")
LIVE_MAX = 80  # jobs; from then on more are completed than enqueued, until none is left: the file is to shrink, too
PAYLOAD_BYTES = (10, 10, 100, 300, 1500, 2500, 9000)
FRAME = (1, 1, 1, 2, 5, 20)  # operations sent at once
AHEAD = (0, 0, 2, 20)  # operations that may be without their answer when the next are sent
STEP_SECONDS_MAX = 0.3

NO_SETTINGS = b'{"jobs_max":null}'  # as a change: back to the defaults

Names: TypeAlias = tuple[str, str]


class Orders(msgspec.Struct):
    """What to do. Without `operations` it only prepares."""

    folder: str
    told: str
    shards: int = 1
    seed: int = 0
    operations: int = 0
    synchronous: str = "full"
    log_pages: int = 1000
    free_pages: int = 1024
    first: int = 0  # number of the first new job
    sabotage: str = ""


class Sent(msgspec.Struct, frozen=True, tag=True):
    """Commands that are about to be given to the shard."""

    commands: list[tuple[int, Command]]


class Answered(msgspec.Struct, frozen=True, tag=True):
    """Answers that a client has."""

    answers: list[tuple[int, Outcome]]


class Committing(msgspec.Struct, frozen=True, tag=True):
    """A batch that is about to be committed."""

    batch: Batch


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """The store is ready for its shards."""


Told: TypeAlias = Sent | Answered | Committing | Prepared
Tell: TypeAlias = Callable[[Told], None]


class TellingStore(sqlite.SqliteStore):
    """The real store, which tells each batch first, and remembers all that it loaded."""

    def __init__(self, url: SqliteUrl, shard: int, shards: int, tell: Tell | None = None) -> None:
        super().__init__(url, shard, shards)
        self._tell_batch = tell
        self.loaded: list[Row | Damaged] = []
        self.loaded_records: list[Record | Damaged] = []

    async def load_records(self) -> AsyncIterator[Sequence[Record | Damaged]]:
        async for chunk in super().load_records():
            self.loaded_records += chunk
            yield chunk

    async def load(self) -> AsyncIterator[Sequence[Row | Damaged]]:
        async for chunk in super().load():
            self.loaded += chunk
            yield chunk

    async def commit(self, batch: Batch) -> None:
        if self._tell_batch is not None:
            self._tell_batch(Committing(batch))
        await super().commit(batch)


class Client(RecordingLink):
    """A link that tells all that goes over it, and knows which jobs there are to work on."""

    def __init__(self, pump: Pump, tell: Tell, rows: Sequence[Row], chance: random.Random, first: int) -> None:
        super().__init__(pump)
        self._tell = tell
        self._chance = chance
        self._unflushed: list[tuple[int, Outcome]] = []
        self._asked: dict[int, Command] = {}
        self._next = first
        self._is_shrinking = False
        self._live: dict[Names, bytes | None] = {(row.queue, row.id): row.run_id for row in rows}

    def send(self, *commands: Command) -> list[int]:
        numbered = list(enumerate(commands, self._number))
        self._asked.update(numbered)
        self._tell(Sent(numbered))
        return super().send(*commands)

    def put(self, number: int, outcome: Outcome) -> None:
        super().put(number, outcome)
        self._unflushed.append((number, outcome))
        command = self._asked.pop(number)
        if isinstance(outcome, Delivered):
            self._live.update({(job.queue, job.id): job.run_id for job in outcome.jobs})
        elif isinstance(command, Enqueue) and isinstance(outcome, Done):
            self._live[command.queue, command.id] = None
        elif isinstance(command, Complete) or (isinstance(command, Heartbeat) and isinstance(outcome, Refused)):
            self._live.pop((command.queue, command.id), None)  # it is done, or dead, or somebody else's

    def flush(self) -> None:
        if self._unflushed:
            self._tell(Answered(self._unflushed))
        self._unflushed = []

    async def wait_ahead(self, ahead: int) -> None:
        """Wait until at most so many commands are without an answer."""
        while len(self._asked) > ahead:
            self._arrived.clear()
            await self._arrived.wait()

    def choose(self) -> Command:
        """Return what a client might send next."""
        chance = self._chance
        queue, draw = chance.choice(QUEUES), chance.random()
        if not self._live or len(self._live) >= LIVE_MAX:
            self._is_shrinking = bool(self._live)
        if not self._live or draw < (0.1 if self._is_shrinking else 0.55):
            number, self._next = self._next, self._next + 1
            payload = b'"%d %s"' % (number, b"x" * chance.choice(PAYLOAD_BYTES))
            return Enqueue(queue, str(number), chance.choice((1, 5, 60)), True, chance.choice((0, 1, -1, -1)), payload)
        if draw < 0.58:
            return SetQueue(queue, settings_patch(chance))
        if draw < 0.65:
            return Next(queue, chance.choice((1, 1, 4)))
        (queue, name), run_id = chance.choice(list(self._live.items()))
        if draw < 0.78 and run_id is not None:
            state = chance.choice((None, b"", b'"%d"' % chance.getrandbits(30), b'"%s"' % (b"s" * chance.choice((200, 4000)))))
            return Heartbeat(queue, name, run_id, state)
        if draw < 0.81 and run_id is not None:
            return Undeliver(queue, name, run_id)
        return Complete(queue, name, run_id)


def settings_patch(chance: random.Random) -> bytes:
    """Return a change of a queue's settings that changes nothing of what becomes of its jobs. All but `NO_SETTINGS` is also what is kept of them then."""
    return NO_SETTINGS if chance.random() < 0.2 else b'{"jobs_max":%d}' % chance.randrange(10**6, 10**9)


async def work(orders: Orders, tell: Tell) -> None:
    """Recover, send commands, end in good order."""
    chance = random.Random(orders.seed)
    ahead_us = 0

    def clocks() -> tuple[int, int]:
        return time.monotonic_ns() // 1000 + ahead_us, time.time_ns() // 1000 + ahead_us

    sqlite.LOG_PAGES_MAX, sqlite.FREE_PAGES_KEPT = orders.log_pages, orders.free_pages
    kind = TooEarly if orders.sabotage == "answers first" else TellingStore
    store = kind(SqliteUrl(Path(orders.folder), orders.synchronous), 0, orders.shards, tell)
    pump = Pump(Shard(limits(dead_letters_max=10**6), lambda: chance.randbytes(16)), store, clocks)
    await pump.recover()
    rows = [row for row in store.loaded if isinstance(row, Row)]
    assert len(rows) == len(store.loaded)
    client = Client(pump, tell, rows, chance, orders.first)
    pumping = asyncio.create_task(pump.run())
    sent = 0
    while sent < orders.operations:
        numbers = client.send(*[client.choose() for _ in range(chance.choice(FRAME))])
        sent += len(numbers)
        ahead_us += int(chance.random() ** 4 * STEP_SECONDS_MAX * 1e6)
        await client.wait_ahead(chance.choice(AHEAD))
    await client.wait_ahead(0)
    await pump.drain()
    pumping.cancel()
    await store.close()


class TooEarly(TellingStore):
    """Says that a batch is written when only the one before it is."""

    _before: Batch | None = None

    async def commit(self, batch: Batch) -> None:
        before, self._before = self._before, batch
        if before is not None:
            await super().commit(before)


def sabotage(name: str) -> None:
    """Take out a part that a loss of power needs: what looks at the record must find it."""
    sync = sqlite_folder.sync
    if name == "no folder sync":
        mock.patch.object(sqlite_folder, "sync", lambda path: sync(path) if path.is_file() else None).start()
        mock.patch.object(sqlite_prepare, "sync", sqlite_folder.sync).start()
    elif name == "no file sync":
        mock.patch.object(sqlite_prepare, "sync", lambda path: None if path.is_file() else sync(path)).start()
    elif name == "no sync above":
        mock.patch.object(sqlite_prepare, "make_folder", lambda folder: folder.mkdir(parents=True, exist_ok=True)).start()
    else:
        assert name in ("", "answers first"), f"there is no such part: {name}"


def teller(orders: Orders) -> Tell:
    """Return what writes to the file that the record watches."""
    fd = os.open(orders.told, os.O_WRONLY | os.O_APPEND)

    def tell(message: Told) -> None:
        data = msgspec.msgpack.encode(message)
        written = os.write(fd, data)
        assert written == len(data)

    return tell


def main() -> None:
    """Do what the argument orders."""
    orders = msgspec.json.decode(sys.argv[1], type=Orders)
    tell = teller(orders)
    sabotage(orders.sabotage)
    sqlite_prepare.prepare(SqliteUrl(Path(orders.folder)), orders.shards)
    tell(Prepared())
    if orders.operations:
        asyncio.run(work(orders, tell))


if __name__ == "__main__":
    main()
