"""What doctor says of a table of DynamoDB."""

from __future__ import annotations

import pytest

from proteus_shards.store.dynamodb_doctor import examine, round_trip_finding, skew_finding, way_findings
from proteus_shards.store.findings import Finding
from tests.servers.strict_dynamodb import StrictServer
from tests.store.dynamodb_backing import DynamodbBacking
from tests.store.rows import in_asyncio

pytest_plugins = ["tests.servers.dynamodb_fixtures"]


@pytest.fixture
def double(strict_dynamodb: StrictServer) -> StrictServer:
    """Return the double, with no faults."""
    strict_dynamodb.release()
    strict_dynamodb.ask(reset=True)
    return strict_dynamodb


async def findings(backing: DynamodbBacking) -> list[Finding]:
    """Return all findings."""
    return [finding async for finding in examine(backing.url)]


@in_asyncio
async def test_a_good_table_has_no_fault_and_nothing_is_written(double: StrictServer) -> None:
    """What is worth knowing are notes: backups, protection, cost."""
    backing = DynamodbBacking(double)
    await backing.prepare(2)
    double.ask(reset=True)
    found = await findings(backing)
    told = "\n".join(finding.what for finding in found)

    assert {finding.level for finding in found} == {"good", "note"}
    assert all(part in told for part in ("is ready for 2 shards", "point-in-time recovery is off", "no deletion protection", "6.06 to 12"))
    assert double.ask()["write_units"] == 0


@in_asyncio
async def test_a_table_that_is_not_there_is_a_fault_only_with_create_no(double: StrictServer) -> None:
    """Else the first start makes it. None is made by looking."""
    for create, level in (("yes", "note"), ("no", "fault")):
        found = await findings(DynamodbBacking(double, prepared=False, create=create))
        assert (found[-1].level, "there is no table" in found[-1].what) == (level, True)
        assert "start the server once" in found[-1].remedy

    assert "CreateTable" not in double.ask()["calls"]


@pytest.mark.parametrize(("operation", "action"), [("DescribeTable", "DescribeTable"), ("GetItem", "GetItem"), ("Query", "Query")])
@in_asyncio
async def test_a_missing_right_is_a_fault_with_the_policy_that_gives_it(double: StrictServer, operation: str, action: str) -> None:
    """The action, the region and the table are named; nothing that the service said is repeated."""
    backing = DynamodbBacking(double)
    await backing.prepare(1)
    double.fault(operation, "refuse", code="AccessDeniedException")
    last = (await findings(backing))[-1]

    assert last.level == "fault"
    assert last.what.startswith(f"dynamodb:{action} failed")
    assert '"dynamodb:ConditionCheckItem"' in last.remedy
    assert f"arn:aws:dynamodb:us-east-1:ACCOUNT:table/{backing.table}" in last.remedy
    assert "secret" not in last.what + last.remedy


@in_asyncio
async def test_little_provisioned_throughput_is_a_warning(double: StrictServer) -> None:
    """Told in jobs a second."""
    backing = DynamodbBacking(double, billing="provisioned", read_units="5", write_units="12")
    await backing.prepare(1)
    (warning,) = [finding for finding in await findings(backing) if finding.level == "warning"]

    assert "12 write units a second are about 2 jobs a second" in warning.what


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (round_trip_finding(0.005), "good"),
        (round_trip_finding(0.2), "warning"),
        (skew_finding(-2.0), "good"),
        (skew_finding(90.0), "warning"),
        (skew_finding(-90.0), "warning"),
        (list(way_findings("eu-west-1", "https://dynamodb.eu-west-1.amazonaws.com"))[-1], "good"),
        (list(way_findings("eu-west-1", "http://127.0.0.1:8000"))[-1], "good"),
        (list(way_findings("eu-west-1", "http://db.example:8000"))[-1], "warning"),
    ],
)
def test_a_finding_is_as_grave_as_its_fact(finding: Finding, level: str) -> None:
    """And comes with a remedy unless it is good."""
    assert finding.level == level
    assert bool(finding.remedy) == (level != "good")
