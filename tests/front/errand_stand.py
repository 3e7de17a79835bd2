"""Fake shards, and errands that are carried out over them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from proteus_shards.config import Settings
from proteus_shards.core.commands import (
    Command,
    Delivery,
    Outcome,
)
from proteus_shards.front.answers import Answer
from proteus_shards.front.errands import Errand
from proteus_shards.front.native import carry_out
from proteus_shards.front.operations import OPERATIONS
from proteus_shards.front.router import Router
from tests.front.fake_shard import PATIENCE_SECONDS, FakeShard, linked, obliging


class Stand:
    """Links to fake shards, and errands that are carried out over them."""

    def __init__(self, router: Router, shards: list[FakeShard], nursery: trio.Nursery, settings: Settings) -> None:
        self.router = router
        self.shards = shards
        self.shard = shards[0]
        self.settings = settings
        self.answers: list[tuple[int, bytes, Sequence[Delivery]]] = []
        self._nursery = nursery
        self._answered = trio.Event()

    def errand(self, call: str, query: bytes = b"", body: bytes = b"") -> Errand:
        """Return the errand of a request."""
        method, path = call.split(" ")
        asked = OPERATIONS[method, path](body, query, self.settings)
        assert hasattr(asked, "begin"), asked
        return asked  # type: ignore[return-value]

    async def ask(self, call: str, query: bytes = b"", body: bytes = b"") -> tuple[int, Any, Sequence[Delivery]]:
        """Carry out a request and return its answer and the jobs in it."""
        with trio.fail_after(PATIENCE_SECONDS):
            shown, jobs = await carry_out(self.errand(call, query, body), self.router)
        return shown.status, msgspec.json.decode(shown.body) if shown.body else None, jobs

    def begin(self, call: str, query: bytes = b"", body: bytes = b"") -> Errand:
        """Set out on a request, and note its answer."""
        errand = self.errand(call, query, body)

        def on_answer(shown: Answer, jobs: Sequence[Delivery]) -> None:
            self.answers.append((shown.status, shown.body, jobs))
            self._answered.set()

        errand.begin(self.router, on_answer)
        return errand

    async def answered(self) -> tuple[int, bytes, Sequence[Delivery]]:
        """Wait for the answer to what was begun."""
        with trio.fail_after(PATIENCE_SECONDS):
            await self._answered.wait()
        (found,) = self.answers
        return found

    async def settled(self) -> None:
        """Wait until every shard has heard what it was told."""
        await self.router.wait_settled()

    def heard(self, *kinds: type[Command]) -> list[Command]:
        """Return what the first shard was told, of some kinds."""
        return [command for command in self.shard.commands if isinstance(command, kinds)]


@asynccontextmanager
async def stand(
    tmp_path: Path, answer: Callable[[Command], Outcome | None] = obliging, shards: int = 1, **changes: Any
) -> AsyncIterator[Stand]:
    """Run fake shards for the length of a test."""
    settings = Settings(shards=shards, **changes)
    async with linked(tmp_path, settings, answer) as (router, made), trio.open_nursery() as nursery:
        yield Stand(router, made, nursery, settings)
        nursery.cancel_scope.cancel()
