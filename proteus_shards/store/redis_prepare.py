"""Before any shard starts: make the keys of a Redis store, bring them to the layout of today, or move the rows to another number of shards.

To another layout nothing moves (redis_place.py says why): one script compares the manifest with what it was, and writes it anew. That comes first, so that
a move begins and ends in one layout.

A move fills a generation of its own, with a number that no other ever had, and comes into force when the manifest names it: one script, which compares
the manifest with what it was, is the commit point. The steps, each of which may be the last one before a crash:

1. Enter the new generation in `moves`, as being filled.
2. Seal each old shard: its owner can write no more, and nobody can take it while this move lives.
3. Make the new shards, above every old epoch and in the last turn, held by no host, and copy field by field. Where a row or record belongs is in its field; rows are not decoded, and so keep their
   numbers (seq is unique within a slot, and a slot moves as a whole) and even their damage.
4. Count: as many rows, marks, states, extras and records there as here.
5. Flip the manifest. The same script enters the old generation in `moves`, as rubbish.
6. Remove what is rubbish.

**A cluster of servers**: while hosts are registered, nothing moves; the flip sees to it that none has joined meanwhile. Of several hosts that make a new
store at once, one does, and the others find it made when they look again.

Whoever prepares begins by giving up all moves that are entered: a script makes each impossible to complete, and then its keys are removed. So the last to begin
wins, what a crash left behind is cleaned up by the next start, and no time limit is needed anywhere. A shard that was sealed by a move that is given up is free again:
`open` looks the move up.

The data is there twice for a while: a server without the memory for it refuses, and nothing has changed.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from proteus_shards.core.model import ROW_VERSION
from proteus_shards.core.placement import SLOTS, shard_of
from proteus_shards.errors import StoreError, StoreRefused
from proteus_shards.store.redis_errors import ServerSaid, WireError, fault_of
from proteus_shards.store.redis_place import LAYOUT, MANIFEST_COPY, Manifest, Scan, ShardKeys, common_key, read_manifest, shard_keys
from proteus_shards.store.redis_rows import pairs_packed, slot_of_field, slot_of_record_field
from proteus_shards.store.redis_survey import check, look
from proteus_shards.store.redis_url import RedisUrl
from proteus_shards.store.redis_wire import Argument, Script, Wire, within
from proteus_shards.store.sharing import check_sharing

FILL_BYTES = 1 << 20  # in one script, about
FILL_VALUES = 4000

_CREATE = Script("create")
_FILL = Script("fill")
_SEAL = Script("seal")
_FLIP = Script("flip")
_RAISE = Script("raise")
_CANCEL = Script("cancel")

ATTEMPTS_MAX = 10  # of a host of a cluster, while others prepare the same store
PAUSE_FIRST_SECONDS = 0.1  # the bound, which doubles: the last to begin must have the time to end

Step: TypeAlias = Callable[[str], None]


class Overtaken(StoreRefused):
    """Another process prepared the same store just now."""

    def __init__(self, url: RedisUrl) -> None:
        super().__init__(f"redis {url.where}: another process prepared the same store just now")


def _no_step(_name: str) -> None:
    """Do nothing between the steps."""


async def prepare(url: RedisUrl, shards: int, step: Step = _no_step, *, cluster: bool = False) -> str | None:
    """Create the store or move its rows. Returns what was moved, in one line, or None. `step` is called after each step, by name."""
    wires = Wires(url)
    try:
        for attempt in range(ATTEMPTS_MAX if cluster else 1):
            try:
                return await Preparation(url, wires, step).run(shards, cluster=cluster)
            except Overtaken as error:
                overtaken = error
                await asyncio.sleep(random.uniform(0, PAUSE_FIRST_SECONDS * 2**attempt))  # noqa: S311  # nothing secret in it
        raise overtaken
    except WireError as error:
        raise fault_of(error, f"redis {url.where}") from error
    finally:
        await wires.close()


async def prepared_shards(url: RedisUrl) -> int | None:
    """Return for how many shards the manifest says that the rows are split."""
    wire = Wire(url)
    try:
        async with within(url.timeout_seconds):
            await wire.connect()
            manifest, _ = await read_manifest(wire, url)
    except WireError as error:
        raise fault_of(error, f"redis {url.where}") from error
    finally:
        await wire.close()
    return manifest.shards if manifest is not None else None


class Wires:
    """Connections: one for all keys, or in a cluster, where they are on several nodes, one for each of the last hash tags."""

    KEPT_MAX = 16

    def __init__(self, url: RedisUrl) -> None:
        self._url = url
        self._wires: dict[str, Wire] = {}

    async def call(self, key: str, *command: Argument) -> object:
        """Send a command about a key."""
        wire = await self.wire_of(key)
        async with within(self._url.timeout_seconds):
            return await wire.call(*command)

    async def run(self, script: Script, keys: tuple[str, ...], *arguments: Argument) -> object:
        """Run a script and return its answer."""
        wire = await self.wire_of(keys[0])
        async with within(self._url.timeout_seconds):
            (answer,) = await wire.run(script, keys, *arguments)
        return answer

    async def scan(self, key: str) -> Scan:
        """Return a scan of a hash, on a connection that is kept for as long as it runs."""
        return Scan(await self.wire_of(key), key)

    async def bounded(self, scan: Scan) -> list[bytes]:
        """Return the next part of a scan."""
        async with within(self._url.timeout_seconds):
            return await scan.next()

    async def close(self) -> None:
        """End all connections."""
        while self._wires:
            await self._wires.popitem()[1].close()

    async def wire_of(self, key: str) -> Wire:
        """Return a connection for a key; in a cluster its first call leads it to the node."""
        tag = key[: key.index("}") + 1] if self._url.cluster else ""
        wire = self._wires.pop(tag, None)
        if wire is None or not wire.usable:
            wire = wire or Wire(self._url)
            async with within(self._url.timeout_seconds):
                await wire.connect()
        self._wires[tag] = wire  # the last one used is the last one to go
        while len(self._wires) > self.KEPT_MAX:
            oldest = next(iter(self._wires))
            await self._wires.pop(oldest).close()
        return wire


class Preparation:
    """One run."""

    def __init__(self, url: RedisUrl, wires: Wires, step: Step) -> None:
        self._url = url
        self._wires = wires
        self._step = step
        self._manifest_key = common_key(url, "manifest")
        self._moves = common_key(url, "moves")
        self._hosts = common_key(url, "hosts")
        self._token = f"move:{uuid.uuid4().hex}"

    async def run(self, shards: int, *, cluster: bool) -> str | None:
        """Do it."""
        url = self._url
        wire = await self._wires.wire_of(self._manifest_key)
        async with within(url.timeout_seconds):
            await wire.call("EXISTS", self._manifest_key)
            check(await look(wire), url)
            old, stored = await read_manifest(wire, url)
            hosts = await wire.call("HGETALL", self._hosts)
        if old is not None:
            check_sharing([name.decode(errors="replace") for name in hosts[::2]], old.shards, shards, cluster=cluster)
        await self._clean_up()
        if old is not None and old.older:
            old, stored = await self._raise(old, stored)
        if old is not None and old.shards == shards:
            return None
        generation = await self._enter(old, shards)
        try:
            moved = await self._fill(old, generation, shards)
        except (ServerSaid, StoreError) as error:
            await self._give_up(generation, shards)
            if isinstance(error, ServerSaid) and error.code == "OOM":
                raise StoreRefused(
                    f"redis {url.where}: moving to {shards} shards needs about as much memory again; nothing was changed"
                ) from error
            raise
        new = msgspec.json.encode(Manifest(LAYOUT, ROW_VERSION, generation, shards))
        rubbish = (old.generation, _rubbish(old.shards)) if old is not None else ("", "")
        keys = (self._manifest_key, self._moves, self._hosts)
        verdict = await self._wires.run(_FLIP, keys, stored, new, generation, _filling(shards), *rubbish)
        if verdict != b"OK":
            await self._give_up(generation, shards)
            raise Overtaken(url)
        self._step("flipped")
        await self._clean_up()
        return f"moved {moved:,} stored jobs from {old.shards} to {shards} shards" if old is not None else None

    async def _raise(self, old: Manifest, stored: bytes) -> tuple[Manifest, bytes]:
        """Bring the manifest to the layout of today. Return it, and its bytes."""
        manifest = Manifest(LAYOUT, ROW_VERSION, old.generation, old.shards)
        new = msgspec.json.encode(manifest)
        if await self._wires.run(_RAISE, (self._manifest_key, self._moves), stored, new) != b"OK":
            raise Overtaken(self._url)
        self._step("raised")
        return manifest, new

    async def _enter(self, old: Manifest | None, shards: int) -> int:
        """Return the number of a new generation, once it is entered."""
        claims = common_key(self._url, "claims")
        generation = 0
        while generation <= (old.generation if old is not None else 0):
            answer = await self._wires.call(claims, "INCR", claims)
            assert isinstance(answer, int)
            generation = answer
        await self._wires.call(self._moves, "HSET", self._moves, generation, _filling(shards))
        self._step("entered")
        return generation

    async def _fill(self, old: Manifest | None, generation: int, shards: int) -> int:
        """Make the new shards and copy what the old ones hold. Returns the number of rows."""
        sources = [shard_keys(self._url, old.generation, shard) for shard in range(old.shards)] if old is not None else []
        epoch = turn = 0
        for source in sources:
            answer = await self._wires.run(_SEAL, (source.lease,), generation)
            assert isinstance(answer, list)
            if answer[0] != b"OK":
                wire = await self._wires.wire_of(self._manifest_key)
                if (await read_manifest(wire, self._url))[0] != old:
                    raise Overtaken(self._url)
                raise StoreError(f"redis {self._url.where}: the key {source.lease} is gone: restore it from a backup")
            epoch = max(epoch, int(answer[1]) + 1)
            turn = max(turn, int(answer[2]))
        self._step("sealed")
        targets = [shard_keys(self._url, generation, shard) for shard in range(shards)]
        for target in targets:
            if await self._wires.run(_CREATE, target.all, self._token, epoch, LAYOUT, turn) != b"OK":
                raise StoreError(f"redis {self._url.where}: {target.lease} is taken: another program uses the prefix {self._url.prefix}")
        self._step("created")
        moved = 0
        for name in ("marks", "states", "extras", "records", "rows"):
            before = 0
            for source in sources:
                await self._copy(source, targets, name)
                before += await self._length(getattr(source, name))
                self._step(f"copied {name}")
            after = sum([await self._length(getattr(target, name)) for target in targets])
            if before != after:
                raise StoreError(f"redis {self._url.where}: {after} {name} were copied of {before}; nothing was changed")
            moved = after
        self._step("counted")
        return moved

    async def _copy(self, source: ShardKeys, targets: list[ShardKeys], name: str) -> None:
        """Copy one hash of an old shard."""
        scan = await self._wires.scan(getattr(source, name))
        slot_in = slot_of_record_field if name == "records" else slot_of_field
        buffers: dict[int, list[bytes]] = {}
        sizes: dict[int, int] = {}
        while not scan.done:
            pairs = await self._wires.bounded(scan)
            for field, value in zip(pairs[::2], pairs[1::2], strict=True):
                slot = slot_in(field)
                if slot is None or slot >= SLOTS:
                    raise StoreError(
                        f"redis {self._url.where}: {getattr(source, name)} has the field {field[:32].hex()}, which is no {'record' if name == 'records' else 'row'}'s: "
                        "remove it with HDEL, or start with the old number of shards"
                    )
                shard = shard_of(slot, len(targets))
                buffer = buffers.setdefault(shard, [])
                buffer += (field, value)
                sizes[shard] = sizes.get(shard, 0) + len(field) + len(value)
                if sizes[shard] >= FILL_BYTES or len(buffer) >= FILL_VALUES:
                    await self._put(targets[shard], name, buffer)
                    sizes[shard] = 0
        for shard, buffer in buffers.items():
            await self._put(targets[shard], name, buffer)

    async def _put(self, target: ShardKeys, name: str, buffer: list[bytes]) -> None:
        if buffer and await self._wires.run(_FILL, (target.lease, getattr(target, name)), self._token, pairs_packed(buffer)) != b"OK":
            raise Overtaken(self._url)
        buffer.clear()

    async def _length(self, key: str) -> int:
        answer = await self._wires.call(key, "HLEN", key)
        assert isinstance(answer, int)
        return answer

    async def _give_up(self, generation: int, shards: int) -> None:
        """Give up this move, and no other's; remove all that it wrote, also what it wrote after another had given it up."""
        await self._wires.run(_CANCEL, (self._moves,), generation, _filling(shards), _rubbish(shards))
        await self._remove(generation, shards)
        await self._wires.call(self._moves, "HDEL", self._moves, generation)

    async def _remove(self, generation: int, shards: int) -> None:
        """Remove the keys of a generation that is not in force and never will be."""
        for shard in range(shards):
            keys = shard_keys(self._url, generation, shard)
            await self._wires.call(keys.lease, "UNLINK", *keys.all)

    async def _clean_up(self) -> None:
        """Give up every move that is entered, and remove every generation that does not count."""
        found = await self._wires.call(self._moves, "HGETALL", self._moves)
        assert isinstance(found, list)
        for number, entry in zip(found[::2], found[1::2], strict=True):
            if number == MANIFEST_COPY:
                continue
            state, _, count = entry.partition(b" ")
            if state == b"filling":
                verdict = await self._wires.run(_CANCEL, (self._moves,), number, entry, _rubbish(int(count)))
                if verdict != b"OK":  # completed or given up by another, who sees to the rest
                    continue
            await self._remove(int(number), int(count))
            await self._wires.call(self._moves, "HDEL", self._moves, number)
            self._step("cleaned")


def _filling(shards: int) -> str:
    return f"filling {shards}"


def _rubbish(shards: int) -> str:
    return f"rubbish {shards}"
