"""What the doctor says of a Postgres server: of a real one, and of answers that a real one here would not give."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import uuid4

import msgspec
import pytest

from proteus_shards.store import postgres_doctor as doctor
from proteus_shards.store.findings import Finding
from proteus_shards.store.postgres import SCHEMA_VERSION, store_of_shard
from proteus_shards.store.postgres_doctor import examine
from proteus_shards.store.postgres_prepare import prepare
from proteus_shards.store.postgres_session import Facts
from tests.servers.postgres import PostgresPlace
from tests.store.postgres_backing import execute, postgres_url
from tests.store.rows import in_asyncio, opened

FACTS = Facts("18.6", 180006, "UTF8", "on", "on", "on", "off", "", standby=False, timeline="00000001")
URL = postgres_url("postgres://u@db.example/d")


def levels_of(findings: Iterable[Finding]) -> dict[str, int]:
    """Return how many findings of each level there are."""
    levels = [finding.level for finding in findings]
    return {level: levels.count(level) for level in levels}


@in_asyncio
async def test_a_good_server_has_no_fault_and_nothing_is_written(postgres_server: PostgresPlace) -> None:
    """Before it was prepared, after, and while a shard is connected."""
    url = postgres_url(postgres_server.url(f"test {uuid4()}"))
    fresh = [finding async for finding in examine(url)]
    assert await execute(url, "SELECT FROM pg_namespace WHERE nspname = $1", url.schema) == []
    await prepare(url, 2)
    async with opened(store_of_shard(url, 0, 2)) as store:
        before = await execute(url, "SELECT xmin, * FROM lease")
        ready = [finding async for finding in examine(url)]
        assert await execute(url, "SELECT xmin, * FROM lease") == before
        assert store.durability == "machine"

    assert not {"fault"} & {*levels_of(fresh), *levels_of(ready)}
    assert "is not prepared yet" in " ".join(finding.what for finding in fresh)
    told = " ".join(finding.what for finding in ready)
    for expected in (
        "PostgreSQL 1",
        "durability: machine",
        f"version {SCHEMA_VERSION}, for 2 shards",
        "1 shards are connected",
        "may do all",
        "round trip",
        "clocks",
    ):
        assert expected in told


@in_asyncio
async def test_a_server_that_is_not_there_is_one_fault() -> None:
    """It names no secret."""
    found = [finding async for finding in examine(postgres_url("postgres://u:geheim-17@127.0.0.1:1/d"))]

    assert [finding.level for finding in found] == ["fault"]
    assert "geheim" not in str(found)


@in_asyncio
async def test_a_newer_schema_is_a_fault(postgres_server: PostgresPlace) -> None:
    """As it would be at start."""
    url = postgres_url(postgres_server.url(f"test {uuid4()}"))
    await prepare(url, 1)
    await execute(url, "UPDATE layout SET version = 9")

    assert ["newer version" in finding.what async for finding in examine(url) if finding.level == "fault"] == [True]


@pytest.mark.parametrize(
    ("host", "sslmode", "version", "level"),
    [
        ("127.0.0.1", "prefer", "", "good"),
        ("[::1]", "prefer", "", "good"),
        ("localhost", "prefer", "TLSv1.3", "good"),
        ("%2Frun", "prefer", "", "good"),
        ("db.example", "prefer", "", "warning"),
        ("127.0.0.1,db.example", "prefer", "", "warning"),
        ("db.example", "require", "TLSv1.3", "warning"),
        ("db.example", "verify-full", "TLSv1.3", "good"),
    ],
)
def test_the_network_is_trusted_only_with_a_verified_name(host: str, sslmode: str, version: str, level: str) -> None:
    """A server on this machine needs none."""
    (finding,) = doctor.tls_findings(postgres_url(f"postgres://{host}?sslmode={sslmode}"), version)

    assert finding.level == level
    assert bool(finding.remedy) == (level != "good")


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({}, {"good": 1}),
        ({"fsync": "off"}, {"warning": 2}),
        ({"full_page_writes": "off"}, {"warning": 2}),
        ({"synchronous_commit": "off"}, {"warning": 2}),
        ({"data_sync_retry": "on"}, {"warning": 2}),
        ({"standbys": "*"}, {"good": 1}),
        ({"standbys": "*", "synchronous_commit": "local"}, {"good": 1, "note": 1}),
    ],
)
def test_each_setting_that_weakens_has_its_remedy(changes: dict[str, str], levels: dict[str, int]) -> None:
    """The class comes first, then what it comes from."""
    found = list(doctor.durability_findings(msgspec.structs.replace(FACTS, **changes)))

    assert levels_of(found) == levels
    assert all(finding.remedy for finding in found[1:])


def test_the_other_answers_have_their_levels() -> None:
    """Good where nothing need be done."""
    about = {"username": "u", "has_schema": True, "may_use_schema": True, "may_create_tables": True, "may_create_schema": True}

    assert [] == list(doctor.upkeep_findings({"autovacuum": True, "old_transactions": 0}))
    assert {"warning": 2} == levels_of(doctor.upkeep_findings({"autovacuum": False, "old_transactions": 3}))
    assert ["good", "warning"] == [doctor.round_trip_finding(seconds).level for seconds in (0.001, 0.02)]
    assert ["good", "good", "warning", "warning"] == [
        doctor.skew_finding(*case).level for case in ((0.1, 0.0), (3.0, 2.5), (3.0, 0.1), (-3.0, 0.1))
    ]
    assert ["good", "warning", "warning"] == [doctor.room_finding(room, 4).level for room in (6, 5, -1)]
    assert ["fault", "note", "good"] == [
        doctor.layout_finding(layout).level for layout in (None, {"version": 1, "shards": 2}, {"version": SCHEMA_VERSION, "shards": 2})
    ]
    assert ["note"] == [finding.level for finding in doctor.lease_findings(0, 0)]
    assert ["note", "warning"] == [finding.level for finding in doctor.lease_findings(2, 1)]
    assert doctor.schema_finding(URL, about).level == "note"
    for missing in ("may_use_schema", "may_create_tables"):
        assert doctor.schema_finding(URL, about | {missing: False}).level == "fault"
    assert doctor.schema_finding(URL, about | {"has_schema": False, "may_create_schema": False}).level == "fault"
