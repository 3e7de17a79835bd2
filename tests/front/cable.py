"""A link that runs, and the fake shard at its other end."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from proteus_shards.config import Settings
from proteus_shards.core.commands import Command, Enqueue, Inspect, Next, Outcome, Reason, Refused
from proteus_shards.front.link import Link
from tests.front.fake_shard import PATIENCE_SECONDS, FakeShard, obliging

SETTINGS = Settings(shards=1)
ENQUEUE = Enqueue("q", "a", 30, False, 0, b"{}")
POLL = Next("q", 1, 10_000_000)


class Cable:
    """A link that runs, and the shard at its other end."""

    def __init__(self, run_dir: Path, nursery: trio.Nursery, settings: Settings = SETTINGS) -> None:
        self.shard = FakeShard(str(run_dir / "shard-0.sock"))
        self.link = Link(self.shard.path, 0, settings)
        self.nursery = nursery
        self.outcomes: dict[str, Outcome] = {}
        self._changed = trio.Event()

    async def up(self) -> Cable:
        """Start both ends, and wait until all is quiet between them."""
        await self.nursery.start(self.shard.run)
        self.nursery.start_soon(self.link.run)
        await self.wait_quiet()
        return self

    async def wait_quiet(self) -> None:
        """Wait until the link is up and nothing is under way."""
        with trio.fail_after(PATIENCE_SECONDS):
            await self.link.wait_connected()
            await self.link.wait_settled()

    def ask(self, name: str, command: Command, deadline_seconds: float | None = None) -> None:
        """Call in a task of its own; its outcome goes under a name."""

        async def asking() -> None:
            self.note(name, await self.link.call(command, deadline_seconds))

        self.nursery.start_soon(asking, name=name)

    def submit(self, name: str, command: Command) -> int:
        """Submit, now; the outcome goes under a name."""
        number = self.link.submit(command, lambda outcome: self.note(name, outcome))
        assert isinstance(number, int)
        return number

    def note(self, name: str, outcome: Outcome) -> None:
        """Put an outcome under a name. There must not be one."""
        assert name not in self.outcomes
        self.outcomes[name] = outcome
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def wait_outcome(self, name: str) -> Outcome:
        """Wait for an outcome."""
        with trio.fail_after(PATIENCE_SECONDS):
            while name not in self.outcomes:
                await self._changed.wait()
        return self.outcomes[name]


def reason_of(outcome: object) -> Reason:
    """Return why something was refused."""
    assert isinstance(outcome, Refused)
    return outcome.reason


def never(outcome: Outcome) -> None:
    """Fail: this must not be called."""
    pytest.fail(f"called with {outcome}")


def silent(command: Command) -> Outcome | None:
    """Answer nothing but the link's own first question."""
    return obliging(command) if isinstance(command, Inspect) else None
