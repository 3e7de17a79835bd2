"""What a look at a Redis store finds.

What needs no more than reading is read. Whether this user may do all that a shard does is found out by doing it, once, under keys of a trial, which go when
it is closed: permissions can be set per command and per key, and no command tells them for a user that lacks them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Iterator

import msgspec

from proteus_shards.core.model import Batch, Kind, Mark, Record, RecordKey, Row, RowKey, Status
from proteus_shards.core.placement import slot_of
from proteus_shards.errors import StoreError, StoreUnknown
from proteus_shards.store.findings import Finding
from proteus_shards.store.redis import RedisStore
from proteus_shards.store.redis_errors import ServerSaid, WireError, fault_of
from proteus_shards.store.redis_place import common_key, read_manifest
from proteus_shards.store.redis_register import RedisRegister
from proteus_shards.store.redis_survey import VERSION_MIN, Survey, look
from proteus_shards.store.redis_url import RedisUrl
from proteus_shards.store.redis_wire import Wire, within
from proteus_shards.store.sharing import cluster_findings

PINGS = 20
COMMITS = 10
PING_MS_SLOW = 5.0
COMMIT_MS_SLOW = 20.0
SKEW_SECONDS_MAX = 5.0
MEMORY_SHARE_MAX = 0.8

COMMANDS = (
    "+info +config|get +ping +time +select +exists +get +set +incr +hget +hset +hdel +hmget +hgetall +hlen +hexists +hstrlen +hscan "
    "+unlink +eval +evalsha +wait +cluster|slots +asking"
)


async def examine(url: RedisUrl) -> AsyncIterator[Finding]:
    """Yield what is worth knowing about the server and what is there of ours."""
    wire = Wire(url)
    try:
        async with within(url.timeout_seconds):
            began = time.perf_counter()
            await wire.connect()
            connected_ms = (time.perf_counter() - began) * 1000
            survey = await look(wire)
        yield Finding("good", f"{survey.product} at {url.where} answers; connecting took {connected_ms:.1f} ms")
        for finding in [*_server(survey, url), *_durability(survey), *_memory(survey, url), *_network(survey, url)]:
            yield finding
        yield await _round_trip(wire, url)
        yield await _clock(wire, url)
        prepared = False
        async for finding in _prepared(wire, url):
            prepared |= finding.level == "good"
            yield finding
    except WireError as error:
        yield _fault(fault_of(error, f"redis {url.where}"), url, missing=isinstance(error, ServerSaid) and error.code == "NOPERM")
        return
    finally:
        await wire.close()
    if survey.role == "master" and not survey.loading:
        if prepared:
            async for finding in _hosts(url):
                yield finding
        async for finding in _trial(url):
            yield finding


def permission_line(url: RedisUrl) -> str:
    """Return the command that gives a user what a shard needs, and no more."""
    return f"ACL SETUSER {url.user or 'NAME'} on >PASSWORD resetkeys ~{{{url.prefix}}}* ~{{{url.prefix}:* -@all {COMMANDS}"


def _fault(error: StoreError, url: RedisUrl, *, missing: bool) -> Finding:
    return Finding("fault", str(error), permission_line(url) if missing else "start the server, or mend the URL")


def _server(survey: Survey, url: RedisUrl) -> Iterator[Finding]:
    if survey.version < VERSION_MIN:
        yield Finding("fault", f"{survey.product} is too old", "use Redis 6.2 or newer, or Valkey")
    if survey.loading:
        yield Finding("fault", "the server is loading its data", "wait until it has")
    if survey.role != "master":
        yield Finding("fault", "this server is a replica, which takes no writes", "name the primary in the URL")
    if survey.cluster and not url.cluster:
        yield Finding("fault", "this is a node of a cluster", "add the option cluster=yes to the URL")
    elif url.cluster and not survey.cluster:
        yield Finding("fault", "this is no node of a cluster", "take the option cluster=yes out of the URL")
    elif survey.cluster:
        yield Finding("good", "this is a cluster: each shard's keys are on one node, which alone was looked at here")


def _durability(survey: Survey) -> Iterator[Finding]:
    if not survey.config:
        yield Finding(
            "warning",
            "CONFIG may not be read, so that it is not known when the append-only file is synced; the durability counts as weak",
            "allow CONFIG GET, or see what the provider says",
        )
    if not survey.appendonly:
        yield Finding(
            "warning",
            "there is no append-only file: when the server ends, all that came after its last snapshot is lost",
            "CONFIG SET appendonly yes, then CONFIG REWRITE",
        )
    elif survey.appendfsync not in {"always", None}:
        yield Finding(
            "warning",
            f"appendfsync is {survey.appendfsync}: the end of the server or a loss of power may take the last second or more of what was acknowledged",
            "CONFIG SET appendfsync always, then CONFIG REWRITE; a commit then waits for the disk, which many requests share",
        )
    elif not survey.sync_on_rewrite and survey.config:
        yield Finding(
            "warning",
            "no-appendfsync-on-rewrite is yes: while the append-only file is rewritten nothing is synced",
            "CONFIG SET no-appendfsync-on-rewrite no, then CONFIG REWRITE",
        )
    elif survey.config:
        yield Finding("good", "appendfsync is always: an acknowledged job survives a loss of power")


def _memory(survey: Survey, url: RedisUrl) -> Iterator[Finding]:
    if survey.evicts:
        yield Finding(
            "warning" if url.allow_eviction else "fault",
            f"maxmemory-policy is {survey.policy}: when its memory is full, the server throws keys away",
            "CONFIG SET maxmemory-policy noeviction, then CONFIG REWRITE",
        )
    if not survey.maxmemory:
        yield Finding("note", "there is no maxmemory: the server grows until the machine ends it", "set maxmemory to what it may have")
    elif survey.memory_used > survey.maxmemory * MEMORY_SHARE_MAX:
        share = survey.memory_used / survey.maxmemory
        yield Finding("warning", f"{share:.0%} of maxmemory are used: when it is full, new jobs are refused with 429", "raise maxmemory")
    elif not survey.evicts:
        yield Finding("good", f"{survey.memory_used / survey.maxmemory:.0%} of maxmemory are used, and nothing is thrown away")


def _network(survey: Survey, url: RedisUrl) -> Iterator[Finding]:
    local = url.socket is not None or all(host in {"localhost", "::1"} or host.startswith("127.") for host, _ in url.nodes)
    if url.tls is None and not local:
        yield Finding("warning", "jobs and password cross the network in the clear", "use rediss://")
    elif url.tls is not None and not url.tls.verify:
        yield Finding("warning", "verify=no: whoever answers in the server's place is believed", "leave verify out, and name its ca")
    if survey.replicas < url.wait_replicas:
        yield Finding(
            "fault",
            f"wait_replicas is {url.wait_replicas}, and the server has {survey.replicas} replicas: no commit will be confirmed",
            "start more, or lower wait_replicas",
        )
    elif survey.replicas and not url.wait_replicas:
        yield Finding(
            "note",
            f"the server has replicas ({survey.replicas}), and no commit waits for them: a failover may take back what was acknowledged",
            "add the option wait_replicas=1, which makes that less likely but not impossible",
        )


async def _round_trip(wire: Wire, url: RedisUrl) -> Finding:
    took_ms = []
    async with within(url.timeout_seconds):
        for _ in range(PINGS):
            began = time.perf_counter()
            await wire.call("PING")
            took_ms.append((time.perf_counter() - began) * 1000)
    median_ms = statistics.median(took_ms)
    if median_ms > PING_MS_SLOW:
        return Finding("warning", f"a round trip takes {median_ms:.1f} ms (median of {PINGS})", "run the server nearer to Redis")
    return Finding("good", f"a round trip takes {median_ms:.2f} ms (median of {PINGS})")


async def _clock(wire: Wire, url: RedisUrl) -> Finding:
    async with within(url.timeout_seconds):
        seconds, micros = await wire.call("TIME")
    skew = int(seconds) + int(micros) / 1e6 - time.time()
    if abs(skew) > SKEW_SECONDS_MAX:
        return Finding("note", f"the server's clock is {skew:+.1f} s from ours; nothing here depends on it", "set both by NTP all the same")
    return Finding("good", "the server's clock agrees with ours")


async def _prepared(wire: Wire, url: RedisUrl) -> AsyncIterator[Finding]:
    try:
        async with within(url.timeout_seconds):
            manifest, _ = await read_manifest(wire, url)
            moves = await wire.call("HGETALL", common_key(url, "moves"))
    except StoreError as error:
        yield Finding("fault", str(error))
        return
    if manifest is None:
        yield Finding("note", f"nothing is stored yet under the prefix {url.prefix}: the first start prepares it")
    else:
        yield Finding(
            "good", f"prepared for {manifest.shards} shards (generation {manifest.generation}, rows of version {manifest.row_version})"
        )
        if manifest.older:
            yield Finding(
                "note", "an older version wrote it", "the next start brings it to this one; the older one cannot use it after that"
            )
    if len(moves) > 2:
        yield Finding("note", "a move to another number of shards is under way, or was interrupted", "the next start cleans up")


async def _hosts(url: RedisUrl) -> AsyncIterator[Finding]:
    """Say which hosts share the place, if any do."""
    register = RedisRegister(msgspec.structs.replace(url, allow_eviction=True))
    try:
        for finding in cluster_findings(await register.look()):
            yield finding
    except StoreError as error:
        yield Finding("fault", str(error))
    finally:
        await register.close()


async def _trial(url: RedisUrl) -> AsyncIterator[Finding]:
    """Do once what a shard does, and time its commits."""
    store = RedisStore(msgspec.structs.replace(url, allow_eviction=True), 0, None)
    queue, now = "trial", time.time_ns() // 1000
    key = RowKey(slot_of(queue), 1, queue, "1")
    row = Row(key.slot, key.seq, queue, key.id, Status.READY, now, None, 60, 0, 0, None, None, now, now, b"{}", None)
    mark = Mark(
        key.slot,
        key.seq,
        queue,
        key.id,
        Status.IN_FLIGHT,
        1,
        bytes(16),
        None,
        now,
        state_set=True,
        state=b"{}",
        extras_set=True,
        extras=b"",
    )
    record, removed = (Record(key.slot, Kind.QUEUE, queue, value) for value in (b"{}", None))
    took_ms = []
    try:
        await store.open()
        for _ in range(COMMITS):
            for batch in (Batch([], [row], []), Batch([], [], [mark], [record]), Batch([key], [], [], [removed])):
                began = time.perf_counter()
                await store.commit(batch)
                took_ms.append((time.perf_counter() - began) * 1000)
        await store.read([key])
        await store.read_records([RecordKey(record.slot, record.kind, record.name)])
        async for _ in store.load_records():
            pass
        async for _ in store.load():
            pass
        await store.remove_trial()
    except StoreUnknown as error:
        yield Finding("fault", f"a commit was not confirmed: {error}", "see whether enough replicas are connected")
    except StoreError as error:
        yield Finding("fault", f"a shard could not work here: {error}", permission_line(url))
    else:
        median_ms = statistics.median(took_ms)
        slow = median_ms > COMMIT_MS_SLOW
        yield Finding(
            "warning" if slow else "good",
            f"this user may do all that a shard does; a commit takes {median_ms:.2f} ms (median of {len(took_ms)})",
            "use a faster disk, or send jobs from several connections: they share a commit" if slow else "",
        )
    finally:
        await store.close()
