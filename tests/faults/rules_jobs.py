"""C1 to C8: what may and may not happen to one job."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise

from tests.faults.evidence import LINGER, Broken, Evidence, Finding, Generation, Name, Run, place_of, state_of
from tests.faults.history import FOREVER, SECOND, Op

DEATH_TOLD = 30 * SECOND  # how late the log may have told of a process's end


def lost(evidence: Evidence, finding: Finding) -> Iterator[Broken]:
    """C1. Without a drain nothing can be said."""
    if not evidence.history.drains:
        return
    for queue in evidence.queues.values():
        seen = [generation.op.s for generation in queue.generations if generation.runs]
        for generation in queue.generations:
            op = generation.op
            if op.type == "fail" or (op.type == "unknown" and not generation.runs):
                continue
            finding.checked += 1
            if op.type == "unknown":
                finding.note("recovered: the enqueue was unknown, the job came")
            if generation.dead is not None:
                finding.note("dead letters")
            elif generation.perhaps_completed_before(FOREVER):
                continue
            elif evidence.perhaps_forgotten_before(generation, FOREVER):
                finding.note("went with its shard's memory")
            else:
                what = "delivered, and then neither completed nor dead nor delivered again"
                if not generation.runs:
                    place = "before" if not seen or op.s < min(seen) else "behind" if op.s > max(seen) else "among"
                    what = f"acknowledged and never delivered, {place} those of its queue that were"
                yield Broken(what, place_of(generation) | {"fault": evidence.fault_near(op.e if op.type == "ok" else op.told)})


def invented(evidence: Evidence, finding: Finding) -> Iterator[Broken]:
    """C2."""
    for op, given in evidence.strange:
        finding.checked += 1
        yield Broken("nobody sent this", {"op": op.i, "queue": given.queue, "id": given.id, "uid": given.uid})
    for generation in evidence.generations.values():
        sent = generation.op
        for run in generation.runs:
            finding.checked += 1
            given = run.given
            if sent.type == "fail":
                yield Broken("its enqueue was refused", place_of(generation))
            elif run.e < sent.s:
                yield Broken("delivered before it was sent", place_of(generation))
            as_sent = (sent.queue, sent.id, sent.payload_sha, sent.timeout, sent.max_retries, sent.persist)
            if as_sent != (given.queue, given.id, given.payload_sha, given.timeout, given.max_retries, given.persist):
                yield Broken("not as it was sent", place_of(generation) | {"sent": as_sent, "given": str(given)})


def attempts(evidence: Evidence, finding: Finding) -> Iterator[Broken]:
    """C3."""
    for run in evidence.doubled_runs:
        yield Broken("two deliveries have one run_id", {"op": run.op.i, "uid": run.given.uid, "run_id": run.given.run_id})
    for generation in evidence.generations.values():
        if not generation.runs and generation.dead is None:
            continue
        finding.checked += 1
        runs, most = generation.runs, generation.op.max_retries
        if 0 <= most < len(runs) - 1:
            yield Broken(f"{len(runs)} deliveries with max_retries={most}", place_of(generation))
        for first, second in pairwise(runs):
            if first.given.attempt == second.given.attempt:
                yield Broken("one attempt was delivered twice", place_of(generation))
            elif second.e < first.s:
                yield Broken("a later attempt came first", place_of(generation))
        last = generation.dead.attempt if generation.dead is not None else runs[-1].given.attempt
        unseen = last - len({run.given.attempt for run in runs})
        until = FOREVER if generation.dead is not None else runs[-1].e
        possible = evidence.queues[generation.op.queue].lost_nexts_between(generation.op.s - LINGER, until)
        if unseen:
            finding.note("attempts that no client saw", unseen)
        if unseen > possible:
            yield Broken(f"{unseen} attempts that no client saw, {possible} answers to next lost", place_of(generation))
        if any(run.given.attempt < 1 for run in runs) or (0 <= most < last - 1):
            yield Broken(f"attempt {last} with max_retries={most}", place_of(generation))


def early_or_late(evidence: Evidence, finding: Finding) -> Iterator[Broken]:
    """C4."""
    for generation in evidence.generations.values():
        for first, second in pairwise(generation.runs):
            finding.checked += 1
            beats = _beats_between(generation, first, second)
            floor = max([first.s, *(beat.s for beat in beats if beat.type == "ok")]) + generation.op.timeout * SECOND
            if second.e < floor:
                yield Broken(f"delivered again {(floor - second.e) / 1e9:.3f} s too early", place_of(generation))
            elif (witness := _passed_over(evidence, generation, first, second, beats)) is not None:
                yield Broken("overdue, and another next was answered without it", place_of(generation) | {"next": witness.i})


def _beats_between(generation: Generation, first: Run, second: Run) -> list[Op]:
    """Return the heartbeats that were surely meant for the first of two consecutive runs."""
    named = [beat for beat in generation.beats if beat.run_id == first.given.run_id and beat.s < second.s]
    if second.given.attempt != first.given.attempt + 1:
        return named
    return named + [beat for beat in generation.name.beats if first.e < beat.s and beat.told < second.s]


def _passed_over(evidence: Evidence, generation: Generation, first: Run, second: Run, beats: list[Op]) -> Op | None:
    """Return a `next` that should have brought the second run and did not."""
    if any(beat.type == "unknown" for beat in beats) or second.given.attempt != first.given.attempt + 1:
        return None
    timeout = generation.op.timeout * SECOND
    due = max([first.e, *(beat.told for beat in beats)]) + timeout
    queue = evidence.queues[generation.op.queue]
    for window in evidence.windows:
        if window.start < second.s and window.stop > first.s:
            due = max(due, window.stop + timeout)
    for death in queue.deaths[bisect_left(queue.deaths, first.s) :]:
        due = max(due, death + timeout)
    due += int(evidence.terms.late_seconds_max * SECOND)
    nexts = queue.nexts
    for place in range(bisect_left(nexts, due, key=lambda op: op.s), len(nexts)):
        op = nexts[place]
        if op.s >= second.s:
            return None
        if op.told < second.s and all(_is_behind(evidence, given.uid, given.attempt, generation) for given in op.jobs):
            return op
    return None


def _is_behind(evidence: Evidence, uid: str, attempt: int, generation: Generation) -> bool:
    other = evidence.generations.get(uid)
    return attempt == 1 and other is not None and other.op.s > generation.surely_from


def resurrected(evidence: Evidence, finding: Finding) -> Iterator[Broken]:
    """C5."""
    for generation in evidence.generations.values():
        completed = generation.completed()
        if completed == FOREVER:
            continue
        finding.checked += 1
        if any(run.s > completed for run in generation.runs):
            yield Broken("completed, and delivered again", place_of(generation) | {"completed": completed})


def zombies(evidence: Evidence, finding: Finding) -> Iterator[Broken]:
    """C6."""
    for op in evidence.stray:
        if op.type == "ok":
            yield Broken("a run that never was", {"op": op.i, "run_id": op.run_id})
    for generation in evidence.generations.values():
        completed = min((end.e for end in generation.ends if end.type == "ok"), default=FOREVER)
        for op in (*generation.beats, *generation.ends):
            if op.type != "ok":
                continue
            finding.checked += 1
            attempt = evidence.runs[op.run_id][1].given.attempt
            if any(run.given.attempt > attempt and run.e < op.s for run in generation.runs):
                yield Broken(f"{op.f} of attempt {attempt} was accepted after a later one", place_of(generation) | {"op": op.i})
            elif op.s > completed:
                yield Broken(f"{op.f} was accepted after a completion", place_of(generation) | {"op": op.i})
    for name in evidence.names.values():
        for op in (*name.beats, *name.ends):
            if op.type == "ok":
                finding.checked += 1
                if not _perhaps_one_there(name, op):
                    yield Broken(f"{op.f} of a job that is not there", {"op": op.i, "queue": op.queue, "id": op.id})


def _perhaps_one_there(name: Name, op: Op) -> bool:
    """Say whether a job of a name, other than the one that `op` may bring, can have been there. The youngest is asked first."""
    generations = name.generations
    for place in range(bisect_right(generations, op.e, key=lambda generation: generation.op.s) - 1, -1, -1):
        other = generations[place]
        if other.op is not op and other.op.type != "fail" and not other.surely_ended_before(op.s):
            return True
    return False


def singletons(evidence: Evidence, finding: Finding) -> Iterator[Broken]:
    """C7."""
    for name in evidence.names.values():
        live = [generation for generation in name.generations if generation.op.type != "fail"]
        reach: Generation | None = None
        seen = [generation for generation in live if generation.surely_from < generation.surely_until]  # live all that time
        for generation in sorted(seen, key=lambda generation: generation.surely_from):
            if reach is not None and generation.surely_from < reach.surely_until:
                yield Broken("two live jobs of one id", {"one": place_of(reach), "other": place_of(generation)})
            if reach is None or generation.surely_until > reach.surely_until:
                reach = generation
        acked = [generation for generation in live if generation.op.type == "ok"]
        for first, second in pairwise(acked):
            finding.checked += 1
            if first.op.e < second.op.s and not _perhaps_ended_before(evidence, first, second.op.e):
                yield Broken("accepted while a job of that id was live", {"one": place_of(first), "other": place_of(second)})
        for generation in name.generations:
            if generation.op.http_status == 409:
                finding.checked += 1
                finding.note("409")
                if not _perhaps_one_there(name, generation.op):
                    yield Broken("409, and no other job of that id can have been there", place_of(generation))
    for generation in evidence.generations.values():
        for op in (*generation.beats, *generation.ends):
            if op.http_status == 404:
                finding.checked += 1
                finding.note("404")
                if _surely_in_flight(evidence, generation, op):
                    yield Broken(f"404 for {op.f} of a run that is surely in flight", place_of(generation) | {"op": op.i})


def _perhaps_ended_before(evidence: Evidence, generation: Generation, t: int) -> bool:
    return (
        generation.perhaps_completed_before(t)
        or evidence.perhaps_expired_before(generation, t)
        or evidence.perhaps_forgotten_before(generation, t + DEATH_TOLD)
    )


def _surely_in_flight(evidence: Evidence, generation: Generation, op: Op) -> bool:
    run = evidence.runs[op.run_id][1]
    begun = max([run.s, *(beat.s for beat in generation.beats if beat.run_id == op.run_id and beat.type == "ok" and beat.e < op.s)])
    if op.e >= begun + generation.op.timeout * SECOND:
        return False
    others = (*generation.ends, *generation.name.ends)
    if any(end is not op and end.type != "fail" and end.s <= op.e and end.e >= generation.op.s for end in others):
        return False
    return generation.op.persist or not evidence.queues[op.queue].died_between(generation.op.s, op.e + DEATH_TOLD)


def states(evidence: Evidence, finding: Finding) -> Iterator[Broken]:
    """C8."""
    for generation in evidence.generations.values():
        if not generation.runs:
            continue
        sent = generation.op
        sure = [(state_of(sent), sent.s, sent.e)]
        sure += [(state_of(beat), beat.s, beat.e) for beat in generation.beats if beat.state is not None and beat.type != "fail"]
        loose = [beat for beat in generation.name.beats if beat.state is not None and beat.type != "fail"]
        perhaps = [(state_of(beat), beat.s, FOREVER) for beat in loose if beat.e >= sent.s]
        for run in generation.runs:
            finding.checked += 1
            floor = max((s for _, s, e in sure if e < run.s), default=0)
            if not any(state == run.given.state and s <= run.e and e >= floor for state, s, e in (*sure, *perhaps)):
                yield Broken(
                    f"delivered with state {run.given.state}", place_of(generation) | {"run": run.op.i, "states": [*sure, *perhaps]}
                )
