"""The rows of one queue against what the answers have said of it.

A row must be as the last acknowledged change left it, or as one of the requests in limbo may have left it, or as a timeout did that was due.
What is found is believed afterwards: the truth is what is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from proteus_shards.core.commands import Complete, Enqueue, Heartbeat, Next, Undeliver
from proteus_shards.core.commands_control import Change, Fail, Purge, Redrive, Release
from proteus_shards.core.extras import unpack_extras
from tests.simulation.disk import Disk, Violation
from tests.simulation.operators import change, is_about
from tests.simulation.words import NEVER, Known, Line, Op, View

if TYPE_CHECKING:
    from proteus_shards.core.model import Row

READY, IN_FLIGHT, DEAD = 2, 3, 4


def audit(
    disk: Disk,
    view: View,
    line: Line,
    limbo: list[Op],
    may_be_dropped: Callable[[Known], bool],
    *,
    restarted: bool,
    met: Callable[[Op], Known],
    may_have_lapsed: Callable[[View, Known], bool],
    revive: Callable[[View, Line, Known], None],
) -> None:
    """Check all rows of a queue, and make the line what they say. `restarted`: memory is gone, and the rows are all there is."""
    limbo = sorted(limbo, key=lambda op: op.number)
    rows = {job_id: row for job_id, row in disk.live[line.name].items() if "@" not in job_id}  # nobody asked for those
    died = {seq: row for (_, seq), row in disk.rows.items() if row.status == DEAD and row.queue == line.name and "@" not in row.id}
    nexts = any(type(op.command) is Next for op in limbo)

    _compare_letters(line, rows, died, limbo, may_be_dropped)
    if restarted:
        line.dead = [known for known in line.dead if known.persist]

    for known in list(line.jobs.values()):
        if not known.persist:
            _audit_memory(view, line, known, rows, limbo, restarted=restarted, may_have_lapsed=may_have_lapsed)
            continue
        row = rows.get(known.id)
        if row is not None and _has_come_back(view, known, row, limbo, may_have_lapsed):
            line.dead.append(known)
            revive(view, line, known)
        for op in limbo:
            if row is not None and type(op.command) is Change and op.command.id == known.id and _is_changed(known, row, op, limbo):
                known.placeless = known.placeless or (known.seq == -1 and (known.ready_at, known.run_at) == (row.ready_at, row.run_at))
                change(known, op)
        seq = next((seq for seq, other in died.items() if _is_letter_of(other, known, back=_came_back(known, limbo))), None)
        if row is not None and (known.seq == row.seq or (known.seq == -1 and seq is None and known.payload == row.payload)):
            del rows[known.id]
            _compare(view, line, known, row, limbo, nexts=nexts)
            _believe(view, known, row, restarted=restarted)
            continue
        del line.jobs[known.id]
        over = known.vague or (known.run_id is not None and known.last and (view.now >= known.until or _has_failed(known, limbo)))
        over = over or may_have_lapsed(view, known)
        if seq is not None and over:
            grave = died.pop(seq)
            if not _has_state(known, grave, limbo):
                raise Violation(f"{line.name}/{known.id} has died as {grave}, not with state {known.state!r}")
            known.state, known.attempt = grave.state, grave.attempt
            line.dead.append(known)
        elif not _completed(known, limbo) and not (over and may_be_dropped(known)):
            raise Violation(f"acknowledged job {line.name}/{known.id} is lost")

    newest = 0
    for row in sorted(rows.values(), key=lambda row: row.seq):
        letter = next((known for known in line.dead if _is_row_of(row, known)), None) if _asked_for(limbo, Redrive, row.id) else None
        if letter is not None:
            revive(view, line, known := letter)
            if (row.status, row.attempt) != (READY, 0) and not ((row.status, row.attempt) == (IN_FLIGHT, 1) and nexts):
                raise Violation(f"{line.name}/{row.id} is redriven, but stored as {row}")
        else:
            line.jobs[row.id] = known = _newcomer(line, row, limbo, newest, nexts=nexts, met=met)
            newest = known.number
        _believe(view, known, row, restarted=restarted)
    line.dead += [_stillborn(view, line, row, limbo, met=met, may_have_lapsed=may_have_lapsed) for row in died.values()]
    line.next_due = min((known.due_by for known in line.jobs.values() if known.run_id is not None), default=NEVER)


def _audit_memory(
    view: View,
    line: Line,
    known: Known,
    rows: dict[str, Row],
    limbo: list[Op],
    *,
    restarted: bool,
    may_have_lapsed: Callable[[View, Known], bool],
) -> None:
    """Look at a job that has no row: a restart ends it, and so does a row of its id."""
    if restarted:
        del line.jobs[known.id]
    elif known.id in rows:  # it was completed in the batch in doubt, and its id enqueued again
        del line.jobs[known.id]
        completed = _completed(known, limbo, again=True)  # of a run before, even
        if (known.run_id is not None and known.last and view.now >= known.until) or may_have_lapsed(view, known):
            known.vague = completed
            line.dead.append(known)
        elif not completed:
            raise Violation(f"{line.name}/{known.id} has a row, but a memory-only job of this id is there")


def _compare_letters(
    line: Line, rows: dict[str, Row], died: dict[int, Row], limbo: list[Op], may_be_dropped: Callable[[Known], bool]
) -> None:
    """Find the rows of all dead letters, and take them out of `died`."""
    for known in sorted((known for known in line.dead if known.persist), key=lambda known: known.seq == -1):
        seq = next((seq for seq, row in died.items() if _is_letter_of(row, known)), None)
        if seq is not None:
            del died[seq]
        elif _asked_for(limbo, Redrive, known.id) and (_is_row_of(rows.get(known.id), known) or _completed(known, limbo, again=True)):
            if not _is_row_of(rows.get(known.id), known):
                line.dead.remove(known)
        elif not may_be_dropped(known) and not _asked_for(limbo, Purge, known.id):
            raise Violation(f"dead letter {line.name}/{known.id} is lost")
        else:
            line.dead.remove(known)


def _is_letter_of(row: Row, known: Known, *, back: bool = False) -> bool:
    if row.id != known.id or known.seq not in (-1, row.seq) or row.payload != known.payload:
        return False
    return row.attempt == known.attempt or row.attempt == known.attempt + known.vague or (back and row.attempt == known.attempt - 1)


def _came_back(known: Known, limbo: list[Op]) -> bool:
    return any(type(op.command) in (Undeliver, Release) and op.command.run_id == known.run_id for op in limbo)


def _is_row_of(row: Row | None, known: Known) -> bool:
    return row is not None and (row.id, row.payload) == (known.id, known.payload) and known.seq in (-1, row.seq)


def _has_come_back(view: View, known: Known, row: Row, limbo: list[Op], may_have_lapsed: Callable[[View, Known], bool]) -> bool:
    """Say whether a row tells that its job has died, which nobody was told of, and was redriven in limbo."""
    if not _asked_for(limbo, Redrive, known.id) or not _is_row_of(row, known) or row.run_id == known.run_id is not None:
        return False
    died = (
        known.vague
        or may_have_lapsed(view, known)
        or (known.last and known.run_id is not None and (view.now >= known.until or _has_failed(known, limbo)))
    )
    return died and known.attempt > 0 and (row.status, row.attempt) in ((READY, 0), (IN_FLIGHT, 1))


def _asked_for(limbo: list[Op], what: type[Purge | Redrive], job_id: str) -> bool:
    return any(type(op.command) is what and is_about(op.command, job_id) for op in limbo)


def _is_changed(known: Known, row: Row, op: Op, limbo: list[Op]) -> bool:
    command: Change = op.command
    extras = unpack_extras(row.extras)
    priorities = {other.command.priority for other in limbo if type(other.command) is Change and other.command.id == row.id}
    if command.priority is not None and (0 if extras is None else extras.priority) not in priorities:
        return False  # nobody asked for the one that it has
    at = command.run_at_us
    return (
        (row.payload == known.payload and row.seq != known.seq and (row.ready_at, row.run_at) == (max(op.clock, at), at or None))
        if at is not None
        else known.seq in (-1, row.seq)
    )


def _has_failed(known: Known, limbo: list[Op]) -> bool:
    return any(type(op.command) is Fail and op.command.run_id == known.run_id for op in limbo)


def _completed(known: Known, limbo: list[Op], *, again: bool = False) -> bool:
    """Say whether a job may have been removed; `again`: perhaps in a later life."""
    return _asked_for(limbo, Purge, known.id) or any(
        type(op.command) is Complete and op.command.id == known.id and (again or op.command.run_id in (None, known.run_id) or known.vague)
        for op in limbo
    )


def _newcomer(line: Line, row: Row, limbo: list[Op], newest: int, *, nexts: bool, met: Callable[[Op], Known]) -> Known:
    """Find the request that a row comes from which nobody was told of. Where it was asked for twice: after that of the row before, `newest`."""
    for op in sorted(limbo, key=lambda op: op.number <= newest):
        command = op.command
        if (
            type(command) is Enqueue
            and command.persist
            and (command.id, command.payload, op.clock) == (row.id, row.payload, row.created_at)
        ):
            known = met(op)
            for other in limbo:
                if type(other.command) is Change and other.command.id == row.id and _is_changed(known, row, other, limbo):
                    known.placeless = known.placeless or (known.ready_at, known.run_at) == (row.ready_at, row.run_at)
                    change(known, other)
            fresh = (row.status, row.attempt) == (READY, 0) or ((row.status, row.attempt) == (IN_FLIGHT, 1) and nexts)
            if not fresh or row.ready_at != known.ready_at or not _has_state(known, row, limbo):
                raise Violation(f"{line.name}/{row.id} is stored as {row}, which nobody asked for")
            return known
    raise Violation(f"{line.name}/{row.id} is stored, but was completed, refused, or never enqueued")


def _stillborn(
    view: View, line: Line, row: Row, limbo: list[Op], *, met: Callable[[Op], Known], may_have_lapsed: Callable[[View, Known], bool]
) -> Known:
    """Find the request that a dead letter comes from which nobody was told of: its ttl was over before it was stored."""
    for op in limbo:
        command = op.command
        if type(command) is Enqueue and (command.id, command.payload, op.clock) == (row.id, row.payload, row.created_at):
            known = met(op)
            if command.persist and not row.attempt and may_have_lapsed(view, known):
                known.seq = row.seq
                return known
    raise Violation(f"{line.name}/{row.id} is stored as dead, but has not died")


def _has_state(known: Known, row: Row, limbo: list[Op]) -> bool:
    return row.state == known.state or any(
        type(op.command) is Heartbeat
        and op.command.id == known.id
        and op.command.state is not None
        and (op.command.state or None) == row.state
        for op in limbo
    )


def _compare(view: View, line: Line, known: Known, row: Row, limbo: list[Op], *, nexts: bool) -> None:
    """Check the row of a job that must be there."""
    same = (row.payload, row.ready_at, row.created_at, row.run_at, row.max_retries) == (
        known.payload, known.ready_at, known.created_at, known.run_at, known.max_retries,
    )  # fmt: skip
    if not same or not _has_state(known, row, limbo):
        raise Violation(f"{line.name}/{known.id} is stored as {row}, not with payload {known.payload!r} and state {known.state!r}")
    extras = unpack_extras(row.extras)
    if (extras.priority if extras is not None else 0) not in (
        known.priority, *(op.command.priority for op in limbo if type(op.command) is Change and op.command.id == known.id),
    ):  # fmt: skip
        raise Violation(f"{line.name}/{known.id} is stored with {extras}, not with priority {known.priority}")
    attempt = known.attempt
    now = (row.status, row.attempt)
    if known.run_id is None:
        fits = now == (READY, attempt) or (now == (IN_FLIGHT, attempt + 1) and (nexts or known.vague))
        fits = fits or (known.vague and nexts and now == (IN_FLIGHT, attempt + 2))
    else:
        back = _came_back(known, limbo)
        over = view.now >= known.until or _has_failed(known, limbo)
        fits = (now == (IN_FLIGHT, attempt) and row.run_id == known.run_id) or (back and now == (READY, attempt - 1))
        fits = fits or (back and nexts and now == (IN_FLIGHT, attempt)) or (over and not known.last and now == (READY, attempt))
        fits = fits or (over and not known.last and nexts and now == (IN_FLIGHT, attempt + 1))
    if not fits:
        state = "waiting" if known.run_id is None else f"in flight as {known.run_id.hex()} until {known.until}"
        raise Violation(f"{line.name}/{known.id} is stored as {row}, but should be {state}, attempt {attempt}")


def _believe(view: View, known: Known, row: Row, *, restarted: bool) -> None:
    """Make a job what its row says."""
    known.seq = row.seq
    known.attempt = row.attempt
    known.state = row.state
    known.vague = False
    extras = unpack_extras(row.extras)
    known.put_off = extras.not_before if extras is not None else None
    known.priority = extras.priority if extras is not None else 0
    if row.status == IN_FLIGHT:
        deadline = view.now + known.timeout_us
        if restarted:
            known.until = deadline
        elif row.run_id != known.run_id:
            known.until = 0
        known.due_by = max(deadline, 0 if known.run_id is None else known.due_by)
        known.run_id = row.run_id
        known.op.reached = 0
        return
    known.run_id = None
    if restarted:
        known.once_due = False
    if known.run_at is not None and restarted:
        view.expect(known.op, known.run_at)
