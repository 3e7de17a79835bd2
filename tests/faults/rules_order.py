"""C9: jobs of one queue are first delivered in the order in which they were accepted.

Two jobs a and b, a's enqueue over before b's began: a's first delivery must not begin after b's is over. With a sorted by the
end of the enqueue and b by its start, the latest first delivery of all a before b is a running maximum.

Only attempt 1 counts: where a client saw attempt 2 first, the first delivery was lost on its way, and nobody knows when it was. A run that
its client never got and that the server took back is attempt 1 again, however, and may come after b in good order. So
b proves nothing while such a run may have been under way: from the sending of a `next` whose outcome is unknown until `HELD`
after its client gave up. How often that was so is noted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from tests.faults.evidence import Broken, Evidence, Finding, Generation, QueueEvidence, Run, place_of
from tests.faults.history import SECOND

HELD = 10 * SECOND  # until a run is taken back whose client has gone, once no fault hinders it


def order(evidence: Evidence, finding: Finding) -> Iterator[Broken]:
    """C9."""
    for queue in evidence.queues.values():
        yield from _order_of(evidence, finding, queue)
        for op in queue.nexts:
            if len(op.jobs) > 1:
                yield from _order_inside(evidence, finding, [given.uid for given in op.jobs])


def _order_of(evidence: Evidence, finding: Finding, queue: QueueEvidence) -> Iterator[Broken]:
    firsts = [(generation, generation.runs[0]) for generation in queue.generations if generation.runs and _is_first(generation.runs[0])]
    before = sorted((pair for pair in firsts if pair[0].op.type == "ok"), key=lambda pair: pair[0].op.e)
    held = _held(evidence, queue)
    place = 0
    latest: tuple[Generation, Run] | None = None
    for generation, run in sorted(firsts, key=lambda pair: pair[0].op.s):
        while place < len(before) and before[place][0].op.e < generation.op.s:
            if latest is None or before[place][1].s > latest[1].s:
                latest = before[place]
            place += 1
        if latest is None:
            continue
        finding.checked += 1
        if latest[1].s > run.e:
            if _is_held(held, run):
                finding.note("not compared: a lost next may have held a job")
            else:
                yield Broken("delivered before one that was accepted earlier", {"early": place_of(generation), "late": place_of(latest[0])})


def _order_inside(evidence: Evidence, finding: Finding, uids: list[str]) -> Iterator[Broken]:
    """Within one answer, too, whatever the attempts."""
    latest: Generation | None = None
    for uid in uids:
        generation = evidence.generations.get(uid)
        if generation is None:
            continue
        finding.checked += 1
        if latest is not None and generation.op.type == "ok" and generation.op.e < latest.op.s:
            yield Broken("behind a younger one in one answer", {"late": place_of(generation), "early": place_of(latest)})
        if latest is None or generation.op.s > latest.op.s:
            latest = generation


def _is_first(run: Run) -> bool:
    return run.given.attempt == 1


def _held(evidence: Evidence, queue: QueueEvidence) -> list[tuple[int, int]]:
    """Return, merged and in order, when a run that no client got may have been held."""
    spans: list[tuple[int, int]] = []
    for op in queue.lost_next_ops:
        until = op.told + HELD
        for window in evidence.windows:
            if window.start < until and window.stop > op.s:
                until = max(until, window.stop + HELD)
        if spans and op.s <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(until, spans[-1][1]))
        else:
            spans.append((op.s, until))
    return spans


def _is_held(spans: list[tuple[int, int]], run: Run) -> bool:
    place = bisect_left(spans, (run.e + 1,)) - 1
    return place >= 0 and spans[place][1] > run.s
