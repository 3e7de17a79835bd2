"""The keys of a store in Redis, and the manifest that says which of them count.

    {proteus-shards}:manifest        generation and number of shards, as JSON. It alone says which generation is in force
    {proteus-shards}:moves           per generation that is not in force: how many shards it has, and whether it is being filled or is rubbish;
                                     and a copy of the manifest, so that its loss is seen
    {proteus-shards}:claims          the last number given to a generation; none is given twice
    {proteus-shards}:hosts           of a cluster of servers: by its address, what each host last wrote of itself; and
    {proteus-shards}:draining        those that are to give their shards away (redis_register.py)
    {proteus-shards:g4:s0}:lease     who owns shard 0 of generation 4: owner, epoch, token (both together), number of the last batch; and of a
                                     cluster of servers: host and turn of the holding, and the host that it is wanted on
    {proteus-shards:g4:s0}:rows      see redis_rows.py; likewise :marks, :states, :extras and :records

What is in braces decides the slot in a cluster: all keys of a shard are on one node, and one script may touch them.

**Layouts.** 2 added extras and records. What layout 1 holds is a store of layout 2 that has none, so that to get there only the manifest is written
anew (redis_raise.lua); from then on the version before refuses to start, and redis_take.lua keeps out those of its processes that run already.
"""

from __future__ import annotations

from typing import Any

import msgspec

from proteus_shards.core.model import ROW_VERSION
from proteus_shards.core.placement import SHARDS_MAX
from proteus_shards.errors import StoreError
from proteus_shards.store.redis_url import RedisUrl
from proteus_shards.store.redis_wire import Wire

MANIFEST_COPY = b"manifest"  # the field of `moves` with a copy of it, so that its loss is seen
LAYOUT = 2  # of the keys; a higher one is refused
SCAN_BYTES = 1 << 20  # aimed at in one answer
SCAN_COUNT_MAX = 5000
_SCAN_COUNT_FIRST = 20


class Manifest(msgspec.Struct, frozen=True):
    """What is in force."""

    layout: int
    row_version: int
    generation: int
    shards: int

    @property
    def older(self) -> bool:
        """Whether an older version wrote it, and nobody has prepared the store with this one."""
        return self.layout < LAYOUT or self.row_version < ROW_VERSION


class ShardKeys(msgspec.Struct, frozen=True):
    """The keys of one shard."""

    lease: str
    rows: str
    marks: str
    states: str
    extras: str
    records: str

    @property
    def all(self) -> tuple[str, ...]:
        """All of them, as scripts take them."""
        return self.lease, self.rows, self.marks, self.states, self.extras, self.records


def shard_keys(url: RedisUrl, generation: int, shard: int) -> ShardKeys:
    """Return the keys of a shard of one generation."""
    return tagged(f"{url.prefix}:g{generation}:s{shard}")


def tagged(tag: str) -> ShardKeys:
    """Return the keys of one hash tag."""
    return ShardKeys(*(f"{{{tag}}}:{name}" for name in ShardKeys.__struct_fields__))


def common_key(url: RedisUrl, name: str) -> str:
    """Return a key that is no shard's: manifest, moves, claims, hosts or draining."""
    return f"{{{url.prefix}}}:{name}"


async def read_manifest(wire: Wire, url: RedisUrl) -> tuple[Manifest | None, bytes]:
    """Return what is in force, and as which bytes it is stored; None and nothing in a new place. Raises `StoreError`."""
    key = common_key(url, "manifest")
    stored = await wire.call("GET", key)
    if stored is None:
        copy = await wire.call("HGET", common_key(url, "moves"), MANIFEST_COPY)
        if copy is not None:  # thrown away by the server, or deleted by hand: what it named may still be there
            raise StoreError(
                f"{url.where}: the key {key} is gone; if the rest is there, this brings it back: SET {key} '{copy.decode(errors='replace')}'"
            )
        return None, b""
    try:
        manifest = msgspec.json.decode(stored, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise StoreError(f"{url.where}: the key {key} is no manifest of ours: restore it, or choose another prefix") from None
    if manifest.layout > LAYOUT or manifest.row_version > ROW_VERSION:
        raise StoreError(f"{url.where}: the keys of the prefix {url.prefix} were written by a newer version: start that one")
    if not (0 < manifest.shards <= SHARDS_MAX):
        raise StoreError(f"{url.where}: the key {key} names {manifest.shards} shards, which there cannot be")
    return manifest, stored


class Scan:
    """All fields and values of a hash that nobody writes to, in answers of a bounded size. A field may come twice."""

    def __init__(self, wire: Wire, key: str) -> None:
        self._wire = wire
        self._key = key
        self._cursor: Any = b"0"
        self._count = _SCAN_COUNT_FIRST
        self.done = False

    async def next(self) -> list[bytes]:
        """Return some more fields and values, in turn: perhaps none, though there are more."""
        self._cursor, found = await self._wire.call("HSCAN", self._key, self._cursor, "COUNT", self._count)
        self.done = self._cursor == b"0"
        if found:
            size = sum(map(len, found)) // (len(found) // 2)
            self._count = max(1, min(SCAN_COUNT_MAX, SCAN_BYTES // max(1, size), self._count * 8))
        pairs: list[bytes] = found
        return pairs
