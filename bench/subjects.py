"""What can be measured: this server over each store, and the peers. A new store or peer is one entry here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.targets import BEANSTALKD, Beanstalkd, Proteus, Target, Uvicorn


class Store(msgspec.Struct, frozen=True):
    """A store of this server. FOLDER in the URL stands for a folder of its own."""

    url: str
    persist: bool  # whether the jobs are persist_data jobs
    missing: Callable[[], str] = str  # says what is not installed; empty: all is


STORES: dict[str, Store] = {
    "memory": Store("memory:", persist=False),
    "sqlite-full": Store("sqlite:///FOLDER?synchronous=full", persist=True),
    "sqlite-normal": Store("sqlite:///FOLDER?synchronous=normal", persist=True),
}


class Peer(msgspec.Struct, frozen=True):
    """Another server. `protocol` tells the scenarios how to load it."""

    make: Callable[[Path], Target] | None
    protocol: str
    scenarios: tuple[str, ...]
    missing: Callable[[], str] = str


def _no_uvicorn() -> str:
    lacks = [name for name in ("uvicorn", "uvloop", "httptools") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(lacks)}" if lacks else ""


def _no_beanstalkd() -> str:
    return "" if BEANSTALKD else "not installed: beanstalkd"


PEERS: dict[str, Peer] = {
    "uvicorn": Peer(Uvicorn, "http", ("enqueue",), _no_uvicorn),
    "beanstalkd": Peer(lambda folder: Beanstalkd(folder, None), "beanstalk", ("enqueue", "next", "life"), _no_beanstalkd),
    "beanstalkd-50ms": Peer(lambda folder: Beanstalkd(folder, 50), "beanstalk", ("enqueue", "life"), _no_beanstalkd),
    "beanstalkd-sync": Peer(lambda folder: Beanstalkd(folder, 0), "beanstalk", ("enqueue", "life"), _no_beanstalkd),
    "procrastinate": Peer(None, "", ("enqueue", "life"), lambda: "comes with the Postgres store"),
    "rq": Peer(None, "", ("enqueue", "life"), lambda: "comes with the Redis store"),
}


class Subject(msgspec.Struct, frozen=True):
    """One thing to measure: this server in one configuration, or a peer (`store` is empty)."""

    name: str
    store: str = ""
    shards: int = 1
    fast_lane: bool = True

    @property
    def protocol(self) -> str:
        """How it is spoken to: "http" or "beanstalk"."""
        return "http" if self.store else PEERS[self.name].protocol

    @property
    def persist(self) -> bool:
        """Whether its jobs are persist_data jobs."""
        return bool(self.store) and STORES[self.store].persist

    def make(self, folder: Path) -> Target:
        """Return it, not started."""
        if self.store:
            return Proteus(folder, STORES[self.store].url, self.shards, fast_lane=self.fast_lane)
        make = PEERS[self.name].make
        assert make is not None
        return make(folder)


def ours(store: str, shards: int = 1, *, fast_lane: bool = True) -> Subject:
    """Return this server in one configuration."""
    return Subject(f"{store}/{shards}" + ("" if fast_lane else "/quart"), store, shards, fast_lane)


def peer(name: str) -> Subject:
    """Return a peer."""
    return Subject(name)
