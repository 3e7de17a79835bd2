"""What is required of a store's durability: at the start, and whenever the store comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from proteus_shards.core.commands import Done, Enqueue, Inspect, Reason, Refused, Statistics
from proteus_shards.errors import StoreRefused, StoreWeak
from proteus_shards.shard.pump import Pump
from proteus_shards.store.contract import Durability
from tests.conftest import StartServer
from tests.shard.scripted import Clock, RecordingLink, ScriptedStore, make_pump
from tests.test_cli import run


def job(name: str, *, persist: bool = True) -> Enqueue:
    """Return an enqueue command."""
    return Enqueue("q", name, 30, persist, 3, b"1")


def pumping(test: Callable[[ScriptedStore, Pump, RecordingLink], Awaitable[None]]) -> None:
    """Run a test against a pump that requires MACHINE of a scripted store, which has it."""

    async def scenario() -> None:
        store = ScriptedStore()
        pump = make_pump(store, Clock())
        pump.required = Durability.MACHINE
        await pump.recover()
        running = asyncio.create_task(pump.run())
        try:
            await test(store, pump, RecordingLink(pump))
        finally:
            running.cancel()
            await asyncio.wait({running})

    asyncio.run(scenario())


@pytest.mark.parametrize("wanted", list(Durability))
@pytest.mark.parametrize("found", list(Durability))
def test_a_store_that_is_weaker_than_required_does_not_recover(found: Durability, wanted: Durability) -> None:
    """The message says what was found, why, and what was asked for."""
    store = ScriptedStore()
    store.durability = found
    pump = make_pump(store, Clock())
    pump.required = wanted
    ranks = [Durability.MEMORY, Durability.WEAK, Durability.PROCESS, Durability.MACHINE, Durability.REPLICA]

    if ranks.index(found) >= ranks.index(wanted):
        asyncio.run(pump.recover())
    else:
        with pytest.raises(StoreWeak, match=rf"of durability {found} \(scripted\), weaker .*--require-durability asks for \({wanted}\)"):
            asyncio.run(pump.recover())


def test_a_store_that_comes_back_weaker_counts_as_away_until_it_is_what_is_required(caplog: pytest.LogCaptureFixture) -> None:
    """Persisted writes are refused without effect, an error is logged, jobs in memory go on, and all goes on once it is mended."""

    async def test(store: ScriptedStore, pump: Pump, link: RecordingLink) -> None:
        assert await link.ask(job("a")) == Done()
        store.durability = Durability.PROCESS
        store.script = [(StoreRefused(), False)]
        first = await link.ask(job("b"))
        while not any(record.levelno == logging.ERROR and "StoreWeak" in str(record.__dict__.get("error")) for record in caplog.records):
            await asyncio.sleep(0)
        second, told = await link.ask(job("b")), await link.ask(Inspect())

        assert isinstance(first, Refused)
        assert isinstance(second, Refused)
        assert [Reason.BUSY, Reason.BUSY] == [first.reason, second.reason]
        assert isinstance(told, Statistics)
        assert (told.store_away, told.durability, told.terms) == (True, "process", "scripted")
        assert await link.ask(job("c", persist=False)) == Done()
        store.durability = Durability.REPLICA
        while pump.shard.away:
            await asyncio.sleep(0)
        assert await link.ask(job("b")) == Done()
        assert [row.id for row in store.rows.values()] == ["a", "b"]

    pumping(test)


def test_a_server_on_a_weaker_store_does_not_start(start_server: StartServer) -> None:
    """It names what was found, why, and what was required; one that is strong enough starts and says so in /health and the log."""
    weaker = ("--store", "sqlite:///data?synchronous=normal", "--port", "0", "--shards", "1")
    server = start_server(*weaker, "--require-durability", "process")
    health = server.request("GET", "/health").json()
    cwd = server.log_path.parent
    assert server.stop() == 0

    code, out, err = run("serve", *weaker, "--require-durability", "machine", cwd=cwd)

    assert health["durability"] == "process"
    assert health["terms"].endswith("synchronous=normal")
    assert '"terms":"SQLite' in server.log().replace('": "', '":"')
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("proteus-shards: the sqlite store is of durability process (SQLite ")
    assert last.endswith(
        "synchronous=normal), weaker than what --require-durability asks for (machine): change the store's own settings, or ask for less"
    )


def test_nothing_weaker_than_memory_can_be_required(start_server: StartServer) -> None:
    """A server that keeps nothing starts unless something is required."""
    assert start_server("--store", "memory:").request("GET", "/health").json()["durability"] == "memory"
