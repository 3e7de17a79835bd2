"""relay's metric names, beside ours on `GET /metrics` by option: counters by queue, for whoever has alerts and dashboards on them.

They are counted for every call, whichever API it came by, as commands pass the router. What relay's names mean is kept as far as it means something here:

- `http_request` counts by endpoint and queue; what asks several things of one queue at once is one. A look whether a job exists is a `get`.
- `enqueued`, `fetched`, `heartbeat`, `rescheduled`, `requeue`, `completed` (under a run id), `deleted` (without one) and `get` count jobs by queue, `errors` refusals.
- `retries`, and `errors` of type `job_timeout` and `max_retries`, happen in shards, which count them for all queues together: they have no label `queue`.
- Steps over several shards are not counted by queue.

Unlike relay's own they never vanish when idle, and outlive their process like ours. **Cardinality is bounded**: the first `metrics_queues_max` queues that a front
meets have series of their own, and all others share those without a name; a successor goes on with the names of the front before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial

from proteus_shards.core.commands import (
    Complete,
    Delivered,
    Enqueue,
    EnqueueAll,
    EnqueueOnce,
    Heartbeat,
    Next,
    Outcome,
    Outcomes,
    Reason,
    Refused,
    Replace,
    Requeue,
    Sample,
)
from proteus_shards.core.commands_control import GetJob
from proteus_shards.front.operations import QueueCommand
from proteus_shards.front.watching import End
from proteus_shards.tally import RELAY_METRICS, plus

_ENDPOINTS: dict[type, str] = {
    Enqueue: "enqueue",
    EnqueueAll: "enqueue",
    EnqueueOnce: "enqueue",
    Next: "next",
    Heartbeat: "heartbeat",
    Complete: "delete",
    Replace: "reschedule",
    Requeue: "requeue",
    GetJob: "get",
}
_ERRORS = {Reason.EXISTS: "job_exists", Reason.NOT_FOUND: "job_not_found"}
_FROM_SHARDS = {
    "proteus_jobs_retried_total": ("retries", ""),
    "proteus_run_timeouts_total": ("errors", "job_timeout"),
    "proteus_jobs_died_total": ("errors", "max_retries"),
}
_Key = tuple[str, str, str, str]  # name, endpoint, type, queue


class RelayCounts:
    """What one front counts under relay's names: a watch. `known` are the queues that its predecessor has named."""

    def __init__(self, queues_max: int, known: Iterable[str] = ()) -> None:
        self._queues_max = queues_max
        self._named = dict.fromkeys(known)
        self._counts: Counter[_Key] = Counter()

    def begin(self, commands: Sequence[QueueCommand]) -> tuple[Sequence[QueueCommand], End | None]:
        """Count what is asked."""
        asked = {(endpoint, command.queue) for command in commands if (endpoint := _ENDPOINTS.get(type(command))) is not None}
        for endpoint, queue in asked:
            self._counts["http_request", endpoint, "", self._label(queue)] += 1
        return commands, partial(self._end, commands) if asked else None

    def samples(self) -> list[Sample]:
        """Return what was counted."""
        return [(name, list(labels), count) for (name, *labels), count in self._counts.items()]

    def _end(self, commands: Sequence[QueueCommand], outcomes: Sequence[Outcome]) -> list[Outcome]:
        for command, outcome in zip(commands, outcomes, strict=True):
            if type(command) in _ENDPOINTS:
                self._count(command, outcome)
        return list(outcomes)

    def _count(self, command: QueueCommand, outcome: Outcome) -> None:
        if isinstance(outcome, Refused):
            self._counts["errors", _ENDPOINTS[type(command)], _ERRORS.get(outcome.reason, "backend"), self._label(command.queue)] += 1
            return
        match command:
            case Enqueue():
                self._add("enqueued", command.queue)
            case EnqueueAll():
                for job in command.jobs:
                    self._add("enqueued", job.queue)
            case EnqueueOnce():
                if isinstance(outcome, Outcomes):
                    self._add("enqueued", command.queue, outcome.refusals.count(None))
            case Next():
                if isinstance(outcome, Delivered) and outcome.jobs:
                    self._add("fetched", command.queue, len(outcome.jobs))
            case Heartbeat():
                self._add("heartbeat", command.queue)
            case Complete():
                self._add("deleted" if command.run_id is None else "completed", command.queue)
            case Replace():
                self._add("rescheduled", command.queue)
            case Requeue():
                self._add("completed", command.queue)
                for job in command.jobs:
                    self._add("requeue", job.queue)
            case GetJob():
                self._add("get", command.queue)

    def _add(self, name: str, queue: str, count: int = 1) -> None:
        self._counts[name, "", "", self._label(queue)] += count

    def _label(self, queue: str) -> str:
        if queue not in self._named:
            if len(self._named) >= self._queues_max:
                return ""
            self._named[queue] = None
        return queue


def queues_named(samples: Iterable[Sample]) -> list[str]:
    """Return the queues that have series under relay's names."""
    return list(dict.fromkeys(labels[2] for name, labels, _ in samples if name in RELAY_METRICS and labels[2]))


def relay_page(samples: Iterable[Sample]) -> bytes:
    """Return the lines of relay's names. They are written here, as prometheus_client would let every counter end in `_total`."""
    rows: dict[str, dict[tuple[str, ...], float | list[float]]] = {name: {} for name in RELAY_METRICS}
    for name, labels, value in samples:
        if name in _FROM_SHARDS:
            own, kind = _FROM_SHARDS[name]
            key: tuple[str, ...] = ("", kind, "")
        elif name in RELAY_METRICS:
            own, key = name, tuple(labels)
        else:
            continue
        rows[own][key] = plus(value, rows[own].get(key, 0.0))
    lines: list[str] = []
    for name, metric in RELAY_METRICS.items():
        if rows[name]:
            lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} counter"]
            lines += [f"{name}{{{_labels(metric.labels, values)}}} {value}" for values, value in sorted(rows[name].items())]
    return "".join(f"{line}\n" for line in lines).encode()


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    """Write labels; one that is empty is one that is not there."""
    written = [f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True) if value]
    return ",".join(['app="relay_rs"', *written])


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
