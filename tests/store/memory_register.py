"""A place in memory that hosts share: holdings and epochs, a register over them, and a store of rows. For tests of whoever asks a register.

`MemoryPlace` is the truth, and decides in sync: a simulation may call it at the moment that it chooses, and fail before or after. `MemoryRegister` and
`MemoryRows` are ways to it. Each tells a `trouble` what it is about to do (``"hand"``, ``"commit"``, …), which may raise, wait, or do nothing; after
that the call is atomic. `doubt` is told afterwards, so that what has happened can look as if it perhaps had not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from proteus_shards.cluster.model import NOBODY, Claim, Holding, Host, View
from proteus_shards.core.model import Batch, Record, RecordKey, Row, RowKey
from proteus_shards.core.placement import slots_of
from proteus_shards.errors import StoreError, StoreFenced
from proteus_shards.store.contract import Damaged, Durability
from tests.store.rows import in_order, marked

Trouble = Callable[[str], Awaitable[None]]

_T = TypeVar("_T")
_replace = msgspec.structs.replace


async def no_trouble(_call: str) -> None:
    """Do nothing: all is well."""


class MemoryPlace:
    """Hosts, holdings, rows and records."""

    def __init__(self, shards: int) -> None:
        self.hosts: dict[str, Host] = {}
        self.damaged: set[str] = set()  # addresses of hosts that cannot be read
        self.holdings = [Holding(shard) for shard in range(shards)]
        self.rows: dict[tuple[int, int], Row] = {}
        self.records: dict[RecordKey, bytes] = {}
        self._owners: dict[int, object] = {}

    def look(self) -> View:
        """Return all hosts and holdings."""
        return View(tuple(self.hosts[address] for address in sorted(self.hosts) if address not in self.damaged), tuple(self.holdings))

    def join(self, host: Host) -> None:
        """Write a host."""
        self.hosts[host.address] = host
        self.damaged.discard(host.address)

    def beat(self, host: Host) -> bool:
        """Write a host's beat."""
        known = self.hosts.get(host.address)
        if known is None or known.boot != host.boot or host.address in self.damaged:
            return False
        self.hosts[host.address] = _replace(host, draining=known.draining)
        return True

    def drain(self, address: str, draining: bool) -> bool:
        """Say whether a host is to give its shards away."""
        if address not in self.hosts:
            return False
        self.hosts[address] = _replace(self.hosts[address], draining=draining)
        return True

    def leave(self, address: str, boot: str | None = None) -> bool:
        """Remove a host."""
        known = self.hosts.get(address)
        if known is None or boot not in {None, known.boot}:
            return False
        del self.hosts[address]
        return True

    def hand(self, shard: int, turn: int, host: str) -> bool:
        """Give a shard to a host."""
        if not self._has(shard) or self.holdings[shard].turn != turn:
            return False
        wanted = host if self.holdings[shard].wanted == host else NOBODY
        self.holdings[shard] = _replace(self.holdings[shard], host=host, turn=turn + 1, wanted=wanted)
        return True

    def want(self, shard: int, host: str) -> bool:
        """Write down where an operator wants a shard."""
        if not self._has(shard):
            return False
        self.holdings[shard] = _replace(self.holdings[shard], wanted=host)
        return True

    def take(self, shard: int, owner: object, claim: Claim | None = None, *, again: bool = False) -> int:
        """Return the next epoch of a shard. Raises `StoreFenced` where its holding is not what the claim says, or, `again`, where another has taken one since."""
        holding = self.holdings[shard]
        if claim is not None and (holding.host, holding.turn) != (claim.host, claim.turn):
            raise StoreFenced("memory: another host holds this shard")
        if again and self._owners.get(shard) not in {None, owner}:
            raise StoreFenced("memory: another owner has taken these rows over")
        self._owners[shard] = owner
        self.holdings[shard] = _replace(holding, epoch=holding.epoch + 1)
        return holding.epoch + 1

    def write(self, shard: int, epoch: int, batch: Batch) -> None:
        """Apply a batch. Raises `StoreFenced` under any epoch but the last."""
        if self.holdings[shard].epoch != epoch:
            raise StoreFenced("memory: another owner has taken these rows over")
        for key in batch.deletes:
            del self.rows[key.slot, key.seq]
        for mark in batch.marks:
            self.rows[mark.slot, mark.seq] = marked(self.rows[mark.slot, mark.seq], mark)
        for row in batch.inserts:
            assert (row.slot, row.seq) not in self.rows
            self.rows[row.slot, row.seq] = row
        for record in batch.records:
            name = RecordKey(record.slot, record.kind, record.name)
            if record.value is None:
                self.records.pop(name, None)
            else:
                self.records[name] = record.value

    def _has(self, shard: int) -> bool:
        return 0 <= shard < len(self.holdings)


class MemoryRegister:
    """Implements `register.Register`."""

    def __init__(self, place: MemoryPlace, trouble: Trouble = no_trouble, doubt: Trouble = no_trouble) -> None:
        self._place = place
        self._trouble = trouble
        self._doubt = doubt
        self._closed = False

    async def open(self) -> None:
        await self._call("open", lambda: None)

    async def look(self) -> View:
        return await self._call("look", self._place.look)

    async def join(self, host: Host) -> None:
        await self._call("join", lambda: self._place.join(host))

    async def beat(self, host: Host) -> bool:
        return await self._call("beat", lambda: self._place.beat(host))

    async def drain(self, address: str, draining: bool) -> bool:
        return await self._call("drain", lambda: self._place.drain(address, draining))

    async def leave(self, address: str, boot: str | None = None) -> bool:
        return await self._call("leave", lambda: self._place.leave(address, boot))

    async def hand(self, shard: int, turn: int, host: str) -> bool:
        return await self._call("hand", lambda: self._place.hand(shard, turn, host))

    async def want(self, shard: int, host: str) -> bool:
        return await self._call("want", lambda: self._place.want(shard, host))

    async def close(self) -> None:
        self._closed = True

    async def _call(self, name: str, work: Callable[[], _T]) -> _T:
        if self._closed:
            raise StoreError("the register is closed")
        await self._trouble(name)
        done = work()
        await self._doubt(name)
        return done


class MemoryRows:
    """Implements `contract.Store` for one shard of a place."""

    kind = "memory"
    durability = Durability.PROCESS
    terms = "a place in memory"
    keeps = True
    row_bytes_max: int | None = None
    batch_rows_max: int | None = None
    batch_bytes_max: int | None = None

    def __init__(
        self, place: MemoryPlace, shard: int, claim: Claim | None = None, trouble: Trouble = no_trouble, doubt: Trouble = no_trouble
    ) -> None:
        self._place = place
        self._shard = shard
        self._slots = slots_of(shard, len(place.holdings))
        self._claim = claim
        self._trouble = trouble
        self._doubt = doubt
        self._epoch = 0

    async def open(self) -> int:
        await self._trouble("open")
        self._epoch = self._place.take(self._shard, self, self._claim)
        await self._doubt("open")
        return self._epoch

    async def reopen(self) -> int:
        await self._trouble("reopen")
        self._epoch = self._place.take(self._shard, self, self._claim, again=bool(self._epoch))
        await self._doubt("reopen")
        return self._epoch

    async def load(self) -> AsyncIterator[Sequence[Row | Damaged]]:
        await self._trouble("load")
        yield in_order(row for row in self._place.rows.values() if row.slot in self._slots)

    async def load_records(self) -> AsyncIterator[Sequence[Record | Damaged]]:
        await self._trouble("load_records")
        yield [Record(key.slot, key.kind, key.name, value) for key, value in self._place.records.items() if key.slot in self._slots]

    async def commit(self, batch: Batch) -> None:
        epoch = self._epoch
        await self._trouble("commit")
        self._place.write(self._shard, epoch, batch)
        await self._doubt("commit")

    async def read(self, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        await self._trouble("read")
        found = {key: self._place.rows.get((key.slot, key.seq)) for key in keys}
        return {key: row for key, row in found.items() if row is not None and (row.queue, row.id) == (key.queue, key.id)}

    async def read_records(self, keys: Sequence[RecordKey]) -> dict[RecordKey, bytes]:
        await self._trouble("read_records")
        return {key: self._place.records[key] for key in keys if key in self._place.records}

    async def close(self) -> None:
        pass
