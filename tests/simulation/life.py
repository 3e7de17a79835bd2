"""One shard process of a simulated world: the product's core and pump, what they talk to, and where their answers are judged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

from proteus_shards.core.commands import Command, Delivered, Outcome, Undeliver
from proteus_shards.core.model import Batch
from proteus_shards.core.placement import slot_of
from proteus_shards.core.shard import Shard
from proteus_shards.errors import StoreError
from proteus_shards.shard.pump import STALL_US, Pump
from tests.simulation.disk import SimulatedStore, Violation
from tests.simulation.loop import Ended, VirtualLoop
from tests.simulation.plan import QUEUES
from tests.simulation.words import View

if TYPE_CHECKING:
    from tests.simulation.world import World

SLOTS = {queue: slot_of(queue) for queue in QUEUES}


class ObservedShard(Shard):
    """The product's shard, whose answers are judged where they leave it."""

    life: Life

    def take_replies(self) -> list[tuple[object, Outcome]]:
        replies = super().take_replies()
        if replies:
            self.life.judge(replies)
        return replies

    def apply(self, key: object, command: Command) -> None:
        if key is None and type(command) is Undeliver:
            self.life.world.oracle.give_back(self.life.view, command)
        super().apply(key, command)


class SimulatedLink:
    """Implements `pump.Link`. Frames on it keep their order, however long they take."""

    def __init__(self, life: Life, answered: Callable[[Outcome], None] | None = None) -> None:
        self.life = life
        self.closed = False
        self.unsent_bytes = 0
        self.arrives = 0  # when the last frame sent does
        self.expected = self.received = 0
        self._answered = answered

    def put(self, number: int, outcome: Outcome) -> None:
        life = self.life
        if number in life.view.outstanding:  # not from the core: a refusal of the pump's own
            life.world.oracle.answer(life.view, number, outcome)
            self.expected += 1
        self.received += 1
        if type(outcome) is Delivered:
            life.world.traffic.learn(outcome.jobs)
        if self._answered is not None:
            life.world.loop.after(0, self._answered, outcome)

    def flush(self) -> None:
        pass


class Life:
    """One shard process, from its start to its death."""

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.dead = self.up = False
        self._careful = False
        self.ending: asyncio.Task[None] | None = None
        self.queues = world.queues_of(index)
        self.view = View(self.queues, world.loop.now, world.loop.now + world.wall_offset)
        self.store = SimulatedStore(world.disk, world.loop, world.plan, frozenset(SLOTS[queue] for queue in self.queues), self.crash)
        self.store.failed = self._fail
        self.store.known = self._know_rows
        self.store.fenced = self.lose_rows
        shard = ObservedShard(world.plan.limits, world.new_run_id, lambda: 0.5)
        shard.life = self
        self._read = world.oracle.read
        self._has_pump = False  # it reads the clocks while it is made
        self.pump = Pump(shard, self.store, self.clocks, index=index)
        self._has_pump = True
        self.links = [SimulatedLink(self) for _ in range(world.plan.links)]
        self.task = world.loop.create_task(self._live())
        self.task.add_done_callback(self._finish)
        world.born.append(self)

    async def _live(self) -> None:
        await self.pump.recover()
        self.world.oracle.recovered(self.view)
        self.up = True
        await self.pump.run()

    def _fail(self, how: str, batch: Batch) -> None:
        self.clocks()
        if how == "permanent":
            sealed = self.pump.shard._ledger.sealed
            requests = sum(entry[1] is not None and type(entry[2]) is not Delivered for entry in sealed)  # and polls that they woke
            if self._careful and requests > 1:
                raise_soon(
                    self.world.loop, Violation("once more a batch of several requests was refused for good: nobody learns which it is")
                )
            self._careful = self._careful or self.pump.shard.sealed_answers != 1
        self.world.oracle.failed(self.view, how, batch)

    def _know_rows(self) -> None:
        self.clocks()
        self.world.oracle.rows_known(self.view)

    def clocks(self) -> tuple[int, int]:
        """Read both clocks, as the pump does."""
        if self.dead:
            raise Ended
        now = self.world.loop.now
        wall = now + self.world.wall_offset
        self._read(self.view, self.wakes_at() if self._has_pump else now, wall)
        return now, wall

    @property
    def stalled_us(self) -> int:
        """By how much the core's clock is behind the world's."""
        return self.pump._stalled_us

    def wakes_at(self) -> int:
        """Return what the core's clock is, or will be once the pump has found out that it was stalled until now."""
        pump = self.pump
        now = self.world.loop.now - pump._stalled_us
        return pump._timer_us if pump._timer is not None and now - pump._timer_us > STALL_US else now

    def judge(self, replies: list[tuple[object, Outcome]]) -> None:
        """Let the oracle see all answers, also those that nobody will get."""
        if self.dead:
            raise Ended
        answer, view = self.world.oracle.answer, self.view
        for key, outcome in replies:
            link, number = cast("tuple[SimulatedLink, int]", key)
            if not link.closed:
                link.expected += 1
            answer(view, number, outcome)

    def receive(self, link: SimulatedLink, commands: list[Command], sent: int | None = None, *, heals: bool = False) -> None:
        """A frame arrives, if anybody is there. What was still on its way when the world is healed is lost."""
        if not self.dead and self.up and not link.closed and (heals or not self.world.plan.healed):
            self.pump.receive(link, self._requests(commands, sent))
            if self.view.given_back and not self.pump.shard.pending:
                self.world.oracle.idle(self.view)

    def _requests(self, commands: list[Command], sent: int | None) -> Iterator[tuple[int, Command]]:
        ask, view = self.world.oracle.ask, self.view
        for command in commands:
            yield ask(view, command, sent), command

    def close(self, place: int) -> None:
        """Break one of the links; a client makes a new one."""
        link = self.links[place]
        link.closed = True
        if self.up and not self.dead:
            for key in self.pump.shard.waiting():
                of, number = cast("tuple[SimulatedLink, int]", key)
                if of is link:
                    del self.view.outstanding[number]
            self.pump.lose(link)
            self.check_link(link)
        self.links[place] = SimulatedLink(self)

    def check_link(self, link: SimulatedLink) -> None:
        """Every answer of the core must have been put on its link."""
        if link.expected != link.received:
            raise Violation(f"{link.expected} answers, of which {link.received} were sent")

    def lose_rows(self) -> None:
        """Another process has opened the rows."""
        if not self.dead and not self.view.fenced:
            self.world.oracle.ended(self.view)

    def crash(self) -> None:
        """Die at once."""
        if self.dead:
            return
        self.dead = True
        self.up = False
        if not self.view.fenced:
            self.world.oracle.ended(self.view)
        if self.pump._timer is not None:
            self.pump._timer.cancel()
        self.task.cancel()
        self.world.buried(self)

    def _finish(self, task: asyncio.Task[None]) -> None:
        """The process has ended by itself: after a fault of the store it should, after anything else it is a bug."""
        if task.cancelled() or self.dead:
            return
        error = task.exception()
        if isinstance(error, StoreError):
            self.crash()
        elif error is not None and not isinstance(error, Ended):
            raise error


def raise_soon(loop: VirtualLoop, error: BaseException) -> None:
    """Raise an error where the loop is run."""

    def fail() -> None:
        raise error

    loop.after(0, fail)
