"""The hosts of a cluster of servers, and who holds which shard, in a table of DynamoDB.

**Items.** A holding is in the lease of its shard (`dynamodb_owner.py`). Hosts are items of a partition of their own, `hosts`, by their addresses: a beat
meets no transaction of any shard.

**Looks** are strongly consistent, leases first and hosts after them: whoever holds a shard had joined before, so that one who is not found among the hosts
has left. They are no snapshot; each `hand` is compared with its own lease anyway.

**Handing over** is a transaction of one action, for its token: where its answer is lost it is sent again, done once, and answered as done, so that nobody takes another's
success for his own. It conflicts with a commit of the shard's owner that is under way, and is then tried again; so is the commit.

**Joining** checks, in the same transaction, that the layout is what this host was started for. Whoever makes the table ready for another number of shards
first writes that down, and then looks whether hosts are there: so either the host sees it, or is seen.

**What it costs**, in request units, with S shards and up to 25 hosts: a look S + 2 read units, a beat 1 write unit, a join 4, a hand-over 2, and the epoch that is
taken after it 4. With leases of 8 s each host looks and beats 0.375 times a second: three hosts with 16 shards take 20 read and 1.1 write units a second, with 64 shards 74 and
1.1, with 1,024 shards 1,150 and 1.1.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from proteus_shards.cluster.model import Holding, Host, View
from proteus_shards.errors import StoreError, StoreFailed, StoreRefused, StoreUnknown
from proteus_shards.store.dynamodb_client import Client, Unmet
from proteus_shards.store.dynamodb_owner import (
    LAYOUT_KEY,
    Layout,
    Value,
    holding_in,
    layout_check,
    layout_in,
    lease_key,
    lease_of,
    read_holding,
    read_layout,
    transaction,
)
from proteus_shards.store.dynamodb_reads import get_all, query_range
from proteus_shards.store.dynamodb_url import DynamodbUrl

log = logging.getLogger("proteus_shards.store")

HOSTS = "hosts"  # the partition key
_FIRST, _LAST = "\x01", "\U0010ffff"  # of all sort keys

_read_items = msgspec.json.Decoder(list[dict[str, Value]]).decode


class DynamodbRegister:
    """Implements `register.Register`."""

    def __init__(self, url: DynamodbUrl) -> None:
        self._url = url
        self._client = Client(url)
        self._layout: Layout | None = None  # as `open` found it
        self._closed = False

    async def open(self) -> None:
        """Find the table, and for how many shards it is ready."""
        await self._opened()

    async def look(self) -> View:
        """Return all hosts and holdings."""
        layout = await self._opened()
        names = [(lease_of(shard), "lease") for shard in range(layout.shards)]
        found: dict[str, dict[str, Value]] = {}

        def take(items: msgspec.Raw) -> None:
            found.update((item["pk"].S, item) for item in _read_items(items))

        layout_name = LAYOUT_KEY["pk"]["S"]
        await get_all(self._client, [(layout_name, LAYOUT_KEY["sk"]["S"]), *names], take)
        now = layout_in(found[layout_name]) if layout_name in found else None
        if now is None or now.shards != layout.shards:
            raise self._made_anew()
        holdings = tuple(self._holding(shard, found.get(lease_of(shard))) for shard in range(layout.shards))
        return View(await read_hosts(self._client), holdings)

    async def join(self, host: Host) -> None:
        """Write a host."""
        layout = await self._opened()
        item = {
            **_host_key(host.address),
            "boot": {"S": host.boot},
            "beat": {"N": str(host.beat)},
            "version": {"S": host.version},
            "draining": {"BOOL": host.draining},
        }
        values = {":shards": {"N": str(layout.shards)}, ":settled": {"BOOL": True}}
        actions = [
            {"Put": {"TableName": self._url.table, "Item": item}},
            layout_check(self._client, "shards = :shards AND settled = :settled", values),
        ]
        if isinstance(await self._client.call("transact_write_items", transaction(actions), doubt=StoreUnknown), Unmet):
            raise self._made_anew()

    async def beat(self, host: Host) -> bool:
        """Write a host's own beat."""
        return await self._update(
            _host_key(host.address),
            "SET #beat=:beat, #version=:version",
            "#boot = :boot",
            {"beat": {"N": str(host.beat)}, "version": {"S": host.version}, "boot": {"S": host.boot}},
        )

    async def drain(self, address: str, draining: bool) -> bool:
        """Say that a host is to give its shards away, or take that back."""
        return await self._update(_host_key(address), "SET #draining=:draining", "attribute_exists(pk)", {"draining": {"BOOL": draining}})

    async def leave(self, address: str, boot: str | None = None) -> bool:
        """Remove a host."""
        await self._opened()
        request: dict[str, Any] = {"TableName": self._url.table, "Key": _host_key(address), "ConditionExpression": "attribute_exists(pk)"}
        if boot is not None:
            request["ConditionExpression"] = "#boot = :boot"
            request |= _words({"boot": {"S": boot}})
        outcome = await self._client.call("delete_item", request, doubt=StoreUnknown)
        if isinstance(outcome, Unmet) and outcome.doubtful:
            raise StoreUnknown("an earlier attempt may have removed the host: it is not there now")
        return not isinstance(outcome, Unmet)

    async def hand(self, shard: int, turn: int, host: str) -> bool:
        """Give a shard to a host. Whether a wish is fulfilled by it is a condition of either of two ways to write it: nearly always it is the first."""
        if shard not in range((await self._opened()).shards):
            return False
        if await self._hand(shard, turn, host, fulfils=False):
            return True
        now = await read_holding(self._client, shard)
        return now is not None and (now.turn, now.wanted) == (turn, host) and await self._hand(shard, turn, host, fulfils=True)

    async def _hand(self, shard: int, turn: int, host: str, *, fulfils: bool) -> bool:
        values = {":turn": {"N": str(turn)}, ":then": {"N": str(turn + 1)}, ":host": {"S": host}}
        update: dict[str, Any] = {
            "TableName": self._url.table,
            "Key": lease_key(lease_of(shard)),
            "UpdateExpression": "SET #turn=:then, #host=:host" if host else "SET #turn=:then REMOVE #wanted, #host",
            "ConditionExpression": "#turn = :turn" if turn else "attribute_exists(pk) AND attribute_not_exists(#turn)",
            "ExpressionAttributeNames": {"#turn": "turn", "#host": "host", "#wanted": "wanted"},
            "ExpressionAttributeValues": {
                name: value for name, value in values.items() if (name, turn) != (":turn", 0) and (name, host) != (":host", "")
            },
        }
        if host and fulfils:
            update["ConditionExpression"] += " AND #wanted = :host"
        elif host:
            update["UpdateExpression"] += " REMOVE #wanted"
            update["ConditionExpression"] += " AND #wanted <> :host"
        outcome = await self._client.call("transact_write_items", transaction([{"Update": update}]), doubt=StoreUnknown)
        if isinstance(outcome, Unmet) and outcome.doubtful:
            raise StoreUnknown("an earlier attempt may have been written: DynamoDB no longer knows the token")
        return not isinstance(outcome, Unmet)

    async def want(self, shard: int, host: str) -> bool:
        """Write down which host an operator wants a shard on."""
        if shard not in range((await self._opened()).shards):
            return False
        key = lease_key(lease_of(shard))
        if host:
            return await self._update(key, "SET #wanted=:wanted", "attribute_exists(pk)", {"wanted": {"S": host}})
        return await self._update(key, "REMOVE #wanted", "attribute_exists(pk)", {"wanted": None})

    async def close(self) -> None:
        """Let go of the connections."""
        self._closed = True
        await self._client.close()

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _opened(self) -> Layout:
        """Return what the table was made ready for, as it was found when it was first reached."""
        if self._closed:
            raise StoreError("the register is closed")
        await self._client.connect()
        if self._layout is None:
            layout = await read_layout(self._client)
            if layout is None:
                raise StoreError(f"table {self._url.table} is not prepared")
            if not layout.settled:
                raise StoreRefused(f"table {self._url.table} is being made ready for {layout.shards} shards")
            self._layout = layout
            self._client.started = True
        return self._layout

    async def _update(self, key: dict[str, Any], expression: str, condition: str, values: dict[str, dict[str, Any] | None]) -> bool:
        """Change an item under a condition, which may be tried twice. Returns whether it held."""
        await self._opened()
        request = {"TableName": self._url.table, "Key": key, "UpdateExpression": expression, "ConditionExpression": condition}
        return not isinstance(await self._client.call("update_item", request | _words(values), doubt=StoreUnknown), Unmet)

    def _holding(self, shard: int, item: dict[str, Value] | None) -> Holding:
        if item is None:
            raise StoreFailed(f"table {self._url.table}: the lease of shard {shard} is gone: restore it from a backup")
        return holding_in(item, shard)

    def _made_anew(self) -> StoreError:
        return StoreFailed(f"table {self._url.table} was made ready for another number of shards, or just is: start again")


async def read_hosts(client: Client) -> tuple[Host, ...]:
    """Return the hosts that are registered, but for those that cannot be read: their next beat tells them to join anew."""
    hosts: list[Host] = []

    def take(items: msgspec.Raw) -> None:
        for item in _read_items(items):
            try:
                draining = item["draining"].BOOL if "draining" in item else False
                hosts.append(Host(item["sk"].S, item["boot"].S, int(item["beat"].N), item["version"].S, draining))
            except (KeyError, ValueError):
                log.warning("a host in the register cannot be read", extra={"address": item["sk"].S})

    await query_range(client, HOSTS, _FIRST, _LAST, take)
    return tuple(hosts)


def _host_key(address: str) -> dict[str, Any]:
    return {"pk": {"S": HOSTS}, "sk": {"S": address}}


def _words(values: dict[str, dict[str, Any] | None]) -> dict[str, Any]:
    """Return the names and values that an expression uses, all of them by their own names."""
    words: dict[str, Any] = {"ExpressionAttributeNames": {f"#{name}": name for name in values}}
    given = {f":{name}": value for name, value in values.items() if value is not None}
    return words | ({"ExpressionAttributeValues": given} if given else {})
