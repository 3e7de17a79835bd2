"""Collect, decide, commit, release: the one loop that joins links, core and store.

Commands are applied to the core in the callback that received them; nothing waits to be decided. Row writes collect in the core
while a commit is under way, and go out as the next batch when it ends. There is no timer in this: with little load a
batch is one request and leaves at once, with much load it is what arrived during the last fsync. Batches grow by themselves.

When a commit fails, the core undoes what was not released, and this loop finds out how things stand:

* refused: everything is answered BUSY (surely without effect), the store counts as away and is tried again with backoff;
* unknown: what was in the batch is answered UNKNOWN; after `reopen` has fenced the doubtful batch, its rows are read back;
* back, but weaker than what is required, after its settings were changed: as if it were away, and tried again;
* permanent: a batch of one operation is answered INVALID; a larger one BUSY, and operations then go one at a time for a while, so that
  the one at fault meets its own answer and the others pass;
* fenced or failed: fail-stop. What was in the batch is answered UNKNOWN, and the process ends with the error. Memory that may
  differ from the disk serves nobody.

**After a stall** (SIGSTOP, a suspended machine, a very long garbage collection) the timers are overdue, and so may be heartbeats that
lie in the socket. Commands that are there are applied before anything expires: a runner that was in time is not punished for our pause. And the
pause does not count: the core's monotonic clock stands still in it (`_stalled_us` is taken off). Else a run that was handed out just before
could be over before its runner had had its time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol, cast

from proteus_shards.core.commands import (
    Cancel,
    Complete,
    Delivered,
    Enqueue,
    Heartbeat,
    Inspect,
    ListDead,
    Measure,
    Measures,
    Next,
    Outcome,
    QueueMeasure,
    Reason,
    Refused,
    Statistics,
    Undeliver,
)
from proteus_shards.core.commands_control import FindJobs, GetJob, ListJobs
from proteus_shards.core.measures import Survey
from proteus_shards.core.model import Record, Row
from proteus_shards.errors import StorePermanent, StoreRefused, StoreUnknown, StoreWeak
from proteus_shards.fault_points import reached
from proteus_shards.shard.meter import Meter
from proteus_shards.shard.notes import log_notes
from proteus_shards.store.contract import Damaged, Durability, check_durability

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from proteus_shards.core.commands import Command
    from proteus_shards.core.model import RowKey
    from proteus_shards.core.shard import Shard
    from proteus_shards.ipc.messages import Request
    from proteus_shards.store.contract import Store

log = logging.getLogger("proteus_shards.shard")

STALL_US = 500_000  # a loop that was away for longer has stalled
GRACE_US = 100_000  # after a stall, for what lies in the sockets
IDLE_US = 1_000_000  # how often the clocks are read at least while jobs are scheduled: the wall clock may have been set
BACKOFF_FIRST_SECONDS = 0.05
BACKOFF_MAX_SECONDS = 2.0
SURVEY_QUEUES = 500  # looked at between two turns of the event loop: a third of a millisecond
FLUSH_BYTES = 64 * 1024  # jobs of so many bytes are sent before more commands are looked at,
FLUSH_JOBS = 200  # and so many before more answers are written out: the front works on them while we go on
UNSENT_BYTES_MAX = 32 * 1024 * 1024  # of answers for one front; with more, none that brings jobs is added
CAREFUL_COMMITS = 1000  # how many commits hold one operation each, after one was refused for good


_QUESTIONS = frozenset({Inspect, Measure})
_BRING_NOTHING = frozenset({Enqueue, Heartbeat, Complete})  # the hot ones: nothing but the core has a say in them
_BRINGS_JOBS = frozenset({Next, ListDead, GetJob, FindJobs, ListJobs})


class Link(Protocol):
    """Where replies go: one connected front."""

    closed: bool

    @property
    def unsent_bytes(self) -> int:
        """How many bytes of replies wait for the front to take them."""

    def put(self, number: int, outcome: Outcome) -> None:
        """Queue a reply for the next flush."""

    def flush(self) -> None:
        """Send what is queued."""


class Pump:
    """Drives one `Shard` with commands from links and commits to a store. `read_clocks` returns (monotonic, wall) microseconds."""

    def __init__(
        self,
        shard: Shard,
        store: Store,
        read_clocks: Callable[[], tuple[int, int]],
        *,
        index: int = 0,
        required: Durability = Durability.MEMORY,
        meter: Meter | None = None,
        moves: bool = False,
    ) -> None:
        self.shard = shard
        self.store = store
        self.index = index
        self.required = required
        self.epoch = 0
        self.recovered = 0
        self.recovery_seconds = 0.0
        self.damaged = 0
        self._read_clocks = read_clocks
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stalled_us = 0  # of all stalls: the core's clock is behind by so much
        self._now_us, self._wall_us = read_clocks()
        self._grace_until_us = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_us = 0  # when the timer should fire
        self._unflushed: dict[Link, None] = {}
        self._committing = False
        self._draining = False
        self._stopped = False
        self._ending = Refused(Reason.MOVED, "the shard moves") if moves else Refused(Reason.BUSY, "the shard is ending")
        self._careful = 0
        self._commits = 0
        self._rows_written = 0
        self.meter = meter or Meter()
        self._askers: list[tuple[Link, int]] = []  # they wait for the survey that is being made
        self._surveying: asyncio.Task[None] | None = None

    # --- recovery ----------------------------------------------------------------------------------------------

    async def recover(self, take_luggage: Callable[[], Awaitable[bool]] | None = None) -> None:
        """Open the store and read every row back into the core, and then what the process before had in memory only.

        Raises `StoreWeak` for a store that promises less than is required.
        """
        started, _ = self._advance()
        self.epoch = await self.store.open()
        check_durability(self.store, self.required)
        damaged: list[tuple[str, str]] = []
        async for found in self.store.load_records():
            damaged += [(item.where, item.fault) for item in found if isinstance(item, Damaged)]
            wrong = self.shard.load_records([item for item in found if isinstance(item, Record)])
            damaged += [(f"slot {key.slot}, record {key.kind}", fault) for key, fault in wrong]
        async for chunk in self.store.load():
            rows = [row for row in chunk if isinstance(row, Row)]
            for item in chunk:
                if isinstance(item, Damaged):
                    damaged.append((item.where, item.fault))
                    self.shard.pass_over(item.seq or 0)
            faults = self.shard.load(rows)
            damaged += [(f"slot {key.slot}, seq {key.seq}", fault) for key, fault in faults]
            self.recovered += len(rows) - len(faults)
        self._now_us, self._wall_us = self._read_core_clocks()
        self.shard.advance(self._now_us, self._wall_us, due=False)
        self.shard.finish_load()
        if take_luggage is not None and await take_luggage():
            self._now_us, self._wall_us = self._read_core_clocks()
            self.shard.advance(self._now_us, self._wall_us, due=False)
            self.shard.finish_luggage()
        self.damaged = len(damaged)
        for where, fault in damaged:
            log.error("stored row is not a job, kept aside", extra={"where": where, "fault": fault})
        reached("shard.recovered")
        self.recovery_seconds = round((self._now_us - started) / 1e6, 3)
        log.info(
            "recovered",
            extra={
                "rows": self.recovered,
                "seconds": self.recovery_seconds,
                "damaged": self.damaged,
                "store": self.store.kind,
                "durability": str(self.store.durability),
                "terms": self.store.terms,
                "epoch": self.epoch,
            },
        )
        self._settle()

    # --- requests ----------------------------------------------------------------------------------------------

    def receive(self, link: Link, requests: Iterable[Request]) -> None:
        """Apply requests as they arrive, and answer what can be answered."""
        if self._stopped:
            self._turn_away(link, requests)
            return
        self._advance()
        shard = self.shard
        calm = not self._draining and not self._careful
        for number, command in requests:
            kind = type(command)
            if calm and kind in _BRING_NOTHING:
                shard.apply((link, number), command)
            elif isinstance(command, Cancel):
                (shard.end_wait if command.answered else shard.cancel)((link, command.request))
            elif kind in _QUESTIONS:
                self._tell(link, number, command)
            elif self._draining:
                self._put(link, number, self._ending)
            elif self._careful and (self._committing or shard.has_open):
                self._put(link, number, Refused(Reason.BUSY, "the shard is looking for a job that the store refuses"))
            elif kind in _BRINGS_JOBS and link.unsent_bytes > UNSENT_BYTES_MAX:
                self._put(link, number, Refused(Reason.FULL, "too many bytes of answers wait to be sent to this front"))
            else:
                shard.apply((link, number), command)
                if shard.answered_bytes > FLUSH_BYTES:
                    self._settle()
        self._settle()

    def _turn_away(self, link: Link, requests: Iterable[Request]) -> None:
        for number, command in requests:
            if not isinstance(command, Cancel):
                self._put(link, number, self._ending)
        self._flush()

    def carry_out(self, commands: Iterable[Command]) -> None:
        """Apply commands whose outcomes are of no interest."""
        self._advance()
        for command in commands:
            self.shard.apply(None, command)
        self._settle()

    def lose(self, link: Link) -> None:
        """Forget a link that has closed: its polls end here, and a delivery that it was still to get goes back at its release."""
        for key in self.shard.waiting():
            if cast("tuple[Link, int]", key)[0] is link:
                self.shard.cancel(key)
        self._settle()

    def _tell(self, link: Link, number: int, command: Command) -> None:
        if isinstance(command, Inspect):
            self._put(link, number, self.statistics())
            return
        self._askers.append((link, number))
        if self._surveying is None:
            self._surveying = asyncio.create_task(self._survey())
            self._surveying.add_done_callback(
                lambda survey: survey.cancelled() or survey.result()
            )  # a bug in it ends the process, as any does

    async def _survey(self) -> None:
        """Look over the queues, some at a time, and give their measures to all who have asked meanwhile."""
        survey = Survey(self.shard.queues, self.shard.waited_us, self.meter.queues_max, self.meter.shown)
        more = survey.look(SURVEY_QUEUES)
        while more:
            await asyncio.sleep(0)
            more = survey.look(SURVEY_QUEUES)
        measures = self.measures(survey.deepest(), survey.oldest_us)
        self._surveying = None
        askers, self._askers = self._askers, []
        for link, number in askers:
            if not link.closed:
                self._put(link, number, measures)
        self._settle()

    def measures(self, queues: list[QueueMeasure] | None = None, oldest_us: int | None = None) -> Measures:
        """Return all that this shard counts and measures, once it is in its file. Without the age of the oldest job that of the last survey stands."""
        return self.meter.measures(self.statistics(), self.shard.counters, self.shard.pending, queues, oldest_us)

    def statistics(self) -> Statistics:
        """Return what this shard holds and has done."""
        shard = self.shard
        _, scheduled, ready, in_flight, dead = shard.totals
        return Statistics(
            shard=self.index,
            epoch=self.epoch,
            store=self.store.kind,
            durability=str(self.store.durability),
            terms=self.store.terms,
            store_away=shard.away,
            queues=len(shard.queues),
            scheduled=scheduled,
            ready=ready,
            in_flight=in_flight,
            dead=dead,
            polls=shard.polls,
            bytes=shard.bytes,
            recovered=self.recovered,
            recovery_seconds=self.recovery_seconds,
            damaged=self.damaged,
            commits=self._commits,
            rows_written=self._rows_written,
            timeouts=shard.counters.timeouts,
            died=shard.counters.died,
            dead_dropped=shard.counters.dead_dropped,
        )

    # --- commits -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit batches until cancelled. Ends with the store's error where going on would not be safe."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self.shard.has_open:
                await self._commit()
            self._idle.set()  # nothing awaited since the test: it is still true

    async def drain(self) -> None:
        """Refuse new requests, answer waiting polls with nothing (or MOVED), and wait until everything under way is committed."""
        self._draining = True
        for key in self.shard.waiting():
            self.shard.cancel(key)
            link, number = cast("tuple[Link, int]", key)
            self._put(link, number, self._ending if self._ending.reason is Reason.MOVED else Delivered([]))
        self._settle()
        await self._idle.wait()

    def stop(self) -> None:
        """Let nothing change any more, once `run` has ended: what comes is turned away, and no time passes."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    async def _commit(self) -> None:
        batch = self.shard.cut()
        if len(batch):
            self._committing = True
            started_us, _ = self._read_clocks()
            reached("shard.cut")
            try:
                await self.store.commit(batch)
            except StoreRefused as error:
                self._fail(Reason.BUSY, "the backing store is away", error)
                await self._recover_store([])
                return
            except StoreUnknown as error:
                keys = self._fail(Reason.UNKNOWN, "the backing store did not say whether it was written", error)
                await self._recover_store(keys)
                return
            except StorePermanent as error:
                self._refuse_for_good(error)
                return
            except BaseException as error:
                self._fail(Reason.UNKNOWN, "the shard is ending because of its store", error)
                raise
            finally:
                self._committing = False
            reached("shard.committed")
            self._commits += 1
            self._rows_written += len(batch)
            self._careful = max(0, self._careful - 1)
            self.meter.note_commit(len(batch), self._read_clocks()[0] - started_us)
        self._advance()
        self.shard.committed()
        self._settle()
        reached("shard.released")

    def _fail(self, reason: Reason, detail: str, error: BaseException) -> list[RowKey]:
        self.meter.note_error(error)
        log.error("commit failed", extra={"outcome": reason.name.lower(), "error": f"{type(error).__name__}: {error}"})
        self._advance()
        keys = self.shard.failed(reason, detail)
        self._settle()
        return keys

    def _refuse_for_good(self, error: StorePermanent) -> None:
        alone = self.shard.sealed_answers == 1
        if alone:
            self._fail(Reason.INVALID, f"the backing store refuses this job: {error}", error)
        else:
            self._careful = CAREFUL_COMMITS
            self._fail(Reason.BUSY, "another operation of the same commit was refused", error)
        self.shard.heal()
        self._settle()

    async def _recover_store(self, keys: list[RowKey]) -> None:
        """Try the store until it answers, bring the truth about the rows and records in doubt, and take writes again."""
        record_keys = self.shard.records_in_doubt
        reached("shard.lost")
        backoff = BACKOFF_FIRST_SECONDS
        while True:
            try:
                self.epoch = await self.store.reopen()
                check_durability(self.store, self.required)
                rows = await self.store.read(keys) if keys else {}
                values = await self.store.read_records(record_keys) if record_keys else {}
                break
            except (StoreRefused, StoreUnknown, StoreWeak) as error:
                self.meter.note_error(error)
                level = logging.ERROR if isinstance(error, StoreWeak) else logging.WARNING
                log.log(level, "store is away", extra={"error": f"{type(error).__name__}: {error}", "retry_seconds": backoff})
                if self._draining:
                    self._idle.set()
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_MAX_SECONDS)
        self._advance()
        self.shard.adopt(keys, rows)
        self.shard.adopt_records(record_keys, values)
        self.shard.heal()
        log.info("store is back", extra={"epoch": self.epoch, "rows_read_back": len(keys)})
        self._settle()

    # --- clocks and releases -----------------------------------------------------------------------------------

    def _advance(self) -> tuple[int, int]:
        """Read the clocks and bring the core to them; after a stall, let what has arrived go first."""
        now, wall = self._read_core_clocks()
        if self._timer is not None and now - self._timer_us > STALL_US:
            self._stalled_us += now - self._timer_us
            now, wall = self._read_core_clocks()
            self._grace_until_us = now + GRACE_US
            self._set_timer(now, GRACE_US)
        self.shard.advance(now, wall, due=now >= self._grace_until_us)
        self._now_us, self._wall_us = now, wall
        return now, wall

    def _read_core_clocks(self) -> tuple[int, int]:
        """Return (monotonic, wall) microseconds as the core counts them."""
        now, wall = self._read_clocks()
        return now - self._stalled_us, wall

    def _tick(self) -> None:
        fired = self._timer
        self._advance()
        if self._timer is fired:  # it is spent, even where the loop called up to a millisecond early
            self._timer = None
        self._settle()

    def _settle(self) -> None:
        """Give out all answers and notes, wake the commit loop if rows wait, and set the timer."""
        shard = self.shard
        shard.answered_bytes = 0
        brought = 0
        unflushed = self._unflushed
        while replies := cast("list[tuple[tuple[Link, int], Outcome]]", shard.take_replies()):
            for (link, number), outcome in replies:
                if not link.closed:
                    link.put(number, outcome)
                    unflushed[link] = None
                    if type(outcome) is Delivered:
                        brought += len(outcome.jobs)
                        if brought > FLUSH_JOBS:
                            brought = 0
                            self._flush()
                elif isinstance(outcome, Delivered):  # nobody will ever see it
                    for job in outcome.jobs:
                        shard.apply(None, Undeliver(job.queue, job.id, job.run_id))
        self._flush()
        if shard.notes:
            log_notes(shard.notes)
            shard.notes.clear()
        if shard.has_open:
            self._idle.clear()
            self._wake.set()
        wait = shard.due_in(self._now_us, self._wall_us)
        if wait is not None:
            wait = min(max(wait, 0 if self._now_us >= self._grace_until_us else GRACE_US), IDLE_US)
            if self._timer is None or self._now_us + wait < self._timer_us:
                self._set_timer(self._now_us, wait)

    def _flush(self) -> None:
        for link in self._unflushed:
            link.flush()
        self._unflushed.clear()

    def _put(self, link: Link, number: int, outcome: Outcome) -> None:
        link.put(number, outcome)
        self._unflushed[link] = None

    def _set_timer(self, now: int, wait_us: int) -> None:
        if self._stopped:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_us = now + wait_us
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(wait_us / 1e6, self._tick)
