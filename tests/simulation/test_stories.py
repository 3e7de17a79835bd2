"""Stories that the simulator has judged wrongly at one time: each once more, in a few words."""

from __future__ import annotations

from typing import Any

import pytest

from proteus_shards.core.commands import Complete, Done, Enqueue, Heartbeat, Next, Options
from proteus_shards.core.commands_control import Change, Fail, SetQueue
from proteus_shards.core.model import Batch, Mark, Row, Status
from proteus_shards.core.placement import slot_of
from proteus_shards.core.queue_settings import DEFAULT_SETTINGS
from tests.simulation.disk import Disk, SimulatedStore
from tests.simulation.loop import VirtualLoop
from tests.simulation.oracle import Oracle
from tests.simulation.plan import SECOND, Plan
from tests.simulation.run import fails, shortest
from tests.simulation.words import Op, View
from tests.simulation.world import World

QUEUE = "a"
WALL = 1_800_000_000 * SECOND
RUN = bytes(16)


class Stage:
    """An oracle, a disk, and one shard process that it sees."""

    def __init__(self) -> None:
        self.disk = Disk()
        plan = Plan(0)
        plan.settings = DEFAULT_SETTINGS
        self.oracle = Oracle(plan, self.disk)
        self.view = View([QUEUE], SECOND, WALL)

    def ask(self, command: Any) -> Op:
        """Ask for something."""
        return self.view.outstanding[self.oracle.ask(self.view, command)]

    def store(self, seq: int, job_id: str, payload: bytes, *, status: Status = Status.READY, **fields: Any) -> Row:
        """Have a row on the disk."""
        values: dict[str, Any] = {
            "slot": slot_of(QUEUE), "seq": seq, "queue": QUEUE, "id": job_id, "status": status, "ready_at": WALL, "run_at": None, "timeout": 5,
            "max_retries": 0, "attempt": 0, "run_id": None, "reason": None, "created_at": WALL, "updated_at": WALL, "payload": payload,
            "state": None, "extras": None,
        }  # fmt: skip
        row = Row(**values | fields)
        self.disk.rows[row.slot, seq] = row
        if status is not Status.DEAD:
            self.disk.live[QUEUE][job_id] = row
        return row


def enqueue(job_id: str, payload: bytes) -> Enqueue:
    """Return a request for a persisted job."""
    return Enqueue(QUEUE, job_id, 5, True, 0, payload)


def test_of_two_equal_requests_in_doubt_the_later_may_have_made_the_row() -> None:
    """The row before it tells: numbers are given in the order of acceptance."""
    stage = Stage()
    asked = [stage.ask(command) for command in (enqueue("1", b"8"), Complete(QUEUE, "1"), enqueue("0", b"9"), enqueue("1", b"8"))]
    stage.store(4, "0", b"9")
    stage.store(6, "1", b"8")

    stage.oracle.audit(stage.view, QUEUE, asked, restarted=True)

    jobs = stage.oracle.lines[QUEUE].jobs
    assert [3, 4] == [jobs["0"].number, jobs["1"].number]


def test_of_two_equal_jobs_one_may_have_died_before_the_other_was_stored() -> None:
    """Which row is whose is open until the rows are read."""
    stage = Stage()
    first, second = stage.ask(enqueue("1", b"8")), stage.ask(enqueue("1", b"8"))
    stage.store(1, "1", b"8", status=Status.DEAD)
    stage.store(2, "1", b"8")

    stage.oracle.answer(stage.view, first.number, Done())
    line = stage.oracle.lines[QUEUE]
    letter = line.jobs.pop("1")
    line.dead.append(letter)
    stage.oracle.answer(stage.view, second.number, Done())
    stage.oracle.audit(stage.view, QUEUE, [], restarted=False)

    assert ([letter], 2) == (line.dead, line.jobs["1"].seq)


def test_a_job_that_died_in_doubt_has_the_state_that_was_sent_before() -> None:
    """Heartbeat and failure were written by one commit, whose outcome nobody knew."""
    stage = Stage()
    made = stage.ask(enqueue("1", b"8"))
    stage.store(1, "1", b"8")
    stage.oracle.answer(stage.view, made.number, Done())
    known = stage.oracle.lines[QUEUE].jobs["1"]
    known.run_id, known.attempt, known.until = RUN, 1, stage.view.now + 5 * SECOND
    limbo = [stage.ask(Heartbeat(QUEUE, "1", RUN, b"79")), stage.ask(Fail(QUEUE, "1", RUN))]
    del stage.disk.live[QUEUE]["1"]
    stage.store(1, "1", b"8", status=Status.DEAD, attempt=1, state=b"79", reason="failed")

    stage.oracle.audit(stage.view, QUEUE, limbo, restarted=False)

    assert [b"79"] == [letter.state for letter in stage.oracle.lines[QUEUE].dead]


def test_many_changes_of_settings_in_doubt_are_soon_thought_through() -> None:
    """There are two possible settings here, not two to the power of sixty."""
    stage = Stage()
    limbo = [stage.ask(SetQueue(QUEUE, b'{"paused":true}' if number % 2 else b'{"paused":false}')) for number in range(60)]

    stage.oracle.audit(stage.view, QUEUE, limbo, restarted=True)

    assert DEFAULT_SETTINGS == stage.oracle.lines[QUEUE].settings


def test_a_late_write_leaves_a_row_that_has_become_unreadable() -> None:
    """Its batch is lost whole, as nobody was told of it."""
    disk, plan = Disk(), Plan(0)
    store = SimulatedStore(disk, VirtualLoop(), plan, frozenset({slot_of(QUEUE)}), lambda: None)
    stage = Stage()
    row = stage.store(2, "1", b"8")
    disk.damaged[row.slot, row.seq] = row
    mark = Mark(row.slot, row.seq, QUEUE, "1", Status.IN_FLIGHT, 1, RUN, None, WALL, False, None)

    store._write_late(Batch([], [], [mark]), store.epoch)

    assert {} == disk.rows


def test_what_ends_and_lapses_in_one_moment_is_there_until_the_next_turn() -> None:
    """And holds its key so long."""
    stage = Stage()
    made = stage.ask(enqueue("1", b"8"))
    stage.store(1, "1", b"8")
    stage.oracle.answer(stage.view, made.number, Done())
    line = stage.oracle.lines[QUEUE]
    line.jobs["1"].expires_at, line.jobs["1"].rests_from = WALL - 1, stage.view.now

    stage.oracle._settle_lapsed(stage.view, line, stage.ask(Next(QUEUE)))
    then = list(line.jobs)
    stage.view.now += 1
    stage.oracle._settle_lapsed(stage.view, line, stage.ask(Next(QUEUE)))

    assert (["1"], []) == (then, list(line.jobs))


def test_the_clock_is_never_behind_what_jobs_wait_for_once_the_world_is_healed() -> None:
    """Also where it was never ahead of its beginning."""
    world = World(0)
    world.oracle.read(View([QUEUE], SECOND, WALL), SECOND, WALL)
    world.wall_offset = 0

    world._boot_all()
    world._heal()

    assert world.wall_offset + world.loop.now >= WALL
    world._close_all()


def test_the_shortest_run_of_a_failing_seed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the world would have healed before anything was wrong."""
    monkeypatch.setattr("proteus_shards.core.shard.Shard._end_polls", lambda _self: None)
    seed = next(seed for seed in range(100) if fails(seed) is not None)

    assert fails(seed, shortest(seed)) is not None


def test_of_two_changes_in_doubt_the_later_may_have_taken_back_what_the_earlier_did_beside() -> None:
    """The first moves the job and gives it a priority, the second gives it the old one."""
    stage = Stage()
    made = stage.ask(enqueue("1", b"8"))
    stage.store(1, "1", b"8")
    stage.oracle.answer(stage.view, made.number, Done())
    limbo = [stage.ask(Change(QUEUE, "1", 0, -1)), stage.ask(Change(QUEUE, "1", None, 0))]
    stage.disk.rows.clear()
    stage.store(2, "1", b"8")

    stage.oracle.audit(stage.view, QUEUE, limbo, restarted=True)

    known = stage.oracle.lines[QUEUE].jobs["1"]
    assert (2, 0) == (known.seq, known.priority)


def test_a_job_may_be_dead_when_it_is_stored() -> None:
    """Its ttl was over before its commit, and nobody was told of either."""
    stage = Stage()
    asked = stage.ask(Enqueue(QUEUE, "1", 5, True, 0, b"8", options=Options(ttl_us=0)))
    stage.store(1, "1", b"8", status=Status.DEAD, reason="expired")
    stage.view.wall_max = WALL + 1

    stage.oracle.audit(stage.view, QUEUE, [asked], restarted=False)

    assert ["1"] == [letter.id for letter in stage.oracle.lines[QUEUE].dead]


def test_where_a_job_stands_that_may_have_been_moved_is_open() -> None:
    """Its clock stood still: the row is the same, whether it was moved or not."""
    stage = Stage()
    limbo = [stage.ask(enqueue("1", b"8")), stage.ask(Change(QUEUE, "1", 0, None))]
    stage.store(1, "1", b"8")

    stage.oracle.audit(stage.view, QUEUE, limbo, restarted=True)

    assert stage.oracle.lines[QUEUE].jobs["1"].placeless
