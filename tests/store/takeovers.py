"""Shards that change hands again and again while their owners write: `python -m tests.store.takeovers postgres --times 300`.

Each shard has an owner that commits one batch after the other and is told nothing. At some moment two contenders ask the register for the shard; the one that
gets it opens the rows under its claim, and loads them. Then the owner before must find itself fenced, and

- whatever it was told is stored is in that load (else: **lost**),
- what it was told is refused is not (else: **refused and there**),
- a second load, after its last commit has returned, is like the first; and what the new owner then deletes never comes back (else: **late**, which is what a
  fence is for).

`--mutant` plants a fence that does not hold, and is to be found. `PLACES` has an entry a store.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from hashlib import sha1
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import msgspec

from proteus_shards.cluster.model import Claim
from proteus_shards.core.model import Batch, Row
from proteus_shards.errors import StoreFenced, StoreRefused, StoreUnknown
from proteus_shards.store import dynamodb as dynamodb_module
from proteus_shards.store import postgres as postgres_module
from proteus_shards.store import redis as redis_module
from proteus_shards.store.contract import Store
from proteus_shards.store.dynamodb import DynamodbStore
from proteus_shards.store.dynamodb_owner import LAYOUT_KEY, Lease, read_lease
from proteus_shards.store.postgres_session import query
from proteus_shards.store.redis import RedisStore
from proteus_shards.store.redis_wire import Script
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisCluster
from tests.servers.redis import binaries as redis_binaries
from tests.servers.redis import running as redis_running
from tests.servers.strict_dynamodb import StrictServer
from tests.store.dynamodb_backing import DynamodbSharedBacking
from tests.store.exercise_register import SHARDS, SharedBacking, queue_of_shard
from tests.store.postgres_backing import ClusterBacking
from tests.store.redis_backing import RedisSharedBacking
from tests.store.rows import commit_all, deleting, inserting, load_all, make_row

BATCH_ROWS = 100
HELD_UP_SECONDS = 0.01  # a planted owner of Redis, between its look and its write
HELD_UP_SECONDS_DYNAMODB = 1.5  # where a takeover takes longer
PAUSE_SECONDS_MAX = 0.02  # between a new owner's first commit and the next takeover


class Figures(msgspec.Struct):
    """What was seen."""

    seed: int
    takeovers: int = 0
    commits: int = 0  # that owners were told are stored
    fenced: int = 0  # owners that found themselves fenced by a commit
    unknown: int = 0  # owners whose last commit had no known outcome
    late: int = 0  # takeovers after which something of an older owner appeared
    lost: int = 0  # takeovers that lacked something
    refused_and_there: int = 0
    both_won: int = 0  # hand-overs that both contenders, or none of them, got
    seconds: float = 0.0

    @property
    def wrong(self) -> int:
        """How much must not be."""
        return self.late + self.lost + self.refused_and_there + self.both_won


class Owner:
    """One process that has a shard, as far as it knows."""

    def __init__(self, store: Store, queue: str, seqs: Iterator[int], figures: Figures) -> None:
        self.stored: set[int] = set()
        self.refused: set[int] = set()
        self._store = store
        self._queue = queue
        self._seqs = seqs
        self._figures = figures
        self._writing: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Write from now on, until fenced."""
        self._writing = asyncio.create_task(self._write())

    async def ended(self) -> None:
        """Wait until it knows that it owns nothing any more."""
        assert self._writing is not None
        await self._writing
        await self._store.close()

    async def _write(self) -> None:
        while True:
            seqs = [next(self._seqs) for _ in range(min(BATCH_ROWS, self._store.batch_rows_max or BATCH_ROWS))]
            try:
                await self._store.commit(inserting(*(make_row(seq, queue=self._queue) for seq in seqs)))
            except StoreFenced:
                self.refused.update(seqs)
                self._figures.fenced += 1
                return
            except StoreRefused:
                self.refused.update(seqs)
            except StoreUnknown:  # as after a session that a takeover has ended
                self._figures.unknown += 1
                return
            self.stored.update(seqs)
            self._figures.commits += 1


async def take_over(backing: SharedBacking, times: int, seed: int = 0) -> Figures:
    """Let all shards of a place change hands, so many times in all, beside each other."""
    figures = Figures(seed)
    began = time.monotonic()
    each = [times // SHARDS + (shard < times % SHARDS) for shard in range(SHARDS)]
    async with asyncio.TaskGroup() as group:
        for shard, some in enumerate(each):
            group.create_task(_take_over_one(backing, shard, some, figures, random.Random(f"{seed} {shard}")))
    figures.seconds = round(time.monotonic() - began, 1)
    return figures


async def _take_over_one(backing: SharedBacking, shard: int, times: int, figures: Figures, chance: random.Random) -> None:
    queue = queue_of_shard(shard)
    seqs = count(1)
    async with AsyncExitStack() as closing:
        contenders = {f"10.0.0.{number}:7000": backing.register() for number in (1, 2)}
        for register in contenders.values():
            closing.push_async_callback(register.close)
            await register.open()
        looking = contenders["10.0.0.1:7000"]
        owner: Owner | None = None
        gone: set[int] = set()  # what some owner has deleted
        for _ in range(times):
            turn = (await looking.look()).holdings[shard].turn
            won = await asyncio.gather(*(register.hand(shard, turn, host) for host, register in contenders.items()))
            figures.both_won += sum(won) != 1
            claim = Claim(shard, (await looking.look()).holdings[shard].host, turn + 1)
            store = backing.claimed(shard, claim)
            closing.push_async_callback(store.close)
            await store.open()
            loaded = await _seqs_of(store)
            if owner is not None:
                await owner.ended()
                figures.lost += not owner.stored <= loaded | gone
                figures.refused_and_there += bool(owner.refused & loaded)
            figures.late += bool(gone & loaded) or await _seqs_of(store) != loaded
            figures.takeovers += 1
            left = [row for row in await load_all(store) if isinstance(row, Row)]
            await commit_all(store, deleting(*left))
            gone |= {row.seq for row in left}
            owner = Owner(store, queue, seqs, figures)
            owner.begin()
            await asyncio.sleep(chance.random() * PAUSE_SECONDS_MAX)
        if owner is not None:
            async with asyncio.timeout(60):
                last = backing.claimed(shard, claim)
                await last.open()
                await last.close()
                await owner.ended()


async def _seqs_of(store: Store) -> set[int]:
    return {row.seq for row in await load_all(store) if isinstance(row, Row)}


# --- the stores --------------------------------------------------------------------------------------------------


class Place(msgspec.Struct, frozen=True):
    """A store to try."""

    start: Callable[[], AbstractAsyncContextManager[SharedBacking]]
    mutant: Callable[[], AbstractContextManager[object]]  # inside it a fence of this store does not hold
    mutant_is: str


@asynccontextmanager
async def _postgres() -> AsyncIterator[SharedBacking]:
    server = PostgresServer()
    try:
        await asyncio.to_thread(server.start)
        yield await asyncio.to_thread(ClusterBacking, server)
    finally:
        await asyncio.to_thread(server.stop)
        server.remove()


@contextmanager
def without_for_share() -> Iterator[None]:
    """Commit without locking the lease."""
    with mock.patch.object(postgres_module, "query", lambda name: query(name).replace(" FOR SHARE", "")):
        yield


@asynccontextmanager
async def _redis() -> AsyncIterator[SharedBacking]:
    with TemporaryDirectory() as folder, redis_running(list(redis_binaries().values())[-1], Path(folder)) as server:
        yield RedisSharedBacking(server)


@asynccontextmanager
async def _redis_cluster() -> AsyncIterator[SharedBacking]:
    with TemporaryDirectory() as folder:
        cluster = RedisCluster(list(redis_binaries().values())[-1], Path(folder))
        try:
            cluster.start()
            yield RedisSharedBacking(cluster)
        finally:
            cluster.stop()


@contextmanager
def looking_first_in_redis() -> Iterator[None]:
    """Commit by a script that compares nothing, once the lease was found to be ours. Nor do loads see that rows have come meanwhile."""
    script = Script("commit")
    script.text = re.sub(rb"if held\[[12]\] ~= .*? end\n", b"", script.text)
    script.sha = sha1(script.text, usedforsecurity=False).hexdigest()
    commit = RedisStore.commit

    async def looking_first(store: RedisStore, batch: Batch) -> None:
        if await store._wire.call("HGET", store._usable()[0].lease, "token") != store._token.encode():
            raise StoreFenced
        await asyncio.sleep(HELD_UP_SECONDS)
        await commit(store, batch)

    with (
        mock.patch.object(redis_module, "_COMMIT", script),
        mock.patch.object(RedisStore, "commit", looking_first),
        mock.patch.object(RedisStore, "_check_whole", mock.AsyncMock()),
    ):
        yield


@asynccontextmanager
async def _dynamodb() -> AsyncIterator[SharedBacking]:
    with TemporaryDirectory() as folder:
        server = StrictServer(Path(folder))
        try:
            await asyncio.to_thread(server.start)
            yield DynamodbSharedBacking(server)
        finally:
            await asyncio.to_thread(server.stop)


@contextmanager
def looking_first_in_dynamodb() -> Iterator[None]:
    """Commit without the check of the lease, once it was found to be ours."""
    commit = DynamodbStore.commit

    def nothing(table: str, _name: str, _lease: Lease) -> dict[str, object]:
        return {"ConditionCheck": {"TableName": table, "Key": LAYOUT_KEY, "ConditionExpression": "attribute_exists(pk)"}}

    async def looking_first(store: DynamodbStore, batch: Batch) -> None:
        if await read_lease(store._client, store._lease_name) != store._held():
            raise StoreFenced
        await asyncio.sleep(HELD_UP_SECONDS_DYNAMODB)
        await commit(store, batch)

    with mock.patch.object(dynamodb_module, "lease_check", nothing), mock.patch.object(DynamodbStore, "commit", looking_first):
        yield


_LOOKING_FIRST = "commits look at the lease, and then write in a step of their own"

PLACES: dict[str, Place] = {
    "postgres": Place(_postgres, without_for_share, "commits do not lock the lease"),
    "redis": Place(_redis, looking_first_in_redis, _LOOKING_FIRST),
    "redis-cluster": Place(_redis_cluster, looking_first_in_redis, _LOOKING_FIRST),
    "dynamodb": Place(_dynamodb, looking_first_in_dynamodb, _LOOKING_FIRST),
}


async def _run(place: Place, times: int, seed: int) -> Figures:
    async with place.start() as backing:
        return await take_over(backing, times, seed)


def main(arguments: list[str]) -> int:
    """Print figures, and return 0 where all is as it should be: for a mutant, that it is found."""
    parser = argparse.ArgumentParser(prog="python -m tests.store.takeovers", description=__doc__.partition("\n")[0])
    parser.add_argument("store", choices=sorted(PLACES))
    parser.add_argument("--times", type=int, default=300, help="takeovers in all (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutant", action="store_true", help="plant a fence that does not hold")
    given = parser.parse_args(arguments)
    place = PLACES[given.store]
    if given.mutant:
        sys.stdout.write(f"planted: {place.mutant_is}\n")
        with place.mutant():
            figures = asyncio.run(_run(place, given.times, given.seed))
    else:
        figures = asyncio.run(_run(place, given.times, given.seed))
    sys.stdout.write("\n".join(f"{name:18} {value}" for name, value in msgspec.structs.asdict(figures).items()) + "\n")
    return int(bool(figures.wrong) is not given.mutant)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
