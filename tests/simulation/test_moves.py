"""Redrives over shards in the small world of `test_spans`: whatever crashes between, each dead letter is in one place, once.

`PROTEUS_TEST_SPAN_SEED` replays one seed.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from proteus_shards.core.commands import Enqueue, Mode
from proteus_shards.core.commands_control import Redrive
from proteus_shards.core.model import Kind
from proteus_shards.core.placement import shard_of, slot_of
from proteus_shards.front.answers import Answer
from proteus_shards.front.redrives import RedriveAcross
from proteus_shards.front.spans import Span
from tests.core.rig import check_books
from tests.simulation.test_spans import QUEUES, SEEDS, World

ACTIONS = 260
LETTERS = 12
REDRIVES = 4
MARK = b'"letter"'


class MovingWorld(World):
    """A world with dead letters in one queue, which are moved into another by several at once."""

    def __init__(self, seed: int, redrives: int = REDRIVES) -> None:
        super().__init__(seed)
        self.source = self.random.choice(QUEUES)
        home = shard_of(slot_of(self.source), self.shards)
        self.targets = [queue for queue in QUEUES if shard_of(slot_of(queue), self.shards) != home][:2]
        self.left = redrives
        self.told: list[Answer] = []
        bench = self.benches[home]
        self.ids = [f"letter {number}" for number in range(LETTERS)]
        for job_id in self.ids:
            bench.enqueue(job_id, self.source, persist=True, payload=MARK, ttl_us=0)
        bench.pass_time(1)
        self.commit_all(bench)

    def redrive(self) -> None:
        """Let an operator ask for a redrive, or a client for a step that adds one of the same ids, if it is not there."""
        if not self.left:
            return
        self.left -= 1
        front = self.random.choice([front for front in self.fronts if front.alive])
        to = self.random.choice(self.targets)
        router: Any = front
        if self.random.random() < 0.7:
            RedriveAcross(Redrive(self.source, to=to)).begin(router, lambda answer, _: self.told.append(answer))
            return
        jobs = [Enqueue(queue, self.random.choice(self.ids), 10_000, True, 0, b"0") for queue in self.targets]
        mode = self.random.choice([Mode.IGNORE, Mode.UNIQUE])
        Span(None, jobs, mode, lambda _: Answer(200)).begin(router, lambda *_: None)

    def letters(self) -> list[str]:
        """Return the ids of all dead letters and of what became of them, wherever they are."""
        found = [
            job.id
            for bench in self.benches
            for queue in bench.shard.queues.values()
            for job in [*queue.jobs.values(), *queue.dead.values()]
            if job.payload == MARK
        ]
        return sorted(found)

    def moved(self, queue: str) -> list[str]:
        """Return the ids of the letters that live in a queue, in the order of its line."""
        bench = self.benches[shard_of(slot_of(queue), self.shards)]
        held = bench.shard.queues.get(queue)
        return [job.id for job in held.ready() if job.payload == MARK] if held is not None else []

    def check_letters(self) -> None:
        """Say that each letter is there once, in memory and in the stores, and that no more were told of than were moved."""
        stored = [row.id for bench in self.benches for row in bench.store.rows.values() if row.payload == MARK]
        assert self.letters() == sorted(stored) == sorted(self.ids)
        told = sum(msgspec.json.decode(answer.body)["jobs"] for answer in self.told if answer.status == 200)
        assert told <= sum(len(self.moved(queue)) for queue in self.targets)
        for bench in self.benches:
            check_books(bench.shard)
            assert not bench.shard._reserved
            assert not [key for key in bench.store.records if key.kind in (Kind.INTENT, Kind.DECISION)]


def live(seed: int) -> MovingWorld:
    """Live one life, and return the world at its end."""
    world = MovingWorld(seed)
    actions = [
        *[world.deliver] * 14,
        *[world.reply] * 14,
        *[world.begin_commit] * 8,
        *[world.end_commit] * 8,
        world.redrive,
        world.pass_time,
        *([] if world.random.random() < 0.2 else [world.look, world.crash_shard, world.crash_front]),
    ]
    world.redrive()
    for _ in range(ACTIONS):
        world.random.choice(actions)()
    if world.random.random() < 0.3:
        world.reshard(world.random.choice([1, 2, 4]))
    world.heal()
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_a_redrive_over_shards_neither_loses_nor_doubles_a_letter(seed: int) -> None:
    """Whatever crashes, and whoever else adds jobs of the same ids."""
    live(seed).check_letters()


def test_the_world_of_moves_is_worth_its_while() -> None:
    """Letters are moved, stay, and redrives are told of both."""
    worlds = [live(seed) for seed in range(60)]
    moved = [sum(len(world.moved(queue)) for queue in world.targets) for world in worlds]

    assert {0, LETTERS} < set(moved)
    assert {200, 429, 503} <= {answer.status for world in worlds for answer in world.told}
    assert b'{"jobs":12}' in {answer.body for world in worlds for answer in world.told}


@pytest.mark.parametrize("seed", range(20))
def test_letters_keep_their_order_over_several_portions(seed: int) -> None:
    """Where one redrive is under way, and nothing fails."""
    world = MovingWorld(seed, 0)
    router: Any = world.fronts[0]
    RedriveAcross(Redrive(world.source, to=world.targets[0], count=5)).begin(router, lambda answer, _: world.told.append(answer))
    world.settle()

    assert world.moved(world.targets[0]) == world.ids
    assert [answer.body for answer in world.told] == [b'{"jobs":12}']
    world.check_letters()
