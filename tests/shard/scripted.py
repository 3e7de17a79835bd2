"""A store whose every commit does what a test says, and a link that remembers what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from proteus_shards.core.commands import Command, Outcome
from proteus_shards.core.holdings import Limits
from proteus_shards.core.model import Batch, Mark, Record, RecordKey, Row, RowKey
from proteus_shards.core.shard import Shard
from proteus_shards.errors import StoreError
from proteus_shards.shard.pump import Pump
from proteus_shards.store.contract import Damaged, Durability

DEADLINE_SECONDS = 10


class ScriptedStore:
    """Rows in a dict. `script` holds, per coming commit, None or (error, whether the batch is written all the same)."""

    kind = "scripted"
    durability = Durability.MACHINE
    keeps = True
    row_bytes_max: int | None = None
    terms = "scripted"
    batch_rows_max: int | None = None
    batch_bytes_max: int | None = None

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], Row] = {}
        self.records: dict[RecordKey, bytes] = {}
        self.script: list[tuple[StoreError, bool] | None] = []
        self.away: list[StoreError] = []  # raised by the coming reopens
        self.batches: list[Batch] = []
        self.damaged: list[Damaged] = []
        self.during_load: Callable[[], None] = lambda: None
        self.began = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.epoch = 0

    async def open(self) -> int:
        self.epoch += 1
        return self.epoch

    async def load(self) -> AsyncIterator[Sequence[Row | Damaged]]:
        yield self.damaged
        self.during_load()
        rows = sorted(self.rows.values(), key=lambda row: (row.ready_at, row.seq))
        yield rows

    async def load_records(self) -> AsyncIterator[Sequence[Record | Damaged]]:
        yield [Record(key.slot, key.kind, key.name, value) for key, value in self.records.items()]

    async def commit(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.began.set()
        await self.gate.wait()
        step = self.script.pop(0) if self.script else None
        if step is None or step[1]:
            self._write(batch)
        if step is not None:
            raise step[0]

    async def reopen(self) -> int:
        if self.away:
            raise self.away.pop(0)
        return await self.open()

    async def read(self, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        return {key: self.rows[key.slot, key.seq] for key in keys if (key.slot, key.seq) in self.rows}

    async def read_records(self, keys: Sequence[RecordKey]) -> dict[RecordKey, bytes]:
        return {key: self.records[key] for key in keys if key in self.records}

    async def close(self) -> None:
        pass

    def _write(self, batch: Batch) -> None:
        for gone in batch.deletes:
            del self.rows[gone.slot, gone.seq]
        for row in batch.inserts:
            self.rows[row.slot, row.seq] = row
        for mark in batch.marks:
            self.rows[mark.slot, mark.seq] = _marked(self.rows[mark.slot, mark.seq], mark)
        for record in batch.records:
            key = RecordKey(record.slot, record.kind, record.name)
            if record.value is None:
                self.records.pop(key, None)
            else:
                self.records[key] = record.value


def _marked(row: Row, mark: Mark) -> Row:
    state = mark.state if mark.state_set else row.state
    extras = mark.extras if mark.extras_set else row.extras
    return Row(
        row.slot, row.seq, row.queue, row.id, mark.status, row.ready_at, row.run_at, row.timeout, row.max_retries, mark.attempt,
        mark.run_id, mark.reason, row.created_at, mark.updated_at, row.payload, state, extras,
    )  # fmt: skip


class RecordingLink:
    """Implements `pump.Link`: answers by number."""

    def __init__(self, pump: Pump) -> None:
        self.closed = False
        self.unsent_bytes = 0
        self.answers: dict[int, Outcome] = {}
        self._pump = pump
        self._number = 0
        self._arrived = asyncio.Event()

    def put(self, number: int, outcome: Outcome) -> None:
        assert number not in self.answers, "answered twice"
        self.answers[number] = outcome
        self._arrived.set()

    def flush(self) -> None:
        pass

    def send(self, *commands: Command) -> list[int]:
        """Hand commands to the pump as one frame, and return their numbers."""
        first = self._number
        self._number += len(commands)
        numbers = list(range(first, self._number))
        self._pump.receive(self, list(zip(numbers, commands, strict=True)))
        return numbers

    async def ask(self, command: Command) -> Outcome:
        """Send a command and wait for its answer."""
        (number,) = self.send(command)
        return await self.answer(number)

    async def answer(self, number: int) -> Outcome:
        """Wait for an answer."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while number not in self.answers:
                self._arrived.clear()
                await self._arrived.wait()
        return self.answers[number]


class Clock:
    """Two clocks that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000
        self.wall = 1_700_000_000_000_000

    def __call__(self) -> tuple[int, int]:
        return self.now, self.wall

    def step(self, seconds: float) -> None:
        """Let time pass."""
        self.now += int(seconds * 1e6)
        self.wall += int(seconds * 1e6)


def counter_ids() -> Callable[[], bytes]:
    """Return a source of run ids that count up."""
    count = 0

    def new_run_id() -> bytes:
        nonlocal count
        count += 1
        return count.to_bytes(16, "big")

    return new_run_id


def limits(**changes: int | bool) -> Limits:
    """Return wide limits, with changes."""
    wide: dict[str, int | bool] = {
        "shard_pending_max": 10_000,
        "polls_max": 1000,
        "queue_jobs_max": 10_000,
        "shard_jobs_max": 10_000,
        "shard_bytes_max": 10**9,
        "queues_max": 1000,
        "dead_letters_max": 100,
        "dead_letters_us_max": 10**12,
        "keeps": True,
    }
    return Limits(**{**wide, **changes})  # type: ignore[arg-type]  # the names above are its fields


def make_pump(store: ScriptedStore, clock: Clock, *, moves: bool = False) -> Pump:
    """Return a pump over a new core."""
    return Pump(Shard(limits(), counter_ids()), store, clock, moves=moves)
