"""Looking at a table of DynamoDB as a shard would find it. Nothing is written.

What is asked of the service is asked first; what the answers mean is decided without waiting for anything.

**Cost.** A transaction is charged two write units for each kilobyte, begun, of each of its items, and two for the check of the epoch. So a job of up to
a kilobyte costs two units when it is enqueued, two when it is delivered, two when it is completed, and its share of three checks: 12 units where each
request is a commit of its own, 6.06 where commits are full. (Measured on a double that counts as AWS documents it, 10,000 jobs of 110 bytes, 64 clients
at once, 3 shards: 0.31 requests and 6.6 units a job.) The price is an assumption, named as such.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from email.utils import parsedate_to_datetime
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import msgspec

from proteus_shards.errors import StoreError
from proteus_shards.store.dynamodb_client import Client, answered
from proteus_shards.store.dynamodb_owner import LAYOUT_VERSION, Layout, read_layout
from proteus_shards.store.dynamodb_prepare import Table, describe
from proteus_shards.store.dynamodb_register import DynamodbRegister
from proteus_shards.store.dynamodb_rows import BATCH_ROWS_MAX, partition
from proteus_shards.store.dynamodb_url import DynamodbUrl
from proteus_shards.store.findings import Finding
from proteus_shards.store.sharing import cluster_findings

ROUND_TRIPS = 10
ROUND_TRIP_SECONDS_MAX = 0.02
SKEW_SECONDS_MAX = 5.0  # AWS refuses a signature that is 15 minutes off; the header that tells the time has whole seconds
DOLLARS_PER_MILLION_UNITS = 0.625  # on demand, us-east-1, list price since November 2024
UNITS_OF_JOB = 6
COMMITS_OF_JOB = 3
UNITS_OF_CHECK = 2

ACTIONS = ("DescribeTable", "GetItem", "BatchGetItem", "Query", "PutItem", "UpdateItem", "DeleteItem", "ConditionCheckItem")
ACTION_OF_CREATE = "CreateTable"

_POLICY = 'an IAM policy with {{"Effect": "Allow", "Action": [{actions}], "Resource": "arn:aws:dynamodb:{region}:ACCOUNT:table/{table}"}} gives all that is needed'


async def examine(url: DynamodbUrl) -> AsyncIterator[Finding]:
    """Yield what is worth knowing, until something makes it useless to ask on."""
    client = Client(url)
    try:
        await client.connect()
        async for finding in _examine(client):
            yield finding
    except StoreError as error:
        yield Finding("fault", str(error), "see to what it says, and run this again")
    finally:
        await client.close()


async def _examine(client: Client) -> AsyncIterator[Finding]:
    for finding in way_findings(client.region, client.endpoint):
        yield finding
    try:
        table = await describe(client)
    except StoreError as error:
        yield denied_finding(client, "DescribeTable", error)
        return
    yield table_finding(client, table)
    if table is None or table.fault() is not None:
        return
    for finding in billing_findings(table):
        yield finding
    yield await _backups(client)
    for action in ("GetItem", "BatchGetItem", "Query"):
        try:
            await _try(client, action)
        except StoreError as error:
            yield denied_finding(client, action, error)
            return
    layout = await read_layout(client)
    yield layout_finding(layout, client.url.table)
    if layout is not None and layout.settled:
        async for finding in _hosts(client.url):
            yield finding
    seconds = [await _round_trip(client) for _ in range(ROUND_TRIPS)]
    yield round_trip_finding(median(seconds))
    if client.answered_at is not None:
        yield skew_finding(parsedate_to_datetime(client.answered_at).timestamp() - time.time())
    yield cost_finding(table)


async def _hosts(url: DynamodbUrl) -> AsyncIterator[Finding]:
    """Say which hosts share the table, if any do."""
    register = DynamodbRegister(url)
    try:
        for finding in cluster_findings(await register.look()):
            yield finding
    except StoreError as error:
        yield Finding("fault", str(error))
    finally:
        await register.close()


async def _try(client: Client, action: str) -> None:
    """Make a call that reads something that need not be there."""
    table = client.url.table
    key = {"pk": {"S": "doctor"}, "sk": {"S": "doctor"}}
    requests: dict[str, tuple[str, dict[str, Any]]] = {
        "GetItem": ("get_item", {"TableName": table, "Key": key, "ConsistentRead": True}),
        "BatchGetItem": ("batch_get_item", {"RequestItems": {table: {"Keys": [key], "ConsistentRead": True}}}),
        "Query": (
            "query",
            {
                "TableName": table,
                "ConsistentRead": True,
                "Limit": 1,
                "KeyConditionExpression": "pk = :pk AND sk BETWEEN :low AND :high",
                "ExpressionAttributeValues": {":pk": {"S": partition("rows", 0)}, ":low": {"S": "0"}, ":high": {"S": "1"}},
            },
        ),
    }
    operation, request = requests[action]
    answered(await client.call(operation, request))


async def _round_trip(client: Client) -> float:
    started = time.monotonic()
    await _try(client, "GetItem")
    return time.monotonic() - started


async def _backups(client: Client) -> Finding:
    """Ask for point-in-time recovery, which the server itself has no need of."""
    try:
        answer = msgspec.json.decode(answered(await client.call("describe_continuous_backups", {"TableName": client.url.table})))
        status = answer["ContinuousBackupsDescription"]["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"]
    except (StoreError, KeyError, TypeError):
        return Finding("note", "whether point-in-time recovery is on could not be asked (dynamodb:DescribeContinuousBackups)")
    if status == "ENABLED":
        return Finding("good", "point-in-time recovery is on")
    remedy = (
        f"aws dynamodb update-continuous-backups --table-name {client.url.table} "
        "--point-in-time-recovery-specification PointInTimeRecoveryEnabled=true"
    )
    return Finding("note", "point-in-time recovery is off: what is deleted by mistake is gone", remedy)


def way_findings(region: str, endpoint: str) -> Iterator[Finding]:
    """Say where it is, and whether the way is private."""
    parts = urlsplit(endpoint)
    yield Finding("good", f"region {region}, endpoint {endpoint}")
    if parts.scheme == "http" and parts.hostname not in {"127.0.0.1", "localhost", "::1"}:
        yield Finding("warning", "jobs cross the network in the clear", "use an endpoint that begins with https://")


def denied_finding(client: Client, action: str, error: StoreError) -> Finding:
    """Say what could not be done, and where that is for lack of rights, the policy that gives them."""
    actions = [*ACTIONS, ACTION_OF_CREATE] if client.url.create else ACTIONS
    policy = _POLICY.format(actions=", ".join(f'"dynamodb:{each}"' for each in actions), region=client.region, table=client.url.table)
    lacks_rights = "AccessDenied" in str(error)
    return Finding("fault", f"dynamodb:{action} failed: {error}", policy if lacks_rights else "see to what it says, and run this again")


def table_finding(client: Client, table: Table | None) -> Finding:
    """Say whether the table is there, active, and ours."""
    name = client.url.table
    if table is None:
        what = f"there is no table {name} in {client.region}"
        if client.url.create:
            return Finding("note", what, "start the server once: it makes the table")
        return Finding("fault", what, "take create=no out of the URL and start the server once")
    if (fault := table.fault()) is not None:
        return Finding("fault", f"table {name} cannot be used: {fault}", "name another table in the URL")
    if table.status not in {"ACTIVE", "UPDATING"}:
        return Finding("warning", f"table {name} is {table.status}", "wait until it is ACTIVE")
    return Finding("good", f"table {name} is {table.status}, its keys are as they should be")


def billing_findings(table: Table) -> Iterator[Finding]:
    """Say how it is paid for, where else it is, and whether it can be deleted by mistake."""
    if table.on_demand:
        yield Finding("good", "billing is on demand")
    else:
        units = int(table.throughput.get("WriteCapacityUnits", 0))
        yield Finding(
            "warning" if units < 100 else "note",
            f"billing is provisioned: {units} write units a second are about {units // UNITS_OF_JOB} jobs a second of up to a kilobyte, "
            "enqueued, delivered and completed; beyond that requests get 429",
            "let it scale by itself, or switch the table to on-demand billing" if units < 100 else "",
        )
    if table.replicas:
        what = "the table has replicas in other regions, and what keeps two owners apart holds within one region only"
        yield Finding("warning", what, "run servers in one region; let another take over only when this one has ended")
    if not table.protected:
        yield Finding(
            "note", "the table has no deletion protection", "aws dynamodb update-table --deletion-protection-enabled --table-name …"
        )


def layout_finding(layout: Layout | None, table: str) -> Finding:
    """Say what the table was made ready for."""
    if layout is None:
        return Finding("note", f"table {table} is not prepared yet: the first start of the server does it")
    if not layout.settled:
        return Finding("note", f"table {table} was being made ready for {layout.shards} shards: the next start goes on with it")
    if layout.version < LAYOUT_VERSION:
        remedy = "the next start brings it to this version; the older one cannot use it after that"
        return Finding("note", f"table {table} is ready for {layout.shards} shards of an older version", remedy)
    return Finding("good", f"table {table} is ready for {layout.shards} shards")


def round_trip_finding(seconds: float) -> Finding:
    """Say how far away the service is."""
    what = f"a round trip takes {seconds * 1000:.1f} ms"
    if seconds <= ROUND_TRIP_SECONDS_MAX:
        return Finding("good", what)
    return Finding("warning", f"{what}, and each commit waits for more than one", "run the server in the region of its table")


def skew_finding(skew: float) -> Finding:
    """Say how far the clocks are apart."""
    if abs(skew) <= SKEW_SECONDS_MAX:
        return Finding("good", f"the clocks agree within {SKEW_SECONDS_MAX:.0f} s")
    what = f"the clock of AWS is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    return Finding("warning", f"{what}; 15 minutes apart, every request is refused", "let this machine keep time by NTP")


def cost_finding(table: Table) -> Finding:
    """Say what a million jobs cost, as a formula and in money."""
    alone = UNITS_OF_JOB + COMMITS_OF_JOB * UNITS_OF_CHECK
    full = UNITS_OF_JOB + COMMITS_OF_JOB * UNITS_OF_CHECK / BATCH_ROWS_MAX
    what = (
        f"a job of up to 1 KB takes {UNITS_OF_JOB} + {COMMITS_OF_JOB * UNITS_OF_CHECK}/n write units where commits hold n jobs (1 to {BATCH_ROWS_MAX}): "
        f"{full:.2f} to {alone}"
    )
    if table.on_demand:
        low, high = full * DOLLARS_PER_MILLION_UNITS, alone * DOLLARS_PER_MILLION_UNITS
        what += f", ${low:.2f} to ${high:.2f} for a million jobs if a million units cost ${DOLLARS_PER_MILLION_UNITS}"
    return Finding("note", what)
