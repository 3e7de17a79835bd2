"""A history in the order in which questions are asked of it: generations, runs, names, queues.

See `checker.py` for the words. "Surely before" is strictly before, "perhaps before" is all else: two times may be equal. Everything here is computed once; the rules only look things up.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict

import msgspec

from tests.faults.history import FOREVER, NO_STATE, SECOND, Given, History, Op, Window

LINGER = 60 * SECOND  # how long before a job's enqueue a `next` may have been sent that took it (it waits that long at most)


class Terms(msgspec.Struct, frozen=True):
    """What a history is held to where the answer is a matter of degree. Only these know of time beyond that of the history itself."""

    drains_min: int = 2
    audits_min: int = 1
    oks_min: int = 100  # per queue
    heal_seconds_max: float = 5.0
    late_seconds_max: float = 5.0
    beside_factor_max: float = 0.0  # how much slower other shards may be while one is replaced (their p99); 0: that is only told


class Broken(msgspec.Struct):
    """One place where a rule does not hold: what is wrong, and where in the history to look."""

    what: str
    where: dict[str, object]


class Finding(msgspec.Struct):
    """What one rule found."""

    rule: str
    claim: str
    checked: int = 0
    broken: int = 0
    witnesses: list[Broken] = []
    notes: dict[str, int] = {}

    def note(self, what: str, count: int = 1) -> None:
        """Count something worth knowing that breaks nothing."""
        self.notes[what] = self.notes.get(what, 0) + count


class Run(msgspec.Struct, gc=False):
    """One job in the answer to one `next`."""

    op: Op
    given: Given
    place: int  # in the answer

    @property
    def s(self) -> int:
        """When its `next` was sent."""
        return self.op.s

    @property
    def e(self) -> int:
        """When its client had it."""
        return self.op.e


class Generation(msgspec.Struct, eq=False):
    """One enqueue, and everything that is surely about its job."""

    op: Op
    name: Name
    runs: list[Run] = []  # by attempt
    beats: list[Op] = []  # heartbeats that name one of its runs
    ends: list[Op] = []  # completions that name one of its runs
    dead: Given | None = None

    @property
    def surely_from(self) -> int:
        """When it was surely there: after that it is there until it ends."""
        if self.op.type == "ok":
            return self.op.e
        return min((run.e for run in self.runs), default=FOREVER)

    @property
    def surely_until(self) -> int:
        """Until when it was surely there: the last time at which something found it."""
        found = [run.s for run in self.runs]
        found += [op.s for op in (*self.beats, *self.ends) if op.type == "ok"]
        return max(found, default=self.surely_from)

    def surely_ended_before(self, t: int) -> bool:
        """Say whether an acknowledged completion ended it before `t`."""
        if any(end.type == "ok" and end.e < t for end in self.ends):
            return True
        begun = self.surely_from
        return any(end.type == "ok" and begun < end.s and end.e < t for end in self.name.ends)

    def completed(self) -> int:
        """Return when the first completion was acknowledged that was surely of this job."""
        begun = self.surely_from
        ends = [end.e for end in self.ends if end.type == "ok"]
        ends += [end.e for end in self.name.ends if end.type == "ok" and begun < end.s]
        return min(ends, default=FOREVER)

    def perhaps_completed_before(self, t: int) -> bool:
        """Say whether any completion may have ended it before `t`."""
        if any(end.type != "fail" and end.s <= t for end in self.ends):
            return True
        return any(end.type != "fail" and end.s <= t and end.e >= self.op.s for end in self.name.ends)


class Name(msgspec.Struct, eq=False):
    """All jobs of one queue and id, and what was said of that name without naming a run."""

    generations: list[Generation] = []  # by the time they were sent
    beats: list[Op] = []
    ends: list[Op] = []


class QueueEvidence(msgspec.Struct, eq=False):
    """What there is to know about one queue."""

    generations: list[Generation] = []
    nexts: list[Op] = []  # that were answered, by s
    lost_nexts: list[int] = []  # the s of those whose outcome is unknown
    lost_next_ops: list[Op] = []
    deaths: list[int] = []
    persists: bool = False

    def lost_nexts_between(self, start: int, stop: int) -> int:
        """Return how many `next` of unknown outcome were sent between two times."""
        return bisect_right(self.lost_nexts, stop) - bisect_left(self.lost_nexts, start)

    def died_between(self, start: int, stop: int) -> bool:
        """Say whether what the queue held in memory may have gone between two times."""
        return bisect_left(self.deaths, start) < bisect_right(self.deaths, stop)


class Evidence:
    """Everything, indexed."""

    def __init__(self, history: History, terms: Terms) -> None:
        self.history = history
        self.terms = terms
        self.queues: dict[str, QueueEvidence] = defaultdict(QueueEvidence)
        self.names: dict[tuple[str, str], Name] = defaultdict(Name)
        self.generations: dict[str, Generation] = {}  # by uid
        self.runs: dict[str, tuple[Generation, Run]] = {}  # by run_id
        self.doubled_runs: list[Run] = []
        self.strange: list[tuple[Op, Given]] = []  # deliveries of what nobody sent
        self.stray: list[Op] = []  # heartbeats and completions of runs that nobody was given
        self.windows: list[Window] = sorted((window for window in history.windows if not window.refused), key=lambda window: window.start)
        ops = sorted(history.ops, key=lambda op: op.s)
        for op in ops:
            if op.f == "enqueue":
                self._take_enqueue(op)
        for op in ops:
            if op.f == "next":
                self._take_next(op)
            elif op.f == "dead" and op.type == "ok":
                self._take_letters(op)
        for op in ops:
            if op.f in {"heartbeat", "complete"}:
                self._take_word(op)
        for generation in self.generations.values():
            generation.runs.sort(key=lambda run: (run.given.attempt, run.s))
        for death in sorted(history.deaths, key=lambda death: death.t):
            for queue in death.queues:
                self.queues[queue].deaths.append(death.t)

    def _take_enqueue(self, op: Op) -> None:
        name = self.names[op.queue, op.id]
        generation = Generation(op, name)
        assert op.uid not in self.generations, f"the history has the uid {op.uid} twice"
        self.generations[op.uid] = generation
        name.generations.append(generation)
        queue = self.queues[op.queue]
        queue.generations.append(generation)
        queue.persists = queue.persists or op.persist

    def _take_next(self, op: Op) -> None:
        queue = self.queues[op.queue]
        if op.type == "unknown":
            queue.lost_nexts.append(op.s)
            queue.lost_next_ops.append(op)
        elif op.type == "ok":
            queue.nexts.append(op)
        for place, given in enumerate(op.jobs):
            generation = self.generations.get(given.uid)
            if generation is None:
                self.strange.append((op, given))
                continue
            run = Run(op, given, place)
            generation.runs.append(run)
            if given.run_id in self.runs:
                self.doubled_runs.append(run)
            else:
                self.runs[given.run_id] = (generation, run)

    def _take_letters(self, op: Op) -> None:
        for given in op.jobs:
            generation = self.generations.get(given.uid)
            if generation is None:
                self.strange.append((op, given))
            else:
                generation.dead = given

    def _take_word(self, op: Op) -> None:
        if not op.run_id:
            name = self.names[op.queue, op.id]
            (name.beats if op.f == "heartbeat" else name.ends).append(op)
        elif op.run_id in self.runs:
            generation = self.runs[op.run_id][0]
            (generation.beats if op.f == "heartbeat" else generation.ends).append(op)
        else:
            self.stray.append(op)

    def perhaps_expired_before(self, generation: Generation, t: int) -> bool:
        """Say whether a job's retries may have been used up before `t`."""
        op = generation.op
        if op.max_retries < 0:
            return False
        seen = sum(run.s <= t for run in generation.runs)
        return seen + self.queues[op.queue].lost_nexts_between(op.s - LINGER, t) > op.max_retries

    def perhaps_forgotten_before(self, generation: Generation, t: int) -> bool:
        """Say whether a job that lived in memory only may have gone with its shard before `t`."""
        return not generation.op.persist and self.queues[generation.op.queue].died_between(generation.op.s, t)

    def fault_near(self, t: int) -> str:
        """Name the last fault that began before `t`."""
        last = ""
        for window in self.windows:
            if window.start > t:
                break
            last = f"{window.fault} {window.target}".strip()
        return last


def state_of(op: Op) -> str:
    """Return the state that an enqueue or a heartbeat sets."""
    return op.state if op.state is not None else NO_STATE


def place_of(generation: Generation) -> dict[str, object]:
    """Return where to look for a job."""
    op = generation.op
    return {
        "uid": op.uid,
        "queue": op.queue,
        "id": op.id,
        "persist": op.persist,
        "enqueue": [op.i, op.type, op.s, op.e],
        "runs": [[run.given.attempt, run.op.i, run.s, run.e] for run in generation.runs],
        "words": [[word.f, word.i, word.type, word.s, word.e] for word in (*generation.beats, *generation.ends)],
    }
