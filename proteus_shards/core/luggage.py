"""What a shard takes along when it moves in order: all that it has in memory only.

How to think about it
=====================

A successor on another host reads the store's rows and records as after any restart. What a restart loses is in the luggage: memory-only jobs in every state,
the time that runs in flight have left (of persisted jobs too), the buckets of queues with a rate, answers that are kept of memory-only requests, steps
that are open, the counter and the clock that give order keys. Durations travel, never instants of a monotonic clock; a job's place is in its order key, so
jobs are packed in any order.

Nothing may change between the last commit and the last piece: the owner sees to that. Nothing of it is told to a client either, so luggage that is lost
costs what a crash costs, and no more.

**Pieces.** Luggage is a `Head`, pieces of several kinds, and an `End` that counts and sums up what was before it. A cut or changed one is found out before
anything is taken in (`read_pieces`). A single job that cannot be one is left out and told, as a damaged row is.

**Used once.** Memory-only jobs that were completed after luggage was taken in must not come back with it: whose turn it is stands in the head, and the owner
removes what it has taken in.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeAlias
from zlib import crc32

import msgspec

from proteus_shards.core.holdings import STATUSES, WALL_STEP_US
from proteus_shards.core.ledger import row_of
from proteus_shards.core.model import COUNT_MAX, SECOND_US, TIMEOUT_SECONDS_MAX, Kind, RecordKey, Row, is_instant, job_of
from proteus_shards.core.once import Once, pack_kept
from proteus_shards.core.placement import slot_of
from proteus_shards.core.queue import IN_FLIGHT, Queue
from proteus_shards.core.queue_settings import RateSettings
from proteus_shards.errors import LuggageError, RecordError, RowError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from proteus_shards.core.holdings import Limits
    from proteus_shards.core.model import Job

LUGGAGE_VERSION = 1
PIECE_BYTES = 1024 * 1024  # a piece of jobs is closed once it is larger
PIECE_ITEMS = 1000


class Label(msgspec.Struct, frozen=True):
    """Whose luggage it is. `turn` is that of the process that packs or unpacks it."""

    shard: int
    shards: int
    turn: int


class Head(msgspec.Struct, frozen=True, tag="head"):
    """The first piece."""

    version: int
    label: Label
    seq: int
    clock: int
    wall: int
    stepped: int  # by how much the wall clock was set forward: dead letters are no older by that


class CarriedJob(Row, frozen=True, gc=False, array_like=True):
    """A memory-only job. `status` is READY for a scheduled one, too, as in rows."""

    left_us: int = 0  # of its run, while in flight
    started_at: int = 0


class CarriedRun(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What the store does not know of a persisted job in flight."""

    queue: str
    id: str
    seq: int
    run_id: bytes
    left_us: int
    updated_at: int
    started_at: int


class CarriedQueue(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a queue remembers beside its jobs: the bucket of its rate, and the order of deaths where times do not tell it."""

    name: str
    rate: RateSettings | None = None
    spent: int = 0  # of the bucket, in its own units
    dead: list[int] = []  # seqs, oldest death first


class Jobs(msgspec.Struct, frozen=True, tag="jobs"):
    """Some memory-only jobs."""

    items: list[CarriedJob]


class Runs(msgspec.Struct, frozen=True, tag="runs"):
    """Some runs of persisted jobs."""

    items: list[CarriedRun]


class Queues(msgspec.Struct, frozen=True, tag="queues"):
    """Some queues."""

    items: list[CarriedQueue]


class Answers(msgspec.Struct, frozen=True, tag="answers"):
    """Answers that are kept in memory only, by name."""

    items: list[tuple[str, bytes]]


class OpenSteps(msgspec.Struct, frozen=True, tag="steps"):
    """Steps over several shards that are open here, and how long they have been."""

    items: list[tuple[bytes, int]]


class End(msgspec.Struct, frozen=True, tag="end"):
    """The last piece."""

    pieces: int
    sum: int


Piece: TypeAlias = Head | Jobs | Runs | Queues | Answers | OpenSteps | End

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Piece).decode
_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_pieces(bodies: Iterable[bytes], own: Label) -> list[Piece]:
    """Return the pieces of luggage that are for the process of `own`, without their end. Raises `LuggageError`."""
    pieces: list[Piece] = []
    total = 0
    for body in bodies:
        if pieces and isinstance(pieces[-1], End):
            raise LuggageError("the luggage goes on after its end")
        try:
            piece: Piece = _decode(body)
        except _GARBAGE as error:
            raise LuggageError(f"the luggage cannot be read: {error}") from error
        if not pieces:
            _check_head(piece, own)
        if isinstance(piece, End) and (piece.pieces, piece.sum) != (len(pieces), total):
            raise LuggageError("the luggage is not what was packed")
        pieces.append(piece)
        total = crc32(body, total)
    if not pieces or not isinstance(pieces[-1], End):
        raise LuggageError("the luggage is cut off")
    return pieces[:-1]


def _check_head(piece: Piece, own: Label) -> None:
    if not isinstance(piece, Head):
        raise LuggageError("the luggage has no head")
    label = piece.label
    if piece.version != LUGGAGE_VERSION:
        raise LuggageError(f"the luggage is of version {piece.version}, this is {LUGGAGE_VERSION}")
    if (label.shard, label.shards) != (own.shard, own.shards):
        raise LuggageError(f"the luggage is of shard {label.shard} of {label.shards}, this is {own.shard} of {own.shards}")
    if not own.turn - 1 <= label.turn <= own.turn:
        raise LuggageError(f"the luggage is of turn {label.turn}, this is {own.turn}: another has had the shard between")
    if not (0 <= piece.seq <= COUNT_MAX and is_instant(piece.clock) and is_instant(piece.wall) and 0 <= piece.stepped <= COUNT_MAX):
        raise LuggageError("the luggage has a counter or a clock that cannot be")


class Luggage(Once):
    """The queues of one shard, and how they move."""

    def __init__(self, limits: Limits, new_run_id: Callable[[], bytes], draw: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__(limits, new_run_id, draw)
        self._carried_runs: list[tuple[Job, int]] = []

    # --- packing -----------------------------------------------------------------------------------------------

    def pack_luggage(self, label: Label) -> Iterator[bytes]:
        """Yield the pieces, each to be kept apart from the next. Nothing may wait for a commit, and nothing may change until the last one is out."""
        assert not len(self._ledger), "what waits for the store cannot move"
        pieces, total = 0, 0
        head = Head(LUGGAGE_VERSION, label, self._seq, self._clock, self._wall, self._wall_stepped)
        for piece in chain([head], self._pack_jobs(), self._pack_others()):
            body = _encode(piece)
            pieces += 1
            total = crc32(body, total)
            yield body
        yield _encode(End(pieces, total))

    def _pack_jobs(self) -> Iterator[Piece]:
        items: list[CarriedJob] = []
        size = 0
        for queue in self.queues.values():
            for job in chain(queue.jobs.values(), queue.dead.values()):
                if job.persist:
                    continue
                left_us = job.deadline - self._now if job.status is IN_FLIGHT else 0
                items.append(CarriedJob(**msgspec.structs.asdict(row_of(job, queue.slot)), left_us=left_us, started_at=job.started_at))
                size += len(job.payload) + len(job.state or b"")
                if size >= PIECE_BYTES or len(items) >= PIECE_ITEMS:
                    yield Jobs(items)
                    items, size = [], 0
        if items:
            yield Jobs(items)

    def _pack_others(self) -> Iterator[Piece]:
        runs = (
            CarriedRun(queue.name, job.id, job.seq, job.run_id, job.deadline - self._now, job.updated_at, job.started_at)
            for queue in self.queues.values()
            if queue.counts[IN_FLIGHT]
            for job in queue.jobs.values()
            if job.persist and job.status is IN_FLIGHT and job.run_id is not None
        )
        for items in _portions(runs):
            yield Runs(items)
        for items in _portions(carried for queue in self.queues.values() if (carried := self._pack_queue(queue)) is not None):
            yield Queues(items)
        kept = ((record.name, pack_kept(answer)) for record, answer in self._kept.items() if not answer.stored)
        for items in _portions(kept):
            yield Answers(items)
        for items in _portions((step, self._now - since) for step, since in self._begun.items()):
            yield OpenSteps(items)

    def _pack_queue(self, queue: Queue) -> CarriedQueue | None:
        rate, spent = queue.spent(self._now)
        order = list(queue.dead)
        if order == [job.seq for job in sorted(queue.dead.values(), key=lambda job: (job.updated_at, job.seq))]:
            order = []
        return CarriedQueue(queue.name, rate, spent, order) if rate is not None or order else None

    # --- unpacking ---------------------------------------------------------------------------------------------

    def load_luggage(self, pieces: Iterable[Piece]) -> list[str]:
        """Take in what the shard before had in memory, after `finish_load`; `finish_luggage` ends it. Returns what is wrong with items that were left out."""
        faults: list[str] = []
        mixed: dict[Queue, None] = {}
        for piece in pieces:
            match piece:
                case Head():
                    self.pass_over(piece.seq)
                    self._clock = max(self._clock, piece.clock)
                    ahead = self._wall - piece.wall  # of the clock of the host before
                    self._wall_stepped = piece.stepped + (ahead if ahead > WALL_STEP_US else 0)
                case Jobs():
                    faults += [fault for item in piece.items if (fault := self._unpack_job(item, mixed)) is not None]
                case Runs():
                    faults += [fault for item in piece.items if (fault := self._unpack_run(item)) is not None]
                case Queues():
                    self._sort_in(mixed)
                    for item in piece.items:
                        self._unpack_queue(item)
                case Answers():
                    faults += [fault for name, value in piece.items if (fault := self._unpack_answer(name, value)) is not None]
                case OpenSteps():
                    for step, age_us in sorted(piece.items, key=lambda item: -item[1]):
                        self._begun[step] = self._now - max(0, age_us)
                case End():
                    pass
        self._sort_in(mixed)
        return faults

    def finish_luggage(self) -> None:
        """Let the time of the runs go on that were taken in: what each had left, from now on."""
        runs, self._carried_runs = self._carried_runs, []
        for job, left_us in runs:
            job.deadline = self._now + max(0, left_us)
            self._deadlines.add(job.deadline, job)  # earlier than it was filed as one with its full time

    def _unpack_job(self, carried: CarriedJob, mixed: dict[Queue, None]) -> str | None:
        self.pass_over(carried.seq)
        where = f"job of slot {carried.slot}, seq {carried.seq}"
        try:
            job = job_of(carried)
        except RowError as error:
            return f"{where}: {error}"
        queue = self.queues.get(carried.queue)
        if (fault := self._misplaced(carried)) is not None:
            return f"{where}: {fault}"
        if queue is not None and carried.seq in queue.dead:
            return f"{where}: a dead letter has its seq"
        if not (_is_span(carried.left_us) and (not carried.started_at or is_instant(carried.started_at))):
            return f"{where}: the time of its run cannot be"
        job.persist = job.stored = False
        job.started_at = carried.started_at
        self._settle_in(job, STATUSES[carried.status])
        if job.status is IN_FLIGHT:
            self._carried_runs.append((job, carried.left_us))
        mixed[self.queues[job.queue]] = None
        return None

    def _unpack_run(self, carried: CarriedRun) -> str | None:
        _, job = self._find(carried.queue, carried.id)
        where = f"run of seq {carried.seq}"
        if job is None or job.status is not IN_FLIGHT or (job.seq, job.run_id) != (carried.seq, carried.run_id):
            return f"{where}: the store knows no such run"
        if not (
            _is_span(carried.left_us) and is_instant(carried.updated_at) and (not carried.started_at or is_instant(carried.started_at))
        ):
            return f"{where}: its times cannot be"
        job.updated_at = max(job.updated_at, carried.updated_at)
        job.started_at = carried.started_at
        self._carried_runs.append((job, carried.left_us))
        return None

    def _unpack_queue(self, carried: CarriedQueue) -> None:
        queue = self.queues.get(carried.name)
        if queue is None:  # nothing is left that would need it
            return
        if carried.rate is not None:
            queue.take_over(carried.rate, carried.spent, self._now)
        if queue.dead.keys() == set(carried.dead):
            for seq in carried.dead:
                queue.dead.move_to_end(seq)

    def _unpack_answer(self, name: str, value: bytes) -> str | None:
        queue = name.partition(" ")[2]
        record = RecordKey(slot_of(queue), Kind.ANSWER, name)
        if record in self._kept:
            return "answer: the store has another of its name"
        try:
            self._take_answer(record, value)
        except RecordError as error:
            return f"answer: {error}"
        return None

    def _sort_in(self, mixed: dict[Queue, None]) -> None:
        """Bring jobs that were taken in among those of the store: in the order of acceptance, and of death."""
        for queue in mixed:
            queue.jobs = dict(sorted(queue.jobs.items(), key=lambda item: (item[1].ready_at, item[1].seq)))
        self._order_dead(queue for queue in mixed if queue.dead)
        mixed.clear()


def _is_span(span_us: int) -> bool:
    return abs(span_us) <= 2 * TIMEOUT_SECONDS_MAX * SECOND_US


def _portions(items: Iterator[Any]) -> Iterator[list[Any]]:
    while portion := list(islice(items, PIECE_ITEMS)):
        yield portion
