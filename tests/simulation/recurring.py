"""What the oracle thinks of jobs that come by themselves.

Nobody asked for them one by one, so it cannot know that one must be there. It knows what must not be: a job at a time that is not of its schedule, or
has not come yet; a second job of one time, once the first was completed; a run while another one is valid. They stay out of all other rules.
"""

from __future__ import annotations

from typing import Any

import msgspec

from proteus_shards.core.commands import Complete, Delivery, Done, Heartbeat, Outcome, Reason, Refused
from proteus_shards.core.commands_control import PutSchedule
from tests.simulation.disk import Violation
from tests.simulation.steps import APART, Steps
from tests.simulation.words import SECOND, Fired, Line, Op, View, name_of


def came_by_itself(job_id: Any) -> bool:
    """Say whether a job of this id was made by a schedule."""
    return isinstance(job_id, str) and APART in job_id


class Recurrences(Steps):
    """What `Oracle` knows of schedules."""

    def _fired_delivered(self, view: View, line: Line, op: Op, job: Delivery) -> None:
        name, _, time = job.id.partition(APART)
        at = int(time)
        plans = [put for put in line.schedules if (put.name, put.job.payload) == (name, job.payload)]
        if not any(at % msgspec.json.decode(put.definition)["every"] == 0 for put in plans):
            raise Violation(f"{name_of(op)}: {job.id} is delivered, which no schedule has a time for")
        if at * SECOND > view.wall_max:
            raise Violation(f"{name_of(op)}: {job.id} is delivered before its time")
        fired = line.fired.setdefault(job.id, Fired())
        if fired.over:
            raise Violation(f"{name_of(op)}: {job.id} is delivered, but was completed")
        if fired.run_id is not None and view.now < fired.until:
            raise Violation(f"{name_of(op)}: {job.id} is delivered {fired.until - view.now} us before its run has timed out")
        if 0 <= job.max_retries < job.attempt - 1:
            raise Violation(f"{name_of(op)}: {job.id} is delivered for the {job.attempt}th time with max_retries {job.max_retries}")
        fired.run_id, fired.until = job.run_id, view.now + job.timeout * SECOND
        fired.timeout_us = job.timeout * SECOND

    def _fired_answered(self, line: Line, op: Op, outcome: Outcome) -> None:
        """Take note of what was answered to a request about such a job."""
        command, fired = op.command, line.fired.get(op.command.id)
        if fired is not None and isinstance(outcome, Refused) and outcome.reason is Reason.UNKNOWN and type(command) is not Heartbeat:
            fired.run_id = None  # perhaps
        if fired is None or type(outcome) is not Done:
            return
        if type(command) is Heartbeat:
            fired.until = max(fired.until, op.applied + fired.timeout_us)
            return
        fired.run_id = None
        if type(command) is Complete:
            fired.over = True
            if command.id in self.disk.live[op.queue]:
                raise Violation(f"{name_of(op)}: done, but still stored")

    def _audit_fired(self, line: Line, *, restarted: bool) -> None:
        """Look for rows of such jobs that were completed, and forget their runs where their process has ended."""
        for job_id, fired in line.fired.items():
            if fired.over and job_id in self.disk.live[line.name]:
                raise Violation(f"{line.name}/{job_id} is stored, but was completed")
            if restarted:
                fired.run_id = None

    def _scheduled(self, op: Op) -> None:
        """Take note of a schedule that was asked for."""
        if type(op.command) is PutSchedule:
            self._line(op.queue).schedules.append(op.command)
