"""The hosts of a cluster and their holdings in Postgres.

A holding lies in the row of the shard's lease. So a hand-over and a store that takes an epoch under its claim lock the same row: the later one waits, and
then looks at the row again as it is by then (that is what READ COMMITTED does with a condition), and finds another turn. A beat changes a row
of a table of its own.

One session serves all calls, one after the other; where it was lost, the next call connects anew. Of a call that changes something and was not answered the
outcome is unknown, as for a commit, and said so.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from proteus_shards.cluster.model import Holding, Host, View
from proteus_shards.errors import StoreError, StoreFailed
from proteus_shards.store.postgres import SCHEMA_VERSION
from proteus_shards.store.postgres_errors import Doing
from proteus_shards.store.postgres_lease import change_lease, lease_of
from proteus_shards.store.postgres_session import bounded, check_facts, check_layout, connect, disconnect, look, query
from proteus_shards.store.postgres_url import PostgresUrl

log = logging.getLogger("proteus_shards.store")


class PostgresRegister:
    """Implements `register.Register`."""

    def __init__(self, url: PostgresUrl) -> None:
        self._url = url
        self._connection: Any = None
        self._closed = False
        self._damaged: frozenset[str] = frozenset()

    async def open(self) -> None:
        """Connect, and check what is there."""
        await self._session(Doing.OPENING)

    async def look(self) -> View:
        """Return all hosts and holdings."""
        connection = await self._session(Doing.READING)
        async with bounded(connection, Doing.READING, self._url.timeout_seconds):
            view, damaged = view_of(await connection.fetch(query("look")))
        if damaged - self._damaged:
            log.warning("what is stored of a host cannot be read", extra={"hosts": sorted(damaged)})
        self._damaged = damaged
        return view

    async def join(self, host: Host) -> None:
        """Write a host, whatever stood at its address."""
        await self._write("join", *msgspec.structs.astuple(host))

    async def beat(self, host: Host) -> bool:
        """Write a host's own beat."""
        return await self._write("beat", host.address, host.boot, host.beat, host.version)

    async def drain(self, address: str, draining: bool) -> bool:
        """Say whether a host is to give its shards away."""
        return await self._write("drain", address, draining)

    async def leave(self, address: str, boot: str | None = None) -> bool:
        """Remove a host."""
        return await self._write("leave", address, boot)

    async def hand(self, shard: int, turn: int, host: str) -> bool:
        """Give a shard to a host."""
        connection = await self._session(Doing.READING)
        async with bounded(connection, Doing.COMMITTING, self._url.timeout_seconds):
            return await change_lease(connection, query("hand"), lease_of(shard), turn, host, shard) is not None

    async def want(self, shard: int, host: str) -> bool:
        """Write down which host an operator wants a shard on. A commit that takes long is waited for, and never ended for this."""
        return await self._write("want", lease_of(shard), host, shard)

    async def close(self) -> None:
        """Disconnect."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await disconnect(connection)

    async def _write(self, statement: str, *arguments: Any) -> bool:
        """Change a row, and say whether it was there."""
        connection = await self._session(Doing.READING)
        async with bounded(connection, Doing.COMMITTING, self._url.timeout_seconds):
            return bool(await connection.fetch(query(statement), *arguments))

    async def _session(self, doing: Doing) -> Any:
        """Return the session, made anew where it was lost. Nothing is written."""
        if self._closed:
            raise StoreError("the register is closed")
        if self._connection is None or self._connection.is_closed():
            connection = await connect(self._url, doing)
            try:
                async with bounded(connection, doing, self._url.timeout_seconds):
                    check_facts(await look(connection))
                    await check_layout(connection, SCHEMA_VERSION)
            except BaseException:
                connection.terminate()
                raise
            self._connection = connection
        return self._connection


def view_of(found: list[Any]) -> tuple[View, frozenset[str]]:
    """Return what the statement `look` has found, and the addresses of hosts that cannot be read. Raises `StoreFailed` where a holding cannot be."""
    hosts, damaged = [], set()
    holdings = []
    for shard, address, boot, version, number, epoch, draining, wanted in found:
        try:
            if shard is None:
                hosts.append(msgspec.convert([address, boot, number, version, draining], _HOST))
            else:
                holdings.append(msgspec.convert([shard, address, number, epoch, wanted], _HOLDING))
        except msgspec.ValidationError:
            if shard is not None:
                raise StoreFailed(f"postgres: the lease of shard {shard} is gone or cannot be read") from None
            damaged.add(str(address))
    holdings.sort()
    made = tuple(Holding(*holding) for holding in holdings)
    return View(tuple(Host(*host) for host in sorted(hosts)), made), frozenset(damaged)


_HOST = tuple[str, str, int, str, bool]
_HOLDING = tuple[int, str, int, int, str]
