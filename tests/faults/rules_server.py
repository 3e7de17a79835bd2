"""C10 to C13: refusals, the store in the end, healing, owners."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from tests.faults.bystanders import bystanders
from tests.faults.evidence import Broken, Evidence, Finding, QueueEvidence, place_of
from tests.faults.history import SECOND, Op

STORE_BYTES_MIN = 4 * 1024 * 1024  # what a store may grow by whatever it holds: a log that is not yet cut, free pages
JOB_BYTES = 1024  # of one job of the workload: its row, its index entries, half-filled pages


def refusals(evidence: Evidence, finding: Finding) -> Iterator[Broken]:
    """C10. What a 429 must not have done to a job's state or life is found by C1, C7 and C8: to them it is `fail`."""
    for op in evidence.history.ops:
        if op.http_status not in {429, 503}:
            continue
        finding.checked += 1
        finding.note(str(op.http_status))
        if op.retry_after is None or op.retry_after < 1:
            yield Broken(f"{op.http_status} with Retry-After {op.retry_after}", {"op": op.i, "f": op.f, "queue": op.queue})
        if op.f == "enqueue" and op.http_status == 429:
            generation = evidence.generations[op.uid]
            if generation.runs or generation.dead is not None:
                yield Broken("a job that was refused with 429 is there", place_of(generation))


def audit(evidence: Evidence, finding: Finding) -> Iterator[Broken]:
    """C11. Of what a store occupies in the end so much is excused as it was before, and twice what the jobs took that were there at once."""
    for line in evidence.history.audits:
        finding.checked += 1
        if (occupied := line.counts.get("bytes")) is not None:
            jobs = _at_once(evidence) + sum(generation.dead is not None for generation in evidence.generations.values())
            most = line.counts["bytes before"] + STORE_BYTES_MIN + 2 * jobs * JOB_BYTES
            finding.notes["KiB in the end"] = occupied // 1024
            finding.notes["KiB at most"] = most // 1024
            if occupied > most:
                yield Broken(f"the store occupies {occupied} bytes in the end, more than {most} for {jobs} jobs", {"target": line.target})
        for what in ("live rows", "damaged rows", "faults"):
            if line.counts.get(what, 0):
                yield Broken(f"{line.counts[what]} {what} in the end", {"target": line.target, "detail": line.detail})


def _at_once(evidence: Evidence) -> int:
    """Return how many persisted jobs were there at once, at most."""
    moments: list[tuple[int, int]] = []
    for generation in evidence.generations.values():
        if generation.op.persist and generation.op.type != "fail":
            moments += [(generation.op.s, 1), (generation.completed(), -1)]
    most = there = 0
    for _, change in sorted(moments):
        there += change
        most = max(most, there)
    return most


def healing(evidence: Evidence, finding: Finding) -> Iterator[Broken]:
    """C12. A fault that begins before the time is up takes the one before it off the hook, and so does the drain."""
    heal = int(evidence.terms.heal_seconds_max * SECOND)
    enqueues = {name: _enqueues(queue) for name, queue in evidence.queues.items()}
    oks = {name: sorted(op.told for op in found if op.type == "ok") for name, found in enqueues.items()}
    worst = 0
    for window in evidence.windows:
        limit = window.stop + heal
        others = [other.start for other in evidence.windows if other.start > window.stop]
        judged = min([limit, evidence.history.drained, *others])
        for name, ops in enqueues.items():
            place = bisect_left(oks[name], window.stop)
            first = oks[name][place] if place < len(oks[name]) else limit + 1
            if first <= limit:
                finding.checked += 1
                worst = max(worst, first - window.stop)
            elif judged == limit and any(window.stop <= op.s <= limit for op in ops):
                finding.checked += 1
                yield Broken(
                    f"no persisted enqueue was accepted within {evidence.terms.heal_seconds_max:g} s",
                    {"queue": name, "fault": window.fault, "target": window.target, "stop": window.stop, "first": first},
                )
    if worst:
        finding.notes["slowest, in ms"] = worst // 1_000_000
    if (found := bystanders(evidence.history)) is not None and (most := evidence.terms.beside_factor_max):
        usual, then = found
        finding.checked += 1
        if then > most * usual:
            yield Broken(
                f"other shards took {then / usual:.1f} times as long while one was replaced", {"p99": then, "p99 without a fault": usual}
            )


def _enqueues(queue: QueueEvidence) -> list[Op]:
    return [generation.op for generation in queue.generations if generation.op.persist or not queue.persists]


def owners(evidence: Evidence, finding: Finding) -> Iterator[Broken]:
    """C13."""
    last: dict[str, int] = {}
    for shard, epoch in evidence.history.epochs:
        finding.checked += 1
        if epoch <= last.get(shard, 0):
            yield Broken("an epoch that is not above the one before", {"shard": shard, "epoch": epoch, "before": last[shard]})
        last[shard] = epoch
    for death in evidence.history.deaths:
        finding.checked += 1
        if death.by_itself:
            yield Broken("a process ended by itself", {"t": death.t, "detail": death.detail})
