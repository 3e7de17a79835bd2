"""Looking at a Postgres server as a shard would find it. Nothing is written.

What is asked of the server is asked first, a group of questions at a time; what the answers mean is decided without waiting for anything.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from ipaddress import ip_address
from statistics import median
from typing import Any

from proteus_shards.errors import StoreError
from proteus_shards.store.contract import Durability
from proteus_shards.store.findings import Finding
from proteus_shards.store.postgres import SCHEMA_VERSION
from proteus_shards.store.postgres_errors import Doing
from proteus_shards.store.postgres_register import view_of
from proteus_shards.store.postgres_session import Facts, check_facts, layout_fault, look, query, session
from proteus_shards.store.postgres_url import PostgresUrl
from proteus_shards.store.sharing import cluster_findings

ROUND_TRIPS = 20
ROUND_TRIP_SECONDS_MAX = 0.005  # each commit waits for one
SKEW_SECONDS_MAX = 1.0
SPARE_CONNECTIONS = 2  # for preparing, and for a shard that reopens while its old session still ends


async def examine(url: PostgresUrl) -> AsyncIterator[Finding]:
    """Yield what is worth knowing, until something makes it useless to ask on."""
    try:
        async with session(url, Doing.OPENING) as connection:
            yield Finding("good", f"connected to {url.place}")
            async for finding in _examine(connection, url):
                yield finding
    except StoreError as error:
        yield Finding("fault", str(error), "mend what it says, and run this again")


async def _examine(connection: Any, url: PostgresUrl) -> AsyncIterator[Finding]:
    facts = await look(connection)
    try:
        check_facts(facts)
    except StoreError as error:
        yield Finding("fault", str(error))
        return
    yield Finding("good", f"PostgreSQL {facts.version.split()[0]}, a primary, its names in UTF-8")
    about = await connection.fetchrow(query("examine_session"), url.schema)
    for finding in (*tls_findings(url, about["tls"]), *durability_findings(facts), *upkeep_findings(about)):
        yield finding
    seconds = [await _round_trip(connection) for _ in range(ROUND_TRIPS)]
    yield round_trip_finding(median(seconds))
    yield await _skew(connection)
    shards = 0
    prepared = await connection.fetchval(query("has_layout"))
    if not prepared:
        yield schema_finding(url, about)
    else:
        missing = {row["name"]: row["missing"] for row in await connection.fetch(query("examine_privileges"))}
        for finding in privilege_findings(url, about["username"], missing):
            yield finding
        layout = None
        if "SELECT" not in missing.get("layout", ""):
            layout = await connection.fetchrow(query("layout"))
            yield layout_finding(layout)
            shards = layout["shards"] if layout else 0
        if "SELECT" not in missing.get("lease", ""):
            leases = await connection.fetchrow(query("examine_leases"))
            for finding in lease_findings(leases["live"], leases["foreign_owners"]):
                yield finding
            if layout and layout["version"] == SCHEMA_VERSION and not missing:
                for finding in cluster_findings(view_of(await connection.fetch(query("look")))[0]):
                    yield finding
    yield room_finding(await connection.fetchval(query("examine_connections")), shards)


async def _round_trip(connection: Any) -> float:
    started = time.monotonic()
    await connection.fetchval("SELECT 1")
    return time.monotonic() - started


async def _skew(connection: Any) -> Finding:
    """Compare the clocks, of three tries by the quickest, which leaves the least doubt."""
    tries: list[tuple[float, float]] = []
    for _ in range(3):
        before = time.time()
        theirs = (await connection.fetchval(query("clock"))).timestamp()
        after = time.time()
        tries.append((after - before, theirs - (before + after) / 2))
    took, skew = min(tries)
    return skew_finding(skew, took / 2)


def tls_findings(url: PostgresUrl, version: str) -> Iterator[Finding]:
    """Say whether the way to the server is private, and the server known."""
    if all(_is_near(host) for host, _ in url.hosts):
        yield Finding("good", f"the server is on this machine{f', reached by {version}' if version else ''}")
    elif not version:
        yield Finding(
            "warning",
            "passwords and jobs cross the network in the clear",
            "turn TLS on at the server, and add sslmode=verify-full to the URL",
        )
    elif dict(url.tls)["sslmode"] != "verify-full":
        remedy = "add sslmode=verify-full, and sslrootcert=FILE if its authority is not a public one, to the URL"
        yield Finding("warning", f"the connection uses {version}, but the server's name is not verified", remedy)
    else:
        yield Finding("good", f"the connection uses {version}, and the server's certificate is verified")


def durability_findings(facts: Facts) -> Iterator[Finding]:
    """Say what an acknowledged job survives, and which setting keeps it from surviving more."""
    settings = {"fsync": facts.fsync, "full_page_writes": facts.full_page_writes}
    yield Finding("good" if facts.durability.covers(Durability.MACHINE) else "warning", f"durability: {facts.durability} ({facts.terms})")
    for name, value in settings.items():
        if value == "off":
            yield Finding(
                "warning",
                f"{name}=off: a loss of power may damage the whole database",
                f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();",
            )
    if facts.synchronous_commit == "off":
        yield Finding(
            "warning",
            "synchronous_commit=off: a crash of the server loses the last jobs that were accepted",
            "take synchronous_commit=off out of the URL",
        )
    if facts.data_sync_retry == "on":
        yield Finding(
            "warning",
            "data_sync_retry=on: a failed fsync may be taken for one that succeeded",
            "set data_sync_retry = off, and restart the server",
        )
    if facts.standbys.strip() and facts.synchronous_commit in {"local", "remote_write"}:
        yield Finding(
            "note",
            f"synchronous_commit={facts.synchronous_commit} does not wait until a standby has written",
            "leave synchronous_commit at on",
        )


def upkeep_findings(about: Mapping[str, Any]) -> Iterator[Finding]:
    """Say what keeps the table from being cleaned."""
    if not about["autovacuum"]:
        yield Finding(
            "warning",
            "autovacuum is off: the table of jobs will only ever grow",
            "ALTER SYSTEM SET autovacuum = on; SELECT pg_reload_conf();",
        )
    if count := about["old_transactions"]:
        what = f"{count} transactions have been open for more than 10 minutes: finished jobs cannot be cleaned away meanwhile"
        yield Finding(
            "warning", what, "look for them in pg_stat_activity by xact_start; idle_in_transaction_session_timeout ends idle ones"
        )


def round_trip_finding(seconds: float) -> Finding:
    """Say how far away the server is."""
    what = f"a round trip takes {seconds * 1000:.2f} ms"
    if seconds <= ROUND_TRIP_SECONDS_MAX:
        return Finding("good", what)
    return Finding("warning", f"{what}, and each commit waits for one", "run the server nearer to its database")


def skew_finding(skew: float, doubt: float) -> Finding:
    """Say how far the clocks are apart, give or take `doubt` seconds."""
    if abs(skew) - doubt <= SKEW_SECONDS_MAX:
        return Finding("good", f"the clocks agree within {max(abs(skew) - doubt, 0) + doubt:.3f} s")
    what = f"the server's clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    return Finding("warning", f"{what}; no decision rests on it, but times in logs will not match", "let both keep time by NTP")


def schema_finding(url: PostgresUrl, about: Mapping[str, Any]) -> Finding:
    """Say whether the schema can be made, or why it cannot be seen."""
    schema, user = _quoted(url.schema), _quoted(about["username"])
    if about["has_schema"] and not about["may_use_schema"]:
        return Finding("fault", f"user {user} may not use the schema {schema}", f"GRANT USAGE ON SCHEMA {schema} TO {user};")
    if about["has_schema"] and not about["may_create_tables"]:
        what = f"the schema {schema} has no tables, and user {user} may not create any"
        return Finding("fault", what, f"GRANT CREATE ON SCHEMA {schema} TO {user};")
    if not about["has_schema"] and not about["may_create_schema"]:
        return Finding(
            "fault", f"there is no schema {schema}, and user {user} may not create it", f"CREATE SCHEMA {schema} AUTHORIZATION {user};"
        )
    return Finding("note", f"the schema {schema} is not prepared yet: the first start of the server does it")


def privilege_findings(url: PostgresUrl, user: str, missing: Mapping[str, str]) -> Iterator[Finding]:
    """Say which privileges are missing, and the statement that gives them."""
    for table, privileges in missing.items():
        remedy = f"GRANT {privileges} ON {_quoted(url.schema)}.{table} TO {_quoted(user)};"
        yield Finding("fault", f"user {_quoted(user)} lacks {privileges} on the table {table}", remedy)
    if not missing:
        yield Finding("good", f"user {_quoted(user)} may do all that is needed")


def layout_finding(layout: Mapping[str, Any] | None) -> Finding:
    """Say what the schema was made ready for."""
    if layout is None:
        return Finding("fault", "the table layout is empty", "restore it from a backup, or drop the schema if it holds no jobs")
    if (fault := layout_fault(layout["version"], SCHEMA_VERSION)) is not None:
        return Finding("fault" if layout["version"] > SCHEMA_VERSION else "note", str(fault))
    return Finding("good", f"the schema has version {SCHEMA_VERSION}, for {layout['shards']} shards")


def lease_findings(live: int, foreign_owners: int) -> Iterator[Finding]:
    """Say who works there now."""
    yield Finding("note", f"{live} shards are connected just now" if live else "no shard is connected just now")
    if foreign_owners:
        what = f"{foreign_owners} of them log in as users whose sessions this one may not end, should they be stuck while it takes over"
        yield Finding("warning", what, "use one user for all, or GRANT pg_signal_backend")


def room_finding(room: int, shards: int) -> Finding:
    """Say whether there are connections enough."""
    what = f"the server has room for {max(room, 0)} more connections"
    if room >= shards + SPARE_CONNECTIONS:
        return Finding("good", what)
    return Finding(
        "warning",
        f"{what}; a start needs one a shard and {SPARE_CONNECTIONS} more",
        "raise max_connections, or the limit of the user or database",
    )


def _is_near(host: str) -> bool:
    if host.startswith("/") or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
