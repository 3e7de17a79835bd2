"""What a front counts: requests by way, route and status, and the problems that it tells.

Who serves a route holds on to its list and adds one at the place of the status: that is all that counting costs a request. Problems are counted where all of
them pass, as they become answers; there is one front to a process, and so one count of them. The limit that was hit stands in the
message, since every message of a limit names its setting.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal, TypeAlias

from proteus_shards.core.commands import Sample
from proteus_shards.settings_help import SETTINGS_HELP

STATUSES_MAX = 600
CLASSES = (2, 4, 5)  # of status; the others are not used, and shown when they are
OTHER = "other"  # the route of what is no route
PROBLEM_STATUSES = (400, 401, 403, 404, 405, 408, 409, 413, 414, 415, 422, 429, 431, 500, 503)
REFUSAL_LIMITS = (  # of 429
    "answers_bytes_max",
    "bodies_bytes_max",
    "delay_seconds_max",
    "link_bytes_max",
    "link_operations_max",
    "link_requests_max",
    "polls_max",
    "quart_requests_max",
    "queue_jobs_max",
    "queues_max",
    "idempotency_keys_max",
    "shard_bytes_max",
    "shard_jobs_max",
    "shard_pending_max",
)

SILENT_LIMITS = ("connections_max", "http2_control_frames_max", "request_seconds_max")

Way: TypeAlias = Literal["lane", "quart"]

_LIMIT = re.compile(r"\((\w+_max)\)")
_problems: Counter[tuple[int, str]] = Counter()
_silent: Counter[str] = Counter()


def count_problem(status: int, detail: str) -> None:
    """Count a problem by status and by the limit that it names, if it names one."""
    found = _LIMIT.search(detail) if detail.endswith(")") or "_max)" in detail else None
    _problems[status, found[1] if found is not None and found[1] in SETTINGS_HELP else ""] += 1


def count_limit(limit: str) -> None:
    """Count that a limit was hit of which no client is told."""
    _silent[limit] += 1


def limit_samples() -> list[Sample]:
    """Return how often each limit was hit since the process started, whether a client was told of it or not."""
    counts = Counter(dict.fromkeys((*REFUSAL_LIMITS, *SILENT_LIMITS), 0))
    for (_, limit), count in _problems.items():
        if limit:
            counts[limit] += count
    counts.update(_silent)
    return [("proteus_limit_hits_total", [limit], count) for limit, count in counts.items()]


def problem_samples() -> list[Sample]:
    """Return the problems counted since the process started. Those that there may be are there from the beginning."""
    expected = [(status, "") for status in PROBLEM_STATUSES] + [(429, limit) for limit in REFUSAL_LIMITS]
    counts = dict.fromkeys(expected, 0) | _problems
    return [("proteus_errors_total", [str(status), limit], count) for (status, limit), count in counts.items()]


class RequestCounts:
    """The answers of one front since it started."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Way, str], list[int]] = {}
        self.faulty = self.of("lane", OTHER)  # the lane's answers to what it cannot read

    def of(self, way: Way, route: str) -> list[int]:
        """Return the list of a route. To count an answer, add one at the place of its status."""
        return self._counts.setdefault((way, route), [0] * STATUSES_MAX)

    def samples(self) -> list[Sample]:
        """Return the answers by class of status."""
        found: list[Sample] = []
        for (way, route), counts in sorted(self._counts.items()):
            for status in range(1, STATUSES_MAX // 100):
                count = sum(counts[100 * status : 100 * status + 100])
                if count or status in CLASSES:
                    found.append(("proteus_http_requests_total", [way, route, f"{status}xx"], count))
        return found
