"""What survives: the rows of all shards, and a store double whose every call may go as badly as the contract allows.

`Disk` is the truth. A `SimulatedStore` is one process's way to it: its commits are atomic, fenced by an epoch that is checked at the moment of
writing, and may be slow, refused, answered without being written, or written without being answered, even long after the process has
gone. What the contract forbids (half a batch, a write under an old epoch) only a planted mutant does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from proteus_shards.core.model import Batch, Mark, Record, RecordKey, Row, RowKey
from proteus_shards.errors import StoreFailed, StoreFenced, StorePermanent, StoreRefused, StoreUnknown
from proteus_shards.store.contract import Damaged, Durability

if TYPE_CHECKING:
    from tests.simulation.loop import VirtualLoop
    from tests.simulation.plan import Plan

DEAD = 4
POISON = b'"poison"'


class Violation(Exception):
    """Something that is promised does not hold."""


class Disk:
    """All stored rows, by (slot, seq), and the live ones by queue and id."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], Row] = {}
        self.live: defaultdict[str, dict[str, Row]] = defaultdict(dict)
        self.damaged: dict[tuple[int, int], Row] = {}  # rows that can't be read: what they were
        self.records: dict[RecordKey, bytes] = {}
        self.epoch = 0
        self.faults: dict[str, int] = {}  # how many commits went wrong in which way
        self.stores: list[SimulatedStore] = []  # those that believe to own rows

    def write(self, batch: Batch) -> None:
        """Apply a batch, and check that a real store could have."""
        rows, live = self.rows, self.live
        for key in batch.deletes:
            old = rows.pop((key.slot, key.seq), None)
            if old is None:
                raise Violation(f"a batch deletes row {key.seq} of {key.queue}/{key.id}, which is not there")
            if old.status != DEAD:
                del live[old.queue][old.id]
        fresh: list[Row] = []
        for mark in batch.marks:
            old = rows.get((mark.slot, mark.seq))
            if old is None or (old.queue, old.id) != (mark.queue, mark.id):
                raise Violation(f"a batch marks row {mark.seq} of {mark.queue}/{mark.id}, which is not there")
            if old.status != DEAD:
                del live[old.queue][old.id]
            fresh.append(_marked(old, mark))
        fresh += batch.inserts
        for row in fresh:
            rows[row.slot, row.seq] = row
            if row.status != DEAD:
                if row.id in live[row.queue]:
                    raise Violation(f"two live rows of {row.queue}/{row.id}")
                live[row.queue][row.id] = row
        for record in batch.records:
            name = RecordKey(record.slot, record.kind, record.name)
            if record.value is None:
                self.records.pop(name, None)
            else:
                self.records[name] = record.value

    def check_inserts(self, batch: Batch) -> None:
        """Check that no row takes the place of another, readable or not."""
        for row in batch.inserts:
            if (row.slot, row.seq) in self.rows or (row.slot, row.seq) in self.damaged:
                raise Violation(f"seq {row.seq} is given to {row.queue}/{row.id} but was taken")

    def damage(self, row: Row) -> None:
        """Make a row unreadable."""
        del self.rows[row.slot, row.seq]
        if row.status != DEAD:
            del self.live[row.queue][row.id]
        self.damaged[row.slot, row.seq] = row


class SimulatedStore:
    """Implements `contract.Store` for some slots of a disk. `crash` is called where the process is to die in a commit."""

    kind = "simulated"
    durability = Durability.MACHINE
    terms = "simulated"
    keeps = True

    def __init__(self, disk: Disk, loop: VirtualLoop, plan: Plan, slots: frozenset[int], crash: Callable[[], None]) -> None:
        self.row_bytes_max = plan.row_bytes_max
        self.batch_rows_max = plan.batch_rows_max
        self.batch_bytes_max = plan.batch_bytes_max
        self.disk = disk
        self.slots = slots
        self.epoch = 0
        self.stale = False  # another process has opened these rows
        self.away_until = 0
        self.commits = 0
        self.failed: Callable[[str, Batch], None] = lambda _how, _batch: None  # told of a commit that is about to fail
        self.known: Callable[[], None] = lambda: None  # told when the rows are the truth again
        self.fenced: Callable[[], None] = lambda: None  # told when another process has opened the rows
        self._loop = loop
        self._plan = plan
        self._random = plan.random.random
        self._crash = crash
        self._doubt = self._doubtful_records = False

    # --- the contract ------------------------------------------------------------------------------------------

    async def open(self) -> int:
        await self._travel()
        if self._loop.now < self.away_until:
            raise StoreRefused
        self._take()
        self.disk.stores = [store for store in self.disk.stores if store is not self and not store._fence(self.slots)]
        self.disk.stores.append(self)
        return self.epoch

    async def load(self) -> AsyncIterator[Sequence[Row | Damaged]]:
        rows = sorted(
            (row for row in self.disk.rows.values() if row.slot in self.slots),
            key=lambda row: (row.ready_at, row.seq),
        )
        damaged = [Damaged(f"slot {slot}, seq {seq}", "planted", seq) for slot, seq in self.disk.damaged if slot in self.slots]
        if damaged:
            yield damaged
        half = len(rows) // 2
        yield rows[:half]
        await self._travel()
        if not self._plan.healed and self._random() < self._plan.load_fails:
            raise StoreRefused
        yield rows[half:]

    async def load_records(self) -> AsyncIterator[Sequence[Record | Damaged]]:
        yield [Record(key.slot, key.kind, key.name, value) for key, value in self.disk.records.items() if key.slot in self.slots]

    async def commit(self, batch: Batch) -> None:
        self.commits += 1
        if (fault := self._misfit(batch)) is not None:
            self._tell("broken", batch)
            raise Violation(fault)
        plan, draw = self._plan, self._random
        epoch = self.epoch
        if plan.poison and any(row.payload == POISON for row in batch.inserts):
            self._tell("permanent", batch)
            raise StorePermanent
        if self._loop.now < self.away_until:
            self._tell("refused", batch)
            raise StoreRefused
        fate = draw() if not plan.healed else 1.0
        if fate >= plan.trouble:
            await self._travel()
            self._write(batch, epoch)
            return
        await self._go_wrong(batch, epoch, fate / plan.trouble)

    async def reopen(self) -> int:
        await self._travel()
        if self._loop.now < self.away_until:
            raise StoreRefused if self._random() < 0.7 else StoreUnknown
        if self.stale:
            raise StoreFenced
        self._take()
        if not self._doubt:
            self.known()
        return self.epoch

    async def read(self, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        await self._travel()
        if not self._plan.healed and self._random() < self._plan.load_fails:
            raise StoreRefused if self._random() < 0.5 else StoreUnknown
        if not self._doubtful_records:
            self._know()
        rows = self.disk.rows
        return {key: rows[key.slot, key.seq] for key in keys if (key.slot, key.seq) in rows}

    async def read_records(self, keys: Sequence[RecordKey]) -> dict[RecordKey, bytes]:
        await self._travel()
        if not self._plan.healed and self._random() < self._plan.load_fails:
            raise StoreRefused if self._random() < 0.5 else StoreUnknown
        self._know()
        return {key: self.disk.records[key] for key in keys if key in self.disk.records}

    async def close(self) -> None:
        pass

    def _know(self) -> None:
        self._doubt = self._doubtful_records = False
        if not self.stale:
            self.known()

    # --- what goes wrong ---------------------------------------------------------------------------------------

    async def _go_wrong(self, batch: Batch, epoch: int, how: float) -> None:
        """Let a commit fail in one of the ways that there are; `how` lies in 0…1."""
        draw, loop = self._random, self._loop
        await self._travel()
        if draw() < self._plan.outage:
            self.away_until = loop.now + int(draw() * draw() * 10_000_000)
        if how < 0.3:
            self._tell("refused", batch)
            raise StoreRefused
        if how < 0.75:
            fate = draw()
            if fate < 0.4:
                self._write(batch, epoch)
            elif fate < 0.6:  # it lies in some buffer, and may still be written if nobody fences it
                loop.after(int(draw() * 3_000_000), self._write_late, batch, epoch)
            self._doubt, self._doubtful_records = True, bool(batch.records)
            self._tell("unknown", batch)
            raise StoreUnknown
        if how < 0.95:
            if draw() < 0.5:
                self._write(batch, epoch)
            elif draw() < 0.5:
                loop.after(int(draw() * 3_000_000), self._write_late, batch, epoch)
            self._crash()
            await loop.create_future()
        if draw() < 0.5:
            self._write(batch, epoch)
        self._tell("failed", batch)
        raise StoreFailed

    def _tell(self, how: str, batch: Batch) -> None:
        """Count a commit that fails, and tell whoever listens, before the shard knows."""
        faults = self.disk.faults
        faults[f"commit {how}"] = faults.get(f"commit {how}", 0) + 1
        self.failed(how, batch)

    async def _travel(self) -> None:
        """Take the time that a call takes."""
        latency = self._plan.latency_us
        if latency and self._random() < 0.7:
            arrived = self._loop.create_future()
            self._loop.after(int(self._random() ** 3 * latency), _arrive, arrived)
            await arrived

    def _write(self, batch: Batch, epoch: int) -> None:
        if self.stale or epoch != self.epoch:
            self._tell("fenced", batch)
            raise StoreFenced
        try:
            self.disk.check_inserts(batch)
            self.disk.write(batch)
        except Exception:
            self._tell("broken", batch)
            raise

    def _write_late(self, batch: Batch, epoch: int) -> None:
        damaged = self.disk.damaged
        lost = damaged and any((key.slot, key.seq) in damaged for keys in (batch.deletes, batch.marks) for key in keys)
        if not self.stale and epoch == self.epoch and not lost:
            self.disk.check_inserts(batch)
            self.disk.write(batch)

    # --- owners ------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        self.disk.epoch += 1
        self.epoch = self.disk.epoch

    def _fence(self, slots: frozenset[int]) -> bool:
        """Another process takes over some slots: say whether that ends this one's time."""
        if self.slots & slots and not self.stale:
            self.stale = True
            self.fenced()
        return self.stale

    def _misfit(self, batch: Batch) -> str | None:
        """Say by how much a batch is too large."""
        rows, size = self.batch_rows_max, self.batch_bytes_max
        if rows is not None and len(batch) > rows:
            return f"a batch of {len(batch)} rows, the limit is {rows}"
        if size is not None and len(batch) > 1:
            length = sum(len(row.payload) + len(row.state or b"") + len(row.queue) + len(row.id) for row in batch.inserts)
            length += sum(len(mark.state or b"") + len(mark.queue) + len(mark.id) for mark in batch.marks)
            length += sum(len(record.name) + len(record.value or b"") for record in batch.records)
            if length > size:
                return f"a batch of {length} bytes, the limit is {size}"
        return None


def _arrive(future: object) -> None:
    if not future.done():  # type: ignore[attr-defined]
        future.set_result(None)  # type: ignore[attr-defined]


def _marked(row: Row, mark: Mark) -> Row:
    return Row(
        row.slot, row.seq, row.queue, row.id, mark.status, row.ready_at, row.run_at, row.timeout, row.max_retries, mark.attempt,
        mark.run_id, mark.reason, row.created_at, mark.updated_at, row.payload, mark.state if mark.state_set else row.state,
        mark.extras if mark.extras_set else row.extras,
    )  # fmt: skip
