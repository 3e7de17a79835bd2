"""Before any shard starts: make the table, or see that it is one of ours, and settle for how many shards it is.

Rows and records carry their slot in their key, so another number of shards moves nothing; nor does the step from an older version. What must happen is that the owners
of the old layout end:

1. the layout names the new number and this version and is not settled: from now on no shard can take an epoch, of either layout;
2. the epoch of every lease that ever was is raised above all of them (a slot may come to a shard whose own epoch was lower), each in a transaction that checks that the layout is still the one of step 1: the old
   owners can write no more;
3. the layout is settled: shards may open.

**A cluster of servers**: while hosts are registered, the number stays what it is. Step 1 is followed by a look for hosts, and a host that joins checks the layout
in the same transaction: so no host is in a table that is made ready for another number than its own.

After a crash at any moment the same may be done again: a layout that is not settled is taken up where it stands. Each change is made only to what was
read before, so that of two that prepare at once for different numbers one is told so; for the same number both go on.

A table is never deleted, and of a table that is there nothing is changed but items.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from proteus_shards.errors import SettingError, StoreError, StoreRefused
from proteus_shards.store.dynamodb_client import Client, Unmet, run_all
from proteus_shards.store.dynamodb_owner import LAYOUT_VERSION, Layout, Lease, lease_of, raise_epoch, read_layout, read_lease, write_layout
from proteus_shards.store.dynamodb_register import read_hosts
from proteus_shards.store.dynamodb_url import DynamodbUrl
from proteus_shards.store.sharing import check_sharing

# Where a process may be stopped and leave things as no other moment does.
STEPS = ("created", "active", "begun", "fenced", "settled")

POLL_FIRST_SECONDS = 0.05
POLL_MAX_SECONDS = 1.0
ATTEMPTS_MAX = 10

Step: TypeAlias = Callable[[str], None]

_KEYS = {("pk", "HASH", "S"), ("sk", "RANGE", "S")}
_MISSING = "ResourceNotFoundException"


class Table(msgspec.Struct, frozen=True):
    """What a table is, as far as it concerns us."""

    status: str = msgspec.field(name="TableStatus", default="")
    keys: list[dict[str, str]] = msgspec.field(name="KeySchema", default_factory=list)
    types: list[dict[str, str]] = msgspec.field(name="AttributeDefinitions", default_factory=list)
    billing: dict[str, Any] = msgspec.field(name="BillingModeSummary", default_factory=dict)
    throughput: dict[str, Any] = msgspec.field(name="ProvisionedThroughput", default_factory=dict)
    replicas: list[dict[str, Any]] = msgspec.field(name="Replicas", default_factory=list)
    protected: bool = msgspec.field(name="DeletionProtectionEnabled", default=False)

    @property
    def on_demand(self) -> bool:
        """Whether each request is paid for, rather than throughput."""
        return self.billing.get("BillingMode") == "PAY_PER_REQUEST"

    def fault(self) -> str | None:
        """Say why the table is not one of ours, or return None."""
        types = {each.get("AttributeName"): each.get("AttributeType") for each in self.types}
        keys = {(key.get("AttributeName"), key.get("KeyType"), types.get(key.get("AttributeName"))) for key in self.keys}
        if keys != _KEYS:
            return "its keys are not the texts pk (partition) and sk (sort): it was made for something else"
        return None


class _Described(msgspec.Struct):
    table: Table = msgspec.field(name="Table")


async def prepare(url: DynamodbUrl, shards: int, step: Step = lambda _: None, *, cluster: bool = False) -> str | None:
    """Make the table ready for `shards` shards, and say what was changed, if anything was.

    Raises `StoreRefused` while DynamoDB is away, another `StoreError` where someone must see to it first. `step` is called with one of `STEPS` as each
    is reached.
    """
    client = Client(url)
    try:
        await client.connect()
        await _have_table(client, step)
        return await _settle(client, shards, step, cluster=cluster)
    finally:
        await client.close()


async def prepared_shards(url: DynamodbUrl) -> int | None:
    """Return for how many shards the table was last prepared; None: there is no table, or it was never prepared."""
    client = Client(url)
    try:
        await client.connect()
        layout = await read_layout(client, foreseen=_MISSING)
        return None if layout is None else layout.shards
    finally:
        await client.close()


async def describe(client: Client) -> Table | None:
    """Return what the table is, or None where there is none."""
    outcome = await client.call("describe_table", {"TableName": client.url.table}, foreseen=_MISSING)
    return None if isinstance(outcome, Unmet) else msgspec.json.decode(outcome, type=_Described).table


# --- the table -------------------------------------------------------------------------------------------------------


async def _have_table(client: Client, step: Step) -> None:
    """See that the table is there and usable, and make it where that is wanted."""
    table = await describe(client)
    if table is None:
        if not client.url.create:
            raise StoreError(f"there is no table {client.url.table} in {client.region}, and the store's URL says create=no")
        await client.call("create_table", _new_table(client.url), foreseen="ResourceInUseException")  # another start may have been faster
        step("created")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + client.url.create_seconds
    pause = POLL_FIRST_SECONDS
    while table is None or table.status == "CREATING":
        if loop.time() > deadline:
            raise StoreRefused(f"table {client.url.table} is not active after {client.url.create_seconds:g} s (create_timeout)")
        await asyncio.sleep(pause)
        pause = min(2 * pause, POLL_MAX_SECONDS)
        table = await describe(client) or Table("CREATING")  # right after its making it may not be known everywhere
    if table.status not in {"ACTIVE", "UPDATING"}:
        raise StoreError(f"table {client.url.table} is {table.status}, not ACTIVE")
    if (fault := table.fault()) is not None:
        raise StoreError(f"table {client.url.table} cannot be used: {fault}")
    step("active")


def _new_table(url: DynamodbUrl) -> dict[str, Any]:
    request: dict[str, Any] = {
        "TableName": url.table,
        "KeySchema": [{"AttributeName": name, "KeyType": kind} for name, kind, _ in sorted(_KEYS)],
        "AttributeDefinitions": [{"AttributeName": name, "AttributeType": text} for name, _, text in sorted(_KEYS)],
        "BillingMode": "PAY_PER_REQUEST",
    }
    if url.read_units is not None:
        request["BillingMode"] = "PROVISIONED"
        request["ProvisionedThroughput"] = {"ReadCapacityUnits": url.read_units, "WriteCapacityUnits": url.write_units}
    return request


# --- the layout ------------------------------------------------------------------------------------------------------


async def _settle(client: Client, shards: int, step: Step, *, cluster: bool) -> str | None:
    """Bring the layout to this number of shards. Says from what, where it was another."""
    was: int | None = None
    for _ in range(ATTEMPTS_MAX):
        layout = await read_layout(client)
        if layout is not None:
            await _check_hosts(client, layout, shards, cluster=cluster)
        as_wanted = layout is not None and (layout.version, layout.shards) == (LAYOUT_VERSION, shards)
        if layout is not None and as_wanted and layout.settled:
            return f"from {was} to {shards} shards; no row had to move" if was not in {None, shards} else None
        if layout is None or not as_wanted:
            was = layout.shards if layout is not None and was is None else was
            leases = max(shards, layout.leases if layout is not None else 0)
            begun = Layout(LAYOUT_VERSION, shards, settled=False, turn=layout.turn + 1 if layout is not None else 1, leases=leases)
            if not await write_layout(client, begun, layout):
                continue  # someone else was faster: see what it is now
            if layout is not None and layout.settled and layout.shards != shards:
                try:
                    await _check_hosts(client, layout, shards, cluster=cluster)
                except SettingError:  # it joined just before: nothing was fenced yet, and all is as it was
                    await write_layout(client, msgspec.structs.replace(layout, turn=begun.turn), begun)
                    raise
            layout = begun
        step("begun")
        if not await _fence(client, layout, step):
            continue
        settled = msgspec.structs.replace(layout, settled=True)
        if await write_layout(client, settled, layout):
            step("settled")
    raise StoreError(f"table {client.url.table} is being made ready for another number of shards by another start: start only one of them")


async def _check_hosts(client: Client, layout: Layout, shards: int, *, cluster: bool) -> None:
    """Raise `SettingError` where the hosts of a cluster are registered whose table may not be made ready so."""
    check_sharing([host.address for host in await read_hosts(client)], layout.shards, shards, cluster=cluster)


async def _fence(client: Client, layout: Layout, step: Step) -> bool:
    """Raise the epoch of every lease above all that any owner has had. Returns False where the layout was changed meanwhile."""
    leases: list[Lease] = []
    done: list[bool] = []

    async def read(shard: int) -> None:
        leases.append(await read_lease(client, lease_of(shard)))

    async def fence(shard: int, top: int) -> None:
        done.append(await raise_epoch(client, layout, shard, top))
        step("fenced")

    await run_all(read(shard) for shard in range(layout.leases))  # none can be taken while the layout is not settled
    top = 1 + max(lease.epoch for lease in leases)
    await run_all(fence(shard, top) for shard in range(layout.leases))
    return all(done)
