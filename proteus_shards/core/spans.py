"""Steps whose queues lie in several shards: all of it or nothing, whatever ends in between.

How to think about it
=====================

One of the shards is the step's *home*: that of the run which is completed, or of the first job. A front coordinates:

1. `Begin` at the home: the step is open, in memory only.
2. `Prepare` at each other shard. It checks all that could stand against its jobs, and keeps them in a record, the *intent*. Their ids are reserved: an
   enqueue of the same is BUSY until the step is over.
3. `Decide` at the home: in one commit the run is completed, its own jobs are added, and a record says that the step is done. Refused is a step
   that is not open any more. This commit is the only moment that counts: before it nothing has happened, after it everything will.
4. `Conclude` at each other shard: in one commit the intent becomes jobs, with order keys as for an enqueue of now, or goes.
5. `Forget` at the home: nobody will ask any more.

**Who comes late decides nothing.** A front that dies leaves intents; any other front finds them (`ListSteps`), asks their home, and concludes. The home answers
what its record says. Where it has none, it closes the step, if it is still open, and says no: from then on no `Decide` for it is taken. That needs no
record of what was *not* done (presumed abort), since what is open lives in the home's memory alone: a home that ends closes all its steps. And the
answer waits behind whatever is logged in the home's queue, so a decision whose commit is under way is never denied.

**Intents are kept by slot**, so that a server with another number of shards finds each where its jobs belong; shards are named by a queue of theirs.

**Promised is promised.** A conclusion meets no limit and no refusal but the store's absence; what it needs was checked when it was prepared, its share of a batch at the
most that it can come to. A reserved id counts as live for all that brings jobs in: enqueues, redrives, schedules. One that is live in spite of it keeps its job, and
the promised one is left out, as one job of an id is the stronger promise.

**Dead letters move** to a queue of another shard by the same steps. Their home is the queue that they leave: they are picked there (`PickDead`), promised by the other
as far as their ids are free, and the decision removes just those. What left its queue between is BUSY.

Bounds: an intent has at most RECORD_BYTES_MAX, else INVALID; a shard has at most `STEPS_MAX` steps open, and as many intents, else FULL.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from proteus_shards.core.commands import (
    AskDecision,
    Begin,
    Conclude,
    Decide,
    Decided,
    Done,
    Enqueue,
    Forget,
    JobRefusal,
    ListSteps,
    Mode,
    OpenStep,
    OpenSteps,
    Outcome,
    Outcomes,
    Prepare,
    Reason,
    Refused,
)
from proteus_shards.core.holdings import answer_bytes
from proteus_shards.core.ledger import Note
from proteus_shards.core.model import RECORD_BYTES_MAX, SECOND_US, Kind, RecordKey, name_fault
from proteus_shards.core.placement import slot_of
from proteus_shards.core.queue import TRANSITIONS, Verb
from proteus_shards.core.records import check_job, check_place, check_step
from proteus_shards.core.steps import AWAY, Change, RecordChange, Steps
from proteus_shards.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from proteus_shards.core.holdings import Key, Limits
    from proteus_shards.core.ledger import Undo
    from proteus_shards.core.queue import Queue

STEPS_MAX = 10_000
OPEN_US_MAX = 600 * SECOND_US  # a step that nobody has decided by then never will be

_GIVEN_UP = Refused(Reason.BUSY, "the step took too long and was given up")
_LEFT = Refused(Reason.BUSY, "a dead letter has left its queue meanwhile")
_TAKEN = JobRefusal(Reason.EXISTS, "a job with this id is already in the queue, or about to be")
RESERVED = Refused(Reason.BUSY, "a step over several shards is about to add a job with this id")
_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Intent(msgspec.Struct, array_like=True, frozen=True):
    """The value of an INTENT record: jobs of one slot that wait for a decision."""

    home: str
    mode: Mode
    jobs: list[Enqueue]


class _Decision(msgspec.Struct, array_like=True, frozen=True):
    """The value of a DECISION record: a step that is done."""

    queue: str
    others: list[str]


_encode = msgspec.msgpack.Encoder().encode
_intent = msgspec.msgpack.Decoder(_Intent)
_decision = msgspec.msgpack.Decoder(_Decision)


class Spans(Steps):
    """The queues of one shard, and its part in steps over several."""

    def __init__(self, limits: Limits, new_run_id: Callable[[], bytes], draw: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__(limits, new_run_id, draw)
        self._begun: OrderedDict[bytes, int] = OrderedDict()  # step → when, oldest first
        self._intents: dict[str, dict[RecordKey, tuple[_Intent, int]]] = {}  # by the step's name
        self._reserved: dict[tuple[str, str], str] = {}  # (queue, id) → the step that is about to add it
        self._decisions: dict[RecordKey, tuple[_Decision, int]] = {}
        self._record_takers[Kind.INTENT] = self._take_intent
        self._record_takers[Kind.DECISION] = self._take_decision

    # --- the home ----------------------------------------------------------------------------------------------

    def _begin(self, key: Key | None, command: Begin) -> None:
        while self._begun and next(iter(self._begun.values())) <= self._now - OPEN_US_MAX:
            self._begun.popitem(last=False)
        if len(self._begun) + len(self._decisions) >= STEPS_MAX:
            self._emit(key, Refused(Reason.FULL, f"{STEPS_MAX} steps over several shards are under way"))
            return
        if command.run_id is not None and isinstance(over := self._run_of(command.queue, command.id, command.run_id), Refused):
            self._answer(self.queues.get(command.queue), key, over)
            return
        self._begun[command.step] = self._now
        self._emit(key, Done())

    def _decide(self, key: Key | None, command: Decide) -> None:
        queue = self.queues.get(command.queue)
        if self._begun.pop(command.step, None) is None:
            self._answer(queue, key, _GIVEN_UP)
            return
        if command.dead:
            self._decide_to_move(queue, key, command)
            return
        run = None
        if command.run_id is not None:
            found = self._run_of(command.queue, command.id, command.run_id)
            if isinstance(found, Refused):
                self._answer(queue, key, found)
                return
            run = found
        record, decision, change = self._decision_of(command)
        if self._carry_out(key, command.queue, run, command.jobs, command.mode, [change]):
            self._decisions[record] = (decision, self._now)

    def _decision_of(self, command: Decide) -> tuple[RecordKey, _Decision, RecordChange]:
        decision = _Decision(command.queue, command.others)
        record = _key(Kind.DECISION, command.queue, command.step)
        return record, decision, (record, _encode(decision), lambda: self._take_decision(record, None))

    def _decide_to_move(self, queue: Queue | None, key: Key | None, command: Decide) -> None:
        """Let dead letters leave their queue, and by that decide that they are in the other."""
        letters = [letter for seq in command.dead if (letter := queue.dead.get(seq)) is not None] if queue is not None else []
        if queue is None or len(letters) < len(command.dead):
            self._answer(queue, key, _LEFT)
            return
        record, decision, change = self._decision_of(command)
        if (refused := self._make_room_for(None, letters, Mode.UNIQUE, [change])) is not None:
            self._answer(queue, key, refused)
            return
        changes: list[Change] = []
        for letter in letters:
            self._remove(changes, queue, letter, None, TRANSITIONS[Verb.PURGE])
        self._decisions[record] = (decision, self._now)
        note = Note("redriven", queue.name, "", 0, persist=False, count=len(letters))
        self._ledger.log(queue, None, note, None, None)
        self._log_all(key, command.queue, changes, [change])

    def _ask_decision(self, key: Key | None, command: AskDecision) -> None:
        queue = self.queues.get(command.queue)
        record = _key(Kind.DECISION, command.queue, command.step)
        if self.away and record not in self._decisions:
            self._emit(key, AWAY)  # the decision may be in doubt
            return
        self._begun.pop(command.step, None)
        self._answer(queue, key, Decided(record in self._decisions))

    def _forget(self, key: Key | None, command: Forget) -> None:
        self._begun.pop(command.step, None)
        record = _key(Kind.DECISION, command.queue, command.step)
        known = self._decisions.get(record)
        if known is None or self.away:
            self._answer(self.queues.get(command.queue), key, AWAY if known else Done())
            return
        del self._decisions[record]
        self._write_records(command.queue, key, [(record, None, lambda: self._decisions.__setitem__(record, known))])

    def _take_decision(self, key: RecordKey, value: bytes | None) -> None:
        if value is None:
            self._decisions.pop(key, None)
            return
        try:
            decision = _decision.decode(value)
        except _GARBAGE as error:
            raise RecordError("a decision cannot be read") from error
        check_step(key.name)
        check_place(key, decision.queue)
        if any(name_fault(queue) is not None for queue in decision.others):
            raise RecordError("a decision must name queues")
        self._decisions[key] = (decision, self._now)

    # --- the others --------------------------------------------------------------------------------------------

    def _prepare(self, key: Key | None, command: Prepare) -> None:
        queue = self.queues.get(command.queue)
        answer: Outcome = Done()
        if command.free_only:
            taken = [self._is_taken(job.queue, job.id) for job in command.jobs]
            answer = Outcomes([_TAKEN if each else None for each in taken])
            command = msgspec.structs.replace(command, jobs=[job for job, each in zip(command.jobs, taken, strict=True) if not each])
            if not command.jobs:
                self._answer(queue, key, answer)
                return
        by_slot: dict[int, list[Enqueue]] = {}
        for job in command.jobs:
            by_slot.setdefault(slot_of(job.queue), []).append(job)
        refused = self._unpreparable(command, by_slot)
        if refused is not None:
            self._answer(queue, key, refused)
            return
        drafted = self._draft(None, command.jobs, command.mode)
        if isinstance(drafted, Refused):
            self._answer(queue, key, drafted)
            return
        self._take_back(drafted)
        changes: list[RecordChange] = []
        for slot, jobs in by_slot.items():
            intent = _Intent(command.home, command.mode, jobs)
            record = RecordKey(slot, Kind.INTENT, command.step.hex())
            changes.append((record, _encode(intent), self._undo_of_intent(record)))
            self._keep_intent(record, intent)
        self._write_records(command.queue, key, changes, answer)

    def _is_taken(self, queue_name: str, job_id: str) -> bool:
        """Say whether an id is live, or may be once some step is concluded."""
        if self._find(queue_name, job_id)[1] is not None or (queue_name, job_id) in self._reserved:
            return True
        others = (intent for of_step in self._intents.values() for intent, _ in of_step.values() if intent.mode is not Mode.UNIQUE)
        return any((job.queue, job.id) == (queue_name, job_id) for intent in others for job in intent.jobs)

    def _unpreparable(self, command: Prepare, by_slot: dict[int, list[Enqueue]]) -> Refused | None:
        """Say why jobs cannot be kept until their step is decided, whatever is in the queues."""
        if self.away:
            return AWAY
        if len(self._intents) >= STEPS_MAX:
            return Refused(Reason.FULL, f"{STEPS_MAX} steps over several shards are under way")
        if command.step.hex() in self._intents:
            return _GIVEN_UP
        for jobs in by_slot.values():
            size = len(_encode(_Intent(command.home, command.mode, jobs)))
            if size > RECORD_BYTES_MAX:
                detail = f"a step over several shards may have at most {RECORD_BYTES_MAX} bytes of jobs in one of them, these have {size}"
                return Refused(Reason.INVALID, detail, "jobs")
        written = [job for job in command.jobs if job.persist]
        rows = len(by_slot) + len(written) * (2 if command.mode is Mode.REPLACE else 1)
        return self._too_much(rows, sum(map(answer_bytes, written)) + len(by_slot) * 64)

    def _conclude(self, key: Key | None, command: Conclude) -> None:
        found = [(record, intent) for record, (intent, _) in self._intents.get(command.step.hex(), {}).items()]
        if not found or self.away:
            self._answer(self.queues.get(command.queue), key, AWAY if found else Done())
            return
        jobs = [job for _, intent in found for job in intent.jobs] if command.done else []
        mode = found[0][1].mode
        changes: list[RecordChange] = [(record, None, self._undo_of_conclusion(record, intent)) for record, intent in found]
        self._make_room_for(None, jobs, mode, changes, check=False)
        for record, _ in found:
            self._drop_intent(record)
        drafted = self._draft(None, jobs, mode, check=False)
        assert isinstance(drafted, list)
        self._log_all(key, command.queue, drafted, changes)

    def _keep_intent(self, record: RecordKey, intent: _Intent) -> None:
        self._intents.setdefault(record.name, {})[record] = (intent, self._now)
        if intent.mode is Mode.UNIQUE:
            for job in intent.jobs:
                self._reserved[job.queue, job.id] = record.name

    def _drop_intent(self, record: RecordKey) -> None:
        of_step = self._intents.get(record.name, {})
        kept = of_step.pop(record, None)
        if kept is None:
            return
        if not of_step:
            del self._intents[record.name]
        if kept[0].mode is Mode.UNIQUE:
            for job in kept[0].jobs:
                self._reserved.pop((job.queue, job.id), None)

    def _undo_of_intent(self, record: RecordKey) -> Undo:
        return lambda: self._drop_intent(record)

    def _undo_of_conclusion(self, record: RecordKey, intent: _Intent) -> Undo:
        return lambda: self._keep_intent(record, intent)

    def _take_intent(self, key: RecordKey, value: bytes | None) -> None:
        self._drop_intent(key)
        if value is None:
            return
        try:
            intent = _intent.decode(value)
        except _GARBAGE as error:
            raise RecordError("an intent cannot be read") from error
        check_step(key.name)
        if not intent.jobs or name_fault(intent.home) is not None:
            raise RecordError("an intent must have jobs, and a queue as its home")
        for job in intent.jobs:
            check_job(job)
            check_place(key, job.queue)
        self._keep_intent(key, intent)

    # --- both --------------------------------------------------------------------------------------------------

    def _list_steps(self, key: Key | None, command: ListSteps) -> None:
        before = self._now - command.older_us
        found: list[tuple[int, OpenStep]] = []
        for name, of_step in self._intents.items():
            intent, at = next(iter(of_step.values()))
            if at <= before:
                found.append((at, OpenStep(bytes.fromhex(name), intent.jobs[0].queue, intent.home, [])))
        for record, (decision, at) in self._decisions.items():
            if at <= before:
                found.append((at, OpenStep(bytes.fromhex(record.name), decision.queue, None, decision.others)))
        found.sort(key=lambda item: item[0])
        steps = [step for _, step in found[: command.count]]
        # a decision whose commit is under way must not be acted upon before it is durable
        self._answer_behind([step.queue for step in steps if step.home is None], key, OpenSteps(steps))

    def _write_records(self, queue_name: str, key: Key | None, changes: Sequence[RecordChange], answer: Outcome | None = None) -> None:
        """Log changes of records, which are made in memory already, as one operation with one answer."""
        self._ledger.make_room(len(changes), sum(len(record.name) + len(value or b"") for record, value, _ in changes))
        queue = self.queues.get(queue_name) or self._make_queue(queue_name)
        for place, (record, value, undo) in enumerate(changes):
            last = place == len(changes) - 1
            self._ledger.write_record(record, value)
            self._ledger.log(queue, key if last else None, (answer or Done()) if last else None, None, undo)


def _key(kind: Kind, queue: str, step: bytes) -> RecordKey:
    return RecordKey(slot_of(queue), kind, step.hex())
