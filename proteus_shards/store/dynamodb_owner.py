"""Who may write: the layout of a table, and the lease of each shard. Every write of these two is conditional; none of them is ever deleted.

`layout` says for how many shards the table was made ready, and `settled`, whether that is done. `lease#NNNN` holds the epoch of a shard and
who took it, a name drawn anew by every store object, so that one who asks again can tell its own lost answer from another's success.

**Taking an epoch** is a transaction: the layout is settled for our number of shards, and the lease goes from the epoch that was read to the next.
A transaction of the previous owner that is under way conflicts with it, as it checks the same lease: one of the two is cancelled. So once the new
epoch is there, a batch of the old one has been written or never will be, however late it is sent or answered.

**Holdings** of a cluster of servers are in the same items, so that a claim is two more conditions of that transaction: nobody takes an epoch once the shard
was handed to another host. An absent attribute is nobody, and turn 0.

**Reopening** takes the next epoch only from our own. Where another has taken over meanwhile, this process was replaced, and ends: it must not take back
what its successor has.
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from proteus_shards.cluster.model import Claim, Holding
from proteus_shards.errors import StoreError, StoreFenced, StoreRefused
from proteus_shards.store.dynamodb_client import Client, Unmet, answered

LAYOUT_VERSION = 2  # which added extras and records; what version 1 wrote has none, and is otherwise the same
TAKE_ATTEMPTS_MAX = 20

LAYOUT_KEY = {"pk": {"S": "layout"}, "sk": {"S": "layout"}}


class Layout(msgspec.Struct, frozen=True):
    """For how many shards a table is ready."""

    version: int
    shards: int
    settled: bool
    turn: int  # goes up with each change
    leases: int  # how many there are


class Lease(msgspec.Struct, frozen=True):
    """The epoch of a shard, and who took it."""

    epoch: int
    owner: str


class Value(msgspec.Struct):
    """A value of an attribute, as far as these items have such."""

    S: str = ""
    N: str = ""
    BOOL: bool = False


class _Got(msgspec.Struct):
    item: dict[str, Value] | None = msgspec.field(name="Item", default=None)


_read_got = msgspec.json.Decoder(_Got).decode


def lease_key(name: str) -> dict[str, Any]:
    """Return the key of a lease."""
    return {"pk": {"S": name}, "sk": {"S": "lease"}}


def lease_of(shard: int) -> str:
    """Return the name of a shard's lease."""
    return f"lease#{shard:04d}"


def owner_name() -> str:
    """Return a name that no other owner has."""
    return uuid.uuid4().hex


async def read_layout(client: Client, foreseen: str = "") -> Layout | None:
    """Return the layout of the table, or None where there is none. It may be of an older version. Raises `StoreError` where it is of a newer one."""
    item = await _get(client, LAYOUT_KEY, foreseen)
    if item is None:
        return None
    layout = layout_in(item)
    if not 0 < layout.version <= LAYOUT_VERSION:
        raise StoreError(
            f"table {client.url.table} was written by a newer version (layout {layout.version}, this one knows {LAYOUT_VERSION})"
        )
    return layout


def layout_in(item: dict[str, Value]) -> Layout:
    """Return what an item says of the layout. Raises `StoreError`."""
    settled = item["settled"].BOOL if "settled" in item else False
    return Layout(_number(item, "version"), _number(item, "shards"), settled, _number(item, "turn"), _number(item, "leases"))


async def write_layout(client: Client, layout: Layout, before: Layout | None) -> bool:
    """Change the layout from what it was before. Returns False where it is something else by now."""
    request: dict[str, Any] = {
        "TableName": client.url.table,
        "Item": {
            **LAYOUT_KEY,
            "version": {"N": str(layout.version)},
            "shards": {"N": str(layout.shards)},
            "settled": {"BOOL": layout.settled},
            "turn": {"N": str(layout.turn)},
            "leases": {"N": str(layout.leases)},
        },
        "ConditionExpression": "attribute_not_exists(pk)",
    }
    if before is not None:
        request["ConditionExpression"] = "turn = :turn AND settled = :settled"
        request["ExpressionAttributeValues"] = {":turn": {"N": str(before.turn)}, ":settled": {"BOOL": before.settled}}
    outcome = await client.call("put_item", request)
    return not isinstance(outcome, Unmet) or (outcome.doubtful and await read_layout(client) == layout)


async def raise_epoch(client: Client, layout: Layout, shard: int, top: int) -> bool:
    """Fence whoever holds a shard's lease: its epoch becomes `top`, unless it is as high already, and no host holds it. Returns False where the layout is no longer the one given.

    A transaction for each lease: one for many would conflict with any commit of any owner that is still at work.
    """
    name = lease_of(shard)
    while (now := await read_lease(client, name)).epoch < top:
        update = _lease_update(client, name, now, Lease(top, "nobody"))
        update["Update"]["UpdateExpression"] += " REMOVE #host, #wanted"
        update["Update"]["ExpressionAttributeNames"] |= {"#host": "host", "#wanted": "wanted"}
        check = layout_check(client, "turn = :turn AND settled = :settled", {":turn": {"N": str(layout.turn)}, ":settled": {"BOOL": False}})
        outcome = await client.call("transact_write_items", transaction([update, check]))
        if isinstance(outcome, Unmet) and outcome.at(-1):
            return False
    return True


async def take_lease(client: Client, name: str, owner: str, shards: int | None, mine: Lease | None, claim: Claim | None = None) -> Lease:
    """Take the next epoch of a lease. `shards`: what the layout must be settled for, None for a trial. `mine`: what we had, None at the first time.

    Raises `StoreFenced` where the lease is no longer ours, or not that of the claim, and `StoreError` where the table is not ready for this number of shards.
    """
    for _ in range(TAKE_ATTEMPTS_MAX):
        item = await _get(client, lease_key(name))
        now = _lease_in(item)
        if claim is not None and (item is None or _holder_in(item) != (claim.host, claim.turn)):
            raise StoreFenced(f"{name} belongs to another host by now, or to this one in another turn")
        if now.owner == owner and (mine is None or now.epoch > mine.epoch):
            return now  # an attempt whose answer was lost
        if mine is not None and now != mine:
            raise StoreFenced(f"the lease is at epoch {now.epoch}, this process has {mine.epoch}: another has taken over")
        taken = Lease(now.epoch + 1, owner)
        actions = [_lease_update(client, name, now, taken, claim)]
        if shards is not None:
            values = {":version": {"N": str(LAYOUT_VERSION)}, ":shards": {"N": str(shards)}, ":settled": {"BOOL": True}}
            actions.append(layout_check(client, "version = :version AND shards = :shards AND settled = :settled", values))
        outcome = await client.call("transact_write_items", transaction(actions))
        if not isinstance(outcome, Unmet):
            return taken
        if not outcome.at(0) and outcome.at(-1):
            raise StoreError(
                f"table {client.url.table} is not ready for {shards} shards of this version: another number or version was started; start again"
            )
    raise StoreRefused("other processes take this lease again and again")


async def read_lease(client: Client, name: str) -> Lease:
    """Return who holds a lease; epoch 0 where nobody ever did."""
    return _lease_in(await _get(client, lease_key(name)))


async def read_holding(client: Client, shard: int) -> Holding | None:
    """Return who holds a shard, if there is such a shard."""
    item = await _get(client, lease_key(lease_of(shard)))
    return None if item is None else holding_in(item, shard)


def holding_in(item: dict[str, Value], shard: int) -> Holding:
    """Return the holding that a lease's item tells. Raises `StoreError`."""
    host, turn = _holder_in(item)
    return Holding(shard, host, turn, _number(item, "epoch"), _text(item, "wanted"))


def lease_check(table: str, name: str, lease: Lease) -> dict[str, Any]:
    """Return the action of a transaction that lets it pass only while a lease is held."""
    return {
        "ConditionCheck": {
            "TableName": table,
            "Key": lease_key(name),
            "ConditionExpression": "epoch = :epoch AND #owner = :owner",
            "ExpressionAttributeNames": {"#owner": "owner"},
            "ExpressionAttributeValues": {":epoch": {"N": str(lease.epoch)}, ":owner": {"S": lease.owner}},
        }
    }


def transaction(actions: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a transaction with a token of its own: sent twice, it is done once."""
    return {"TransactItems": actions, "ClientRequestToken": str(uuid.uuid4())}


def _lease_in(item: dict[str, Value] | None) -> Lease:
    return Lease(0, "") if item is None else Lease(_number(item, "epoch"), _text(item, "owner"))


def _holder_in(item: dict[str, Value]) -> tuple[str, int]:
    return _text(item, "host"), _number(item, "turn") if "turn" in item else 0


def _lease_update(client: Client, name: str, now: Lease, then: Lease, claim: Claim | None = None) -> dict[str, Any]:
    """Return the action that changes a lease from what it is now, and only while it is that of the claim."""
    update: dict[str, Any] = {
        "TableName": client.url.table,
        "Key": lease_key(name),
        "UpdateExpression": "SET epoch = :then, #owner = :owner",
        "ConditionExpression": "attribute_not_exists(pk)",
        "ExpressionAttributeNames": {"#owner": "owner"},
        "ExpressionAttributeValues": {":then": {"N": str(then.epoch)}, ":owner": {"S": then.owner}},
    }
    if now.epoch:
        update["ConditionExpression"] = "epoch = :now"
        update["ExpressionAttributeValues"][":now"] = {"N": str(now.epoch)}
    if claim is not None:
        update["ConditionExpression"] += " AND #host = :host AND #turn = :turn"
        update["ExpressionAttributeNames"] |= {"#host": "host", "#turn": "turn"}
        update["ExpressionAttributeValues"] |= {":host": {"S": claim.host}, ":turn": {"N": str(claim.turn)}}
    return {"Update": update}


def layout_check(client: Client, condition: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the action of a transaction that lets it pass only while a condition of the layout holds."""
    return {
        "ConditionCheck": {
            "TableName": client.url.table,
            "Key": LAYOUT_KEY,
            "ConditionExpression": condition,
            "ExpressionAttributeValues": values,
        }
    }


async def _get(client: Client, key: dict[str, Any], foreseen: str = "") -> dict[str, Value] | None:
    request = {"TableName": client.url.table, "Key": key, "ConsistentRead": True}
    outcome = await client.call("get_item", request, foreseen=foreseen)
    if isinstance(outcome, Unmet) and foreseen:
        return None
    return _read_got(answered(outcome)).item


def _text(item: dict[str, Value], name: str) -> str:
    return item[name].S if name in item else ""


def _number(item: dict[str, Value], name: str) -> int:
    try:
        return int(item[name].N)
    except (KeyError, ValueError) as error:
        raise StoreError(f"an item of the table that says who may write has no number {name}: restore it from a backup") from error
