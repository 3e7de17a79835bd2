"""One seed: shards with the product's core and pump on a virtual loop, clients that talk to them, and everything that goes wrong.

The world runs in two phases, which are two different claims. *Safety*: while requests and faults come, every answer is judged by the oracle.
*Liveness*: then nothing fails any more, dead processes are started again, and each queue is drained by a poller that completes what
it gets; every job that must be there has to come, in bounded time, and leave nothing behind.

A process that dies is never stepped again: its clock raises `Ended`, and the disk is all that is left of it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from proteus_shards.core.commands import Command, Complete, Delivered, Done, Heartbeat, Next, Outcome, Reason, Refused
from proteus_shards.core.commands_control import DropSchedule, SetQueue
from proteus_shards.core.placement import shard_of
from proteus_shards.shard.pump import STALL_US
from tests.simulation.disk import Disk, Violation
from tests.simulation.life import SLOTS, Life, SimulatedLink, raise_soon
from tests.simulation.loop import Ended, VirtualLoop
from tests.simulation.operators import check_settings, keep_settings
from tests.simulation.oracle import Oracle
from tests.simulation.plan import DAY, SECOND, Plan
from tests.simulation.recurring import came_by_itself
from tests.simulation.traffic import DELAY_US_MAX, Traffic

WALL = 1_800_000_000 * SECOND
GRACE_US = 105_000
ABSENT_US = 20_000  # how long clients wait at least before they try a shard again that is not there
DRAIN_US_MAX = 600 * SECOND


class World:
    """Everything of one seed. `run` returns the number of requests that were judged, or raises what was found."""

    def __init__(self, seed: int, *, operations: int | None = None) -> None:
        self.plan = Plan(seed)
        self.operations = self.plan.operations if operations is None else operations
        self.loop = VirtualLoop(resolution_us=self.plan.resolution_us)
        self.disk = Disk()
        self.oracle = Oracle(self.plan, self.disk)
        self.traffic = Traffic(self.plan)
        keep_settings(self.disk, self.plan)
        self.wall_offset = WALL
        self.shards = self.plan.shards
        self.lives: list[Life] = []
        self.born: list[Life] = []  # all that ever were
        self.faults: dict[str, int] = {}
        self._random = self.plan.random.random
        self._run_ids = 0
        self._drained: set[str] = set()
        self._dropped: set[str] = set()  # queues whose schedule is gone
        self._patience: dict[str, int] = {}
        self._deadline = self._acts = 0
        self._over = False
        plan = self.plan
        self._chaos: list[tuple[float, Callable[[], None]]] = []
        reach = 0.0
        for rate, fault in (
            (plan.crashes, self._crash),
            (plan.takeovers, self._take_over),
            (plan.drains, self._drain),
            (plan.reshards, self._reshard),
            (plan.closes, self._close),
            (plan.jumps, self._jump),
            (plan.stalls, self._stall),
        ):
            if rate:
                reach += rate
                self._chaos.append((reach, fault))
        self._chaos_reach = reach

    def run(self) -> int:
        """Live through the seed."""
        try:
            self._boot_all()
            self.loop.after(0, self._act)
            self.loop.run(lambda: self._over)
            if not self._over:
                raise Violation("nothing is left to happen, and the queues are not drained")
            self._check_end()
        except Ended:
            raise Violation("a process that has ended was asked for the time") from None
        finally:
            self._close_all()
        return self.oracle.count

    def _close_all(self) -> None:
        """Let all coroutines end."""
        for life in self.born:
            life.dead = True
            life.task.cancel()
        self.loop.finish()

    def operations_done(self) -> int:
        """Return how much has happened: commands that a shard took, commits that a store was given, and faults beside those of commits."""
        return self.oracle.asked + sum(life.store.commits for life in self.born) + sum(self.faults.values())

    def all_faults(self) -> dict[str, int]:
        """Return how often which fault has come."""
        return {**{name.removeprefix("_"): count for name, count in self.faults.items()}, **self.disk.faults}

    def forget(self) -> None:
        """Cut what refers to each other, so that memory is freed without a search for garbage."""
        for life in self.born:
            life.__dict__.clear()
        self.__dict__.clear()

    def new_run_id(self) -> bytes:
        """Return a run_id that was never used."""
        self._run_ids += 1
        return self._run_ids.to_bytes(16, "big")

    def queues_of(self, index: int) -> list[str]:
        """Return the queues that belong to a shard."""
        return [queue for queue in self.plan.queues if shard_of(SLOTS[queue], self.shards) == index]

    # --- processes ---------------------------------------------------------------------------------------------

    def _boot_all(self) -> None:
        self.lives = [Life(self, index) for index in range(self.shards)]

    def buried(self, life: Life) -> None:
        """A process has died; if it was still in charge, another one is started."""
        if self.lives[life.index : life.index + 1] == [life]:
            delay = 0 if self._random() < 0.3 else int(self._random() * min(SECOND, 30 * self.plan.gap_us))
            self.loop.after(delay, self._restart, life)

    def _restart(self, life: Life) -> None:
        if self.lives[life.index : life.index + 1] == [life]:
            if self.plan.damages and self._random() < 0.3:
                self._damage(life)
            self.lives[life.index] = Life(self, life.index)
            if self.plan.healed:  # its end was under way already; the requests of the drain ended with it
                for queue in life.queues:
                    self._drained.discard(queue)
                    self._poll(queue)

    # --- what clients do ---------------------------------------------------------------------------------------

    def _act(self) -> None:
        self._acts += 1
        if self.oracle.count >= self.operations or self._acts > 2 * self.operations:
            self._heal()
            return
        draw = self._random
        luck = draw()
        if luck < self._chaos_reach:
            for reach, fault in self._chaos:
                if luck < reach:
                    self.faults[fault.__name__] = self.faults.get(fault.__name__, 0) + 1
                    fault()
                    break
        wait = 0
        if luck >= self._chaos_reach:
            life = self.lives[shard_of(SLOTS[self.plan.queues[int(draw() * len(self.plan.queues))]], self.shards)]
            if life.up:
                self._send_frame(life)
            else:  # nobody is there to take it
                wait = ABSENT_US
        gap = draw()
        self.loop.after(wait + int(gap * gap * gap * 4 * self.plan.gap_us), self._act)

    def _send_frame(self, life: Life) -> None:
        plan, draw, loop = self.plan, self._random, self.loop
        queues, wall = life.queues, loop.now + self.wall_offset
        commands = [self.traffic.draw(queues[int(draw() * len(queues))], wall) for _ in range(1 + int(draw() * plan.frame_max))]
        link = life.links[int(draw() * len(life.links))]
        arrives = loop.now + int(draw() * plan.delay_us) if draw() < plan.delayed else loop.now
        if arrives <= loop.now >= link.arrives:
            life.receive(link, commands)
            return
        link.arrives = max(link.arrives, arrives)
        loop.after(link.arrives - loop.now, life.receive, link, commands)

    # --- faults ------------------------------------------------------------------------------------------------

    def _any_life(self) -> Life:
        return self.lives[int(self._random() * len(self.lives))]

    def _crash(self) -> None:
        self._any_life().crash()

    def _close(self) -> None:
        life = self._any_life()
        life.close(int(self._random() * len(life.links)))

    def _jump(self) -> None:
        """Set the wall clock."""
        draw = self._random
        size = 10 * SECOND if draw() < 0.5 else 2 * 3600 * SECOND if draw() < 0.8 else 3650 * DAY
        self.wall_offset = max(self.wall_offset + int((draw() - 0.5) * 2 * size), 10 * 365 * DAY)

    def _stall(self) -> None:
        """Stop everything for a while. Heartbeats that were in time lie in the sockets when it goes on."""
        draw, loop = self._random, self.loop
        stopped_at = loop.now
        length = int(draw() * 3 * SECOND) if draw() < 0.5 else int(draw() * 30 * SECOND)
        loop.stall(length)
        for life in [life for life in self.born if not life.dead]:
            life.view.certain_from = max(life.view.certain_from, life.wakes_at() + GRACE_US)
            life.view.grace_until = life.wakes_at() + GRACE_US
            if length > 2 * SECOND + STALL_US and life.up:
                wait = int(draw() * 80_000) if draw() < 0.5 else 0
                for queue in life.queues:
                    run = self.traffic.run_of(queue)
                    if run is not None:
                        link = life.links[int(draw() * len(life.links))]
                        if link.arrives <= loop.now + wait:
                            link.arrives = loop.now + wait
                            loop.after(wait, self._beat, life, link, Heartbeat(*run), stopped_at + 1 - life.stalled_us, loop.now + wait)

    def _beat(self, life: Life, link: SimulatedLink, beat: Heartbeat, sent: int, expected: int) -> None:
        """Deliver a heartbeat that was sent in time, unless another stall came between."""
        life.receive(link, [beat], sent if self.loop.now == expected else None)

    def _take_over(self) -> None:
        """Start a second process for a shard whose first one still believes to be in charge, and keep asking the first."""
        life = self._any_life()
        if not life.up:
            return
        self.lives[life.index] = Life(self, life.index)
        draw, wall = self._random, self.loop.now + self.wall_offset
        for _ in range(6):
            commands = [self.traffic.draw(life.queues[int(draw() * len(life.queues))], wall) for _ in range(4) if life.queues]
            self.loop.after(int(draw() * 2 * SECOND), life.receive, life.links[0], commands)
        self.loop.after(3 * SECOND, life.crash)

    def _drain(self) -> None:
        """End a process politely."""
        life = self._any_life()
        if life.up:
            life.ending = self.loop.create_task(self._end(life))

    async def _end(self, life: Life) -> None:
        life.view.draining = True
        with suppress(Ended):
            await life.pump.drain()
            if life.dead:
                return
            if life.view.outstanding and not life.view.away:
                raise_soon(self.loop, Violation(f"drained, but {len(life.view.outstanding)} requests are unanswered"))
            life.crash()

    def _reshard(self) -> None:
        """Start again with another number of shards."""
        lives, self.lives = self.lives, []
        for life in lives:
            life.crash()
        self.shards = 1 + int(self._random() * 4)
        self._boot_all()

    def _damage(self, life: Life) -> None:
        """Make the stored row with the highest number unreadable."""
        rows = [row for row in self.disk.rows.values() if row.slot in life.store.slots]
        if rows:
            row = max(rows, key=lambda row: row.seq)
            self.disk.damage(row)
            self.oracle.forget(row)

    # --- the world is healed -----------------------------------------------------------------------------------

    def _heal(self) -> None:
        self.plan.healed = True
        now = self.loop.now
        for store in self.disk.stores:
            store.away_until = 0
        self.wall_offset = max(self.wall_offset, self.traffic.run_at_max - now, self.oracle.wall_max + DELAY_US_MAX - now)
        self._deadline = now + DRAIN_US_MAX
        for queue in self.plan.queues:
            self._poll(queue)

    def _poll(self, queue: str, outcome: Outcome | None = None) -> None:
        """Take and complete jobs of a queue until none is left."""
        line = self.oracle.lines.get(queue)
        life = self.lives[shard_of(SLOTS[queue], self.shards)]
        if not life.up or life.view.away or isinstance(outcome, Refused):
            self._check_progress(queue)
            self.loop.after(100_000, self._poll, queue)
            return
        if line is not None and line.settings.paused:
            life.receive(SimulatedLink(life, lambda answer: self._poll(queue, answer)), [SetQueue(queue, b'{"paused":null}')], heals=True)
            return
        if line is not None and line.schedules and queue not in self._dropped:
            link = SimulatedLink(life, lambda answer: self._drop(queue, answer))
            life.receive(link, [DropSchedule(queue, "s")], heals=True)
            return
        commands: list[Command] = []
        if isinstance(outcome, Delivered):
            commands = [Complete(queue, job.id) for job in outcome.jobs]  # without the run: a timeout of 0 is over already
            if not commands and line is not None and not line.jobs and self._is_empty(life, queue):
                self._drained.add(queue)
                self._end_if_drained()
                return
        self._check_progress(queue)
        if commands:
            life.receive(SimulatedLink(life), commands, heals=True)
        self._patience[queue] = wait = 30 * SECOND - self._patience.get(
            queue, 30 * SECOND
        )  # every other time at once: that says what has died
        life.receive(SimulatedLink(life, lambda answer: self._poll(queue, answer)), [Next(queue, 10, wait)], heals=True)

    def _drop(self, queue: str, answer: Outcome) -> None:
        """Its schedule makes no jobs any more, or must be dropped once more."""
        if not isinstance(answer, Refused) or answer.reason is Reason.NOT_FOUND:
            self._dropped.add(queue)
            answer = Done()
        self._poll(queue, answer)

    def _is_empty(self, life: Life, queue: str) -> bool:
        """Say whether nothing is left of what came by itself; nobody outside knows how much did."""
        held = life.pump.shard.queues.get(queue)
        return held is None or not any(came_by_itself(job_id) for job_id in held.jobs)

    def _check_progress(self, queue: str) -> None:
        if self.loop.now > self._deadline:
            line = self.oracle.lines.get(queue)
            raise Violation(f"queue {queue} is stuck: {sorted(line.jobs) if line is not None else 'its shard does not start'}")

    def _end_if_drained(self) -> None:
        if len(self._drained) < len(self.plan.queues):
            return
        if self.loop.now > self._deadline:
            raise Violation("something waits for a commit for ever")
        self._over = all(life.up and not life.pump.shard.pending for life in self.lives)
        if not self._over:
            self.loop.after(100_000, self._end_if_drained)

    def _check_end(self) -> None:
        for life in self.lives:
            shard = life.pump.shard
            _, scheduled, ready, in_flight, dead = shard.totals
            if scheduled or ready or in_flight:
                raise Violation(f"drained, but {shard.totals} jobs are counted")
            if dead != sum(len(queue.dead) for queue in shard.queues.values()):
                raise Violation("dead letters are counted wrongly")
            if any(queue.empty for queue in shard.queues.values()):
                raise Violation("an empty queue is not forgotten")
            for link in life.links:
                life.check_link(link)
            check_settings(shard, self.oracle.lines)
            life.clocks()
            for queue in life.queues:
                self.oracle.audit(life.view, queue, [], restarted=False)
