"""What happened in a seed, line by line, for whoever has to find out why it failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from proteus_shards.core.commands import Delivered, Outcome, Refused
from proteus_shards.core.model import Batch
from tests.simulation.world import World

LINES_MAX = 4000


class Trace:
    """Listens to a world by standing in front of its oracle. Keeps the last `LINES_MAX` lines."""

    def __init__(self, world: World) -> None:
        self.lines: deque[str] = deque(maxlen=LINES_MAX)
        self._world = world
        oracle = world.oracle
        for name in ("ask", "answer", "give_back", "failed", "rows_known", "ended", "recovered"):
            setattr(oracle, name, self._listen(name, getattr(oracle, name)))
        world.disk.write = self._watch(world.disk.write)  # type: ignore[method-assign, assignment]

    def _watch(self, write: Callable[[Batch], None]) -> Callable[[Batch], None]:
        def watched(batch: Batch) -> None:
            self._note("disk", f"write {_batch(batch)}")
            write(batch)

        return watched

    def _listen(self, name: str, judge: Any) -> Any:
        def listener(view: Any, *rest: Any, **options: Any) -> Any:
            who = f"view {id(view) % 9973}"
            if name == "ask":
                number = judge(view, *rest, **options)
                self._note(who, f"ask {number} {_command(rest[0])}")
                return number
            if name == "answer":
                self._note(who, f"answer {rest[0]} {_outcome(rest[1])}")
            elif name == "failed":
                self._note(who, f"commit fails: {rest[0]} {_batch(rest[1])}")
            else:
                self._note(who, f"{name} {' '.join(str(each) for each in rest)}")
            return judge(view, *rest, **options)

        return listener

    def _note(self, who: str, text: str) -> None:
        self.lines.append(f"{self._world.loop.now:>12} {who:<10} {text}")


def _command(command: Any) -> str:
    fields = [_short(getattr(command, field)) for field in command.__struct_fields__]
    return f"{type(command).__name__}({', '.join(fields)})"


def _short(value: Any) -> str:
    return f"run {int.from_bytes(value, 'big')}" if isinstance(value, bytes) and len(value) == 16 else repr(value)


def _outcome(outcome: Outcome) -> str:
    if isinstance(outcome, Delivered):
        jobs = [f"{job.id} payload {job.payload!r} attempt {job.attempt} {_short(job.run_id)}" for job in outcome.jobs]
        return f"Delivered({'; '.join(jobs)})"
    if isinstance(outcome, Refused):
        return f"Refused({outcome.reason.name}: {outcome.detail})"
    return repr(outcome)


def _batch(batch: Batch) -> str:
    parts = [f"-{key.queue}/{key.id}#{key.seq}" for key in batch.deletes]
    parts += [f"~{mark.queue}/{mark.id}#{mark.seq}={mark.status}@{mark.attempt}" for mark in batch.marks]
    parts += [f"+{row.queue}/{row.id}#{row.seq}={row.status}@{row.attempt}" for row in batch.inserts]
    return " ".join(parts)
