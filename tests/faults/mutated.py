"""A server with planted faults: the real one, but that a few lines of its shards' source are others.

    python -m tests.faults.mutated NAME[,NAME…] serve …        as `python -m proteus_shards serve …`

The product has no switch for any of this. An import hook changes the source of a module while it is loaded, in the shard processes only, and
refuses to start where the text to be replaced does not stand there exactly once: a mutant that has lost its place is noticed.

The wall clock of a run is set in this way, too (`clock`), and not by libfaketime: that is no part of Python's world, and what it does to the
monotonic clock, on which every timer here rests, differs from version to version.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from types import CodeType, ModuleType
from typing import NamedTuple

SHARD = "proteus_shards.shard"


class Change(NamedTuple):
    """One piece of source to be replaced."""

    module: str
    old: str
    new: str


PUMP, CORE, SHARD_MAIN = "proteus_shards.shard.pump", "proteus_shards.core.shard", "proteus_shards.shard.__main__"
RUNS, ALARMS = "proteus_shards.core.runs", "proteus_shards.core.alarms"
COMMIT = "                await self.store.commit(batch)\n"

CHANGES: dict[str, tuple[Change, ...]] = {
    # what the world does to a right server: no rule may be broken by these alone
    "plain": (),
    "clock": (
        Change(
            SHARD_MAIN,
            "    return time.monotonic_ns() // 1000, time.time_ns() // 1000\n",
            "    from tests.faults.mutated import wall_offset_us\n    return time.monotonic_ns() // 1000, time.time_ns() // 1000 + wall_offset_us()\n",
        ),
    ),
    "slow commits": (Change(PUMP, COMMIT, "                await asyncio.sleep(0.15)\n" + COMMIT),),
    "refused commits": (
        Change(
            PUMP,
            COMMIT,
            "                import random\n"
            "                if random.random() < 0.1:\n"
            "                    raise StoreRefused('planted')\n" + COMMIT,
        ),
    ),
    "unknown commits": (
        Change(
            PUMP,
            COMMIT,
            "                import random\n"
            "                draw = random.random()\n"
            "                if draw < 0.05:\n"
            "                    raise StoreUnknown('planted, not written')\n" + COMMIT + "                if draw < 0.1:\n"
            "                    raise StoreUnknown('planted, written')\n",
        ),
    ),
    # faults
    "ack before commit": (
        Change(
            PUMP,
            COMMIT,
            "                asyncio.get_running_loop().call_later(0.3, lambda: asyncio.ensure_future(self.store.commit(batch)))\n",
        ),
    ),
    "lost undo": (
        Change(
            CORE,
            "                if job is not None:\n                    self._restore(",
            "                if job is not None and image is not None:\n                    self._restore(",
        ),
    ),
    "complete memory first": (
        Change(
            RUNS,
            "            self._settle(queue, key, COMPLETED, job, image, write=job.persist)\n",
            "            self._emit(key, COMPLETED)\n            self._settle(queue, None, COMPLETED, job, image, write=job.persist)\n",
        ),
    ),
    "swallowed delete": (
        Change(
            PUMP,
            COMMIT,
            "                import random\n"
            "                if random.random() < 0.2:\n"
            "                    batch.deletes.clear()\n" + COMMIT,
        ),
    ),
    "swallowed in-flight write": (
        Change(
            PUMP,
            COMMIT,
            "                batch.marks[:] = [mark for mark in batch.marks if mark.run_id is None]\n" + COMMIT,
        ),
    ),
    "recovery by wall time": (
        Change(
            PUMP,
            "            faults = self.shard.load(rows)\n",
            "            import msgspec\n"
            "            rows = [msgspec.structs.replace(row, ready_at=row.created_at // 10_000_000 * 10_000_000 + hash(row.id) % 9999) for row in rows]\n"
            "            faults = self.shard.load(rows)\n",
        ),
    ),
    "off by one retry": (Change(RUNS, "last = 0 <= job.max_retries < job.attempt\n", "last = 0 <= job.max_retries < job.attempt - 1\n"),),
    "redelivery before timeout": (
        Change(
            "proteus_shards.core.holdings",
            "self._now + job.timeout * SECOND_US)\n",
            "self._now + job.timeout * SECOND_US // 2)\n",
        ),
    ),
    "run_id ignored": (
        Change(
            RUNS,
            "if queue is None or job is None or job.status not in _COMPLETE or (command.run_id is not None and command.run_id != job.run_id):\n",
            "if queue is None or job is None or job.status not in _COMPLETE:\n",
        ),
    ),
    "state forgotten": (Change(RUNS, "            job.state = state or None\n", "            pass\n"),),
    "timeouts never come": (
        Change(ALARMS, "            if job.delivering or (self.away and job.persist):\n", "            if hash(job.id) % 2:\n"),
    ),
    "last in first out": (
        Change(
            "proteus_shards.core.queue",
            "            if fresh:\n                return fresh[0]\n",
            "            if fresh:\n                return fresh[-1] if fresh[-1].status is READY else fresh[0]\n",
        ),
    ),
    "returned in any order": (
        Change(
            "proteus_shards.core.queue",
            "heappush(self._returned, (job.ready_at, job.seq, id(job), job))\n",
            "heappush(self._returned, (hash(job.id), job.seq, id(job), job))\n",
        ),
    ),
    "fence ignored": (
        Change(
            PUMP,
            COMMIT,
            "                try:\n"
            "                    await self.store.commit(batch)\n"
            "                except Exception as fenced:\n"
            "                    if type(fenced).__name__ != 'StoreFenced':\n"
            "                        raise\n",
        ),
    ),
}


class Mutator(MetaPathFinder):
    """Finds the modules that are to be changed, before anybody else does."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self._changes = changes

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return how to load a module that is to be changed."""
        mine = [change for change in self._changes if change.module == fullname]
        found = PathFinder.find_spec(fullname, path, target) if mine else None
        if found is None or found.origin is None:
            return None
        return spec_from_file_location(fullname, found.origin, loader=_Loader(fullname, found.origin, mine))


class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, changes: Sequence[Change]) -> None:
        super().__init__(fullname, path)
        self._changes = changes

    def get_code(self, fullname: str) -> CodeType:
        """Compile the changed source, past all caches."""
        source = self.get_source(fullname)
        assert source is not None
        for change in self._changes:
            if source.count(change.old) != 1:
                raise SystemExit(f"{fullname} has {source.count(change.old)} of {change.old!r}: the mutant has lost its place")
            source = source.replace(change.old, change.new)
        return compile(source, self.path, "exec")


def changes_of(names: str) -> list[Change]:
    """Return the changes of several names, joined by commas."""
    return [change for name in names.split(",") for change in CHANGES[name]]


def wall_offset_us() -> int:
    """Return how far a shard's wall clock is off, as a file says."""
    import os
    from pathlib import Path

    text = Path(os.environ["PROTEUS_TEST_CLOCK"]).read_text()
    return int(text or "0") * 1_000_000


def main() -> int:
    """Run a server, or one of its shards."""
    if sys.argv[1] == "shard":
        sys.meta_path.insert(0, Mutator(changes_of(sys.argv.pop(2))))
        del sys.argv[1]
        runpy.run_module(SHARD, run_name="__main__", alter_sys=True)
        return 0
    from proteus_shards import cli, supervisor

    names = sys.argv[1]
    changes_of(names)
    programs = supervisor.Programs(shard=(sys.executable, "-P", "-m", "tests.faults.mutated", "shard", names))
    supervisor.Programs = lambda: programs  # type: ignore[misc, assignment]
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
