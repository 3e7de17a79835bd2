"""What a shard process counts beside its core, and its samples for the page of metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proteus_shards.core.commands import Measures, QueueMeasure, Sample
from proteus_shards.core.measures import STATES, empty, note, seconds
from proteus_shards.errors import StoreFailed, StoreFenced, StorePermanent, StoreRefused, StoreUnknown, StoreWeak
from proteus_shards.tally import COMMIT_BOUNDS_US, COMMIT_ROWS_BOUNDS, Tally

if TYPE_CHECKING:
    from proteus_shards.core.commands import Statistics
    from proteus_shards.core.measures import Counters

ERRORS: dict[type[BaseException], str] = {
    StoreRefused: "refused",
    StoreUnknown: "unknown",
    StorePermanent: "permanent",
    StoreFenced: "fenced",
    StoreWeak: "weak",
    StoreFailed: "failed",  # and whatever else a store may raise
}


class Meter:
    """Counts commits and errors of the store. `queues_max` is how many queues have series of their own."""

    def __init__(self, tally: Tally | None = None, queues_max: int = 50) -> None:
        self.tally = tally or Tally(None, "shard")
        self.queues_max = queues_max
        self.shown: dict[str, None] = {}  # the queues of the last page
        self.commit_rows = empty(COMMIT_ROWS_BOUNDS)
        self.commit_us = empty(COMMIT_BOUNDS_US)
        self.errors = dict.fromkeys(ERRORS.values(), 0)
        self._oldest_us = 0

    def note_commit(self, rows: int, took_us: int) -> None:
        """Count a commit that succeeded."""
        note(self.commit_rows, COMMIT_ROWS_BOUNDS, rows)
        note(self.commit_us, COMMIT_BOUNDS_US, took_us)

    def note_error(self, error: BaseException) -> None:
        """Count an error of the store."""
        self.errors[next((name for kind, name in ERRORS.items() if isinstance(error, kind)), "failed")] += 1

    def measures(
        self, statistics: Statistics, counters: Counters, pending: int, queues: list[QueueMeasure] | None, oldest_us: int | None
    ) -> Measures:
        """Return everything, once it is in the file."""
        if queues is not None:
            self.shown = dict.fromkeys(queue.queue for queue in queues)
        if oldest_us is not None:
            self._oldest_us = oldest_us
        samples = self.tally.keep(self._samples(statistics, counters, pending))
        return Measures(samples, queues or [])

    def _samples(self, statistics: Statistics, counters: Counters, pending: int) -> list[Sample]:
        shard = str(statistics.shard)
        jobs = {"scheduled": statistics.scheduled, "waiting": statistics.ready, "in_flight": statistics.in_flight, "dead": statistics.dead}
        values: dict[str, float | list[float]] = {
            "proteus_oldest_waiting_seconds": self._oldest_us / 1e6,
            "proteus_queues": statistics.queues,
            "proteus_polls": statistics.polls,
            "proteus_payload_bytes": statistics.bytes,
            "proteus_pending_operations": pending,
            "proteus_jobs_enqueued_total": counters.enqueued,
            "proteus_jobs_delivered_total": counters.delivered,
            "proteus_jobs_undelivered_total": counters.undelivered,
            "proteus_heartbeats_total": counters.heartbeats,
            "proteus_jobs_completed_total": counters.completed,
            "proteus_run_timeouts_total": counters.timeouts,
            "proteus_runs_failed_total": counters.failed,
            "proteus_runs_released_total": counters.released,
            "proteus_jobs_retried_total": counters.retried,
            "proteus_jobs_expired_total": counters.expired,
            "proteus_jobs_died_total": counters.died,
            "proteus_dead_letters_dropped_total": counters.dead_dropped,
            "proteus_dead_letters_redriven_total": counters.redriven,
            "proteus_jobs_purged_total": counters.purged,
            "proteus_schedules_fired_total": counters.fired,
            "proteus_schedules_missed_total": counters.missed,
            "proteus_start_seconds": seconds(counters.started_us),
            "proteus_run_seconds": seconds(counters.ran_us),
            "proteus_store_away": statistics.store_away,
            "proteus_commit_rows": [float(count) for count in self.commit_rows],
            "proteus_commit_seconds": seconds(self.commit_us),
            "proteus_recovery_seconds": statistics.recovery_seconds,
            "proteus_recovered_rows": statistics.recovered,
            "proteus_damaged_rows": statistics.damaged,
        }
        samples: list[Sample] = [(name, [shard], value) for name, value in values.items()]
        samples += [("proteus_jobs", [shard, state], jobs[state]) for state in STATES]
        samples += [("proteus_store_errors_total", [shard, outcome], count) for outcome, count in self.errors.items()]
        samples.append(("proteus_store_info", [shard, statistics.store, statistics.durability], 1))
        return samples
