"""The hosts of a cluster of servers, and who holds which shard, in Redis.

A holding is in the lease of its shard, so that redis_take.lua compares it, takes the epoch and fences the owner before in one script. What hosts write of
themselves is in two hashes of their own (redis_place.py): a beat touches no key of a shard, and `draining` is apart, so that no beat undoes it.

**Looks** go to primaries only. A lone server is asked in the same breath whether it still is one: a primary that was made a replica keeps its
connections, and would answer with what it has. Holdings are read before hosts: whoever holds a shard had joined before, so that
one who is not found among the hosts has left. Then it is one answer of a server for all leases that it has; between servers, and between leases
and hosts, changes may fall, and each `hand` is compared with its own lease anyway.

**A failover** to a replica that was behind may bring an older holding back, with a turn that was used. Then it counts again, here as for the
hosts, who all look at the same primary. No two owners write: the fence is the token, drawn by each process anew, and not turn or epoch, so that whoever
took a lease in the history that is lost meets another token, or the one of an owner who lost nothing (redis.py); and what it acknowledged
in between is lost, as the durability says. So this is for **one primary** (of each slot, in a Redis cluster) whose replicas, if any, take over only once
it is dead. `wait_replicas` counts for a `hand` as for a commit.

**A full memory** refuses neither a beat nor a hand: each script begins with a command that is let pass, and what follows in it passes with that.

Measured on 2 cores, Redis 7.0 with appendfsync always, a beat and a look together, in processor time of this process and of the server: 0.4 and 0.2 ms with 16
shards, 0.8 and 0.3 with 64, 7.4 and 1.0 with 1,024 (8.5 and 1.8 on three nodes).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from proteus_shards.cluster.model import Holding, Host, View
from proteus_shards.errors import StoreError, StoreFailed, StoreRefused, StoreUnknown
from proteus_shards.store.redis_errors import WireError, fault_of
from proteus_shards.store.redis_nodes import Nodes
from proteus_shards.store.redis_place import Manifest, common_key, read_manifest, shard_keys
from proteus_shards.store.redis_survey import check, look
from proteus_shards.store.redis_url import RedisUrl
from proteus_shards.store.redis_wire import Argument, Command, Script, waiting_for_replicas, within

log = logging.getLogger("proteus_shards.store")

_HOST = Script("host")
_HOLD = Script("hold")
_FIELDS = ("epoch", "turn", "host", "wanted")


class _Kept(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What is kept under a host's address. redis_host.lua reads the first."""

    boot: str
    beat: int
    version: str


_encode = msgspec.msgpack.encode
_read_kept = msgspec.msgpack.Decoder(_Kept).decode


class RedisRegister:
    """Implements `register.Register`."""

    def __init__(self, url: RedisUrl) -> None:
        self._url = url
        self._where = f"redis {url.where}"
        self._nodes = Nodes(url)
        self._hosts = common_key(url, "hosts")
        self._draining = common_key(url, "draining")
        self._manifest_key = common_key(url, "manifest")
        self._manifest: Manifest | None = None  # as `open` found it
        self._closed = False

    async def open(self) -> None:
        """Connect, and see how many shards there are."""
        await self._opened()

    async def look(self) -> View:
        """Return all hosts and holdings."""
        manifest = await self._opened()
        leases = [shard_keys(self._url, manifest.generation, shard).lease for shard in range(manifest.shards)]
        first: list[tuple[str, Command]] = [(lease, ("HMGET", lease, *_FIELDS)) for lease in leases]
        then: list[tuple[str, Command]] = [(key, ("HGETALL", key)) for key in (self._hosts, self._draining)]
        then.append((self._manifest_key, ("GET", self._manifest_key)))
        async with self._asking():
            if self._url.cluster:  # where what is sent at once may be answered in any order
                found = [*await self._nodes.ask(first), *await self._nodes.ask(then)]
            else:
                *found, told = await self._nodes.ask([*first, *then, (self._manifest_key, ("INFO", "replication"))])
                if b"role:master" not in told:
                    raise StoreRefused(f"{self._where}: this Redis is a replica, which may be behind: name the primary")
        *held, hosts, draining, stored = found
        self._check_generation(manifest, stored)
        holdings = tuple(self._holding(shard, lease, values) for shard, (lease, values) in enumerate(zip(leases, held, strict=True)))
        return View(tuple(_hosts_of(hosts, draining)), holdings)

    async def join(self, host: Host) -> None:
        """Write a host."""
        await self._change_host("join", host.address, "", _kept(host), "1" if host.draining else "")

    async def beat(self, host: Host) -> bool:
        """Write a host's own beat."""
        return await self._change_host("beat", host.address, host.boot, _kept(host))

    async def drain(self, address: str, draining: bool) -> bool:
        """Say that a host is to give its shards away, or take that back."""
        return await self._change_host("drain" if draining else "stay", address, "")

    async def leave(self, address: str, boot: str | None = None) -> bool:
        """Remove a host."""
        return await self._change_host("leave", address, boot or "")

    async def hand(self, shard: int, turn: int, host: str) -> bool:
        """Give a shard to a host."""
        if shard not in range((await self._opened()).shards):
            return False
        verdict, *acknowledged = await self._change_holding(shard, "hand", turn, turn + 1, host, after=waiting_for_replicas(self._url))
        if verdict != b"OK":
            return False
        if acknowledged and acknowledged[0] < self._url.wait_replicas:
            told = f"{acknowledged[0]} of {self._url.wait_replicas} replicas know that shard {shard} was handed over"
            raise StoreUnknown(f"{self._where}: {told}")
        return True

    async def want(self, shard: int, host: str) -> bool:
        """Write down which host an operator wants a shard on."""
        if shard not in range((await self._opened()).shards):
            return False
        await self._change_holding(shard, "want", host)
        return True

    async def close(self) -> None:
        """End the connections."""
        self._closed = True
        await self._nodes.close()

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _opened(self) -> Manifest:
        """Return what was prepared, as it was found when the server was first reached."""
        if self._closed:
            raise StoreError("the register is closed")
        if self._manifest is None:
            async with self._asking():
                await self._nodes.connect()
                check(await look(self._nodes.home), self._url)
                self._manifest, _ = await read_manifest(self._nodes.home, self._url)
        if self._manifest is None:
            raise StoreError(f"{self._url.where}: nothing is prepared under the prefix {self._url.prefix}")
        return self._manifest

    async def _change_host(self, what: str, address: str, boot: str, *rest: Argument) -> bool:
        await self._opened()
        async with self._asking(writing=True):
            (verdict,) = await self._nodes.run(_HOST, self._hosts, what, address, boot, *rest, keys=[self._draining])
        return bool(verdict == b"OK")

    async def _change_holding(self, shard: int, what: str, *arguments: Argument, after: Sequence[Command] = ()) -> list[Any]:
        lease = shard_keys(self._url, (await self._opened()).generation, shard).lease
        async with self._asking(writing=True):
            answers = await self._nodes.run(_HOLD, lease, what, *arguments, after=after)
        if answers[0] == b"GONE":
            raise StoreRefused(f"{self._where}: the key {lease} is gone: the rows were moved or removed")
        return answers

    @asynccontextmanager
    async def _asking(self, *, writing: bool = False) -> AsyncIterator[None]:
        """Bound what is asked inside, and say what its failure means. Once it has worked, everything may pass that is not a doubt."""
        try:
            async with within(self._url.timeout_seconds):
                yield
        except WireError as error:
            fault = fault_of(error, self._where, committing=writing)
            if isinstance(fault, StoreRefused | StoreUnknown) or self._manifest is None:
                raise fault from error
            raise StoreRefused(str(fault)) from error

    def _check_generation(self, manifest: Manifest, stored: bytes | None) -> None:
        """Raise `StoreFailed` where the rows were split anew since `open`."""
        try:
            now = msgspec.json.decode(stored or b"", type=Manifest)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise StoreFailed(f"{self._where}: the key {self._manifest_key} is gone, or no manifest of ours: start again") from None
        if now.generation != manifest.generation:
            raise StoreFailed(f"{self._where}: the rows were split anew, among {now.shards} shards: start again")

    def _holding(self, shard: int, lease: str, values: list[bytes | None]) -> Holding:
        epoch, turn, host, wanted = ((value or b"").decode(errors="replace") for value in values)
        if not epoch.isdigit() or not (turn or "0").isdigit():
            raise StoreFailed(f"{self._where}: the key {lease} is gone, or no lease: restore it from a backup")
        return Holding(shard, host, int(turn or 0), int(epoch), wanted)


def _hosts_of(found: list[bytes], draining: list[bytes]) -> Iterator[Host]:
    """Yield the hosts, but for those that cannot be read: their next beat tells them to join anew."""
    leaving = set(draining[::2])
    for address, kept in sorted(zip(found[::2], found[1::2], strict=True)):
        try:
            host = _read_kept(kept)
            yield Host(address.decode(), host.boot, host.beat, host.version, address in leaving)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            log.warning("a host in the register cannot be read", extra={"address": address.decode(errors="replace")})


def _kept(host: Host) -> bytes:
    return _encode(_Kept(host.boot, host.beat, host.version))
