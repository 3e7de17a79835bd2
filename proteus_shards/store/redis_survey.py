"""What a Redis server is and how it is set: read at each connection, before a row is trusted to it.

CONFIG may be forbidden, and is on most managed services. INFO then tells the memory policy and whether there is an append-only file, but not when that is
synced; what is not known counts as weak.
"""

from __future__ import annotations

from typing import Any

import msgspec

from proteus_shards.errors import StoreError, StoreRefused
from proteus_shards.store.contract import Durability
from proteus_shards.store.redis_errors import ServerSaid
from proteus_shards.store.redis_url import RedisUrl
from proteus_shards.store.redis_wire import Wire

VERSION_MIN = (6, 2)
_FORBIDDEN = {"NOPERM", "ERR"}  # a command that was renamed or taken away is an unknown one
_SETTINGS = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory", "maxmemory-policy")


class Survey(msgspec.Struct, frozen=True):
    """What was found."""

    product: str  # "Redis 7.0.15"
    version: tuple[int, ...]
    role: str  # "master" or "slave", in Redis's words
    cluster: bool
    loading: bool
    replicas: int
    config: bool  # whether CONFIG may be read
    appendonly: bool
    appendfsync: str | None  # None: it is not known
    sync_on_rewrite: bool
    maxmemory: int  # bytes; 0: without end
    memory_used: int
    policy: str

    @property
    def durability(self) -> Durability:
        """What an acknowledged write survives."""
        return Durability.MACHINE if self.appendonly and self.appendfsync == "always" and self.sync_on_rewrite else Durability.WEAK

    @property
    def evicts(self) -> bool:
        """Whether it throws keys away when its memory is full."""
        return self.maxmemory > 0 and self.policy != "noeviction"

    @property
    def terms(self) -> str:
        """What the durability rests on, in one line."""
        if not self.appendonly:
            kept = "no append-only file: snapshots at most, and what came after the last one goes with the process"
        elif self.appendfsync is None:
            kept = "an append-only file, but CONFIG may not be read, so that it is not known when it is synced"
        else:
            kept = f"appendfsync={self.appendfsync}" + ("" if self.sync_on_rewrite else ", not synced during a rewrite")
        memory = f"maxmemory={self.maxmemory}, {self.policy}" if self.maxmemory else "no maxmemory"
        return f"{self.product}{' cluster' if self.cluster else ''}, {kept}, {memory}"


async def look(wire: Wire) -> Survey:
    """Ask the server. Raises `WireError`s."""
    info = _info(await wire.call("INFO"))
    settings: dict[str, str] | None = {}
    for name in _SETTINGS:
        try:
            found = await wire.call("CONFIG", "GET", name)
        except ServerSaid as error:
            if error.code not in _FORBIDDEN:
                raise
            settings = None
            break
        assert settings is not None
        settings.update(_pairs(found))
    valkey = info.get("valkey_version")
    number = valkey or info.get("redis_version", "0")
    known = settings or {}
    return Survey(
        product=f"{'Valkey' if valkey else 'Redis'} {number}",
        version=_version(info.get("redis_version", "0")),
        role=info.get("role", "master"),
        cluster=info.get("cluster_enabled") == "1",
        loading=info.get("loading") == "1",
        replicas=_number(info.get("connected_slaves")),
        config=settings is not None,
        appendonly=known.get("appendonly") == "yes" if settings is not None else info.get("aof_enabled") == "1",
        appendfsync=known.get("appendfsync"),
        sync_on_rewrite=known.get("no-appendfsync-on-rewrite") == "no",
        maxmemory=_number(known.get("maxmemory") or info.get("maxmemory")),
        memory_used=_number(info.get("used_memory")),
        policy=known.get("maxmemory-policy") or info.get("maxmemory_policy", "noeviction"),
    )


def check(survey: Survey, url: RedisUrl) -> None:
    """Raise `StoreRefused` where the server cannot take rows now, and `StoreError` where it should not be given any."""
    if survey.loading:
        raise StoreRefused(f"{url.where}: Redis is loading its data")
    if survey.role != "master":
        raise StoreRefused(f"{url.where}: this Redis is a replica, which takes no writes: name the primary")
    if survey.version < VERSION_MIN:
        raise StoreError(f"{url.where}: {survey.product} is too old: 6.2 or newer is needed")
    if survey.cluster and not url.cluster:
        raise StoreError(f"{url.where}: this is a node of a cluster: add the option cluster=yes")
    if url.cluster and not survey.cluster:
        raise StoreError(f"{url.where}: this is no node of a cluster: take the option cluster=yes away")
    if survey.evicts and not url.allow_eviction:
        raise StoreError(
            f"{url.where}: Redis may throw rows away when its memory is full (maxmemory-policy {survey.policy}): "
            "set it to noeviction, or accept the loss with the option allow_eviction=yes"
        )


def _info(answer: Any) -> dict[str, str]:
    lines = answer.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def _pairs(answer: list[bytes]) -> dict[str, str]:
    texts = [item.decode(errors="replace") for item in answer]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
