"""What the oracle thinks of keys, priorities, failures, delays, ttls and limits of queues.

Each rule is stated of what is surely so. A job is certainly next in its key only where it is the only one of it; that no later job of a key comes
before an earlier one is checked for itself. What nobody can know from outside (when exactly a timeout was noticed, and so until when a job backs off)
excuses, and never accuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proteus_shards.core.commands import Delivery, Enqueue, Heartbeat, ListDead, Listed, Undeliver
from proteus_shards.core.commands_control import Fail, Release
from proteus_shards.core.extras import Extras
from tests.simulation.disk import Violation
from tests.simulation.words import NEVER, SECOND, Known, Line, Op, View, is_vague, name_of

if TYPE_CHECKING:
    from tests.simulation.disk import Disk
    from tests.simulation.plan import Plan

REASONS = ("timeout", "failed", "expired")
HISTORY_MAX = 20


class Semantics:
    """What `Oracle` knows beside the plain life of a job."""

    plan: Plan
    disk: Disk

    def _may_have_died(self, known: Known, op: Op, now: int = 0, *, view: View | None = None) -> bool:
        raise NotImplementedError

    def _die(self, line: Line, known: Known) -> None:
        raise NotImplementedError

    def _may_be_dropped(self, known: Known) -> bool:
        raise NotImplementedError

    def _asked(self, view: View, op: Op, what: Any, job_id: str | None = None) -> bool:
        raise NotImplementedError

    # --- what is so ----------------------------------------------------------------------------------------------

    def _met(self, op: Op) -> Known:
        """Return the job that a request brings."""
        known = Known(op)
        if known.expires_at is None and self.plan.settings.ttl is not None:
            known.expires_at = max(op.wall, known.run_at or 0) + int(self.plan.settings.ttl * SECOND)
        return known

    def _may_have_lapsed(self, view: View, known: Known) -> bool:
        """Say whether a job may have died of its ttl, or may at any moment, as the clock may go on before it is looked at."""
        return known.expires_at is not None and known.expires_at < max(view.wall_max, view.clock)

    def _surely_waits(self, view: View, line: Line, op: Op, other: Known) -> bool:
        """Say whether a request that was asked for jobs could have had this one."""
        if other.run_id is not None or other.skip_before > op.number or other.vague:
            return False
        if other.run_at is not None and other.op.reached >= op.number:
            return False
        if other.put_off is not None and not (
            other.put_off <= op.wall and op.exact and op.applied >= view.certain_from and op.applied >= view.grace_until
        ):
            return False
        if self._may_have_lapsed(view, other):
            return False
        return other.key is None or all(rival is other or rival.key != other.key for rival in line.jobs.values())

    def _is_limited(self, line: Line) -> bool:
        """Say whether a queue may have kept back what is ready."""
        settings = line.settings
        return settings.paused or settings.rate is not None or settings.max_in_flight is not None

    # --- deliveries ------------------------------------------------------------------------------------------------

    def _check_semantics(self, view: View, line: Line, op: Op, known: Known, job: Delivery) -> None:
        extras, settings = job.extras or Extras(), line.settings
        if (extras.key, extras.priority, extras.expires_at, extras.backoff) != (known.key, known.priority, known.expires_at, known.backoff):
            raise Violation(f"{name_of(op)}: {job.id} is delivered with {extras}, which it was not enqueued with")
        if self.plan.row_bytes_max is None:
            numbers = [attempt.number for attempt in extras.history]
            past = known.past
            fits = past is None or len(numbers) == min(past + job.attempt - 1, HISTORY_MAX)
            if not fits or (past == 0 and numbers != sorted(set(numbers))):
                raise Violation(f"{name_of(op)}: {job.id} is delivered as attempt {job.attempt} with a history of {numbers}")
            if (
                known.error is not None
                and (known.error[0] + 1, bool(past or numbers)) == (job.attempt, True)
                and numbers
                and extras.history[-1].error != known.error[1]
            ):
                raise Violation(f"{name_of(op)}: the error of {job.id} is lost")
        if settings.paused and (op.exact or view.now != view.known_at):
            raise Violation(f"{name_of(op)}: {job.id} is delivered from a paused queue")
        self._check_limits(view, line, op, known)
        if op.exact and known.expires_at is not None and known.expires_at < op.wall and not self._clock_was_set():
            raise Violation(f"{name_of(op)}: {job.id} is delivered though its ttl is over")
        if (
            known.put_off is not None
            and known.put_off != NEVER
            and known.run_id is None
            and not known.once_due
            and known.put_off > view.wall_max
        ):
            raise Violation(f"{name_of(op)}: {job.id} is delivered before it was put off to")
        if known.key is not None:
            self._check_key(view, line, op, known)

    def _clock_was_set(self) -> bool:
        return self.plan.jumps > 0

    def _check_limits(self, view: View, line: Line, op: Op, known: Known) -> None:
        settings = line.settings
        if not op.exact and view.now == view.known_at:
            return  # what comes due in that moment goes to a poll before the settings that were read back
        running = sum(
            other is not known and other.run_id is not None and view.now < other.until and not other.vague for other in line.jobs.values()
        )
        if settings.max_in_flight is not None and running >= settings.max_in_flight:
            raise Violation(f"{name_of(op)}: {known.id} is delivered though {running} jobs are in flight already")
        if settings.rate is not None:
            given = view.given[line.name] = view.given.get(line.name, 0) + 1
            rate = settings.rate
            most = (rate.burst or rate.jobs) + (view.now - view.filled.get(line.name, view.began)) * rate.jobs / (rate.seconds * SECOND)
            if given > most:
                raise Violation(f"{name_of(op)}: {given} jobs are delivered, faster than the rate of the queue")

    def _check_key(self, view: View, line: Line, op: Op, known: Known) -> None:
        hold, strict = line.settings.on_retry == "hold", line.settings.delayed_head == "hold"
        for other in line.jobs.values():
            if other is known or other.key != known.key or other.vague or is_vague(other, op):
                continue
            if other.run_id is not None:
                if view.now < other.until:
                    raise Violation(f"{name_of(op)}: {known.id} is delivered while {other.id} of its key is in flight")
                continue
            if self._may_have_lapsed(view, other) or known.run_id is not None or known.vague:
                continue
            if hold and other.back and not known.back:
                raise Violation(f"{name_of(op)}: {known.id} is delivered though {other.id}, which came back, holds their key")
            if other.back != known.back or other.put_off is not None or other.placeless or known.placeless:
                continue
            if strict and not other.back and other.number < known.number:
                raise Violation(f"{name_of(op)}: {known.id} is delivered before {other.id}, which came into their key before it")
            ready = other.run_at is None or other.op.reached < op.number
            if not strict and ready and (other.ready_at, other.number) < (known.ready_at, known.number):
                raise Violation(f"{name_of(op)}: {known.id} is delivered before {other.id}, which is ahead of it in their key")

    def _settle_lapsed(self, view: View, line: Line, op: Op) -> None:
        """What still waits though its ttl is over has died of it."""
        for known in [known for known in line.jobs.values() if known.run_id is None and not known.vague]:
            if known.skip_before > op.number or known.rests_from >= op.applied:
                continue  # its end comes with the next turn
            if known.expires_at is not None and known.expires_at < op.wall and op.applied >= view.certain_from:
                self._die(line, known)

    def _invalid(self, view: View, line: Line, op: Op) -> None:
        command, maximum = op.command, self.plan.row_bytes_max
        if view.permanents:
            return
        size = NEVER if maximum is None else 0
        if maximum is not None and type(command) is Enqueue:
            size = len(command.payload) + len(command.state or b"") + len(command.queue) + len(command.id)
        elif maximum is not None and type(command) is Heartbeat and command.id in line.jobs:
            size = len(line.jobs[command.id].payload) + len(command.state or b"") + len(command.queue) + len(command.id)
        if maximum is None or size <= maximum:
            raise Violation(f"{name_of(op)}: refused as invalid for no reason")

    # --- how runs end ------------------------------------------------------------------------------------------------

    def _ended(self, line: Line, op: Op, command: Fail | Release) -> None:
        known = line.jobs.get(command.id)
        if known is None or (known.run_id != command.run_id and not is_vague(known, op)):
            raise Violation(f"{name_of(op)}: done, but this run is over")
        in_hand = known.run_id is not None
        if isinstance(command, Fail) and known.last and in_hand:
            self._die(line, known)
        else:
            delay = command.delay_us
            if isinstance(command, Fail):
                known.error = (known.attempt, command.error)
                delay = self._backoff_of(known) if delay is None else delay
            elif in_hand:
                known.attempt -= 1
            known.run_id = None
            known.rests_from = op.applied
            known.vague = False
            known.put_off = op.wall + delay if delay else None
            known.once_due = False
        if known.persist:
            row = self.disk.live[op.queue].get(command.id)
            if row is not None and row.run_id == command.run_id:
                raise Violation(f"{name_of(op)}: the run is over, but still stored as in flight")

    def _backoff_of(self, known: Known) -> int:
        if known.backoff is not None:
            return min(int(known.backoff.first_us * known.backoff.factor ** (known.attempt - 1)), known.backoff.max_us)
        backoff = self.plan.settings.backoff
        if backoff is None:
            return 0
        return int(min(backoff.seconds * backoff.factor ** (known.attempt - 1), backoff.seconds_max) * SECOND)

    def _undelivered(self, line: Line, op: Op, command: Undeliver) -> None:
        known = line.jobs.get(command.id)
        if known is None or (known.run_id != command.run_id and not is_vague(known, op)):
            raise Violation(f"{name_of(op)}: done, but this run is over")
        if known.run_id is not None:
            known.attempt -= 1
            known.once_due = True
        known.run_id = None
        known.rests_from = op.applied
        known.vague = False
        if known.persist:
            row = self.disk.live[op.queue].get(command.id)
            if row is not None and row.run_id == command.run_id:
                raise Violation(f"{name_of(op)}: given back, but still stored as in flight")

    def _listed(self, view: View, line: Line, op: Op, outcome: Any) -> None:
        assert type(outcome) is Listed
        command: ListDead = op.command
        dead = list(line.dead)
        died_at = 0
        for letter in outcome.jobs:
            if "@" in letter.id:
                continue
            alike = [known for known in dead if (known.id, known.payload) == (letter.id, letter.payload) and known.seq in (-1, letter.seq)]
            exact = [known for known in alike if (known.attempt, known.state) == (letter.attempt, letter.state)]
            found = next(iter(exact or alike), None)
            if found is not None:
                dead.remove(found)
            else:
                found = line.jobs.get(letter.id)
                if found is None or not self._may_have_died(found, op, view.now, view=view):
                    raise Violation(f"{name_of(op)}: {letter.id} is listed as dead, which it is not")
                self._die(line, found)
            if found.vague:  # given back, or given out and over: it is told now
                found.attempt += letter.attempt == found.attempt + 1
            if letter.attempt != found.attempt or letter.state != found.state or letter.reason not in REASONS:
                raise Violation(f"{name_of(op)}: {letter} has another attempt, state or reason")
            if letter.died_at < died_at:
                raise Violation(f"{name_of(op)}: not in the order of their deaths")
            died_at = letter.died_at
        if len(outcome.jobs) < command.count:
            for known in dead:
                if not self._may_be_dropped(known) and not known.vague:
                    raise Violation(f"{name_of(op)}: dead letter {known.id} is lost")
                line.dead.remove(known)
