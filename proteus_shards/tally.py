"""The metrics of a server: which there are, and how the counters of a process outlive it.

Each process keeps what it counts as plain numbers and turns them into `Sample`s when asked: the name of a metric of `METRICS`, the values of its labels,
and a number. It writes them to a file in the private folder of the server about once a second, and its successor begins where that
file ends. **What is shown is in the file**: a process writes before it answers a scrape. So a counter that anyone has seen never goes back, whatever
kills the process; the last second of counts that nobody has seen may be lost.

A front runs beside its successor while that takes its place. So it has two files, and takes the one that is free; both count for ever, and gauges
are told by the one that stays.

The file is replaced by a rename, so that a reader finds it whole or finds the one before. It is not synced: when the machine goes down
the folder goes with it, and all counters begin at 0, which Prometheus understands.
"""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import sys
import time
from pathlib import Path
from typing import Literal

import msgspec

from proteus_shards.core.commands import Sample
from proteus_shards.core.measures import RUN_BOUNDS_US, START_BOUNDS_US
from proteus_shards.core.model import SECOND_US

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25  # between two looks at how late an event loop is
WRITE_TICKS = 4  # of which so many pass from one write of the file to the next
CRASH_LOOP_MIN = 3  # ends in a row, each soon after its start, that make a crash loop
LAG_SECONDS = 15.0  # the largest lag is that of the last one to two of these
COMMIT_ROWS_BOUNDS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 5000)
COMMIT_BOUNDS_US = (100, 250, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000)


class Metric(msgspec.Struct, frozen=True):
    """One metric as a user meets it. `bounds` are those of a histogram, in the unit of its name."""

    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    bounds: tuple[float, ...] = ()


def _in_seconds(bounds_us: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(bound / SECOND_US for bound in bounds_us)


METRICS: dict[str, Metric] = {
    "proteus_build_info": Metric("gauge", ("version",), "always 1"),
    # requests
    "proteus_http_requests_total": Metric(
        "counter", ("way", "route", "status"), "requests answered, by way (lane, quart), route and class of status"
    ),
    "proteus_errors_total": Metric(
        "counter", ("status", "limit"), "problems told, those inside batches included, by status and by the limit that was hit"
    ),
    "proteus_limit_hits_total": Metric(
        "counter", ("limit",), "times that a limit was hit, by its setting, whether a client was told or not"
    ),
    "proteus_held_bytes": Metric(
        "gauge",
        ("front", "kind"),
        "bytes held for clients: requests that are not whole, answers not taken (bodies_bytes_max, answers_bytes_max)",
    ),
    "proteus_requests_at_work": Metric(
        "gauge", ("front",), "requests worked on outside the fast lane, without those that wait (quart_requests_max)"
    ),
    "proteus_connections": Metric("gauge", ("front", "way"), "open connections"),
    "proteus_connections_accepted_total": Metric("counter", ("front",), "connections accepted"),
    "proteus_link_up": Metric("gauge", ("front", "shard"), "1 where a front is connected to a shard"),
    "proteus_link_requests": Metric(
        "gauge", ("front", "shard"), "operations of a front under way at a shard (link_requests_max, link_operations_max)"
    ),
    "proteus_link_queued_bytes": Metric("gauge", ("front", "shard"), "bytes of a front that wait to be sent to a shard (link_bytes_max)"),
    "proteus_link_connects_total": Metric("counter", ("shard",), "times that a front has connected to a shard"),
    "proteus_link_refused_total": Metric(
        "counter", ("shard",), "requests that a front refused since the shard was away or a limit was reached"
    ),
    "proteus_link_timeouts_total": Metric("counter", ("shard",), "requests that a shard did not answer in time (request_seconds_max)"),
    "proteus_deliveries_returned_total": Metric("counter", ("shard",), "deliveries that did not reach their runner and were given back"),
    # jobs
    "proteus_jobs": Metric("gauge", ("shard", "state"), "jobs by state: scheduled, waiting, in_flight, dead"),
    "proteus_queue_jobs": Metric(
        "gauge", ("queue", "state"), "jobs of the deepest queues (metrics_queues_max); all others under an empty name"
    ),
    "proteus_oldest_waiting_seconds": Metric(
        "gauge", ("shard",), "for how long the oldest waiting job could have started; 0 where none waits"
    ),
    "proteus_queue_oldest_waiting_seconds": Metric("gauge", ("queue",), "the same for the deepest queues"),
    "proteus_queue_blocked_jobs": Metric(
        "gauge", ("queue",), "of the waiting jobs of the deepest queues, those that another of their key holds up"
    ),
    "proteus_queue_paused": Metric("gauge", ("queue",), "1 where one of the deepest queues is paused"),
    "proteus_queues": Metric("gauge", ("shard",), "queues in memory (queues_max)"),
    "proteus_polls": Metric("gauge", ("shard",), "nexts that wait for a job (polls_max)"),
    "proteus_payload_bytes": Metric("gauge", ("shard",), "bytes of payload and state in memory (shard_bytes_max)"),
    "proteus_pending_operations": Metric("gauge", ("shard",), "operations that wait for a commit (shard_pending_max)"),
    "proteus_jobs_enqueued_total": Metric("counter", ("shard",), "jobs accepted"),
    "proteus_jobs_delivered_total": Metric("counter", ("shard",), "jobs delivered, each time that one is"),
    "proteus_jobs_undelivered_total": Metric("counter", ("shard",), "deliveries taken back, as they surely reached nobody"),
    "proteus_heartbeats_total": Metric("counter", ("shard",), "heartbeats accepted"),
    "proteus_jobs_completed_total": Metric("counter", ("shard",), "jobs completed, in flight or not"),
    "proteus_run_timeouts_total": Metric("counter", ("shard",), "runs that timed out"),
    "proteus_runs_failed_total": Metric("counter", ("shard",), "runs that their runners have said to have failed"),
    "proteus_runs_released_total": Metric("counter", ("shard",), "runs that were given up without spending a retry"),
    "proteus_jobs_retried_total": Metric("counter", ("shard",), "jobs that went back to their queue after a timeout or a failure"),
    "proteus_jobs_expired_total": Metric("counter", ("shard",), "jobs that waited for longer than their ttl, and became dead letters"),
    "proteus_jobs_died_total": Metric("counter", ("shard",), "jobs that became dead letters"),
    "proteus_dead_letters_dropped_total": Metric(
        "counter", ("shard",), "dead letters dropped (dead_letters_max, dead_letters_seconds_max)"
    ),
    "proteus_dead_letters_redriven_total": Metric("counter", ("shard",), "dead letters that were given a new life"),
    "proteus_jobs_purged_total": Metric("counter", ("shard",), "jobs removed by a purge or delete, dead letters included"),
    "proteus_schedules_fired_total": Metric("counter", ("shard",), "jobs made by recurring jobs"),
    "proteus_schedules_missed_total": Metric("counter", ("shard",), "times of recurring jobs at which none was made"),
    "proteus_start_seconds": Metric(
        "histogram", ("shard",), "from when a job could start (enqueue or run_at) to its first delivery", _in_seconds(START_BOUNDS_US)
    ),
    "proteus_run_seconds": Metric(
        "histogram",
        ("shard",),
        "from the delivery of a run to its completion; runs that a restart saw are left out",
        _in_seconds(RUN_BOUNDS_US),
    ),
    # the store
    "proteus_store_info": Metric("gauge", ("shard", "store", "durability"), "always 1; durability is the class of the store as opened"),
    "proteus_store_away": Metric("gauge", ("shard",), "1 while the store cannot be written"),
    "proteus_store_errors_total": Metric(
        "counter", ("shard", "outcome"), "commits that failed and tries to reach the store again, by outcome"
    ),
    "proteus_commit_rows": Metric("histogram", ("shard",), "rows of a commit", COMMIT_ROWS_BOUNDS),
    "proteus_commit_seconds": Metric("histogram", ("shard",), "time of a commit that succeeded", _in_seconds(COMMIT_BOUNDS_US)),
    "proteus_recovery_seconds": Metric("gauge", ("shard",), "how long the last start took to read the store"),
    "proteus_recovered_rows": Metric("gauge", ("shard",), "rows that the last start read"),
    "proteus_damaged_rows": Metric("gauge", ("shard",), "rows that are no jobs, kept aside in the store"),
    # the cluster
    "proteus_node_up": Metric("gauge", (), "in a cluster, 1 where the front that was asked is connected to the node process of its host"),
    "proteus_cluster_hosts": Metric("gauge", ("state",), "hosts of the cluster as this one sees them: alive, draining, dead"),
    "proteus_cluster_shards_unowned": Metric("gauge", (), "shards of the cluster that no host has"),
    "proteus_cluster_store_away": Metric("gauge", (), "1 while this host's node cannot ask the store who owns what"),
    "proteus_leases_held": Metric("gauge", (), "shards that this host has, by the word of the store"),
    "proteus_lease_seconds_left": Metric(
        "gauge", (), "for how long this host may serve its shards without another good beat (lease_seconds)"
    ),
    "proteus_lease_beats_total": Metric("counter", ("outcome",), "beats that this host has written, by outcome: ok, failed"),
    "proteus_claims_total": Metric("counter", ("outcome",), "claims of shards that no living host had, by outcome: won, lost"),
    "proteus_moves_total": Metric("counter", ("direction",), "shards that were handed over in order, by direction: in, out"),
    "proteus_fenced_total": Metric("counter", (), "processes of shards whose commit was refused since another host has the shard"),
    "proteus_forwards_total": Metric(
        "counter", ("host",), "operations sent to shards of other hosts, by host (64; all further ones under an empty name)"
    ),
    # processes
    "proteus_shard_up": Metric(
        "gauge", ("shard",), "1 where the shard has answered this scrape; else its numbers are those of its last second"
    ),
    "proteus_process_cpu_seconds_total": Metric("counter", ("process",), "user and system time, of all processes of that name"),
    "proteus_process_resident_bytes": Metric("gauge", ("process",), "resident memory"),
    "proteus_process_restarts_total": Metric("counter", ("process",), "times that a process was started again after its end"),
    "proteus_process_crashes": Metric(
        "gauge", ("process",), f"times in a row that a process has ended soon after its start; from {CRASH_LOOP_MIN} on it is a crash loop"
    ),
    "proteus_event_loop_lag_seconds": Metric(
        "gauge", ("process",), f"how late the event loop was at worst, in the last {LAG_SECONDS:g} to {2 * LAG_SECONDS:g} seconds"
    ),
}

_RELAYS_LABELS = ("endpoint", "type", "queue")
RELAY_METRICS: dict[str, Metric] = {  # by option, under relay's names; see `front.relay_metrics`
    "http_request": Metric("counter", _RELAYS_LABELS, "requests by endpoint and queue"),
    "errors": Metric("counter", _RELAYS_LABELS, "what was refused, timed out or has used up its retries"),
    "retries": Metric("counter", _RELAYS_LABELS, "jobs that went back to their queue"),
    "enqueued": Metric("counter", _RELAYS_LABELS, "jobs accepted"),
    "fetched": Metric("counter", _RELAYS_LABELS, "jobs delivered"),
    "heartbeat": Metric("counter", _RELAYS_LABELS, "heartbeats accepted"),
    "rescheduled": Metric("counter", _RELAYS_LABELS, "jobs rescheduled"),
    "requeue": Metric("counter", _RELAYS_LABELS, "jobs added as another one was completed"),
    "completed": Metric("counter", _RELAYS_LABELS, "runs completed"),
    "deleted": Metric("counter", _RELAYS_LABELS, "jobs completed or deleted without a run id"),
    "get": Metric("counter", _RELAYS_LABELS, "jobs looked at"),
}

_GOING_ON = frozenset({name for name, metric in METRICS.items() if metric.kind != "gauge"} | RELAY_METRICS.keys())
_locks: list[int] = []  # descriptors, open as long as this process runs
_decoder = msgspec.msgpack.Decoder(list[Sample])


class Tally:
    """The file of one process, and what it knows of itself. Without a `run_dir` nothing is kept. The file is called like the process, or as it is told."""

    def __init__(self, run_dir: str | None, process: str, file: str | None = None) -> None:
        self._path = tally_path(run_dir, file or process) if run_dir is not None else None
        self._process = process
        self._before: dict[tuple[str, ...], float | list[float]] = {}
        self._complained = False
        self._lags = [0.0, 0.0]  # the largest of this span and of the one before
        self._lags_until = time.monotonic() + LAG_SECONDS
        for name, labels, value in read_tally(self._path) if self._path is not None else []:
            if name in _GOING_ON:
                self._before[name, *labels] = value

    def note_lag(self, seconds: float) -> None:
        """Note how late the event loop was."""
        if time.monotonic() >= self._lags_until:
            self._lags = [0.0, self._lags[0]]
            self._lags_until = time.monotonic() + LAG_SECONDS
        self._lags[0] = max(self._lags[0], seconds)

    def keep(self, samples: list[Sample], *, leaving: bool = False) -> list[Sample]:
        """Add what an earlier process had counted and what there is to know of this one, write it all to the file, and return it.

        A process that is `leaving` tells of what it has counted only: its successor tells how things are.
        """
        own: list[Sample] = [
            ("proteus_process_cpu_seconds_total", [self._process], time.process_time()),
            ("proteus_process_resident_bytes", [self._process], float(resident_bytes())),
            ("proteus_event_loop_lag_seconds", [self._process], max(self._lags)),
        ]
        if leaving:
            samples, own = counters_of(samples), counters_of(own)
        before = dict(self._before)
        merged = [(name, labels, plus(value, before.pop((name, *labels), 0))) for name, labels, value in (*samples, *own)]
        merged += [(name, list(labels), value) for (name, *labels), value in before.items()]
        if self._path is not None:
            self._write(self._path, merged)
        return merged

    def before(self) -> list[Sample]:
        """Return what an earlier process had counted."""
        return [(name, list(labels), value) for (name, *labels), value in self._before.items()]

    def clear_gauges(self) -> None:
        """Leave only counters in the file, if there is one: its process is gone."""
        if self._path is not None and self._path.exists():
            self._write(self._path, self.before())

    def _write(self, path: Path, samples: list[Sample]) -> None:
        try:
            written = path.with_suffix(".new")
            written.write_bytes(msgspec.msgpack.encode(samples))
            written.replace(path)
        except OSError as error:  # a full disk, say: counting goes on, and only a restart would show it
            if not self._complained:
                log.warning("the counters cannot be written", extra={"error": error.strerror})
            self._complained = True
        else:
            self._complained = False


def tally_path(run_dir: str, process: str) -> Path:
    """Return the path of a process's file."""
    return Path(run_dir) / f"{process}.tally"


def counters_of(samples: list[Sample]) -> list[Sample]:
    """Return the samples that outlive a process."""
    return [sample for sample in samples if sample[0] in _GOING_ON]


def files_of(process: str) -> tuple[str, str]:
    """Return the files of a process that runs beside its successor for a while."""
    return process, f"{process}-beside"


def take_file(run_dir: str, process: str) -> str:
    """Return the first of a process's files that no other has, and have it until this process ends. The other, if it is free, keeps no gauges."""
    taken: str | None = None
    for file in files_of(process):
        lock = os.open(tally_path(run_dir, file).with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        if taken is None:
            taken = file  # its gauges stay until the first are written over them: no series is away for a moment
            _locks.append(lock)
        else:
            Tally(run_dir, process, file).clear_gauges()
            os.close(lock)
    assert taken is not None, f"{process} runs beside two others"
    return taken


def read_tally(path: Path) -> list[Sample]:
    """Return what a process last wrote, or nothing where it has written nothing yet."""
    try:
        return [sample for sample in _decoder.decode(path.read_bytes()) if sample[0] in METRICS or sample[0] in RELAY_METRICS]
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        log.warning("the counters of a process cannot be read", extra={"of": path.stem, "error": str(error)})
        return []


def plus(one: float | list[float], other: float | list[float]) -> float | list[float]:
    """Return the sum of two numbers or of two histograms. Where the two do not fit, the first counts."""
    if isinstance(one, list):
        return [a + b for a, b in zip(one, other, strict=True)] if isinstance(other, list) and len(one) == len(other) else one
    return one + other if not isinstance(other, list) else one


def resident_bytes() -> int:
    """Return the resident memory of this process; where the kernel does not say, the most that it ever was."""
    try:
        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123  # half the cost of a Path
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
