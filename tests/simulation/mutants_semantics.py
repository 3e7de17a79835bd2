"""Mutants: keys, priorities, failures, delays, ttls and limits of queues."""

from __future__ import annotations

from typing import Any

import msgspec

from proteus_shards.core import holdings, model, runs
from proteus_shards.core.commands_control import Fail, Release
from proteus_shards.core.deliveries import Deliveries
from proteus_shards.core.extras import Attempt
from proteus_shards.core.holdings import Holdings
from proteus_shards.core.keys import Keys
from proteus_shards.core.model import Job, Row, Status
from proteus_shards.core.queue import Queue
from proteus_shards.core.runs import Runs
from proteus_shards.core.shard import Shard
from tests.simulation.planting import Patch, mutant, rewrite

# --- keys and priorities ---------------------------------------------------------------------------------------------------


@mutant
def key_freed_too_early(patch: Patch) -> None:
    """A job in flight does not hold its key."""
    rewrite(patch, Queue, "_show", " and not lane.running else None", " else None")


@mutant
def key_held_by_the_dead(patch: Patch) -> None:
    """A job that has died never frees its key."""
    rewrite(
        patch, Keys, "file", "if was is Status.IN_FLIGHT is not status:", "if was is Status.IN_FLIGHT is not status is not Status.DEAD:"
    )


@mutant
def key_lost_at_restart(patch: Patch) -> None:
    """The keys of stored jobs are not read."""
    job_of = model.job_of

    def forgetful(row: Row) -> Job:
        job = job_of(row)
        if job.extras is not None:
            job.extras = msgspec.structs.replace(job.extras, key=None)
        return job

    patch(holdings, "job_of", forgetful)


@mutant
def key_passed_while_backing_off(patch: Patch) -> None:
    """With on_retry "hold", a job that backs off is passed by the next of its key."""
    patch(Keys, "_is_held", lambda _self, _job: False)


@mutant
def key_reordered(patch: Patch) -> None:
    """In a key the job that came last goes first."""
    rewrite(patch, Keys, "_entry", "(0 if self._strict else job.ready_at, job.seq,", "(0 if self._strict else -job.ready_at, -job.seq,")


@mutant
def blocked_by_nobody(patch: Patch) -> None:
    """A job that comes into a key that is free is not shown."""
    show = Queue._show

    def shy(self: Queue, keys: Keys, key: str, lane: Any) -> None:
        if lane.shown is None and not lane.running and len(lane.waiting) > 1:
            return
        show(self, keys, key, lane)

    patch(Queue, "_show", shy)


@mutant
def priority_inverted(patch: Patch) -> None:
    """The lowest comes first."""
    rewrite(patch, Queue, "_line_up", "(-priority, job.ready_at", "(priority, job.ready_at")


@mutant
def priority_behind_the_plain(patch: Patch) -> None:
    """Jobs with a priority above 0 line up behind those without."""
    rewrite(patch, Queue, "_line_up", "self._above if priority > 0 else self._below", "self._below")


# --- ends of runs ----------------------------------------------------------------------------------------------------------


@mutant
def release_spends_a_retry(patch: Patch) -> None:
    """A job that was given up counts as tried."""
    rewrite(patch, Runs, "_release", "job.attempt -= 1", "job.attempt -= 0")


@mutant
def failure_spends_no_retry(patch: Patch) -> None:
    """A failure is not counted."""
    fail = Runs._fail

    def free(self: Runs, key: Any, command: Fail) -> None:
        _, job = self._find(command.queue, command.id)
        fail(self, key, command)
        if job is not None and job.status in (Status.READY, Status.SCHEDULED):
            job.attempt -= 1

    patch(Shard, "_fail", free)
    patch(Runs, "_fail", free)


@mutant
def failures_never_kill(patch: Patch) -> None:
    """A job without retries left comes back after a failure."""
    rewrite(patch, Runs, "_end_badly", "last = 0 <= job.max_retries", "last = outcome == 'timeout' and 0 <= job.max_retries")


@mutant
def backoff_ignored_at_restart(patch: Patch) -> None:
    """A job that backs off is ready as soon as its row is read."""
    patch(
        Holdings,
        "_due_status",
        lambda self, run_at, _extras, status: (
            Status.SCHEDULED if status is Status.READY and run_at is not None and run_at > self._wall else status
        ),
    )


@mutant
def delay_ignored(patch: Patch) -> None:
    """What a failure or a release says of its delay is not heard."""
    fail, release = Runs._fail, Runs._release
    patch(Runs, "_fail", lambda self, key, command: fail(self, key, msgspec.structs.replace(command, delay_us=0)))

    def at_once(self: Runs, key: Any, command: Release) -> None:
        release(self, key, msgspec.structs.replace(command, delay_us=0))

    patch(Runs, "_release", at_once)


@mutant
def history_not_written(patch: Patch) -> None:
    """Attempts are remembered until the next restart."""
    rewrite(patch, Runs, "_end_badly", "self._settle(queue, None, note, job, image, write=job.persist, extras_set=job.persist)", "self._settle(queue, None, note, job, image, write=job.persist)")  # fmt: skip


@mutant
def errors_forgotten(patch: Patch) -> None:
    """The text of a failure is not kept."""
    patch(runs, "Attempt", lambda number, began, ended, outcome, _error: Attempt(number, began, ended, outcome, None))


# --- ttl and limits --------------------------------------------------------------------------------------------------------


@mutant
def ttl_drops_silently(patch: Patch) -> None:
    """A job whose ttl is over is gone, and no dead letter tells of it."""
    gone = "self._weigh(queue, -footprint(job)); queue.place(job, TRANSITIONS[Verb.DROP][DEAD])"
    rewrite(patch, Deliveries, "_lapse", "queue.place(job, _LAPSE[job.status])", gone)


@mutant
def ttl_ignored(patch: Patch) -> None:
    """Jobs wait for ever."""
    patch(holdings, "lapses_at", lambda _job: None)
    patch(Deliveries, "_has_lapsed", lambda _self, _job: False)


@mutant
def one_too_many_in_flight(patch: Patch) -> None:
    """max_in_flight is exceeded by one."""
    rewrite(patch, Queue, "allowance", "settings.max_in_flight - self", "settings.max_in_flight + 1 - self")


@mutant
def tokens_cost_nothing(patch: Patch) -> None:
    """The bucket of a rate is never emptied."""
    patch(Queue, "spend", lambda _self, _jobs, _now: None)


@mutant
def paused_but_not_for_polls(patch: Patch) -> None:
    """A paused queue delivers."""
    rewrite(patch, Queue, "allowance", "if settings.paused:", "if settings.paused and not self.waiters:")
