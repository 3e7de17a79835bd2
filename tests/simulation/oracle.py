"""A second, naive opinion on every answer, formed from outside.

It knows no commits, logs, heaps or undoing. It uses one fact of the contract: the answers of one queue come out in the order in which the
requests took effect. So it takes the requests in the order of their answers, as if each happened alone, keeps plain
dictionaries of what must be there by now, and says for each answer whether it could be so: which job must be the next, with which
attempt, state and run; whether a run may have ended; whether a refusal has an excuse. A refused request leaves no mark here, and if it has
left one there, a later answer will not fit.

Where the truth can't be known it allows both: for a run past its deadline that nobody has asked about since, and for what was answered UNKNOWN or
not at all. The second ends as soon as the rows can be read (`audit`): each must be as the answers say, but for the requests in limbo,
and is believed from then on.
"""

from __future__ import annotations

from heapq import heappop
from typing import TYPE_CHECKING, Any, cast

from proteus_shards.core.commands import (
    Command,
    Complete,
    Delivered,
    Delivery,
    Enqueue,
    Heartbeat,
    ListDead,
    Next,
    Outcome,
    Outcomes,
    Reason,
    Refused,
    Undeliver,
)
from proteus_shards.core.commands_control import Change, DropSchedule, Fail, Redrive, Release, SetQueue
from tests.simulation.audit import DEAD, READY, audit
from tests.simulation.disk import Disk, Violation
from tests.simulation.operators import LIKE, is_about
from tests.simulation.recurring import Recurrences, came_by_itself
from tests.simulation.steps import parts_of, plain, plain_outcome
from tests.simulation.words import NEVER, SECOND, Known, Line, Op, View, is_vague, name_of

if TYPE_CHECKING:
    from proteus_shards.core.model import Batch, Row
    from tests.simulation.plan import Plan

DELIVERING_US = 10_000  # a timeout that comes up before its delivery is out is put off so long
PUT_OFF_US = 1_002_000  # a timeout that came up while the store was away comes at most so long after its return


class Oracle(Recurrences):
    """Judges answers. Raises `Violation`."""

    def __init__(self, plan: Plan, disk: Disk) -> None:
        self.plan = plan
        self.disk = disk
        self.lines: dict[str, Line] = {}
        self.limbo: dict[str, list[Op]] = {}  # by queue: requests of ended processes whose fate is unknown
        self.count = 0  # of requests, and of the changes in a step
        self.asked = 0
        self.fingerprint = 0
        self.wall_max = 0

    # --- what happens ------------------------------------------------------------------------------------------

    def ask(self, view: View, command: Command, sent: int | None = None) -> int:
        """Take note of a request at the moment that a shard applies it, and return its number."""
        self.asked += 1
        self.count = number = self.count + 1
        command, once = plain(command)
        view.outstanding[number] = op = Op(number, command, view, sent)
        op.once = once
        self._scheduled(op)
        op.parts = [Op(number + place, part, view, sent) for place, part in enumerate(parts_of(command), 1)]
        self.count += len(op.parts)
        for part in op.parts or (op,):
            command = part.command
            if (type(command) is Enqueue or type(command) is Change) and command.run_at_us is not None:
                if command.run_at_us <= view.wall:
                    part.reached = 0
                else:
                    view.expect(part, command.run_at_us)
        return number

    def read(self, view: View, now: int, wall: int) -> None:
        """Take note that a shard has read its clocks."""
        view.now = now
        view.wall = wall
        view.wall_max = max(view.wall_max, wall)
        self.wall_max = max(self.wall_max, wall)
        view.clock = max(view.clock, wall)
        while view.schedule and view.schedule[0][0] <= wall and now >= view.grace_until:
            heappop(view.schedule)[2].reached = self.count

    def answer(self, view: View, number: int, outcome: Outcome) -> None:
        """Judge an answer."""
        op = view.outstanding.pop(number, None)
        if op is None:
            raise Violation(f"request {number} is answered twice, or was never asked")
        kind = type(outcome)
        kept, outcome = kind is Outcomes, plain_outcome(outcome)
        self.fingerprint = (self.fingerprint * 31 + number * 7 + len(kind.__name__)) & 0xFFFFFFFFFFFF
        if view.fenced:
            self._fenced(view, op, outcome)
            return
        line = self._line(op.queue)
        if came_by_itself(getattr(op.command, "id", None)) and not op.parts:
            self._fired_answered(line, op, outcome)
            return
        if op.once is not None and self._is_told_again(line, op, outcome, kept=kept):
            return
        self._judge(view, line, op, outcome)
        if kept:
            self._keep(line, op, outcome)

    def _judge(self, view: View, line: Line, op: Op, outcome: Outcome) -> None:
        kind = type(outcome)
        if kind is Refused:
            self._refused(view, line, op, cast("Refused", outcome))
            return
        if op.applied > line.next_due:
            self._expire(view, line, op)
        command = op.command
        asked = type(command)
        if kind is Delivered:
            self._delivered(view, line, op, cast("Delivered", outcome).jobs)
        elif asked is Enqueue:
            self._enqueued(view, line, op, command)
        elif op.parts:
            self._stepped(view, line, op)
        elif asked is Complete:
            self._completed(view, line, op, command)
        elif asked is Heartbeat:
            self._heard(view, line, op, command)
        elif asked is Undeliver:
            self._undelivered(line, op, command)
        elif asked is Fail or asked is Release:
            self._ended(line, op, command)
        elif asked is ListDead:
            self._listed(view, line, op, outcome)
        else:
            self._operated(view, line, op, outcome)

    def give_back(self, view: View, command: Undeliver) -> None:
        """Take note that the pump gives back what a closed link can't get."""
        if came_by_itself(command.id):
            self.lines[command.queue].fired[command.id].run_id = None
            return
        known = self.lines[command.queue].jobs.get(command.id)
        if known is None or known.run_id != command.run_id or view.fenced:
            return
        if view.away and known.persist:
            known.until = 0  # refused: it waits for its timeout, in nobody's hands
            return
        known.run_id = None
        known.rests_from = view.now
        known.attempt -= 1
        known.once_due = True
        known.skip_before = self.count + 1
        view.given_back.append(known)

    def idle(self, view: View) -> None:
        """Take note that nothing waits for a commit."""
        view.given_back.clear()

    def failed(self, view: View, how: str, batch: Batch) -> None:
        """Take note that a commit is about to fail, before anybody is told."""
        view.failures += 1
        view.failed_at = view.now  # a delivery that is undone leaves its deadline to the run before it
        for known in view.given_back:
            known.vague = known.run_id is None
        view.given_back.clear()
        for op in view.outstanding.values():
            if type(op.command) is SetQueue:  # the rate before begins with a full bucket
                view.given[op.queue] = 0
                view.filled[op.queue] = op.applied
        if how == "permanent":
            view.permanents += 1
            self._schedule_again(view)
            return
        view.away = True
        if how != "refused":
            view.unknowns += 1
            view.doubt = {(row.queue, row.id) for rows in (batch.deletes, batch.marks, batch.inserts) for row in rows}

    def rows_known(self, view: View) -> None:
        """The store is back and its rows are the truth, just before the shard reads them and goes on."""
        view.away = False
        view.known_at = view.now
        view.certain_from = max(view.certain_from, view.now + PUT_OFF_US)
        view.doubt.clear()
        limbo, view.limbo = view.limbo, []
        for queue in view.queues:
            self.audit(view, queue, [op for op in limbo if op.queue == queue], restarted=False)
        self._schedule_again(view)

    def _schedule_again(self, view: View) -> None:
        """What was undone may be scheduled once more, though its time was there already: until the next time that the clock is read."""
        for known in [known for queue in view.queues if queue in self.lines for known in self.lines[queue].jobs.values()]:
            if known.run_at is not None and known.run_id is None and known.op.reached != NEVER:
                known.once_due = True
                view.expect(known.op, known.run_at)

    def ended(self, view: View) -> None:
        """A process has died or lost its rows: what it was asked and has not answered may have happened."""
        for op in [*view.limbo, *view.outstanding.values()]:
            self.limbo.setdefault(op.queue, []).append(op)
        for known in view.given_back:
            known.vague = True
        view.fenced = True

    def forget(self, row: Row) -> None:
        """A row has become unreadable."""
        line = self.lines[row.queue]
        known = line.jobs.get(row.id)
        if known is not None and self._is_of(row, known):
            del line.jobs[row.id]
        line.dead = [known for known in line.dead if not self._is_of(row, known)]

    def _is_of(self, row: Row, known: Known) -> bool:
        """Say whether a row is of this job, wherever it was moved to."""
        mine = known.seq in (-1, row.seq) or (row.slot, known.seq) not in self.disk.rows
        return known.persist and mine and (known.id, known.payload, known.created_at) == (row.id, row.payload, row.created_at)

    def recovered(self, view: View) -> None:
        """A new process has read all rows of some queues."""
        for row in self.disk.rows.values():
            if row.queue in view.queues:
                waits = row.status == DEAD or (row.status == READY and row.run_at is not None and row.run_at > view.wall)
                view.clock = max(view.clock, row.created_at, row.updated_at, 0 if waits else row.ready_at)
        for queue in view.queues:
            self.audit(view, queue, self.limbo.pop(queue, []), restarted=True)

    # --- answers that say yes ----------------------------------------------------------------------------------

    def _enqueued(self, view: View, line: Line, op: Op, command: Enqueue) -> None:
        there = line.jobs.get(command.id)
        if there is not None and not self._may_have_died(there, op, view=view):
            raise Violation(f"{name_of(op)}: accepted, but a job of this id is there")
        if there is not None:
            self._die(line, there)
        if len(line.jobs) >= self._most(line) and not any(self._may_have_died(known, op, view=view) for known in line.jobs.values()):
            raise Violation(f"{name_of(op)}: accepted beyond queue_jobs_max or jobs_max")
        known = line.jobs[command.id] = self._met(op)
        if not command.persist:
            return
        row = self.disk.live[op.queue].get(command.id)
        if row is not None and row.payload == command.payload and row.created_at == known.created_at:
            if self._asked(view, op, Change) or self._asked(view, op, Enqueue):
                return  # the row may be that of an equal request, after this job has died
            if row.ready_at != known.ready_at:
                raise Violation(f"{name_of(op)}: stored under ready_at {row.ready_at}, not {known.ready_at}")
            known.seq = row.seq
        elif not self._asked(view, op, Complete) and not self._may_have_lapsed(view, known):
            raise Violation(f"{name_of(op)}: acknowledged before it was stored")

    def _delivered(self, view: View, line: Line, op: Op, jobs: list[Delivery]) -> None:
        command: Next = op.command
        if len(jobs) > command.count:
            raise Violation(f"{name_of(op)}: {len(jobs)} jobs delivered")
        for job in jobs:
            if came_by_itself(job.id):
                self._fired_delivered(view, line, op, job)
                continue
            known = line.jobs.get(job.id)
            if known is None:
                raise Violation(f"{name_of(op)}: {job.id} is delivered, which is not there")
            self._check_delivery(view, line, op, known, job)
            self._check_semantics(view, line, op, known, job)
            known.attempt = job.attempt
            known.run_id = job.run_id
            known.until = view.now + known.timeout_us
            known.due_by = due = known.until + DELIVERING_US
            known.vague = False
            known.op.reached = 0
            if job.extras is not None:
                known.put_off = job.extras.not_before
            line.next_due = min(line.next_due, due)
            if known.persist:
                row = self.disk.live[op.queue].get(job.id)
                if (row is None or row.run_id != job.run_id) and not self._asked(view, op, Complete, job.id):
                    raise Violation(f"{name_of(op)}: {job.id} is delivered before it was stored")
        if len(jobs) < command.count:
            self._check_shortage(view, line, op, len(jobs))

    def _check_delivery(self, view: View, line: Line, op: Op, known: Known, job: Delivery) -> None:
        if (
            job.payload != known.payload
            or job.state != known.state
            or job.timeout * SECOND != known.timeout_us
            or job.persist != known.persist
            or job.max_retries != known.max_retries
            or job.run_at != known.run_at
            or job.created_at != known.created_at
        ):
            raise Violation(f"{name_of(op)}: {job} is not what was enqueued, or has not its newest state {known.state!r}")
        if known.run_id is not None:
            if view.now < known.until:
                raise Violation(f"{name_of(op)}: {job.id} is delivered {known.until - view.now} us before its run has timed out")
        elif (
            known.run_at is not None
            and known.op.reached == NEVER
            and known.run_at > view.wall_max
            and not known.once_due
            and not known.back
        ):
            raise Violation(f"{name_of(op)}: {job.id} is delivered before its run_at")
        if job.attempt != known.attempt + 1 and not (known.vague and job.attempt == known.attempt + 2):
            raise Violation(f"{name_of(op)}: {job.id} is delivered as attempt {job.attempt} after attempt {known.attempt}")
        if 0 <= known.max_retries < job.attempt - 1:
            raise Violation(f"{name_of(op)}: {job.id} is delivered for the {job.attempt}th time with max_retries {known.max_retries}")
        if known.placeless or (not op.exact and view.now == view.known_at):
            return  # what comes due in that moment goes to a poll before the rows that were read back
        place = (-known.priority, known.ready_at, known.number)
        for other in line.jobs.values():
            ahead = (-other.priority, other.ready_at, other.number) < place and not other.placeless
            if ahead and self._surely_waits(view, line, op, other):
                raise Violation(f"{name_of(op)}: {job.id} is delivered before {other.id}, which is ahead of it")

    def _check_shortage(self, view: View, line: Line, op: Op, count: int) -> None:
        plan = self.plan
        if not op.exact and view.now == view.known_at:
            return  # polls end first, then the store is taken as healed
        if view.draining or (plan.batch_rows_max or NEVER) <= count or (plan.batch_bytes_max is not None and count):
            return
        if not count and op.exact and not op.away and not view.away:
            self._settle_lapsed(view, line, op)
        if self._is_limited(line) or (count and any(self._may_have_lapsed(view, known) for known in line.jobs.values())):
            return  # what has lapsed ends a delivery, and is looked at by the next
        for other in list(line.jobs.values()):
            if not (op.away or view.away) and self._surely_waits(view, line, op, other):
                raise Violation(f"{name_of(op)}: {other.id} is not delivered, though it is ready")
        command: Next = op.command
        if not count and op.exact and not op.away and not view.away:
            self._settle_vague(view, line, op)
        if not count and not op.exact and view.now < op.applied + command.wait_us:
            raise Violation(f"{name_of(op)}: the poll has ended early")

    def _completed(self, view: View, line: Line, op: Op, command: Complete) -> None:
        known = line.jobs.get(command.id)
        if known is None:
            raise Violation(f"{name_of(op)}: done, but no such job is there")
        if command.run_id is not None and known.run_id != command.run_id and not is_vague(known, op):
            raise Violation(f"{name_of(op)}: done, but this run is over")
        del line.jobs[command.id]
        if known.persist:
            row = self.disk.live[op.queue].get(command.id)
            if row is not None and (known.seq < 0 or row.seq == known.seq) and not self._asked(view, op, Enqueue):
                raise Violation(f"{name_of(op)}: done, but still stored")

    def _heard(self, view: View, line: Line, op: Op, command: Heartbeat) -> None:
        known = line.jobs.get(command.id)
        if known is None:
            raise Violation(f"{name_of(op)}: done, but no such job is there")
        if not is_vague(known, op) and (known.run_id is None or command.run_id not in (None, known.run_id)):
            raise Violation(f"{name_of(op)}: done, but this run is over")
        until = op.applied + known.timeout_us
        known.until = max(known.until, until)
        known.due_by = max(known.due_by, until)
        if command.state is None:
            return
        known.state = command.state or None
        if known.persist:
            row = self.disk.live[op.queue].get(command.id)
            if (
                (row is None or row.state != known.state)
                and not self._asked(view, op, Complete)
                and not self._asked(view, op, Heartbeat)
                and not self._may_have_died(known, op, view.now, view=view)
            ):
                raise Violation(f"{name_of(op)}: the state is acknowledged before it was stored")

    # --- answers that say no -----------------------------------------------------------------------------------

    def _refused(self, view: View, line: Line, op: Op, outcome: Refused) -> None:
        reason, command = outcome.reason, op.command
        if type(command) is Heartbeat and reason in (Reason.BUSY, Reason.UNKNOWN) and command.id in line.jobs:
            known = line.jobs[command.id]  # a deadline that has grown stays so
            known.due_by = max(known.due_by, op.applied + known.timeout_us)
        failed = view.failures > op.failures
        if op.parts and self._step_refused(view, line, op, reason):
            return
        if reason is Reason.EXISTS:
            if op.applied > line.next_due:
                self._expire(view, line, op)
            if type(command) is not Enqueue or command.id not in line.jobs:
                raise Violation(f"{name_of(op)}: refused as existing, but no such job is there")
        elif reason is Reason.NOT_FOUND:
            self._not_found(view, line, op)
        elif reason is Reason.BUSY:
            alone = type(command) is Enqueue and not command.persist and (op.queue, command.id) not in view.doubt
            away = op.away and not alone
            if not (failed or away or view.draining or view.permanents or self.plan.pending_max < 100):
                raise Violation(f"{name_of(op)}: refused as busy for no reason ({outcome.detail})")
        elif reason is Reason.UNKNOWN:
            if view.unknowns <= op.unknowns:
                raise Violation(f"{name_of(op)}: answered as unknown for no reason")
            view.limbo.append(op)
        elif reason is Reason.FULL:
            full = (type(command) in (Enqueue, Redrive) and len(line.jobs) >= self._most(line)) or (
                type(command) is Next and not op.exact and self.plan.polls_max < 100
            )
            if not full:
                raise Violation(f"{name_of(op)}: refused as full for no reason ({outcome.detail})")
        elif reason is Reason.INVALID:
            self._invalid(view, line, op)
        else:
            raise Violation(f"{name_of(op)}: {outcome}")

    def _not_found(self, view: View, line: Line, op: Op) -> None:
        command = op.command
        if type(command) is Change:
            self._not_changed(view, line, op)
        if type(command) in (Change, DropSchedule):
            return
        known = line.jobs.get(command.id)
        if known is None or is_vague(known, op):
            return
        if type(command) is Complete and command.run_id is None:
            if not self._may_have_died(known, op, view=view):
                raise Violation(f"{name_of(op)}: not found, but it is there")
        elif known.run_id is not None and command.run_id in (None, known.run_id) and op.sent < known.until:
            raise Violation(f"{name_of(op)}: not found, but its run lasts for another {known.until - op.sent} us")

    def _settle_vague(self, view: View, line: Line, op: Op) -> None:
        """What may be in flight would have come back by now: so it has died."""
        for known in [known for known in line.jobs.values() if known.vague]:
            if (
                op.applied > view.failed_at + known.timeout_us + PUT_OFF_US
                and op.applied >= view.certain_from
                and op.number >= known.skip_before
            ):
                if self._may_have_lapsed(view, known):
                    self._die(line, known)
                    continue
                known.attempt += 1
                if not known.last:
                    raise Violation(f"{name_of(op)}: {known.id} is not delivered, though it is ready")
                self._die(line, known)

    # --- what happens by itself --------------------------------------------------------------------------------

    def _expire(self, view: View, line: Line, op: Op) -> None:
        """End the runs whose time was surely over when a request was applied."""
        next_due = NEVER
        for known in list(line.jobs.values()):
            if known.run_id is None:
                continue
            due_by = max(known.due_by, view.failed_at + known.timeout_us + DELIVERING_US)
            over = op.applied > due_by and op.applied >= view.certain_from and op.exact
            if not over or (op.away and known.persist):
                next_due = min(next_due, known.due_by)
            elif known.last:
                self._die(line, known)
            else:
                known.run_id = None
                known.rests_from = op.applied
                known.put_off = NEVER if known.backoff or self.plan.settings.backoff else None
        line.next_due = next_due

    def _may_have_died(self, known: Known, op: Op, now: int = 0, *, view: View | None = None) -> bool:
        if view is not None and self._may_have_lapsed(view, known):
            return True
        when = max(op.applied, now) if op.exact else NEVER
        return known.vague or (known.run_id is not None and known.last and when >= known.until)

    def _die(self, line: Line, known: Known) -> None:
        del line.jobs[known.id]
        known.run_id = None
        line.dead.append(known)

    def _may_be_dropped(self, known: Known) -> bool:
        return self.plan.dead_max < 100 or self.plan.trims or self.wall_max - known.created_at >= self.plan.dead_us_max

    # --- excuses -----------------------------------------------------------------------------------------------

    def _asked(self, view: View, op: Op, what: Any, job_id: str | None = None) -> bool:
        """Say whether a request of some kind, or with the same effect, is still unanswered: its rows may come with those of this one."""
        queue, job_id, kinds = op.queue, job_id or op.command.id, LIKE[what]
        return any(
            part is not op and type(part.command) in kinds and is_about(part.command, job_id)
            for other in view.outstanding.values()
            if other.queue == queue
            for part in other.parts or (other,)
        )

    # --- the rows ----------------------------------------------------------------------------------------------

    def audit(self, view: View, queue: str, limbo: list[Op], *, restarted: bool) -> None:
        """Hold the rows of a queue against what must be there, and believe them from now on."""
        line = self._line(queue)
        self.audit_settings(view, line, limbo)
        steps = [op for op in limbo if op.parts]
        limbo = [part for op in limbo for part in op.parts or (op,)]
        audit(
            self.disk, view, line, limbo, self._may_be_dropped,
            restarted=restarted, met=self._met, may_have_lapsed=self._may_have_lapsed, revive=self.revive,
        )  # fmt: skip
        self._check_whole(view, line, steps, limbo)
        self._audit_fired(line, restarted=restarted)
        self._audit_answers(view, line, limbo, restarted=restarted)
