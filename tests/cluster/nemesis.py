"""What goes wrong with a cluster, on purpose, and what is done to it in order.

A **rough** fault takes a host away without a word: it is over when the cluster has come to rest again, so that its window in the history holds all that it caused.
Where a host is taken away for good as far as the others know, the fault goes on at least until they serve its shards. An **orderly** one begins only
at rest, and nothing may be lost by it, memory-only jobs included.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

from tests.cluster.hosts import Cluster, Host
from tests.cluster.network import cut, mend
from tests.faults.nemesis import CLOCK_JUMPS_SECONDS, Fault, kill_store, pause_store
from tests.faults.places import NotHere

Act: TypeAlias = Callable[[Cluster], AbstractAsyncContextManager[str]]

STORE = "store"


@asynccontextmanager
async def rough(cluster: Cluster) -> AsyncIterator[None]:
    """Let memory go meanwhile, and come to rest in the end."""
    cluster.rough = True
    try:
        yield
    finally:
        await cluster.wait_settled()


@asynccontextmanager
async def orderly(cluster: Cluster) -> AsyncIterator[None]:
    """Begin at rest, and lose nothing."""
    await cluster.wait_settled()
    cluster.hear()
    cluster.rough = False
    yield
    await cluster.wait_settled()


def _others(cluster: Cluster) -> None:
    if len(cluster.up()) < 2:
        raise NotHere("there is no other host")


# --- hosts -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def kill_host(cluster: Cluster) -> AsyncIterator[str]:
    """Kill all processes of a host, and start it again once others serve its shards."""
    host = cluster.pick()
    async with rough(cluster):
        cluster.kill_host(host)
        yield f"{host.name}"
        if len(cluster.up()):
            await cluster.wait_left(host)
        await cluster.start([host])


@asynccontextmanager
async def restart_killed(cluster: Cluster) -> AsyncIterator[str]:
    """Kill all processes of a host, and start it again at once: it is at its place before anybody has missed it."""
    host = cluster.pick()
    async with rough(cluster):
        cluster.kill_host(host)
        await cluster.start([host])
        yield f"{host.name}"


@asynccontextmanager
async def pause_host(cluster: Cluster) -> AsyncIterator[str]:
    """Stop all processes of a host until others serve its shards, and let it go on as if nothing had been."""
    _others(cluster)
    host = cluster.pick()
    async with rough(cluster):
        host.pause()
        try:
            yield f"{host.name}"
            await cluster.wait_left(host)
        finally:
            host.resume()


@asynccontextmanager
async def doze_host(cluster: Cluster) -> AsyncIterator[str]:
    """Stop all processes of a host for about as long as a lease is: it may still be the owner when it goes on, or just not any more."""
    host = cluster.pick()
    async with rough(cluster):
        host.pause()
        try:
            await asyncio.sleep(cluster.lease_seconds * cluster.random.uniform(0.6, 1.6))
            yield f"{host.name}"
        finally:
            host.resume()


def _kill_process(kind: str) -> Act:
    @asynccontextmanager
    async def act(cluster: Cluster) -> AsyncIterator[str]:
        host = cluster.pick()
        async with rough(cluster):
            pid = await cluster.kill_process(host, kind)
            if pid is None:
                raise NotHere(f"{host.name} has no {kind}")
            yield f"{kind} {pid} of {host.name}"

    return act


# --- the network -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def part_hosts(cluster: Cluster) -> AsyncIterator[str]:
    """Cut two hosts off from each other: both reach the store, so nothing moves."""
    _others(cluster)
    one, other = cluster.random.sample(cluster.up(), 2)
    async with rough(cluster):
        cut(one.site, other.site)
        try:
            yield f"{one.name} and {other.name}"
        finally:
            mend(one.site, other.site)


def _part_from_store(*, out: bool, back: bool) -> Act:
    @asynccontextmanager
    async def act(cluster: Cluster) -> AsyncIterator[str]:
        host = cluster.pick()
        store = cluster.network.sites[STORE]
        async with rough(cluster):
            if out:
                host.site.drop(store.address)
            if back:
                store.drop(host.site.address)
            try:
                yield f"{host.name}"
                await _wait_replaced(cluster, host)
            finally:
                mend(host.site, store)

    return act


@asynccontextmanager
async def isolate_host(cluster: Cluster) -> AsyncIterator[str]:
    """Cut a host off from the store and from all other hosts. Clients still reach it."""
    host = cluster.pick()
    others = [site for name, site in cluster.network.sites.items() if name not in {host.name, "clients"}]
    async with rough(cluster):
        for site in others:
            cut(host.site, site)
        try:
            yield f"{host.name}"
            await _wait_replaced(cluster, host)
        finally:
            for site in others:
                mend(host.site, site)


async def _wait_replaced(cluster: Cluster, host: Host) -> None:
    if len(cluster.up()) > 1:
        await cluster.wait_left(host)


# --- the clock -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def shift_clock(cluster: Cluster) -> AsyncIterator[str]:
    """Set the wall clock of one host's shards."""
    host = cluster.pick()
    jump = cluster.random.choice(CLOCK_JUMPS_SECONDS)
    host.clock_path.write_text(str(jump))
    try:
        yield f"{host.name}, {jump} s"
    finally:
        host.clock_path.write_text("0")


# --- in order --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def join(cluster: Cluster) -> AsyncIterator[str]:
    """Let a host join that was not there before, or that had left."""
    async with orderly(cluster):
        down = [host for host in cluster.hosts if host.server is None]
        host = down[0] if down else cluster.add()
        await cluster.start([host])
        yield f"{host.name}"


@asynccontextmanager
async def leave(cluster: Cluster) -> AsyncIterator[str]:
    """End a host in order, not the last one."""
    if len(cluster.up()) < 3:
        raise NotHere("too few hosts would be left")
    async with orderly(cluster):
        host = cluster.pick()
        await cluster.stop([host])
        yield f"{host.name}"


@asynccontextmanager
async def roll(cluster: Cluster) -> AsyncIterator[str]:
    """Restart all hosts in order, one after the other."""
    _others(cluster)
    async with orderly(cluster):
        hosts = cluster.up()
        for host in hosts:
            await cluster.stop([host])
            await cluster.start([host])
            await cluster.wait_settled()
        yield ", ".join(host.name for host in hosts)


@asynccontextmanager
async def move(cluster: Cluster) -> AsyncIterator[str]:
    """Let an operator move a shard to another host, and take the wish back."""
    _others(cluster)
    async with orderly(cluster):
        shard = cluster.random.choice(sorted(cluster.serving))
        host = cluster.random.choice([host for host in cluster.up() if host.name != cluster.serving[shard][1]])
        await cluster.order("move", {"shard": shard, "host": host.gate})
        await cluster.wait_served_by(shard, host)
        yield f"shard {shard} to {host.name}"
        await cluster.order("move", {"shard": shard, "host": None})


@asynccontextmanager
async def drain(cluster: Cluster) -> AsyncIterator[str]:
    """Let an operator drain a host, and let it take shards again."""
    _others(cluster)
    async with orderly(cluster):
        host = cluster.pick()
        await cluster.order("drain", {"host": host.gate, "draining": True})
        await cluster.wait_left(host)
        yield f"{host.name}"
        await cluster.order("drain", {"host": host.gate, "draining": False})


_ALL: tuple[Fault[Cluster], ...] = (
    Fault("host killed", kill_host, "", lasts=True, of_store=False),
    Fault("host killed and back", restart_killed, "", lasts=False, of_store=False),
    Fault("host paused", pause_host, "others", lasts=True, of_store=False),
    Fault("host dozes", doze_host, "others", lasts=False, of_store=False),
    Fault("hosts parted", part_hosts, "others", lasts=True, of_store=False),
    Fault("store parted", _part_from_store(out=True, back=True), "", lasts=True, of_store=False),
    Fault("store unheard", _part_from_store(out=False, back=True), "", lasts=True, of_store=False),
    Fault("store unreached", _part_from_store(out=True, back=False), "", lasts=True, of_store=False),
    Fault("host isolated", isolate_host, "", lasts=True, of_store=False),
    Fault("clock set", shift_clock, "clock", lasts=True, of_store=False),
    Fault("shard killed", _kill_process("shard"), "", lasts=False, of_store=False),
    Fault("front killed", _kill_process("front"), "", lasts=False, of_store=False),
    Fault("node killed", _kill_process("node"), "others", lasts=False, of_store=False),
    Fault("store killed", kill_store, "", lasts=True, of_store=True),
    Fault("store paused", pause_store, "", lasts=True, of_store=True),
    Fault("host joins", join, "others", lasts=False, of_store=False),
    Fault("host leaves", leave, "others", lasts=False, of_store=False),
    Fault("shard moved", move, "others", lasts=False, of_store=False),
    Fault("host drained", drain, "others", lasts=False, of_store=False),
    Fault("all restarted", roll, "others", lasts=False, of_store=False),
)
FAULTS: dict[str, Fault[Cluster]] = {fault.name: fault for fault in _ALL}


def possible(*, clock: bool, alone: bool) -> list[Fault[Cluster]]:
    """Return the faults that a cluster can suffer, or one server alone."""
    return [fault for fault in _ALL if (fault.needs != "clock" or clock) and (fault.needs != "others" or not alone)]
