"""The shard processes of a host in a cluster, with a small program in the place of a shard."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from proteus_shards.cluster.model import Claim
from proteus_shards.config import Settings
from proteus_shards.errors import StartError
from proteus_shards.ipc.orders import Away, Ended, Serving, Shards, Start, SupervisorOrder
from proteus_shards.tenants import Tenants
from tests.conftest import runs

SECONDS_MAX = 30.0
LONG = 1000.0

# Notes its claim and luggage, and does what a file of its shard's number says.
PROGRAM = """
import json, os, signal, sys, time
boot = json.loads(sys.stdin.readline())
folder, claim = sys.argv[1], boot["claim"]
def terminated(*_):
    note("ended")
    os._exit(0)
signal.signal(signal.SIGTERM, terminated)
def note(event):
    with open(os.path.join(folder, "notes"), "a") as notes:
        notes.write(f"{event} {claim['shard']} {claim['turn']} {boot['luggage']} {os.getpid()}\\n")
act = os.path.join(folder, str(claim["shard"]))
word = open(act).read() if os.path.exists(act) else ""
if word:
    os.unlink(act)
note("started")
if word == "fenced":
    os.write(1, b'{"type": "failed", "detail": "it is of another host", "fenced": true}\\n')
    sys.exit(1)
if word == "never":
    os.write(1, b'{"type": "failed", "detail": "the store is of another make", "final": true}\\n')
    sys.exit(1)
os.write(1, b'{"type": "ready"}\\n')
if word == "crash":
    time.sleep(0.2)
    os._exit(3)
while sys.stdin.read(1):
    pass
"""


class House:
    """Tenants, and what they say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[SupervisorOrder] = []
        self.failures: list[StartError] = []
        script = folder / "program.py"
        script.write_text(PROGRAM)
        command = (sys.executable, "-I", "-S", str(script), str(folder))
        settings = Settings(cluster=True, node_address="127.0.0.1:1")
        self.tenants = Tenants(settings, command, str(folder), self.told.append, self._mend, self.failures.append)

    async def _mend(self) -> None:
        """Do nothing: nothing is lost here."""

    def notes(self, event: str) -> list[list[str]]:
        """Return the notes of a kind, as words."""
        path = self.folder / "notes"
        lines = [line.split(" ") for line in path.read_text().splitlines()] if path.exists() else []
        return [words[1:] for words in lines if words[0] == event]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a fact of another process."""
        with trio.fail_after(SECONDS_MAX):
            while not condition():
                await trio.sleep(0.005)


@asynccontextmanager
async def open_house(folder: Path) -> AsyncIterator[House]:
    """Let tenants run."""
    house = House(folder)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.tenants.run)
        yield house
        house.tenants.stop()
        with trio.fail_after(SECONDS_MAX):
            await house.tenants.wait_empty()
        nursery.cancel_scope.cancel()


def word(*claims: Claim, seconds: float = LONG, heard: int = 0) -> Shards:
    """Return the word of a node."""
    return Shards(tuple(map(Start, claims)), seconds, heard)


async def test_what_the_node_names_runs_and_what_it_no_longer_names_ends(tmp_path: Path) -> None:
    """The node is told both, and the luggage is passed on."""
    one, two = Claim(1, "a:1", 5), Claim(2, "a:1", 3)
    async with open_house(tmp_path) as house:
        house.tenants.apply(Shards((Start(one, "/somewhere"), Start(two)), LONG))
        await house.until(lambda: len(house.told) == 2)
        await house.tenants.wait_served()
        assert sorted(note[:3] for note in house.notes("started")) == [["1", "5", "/somewhere"], ["2", "3", ""]]
        assert set(house.tenants.serving) == {one, two}
        house.tenants.apply(word(two))
        await house.until(lambda: Ended(one) in house.told)

        assert house.tenants.greet() == (two,)
        assert [note[:2] for note in house.notes("ended")] == [["1", "5"]]
        assert not house.tenants.unclean


async def test_a_new_claim_waits_for_the_end_of_the_one_before(tmp_path: Path) -> None:
    """No two processes of a shard run at a time."""
    async with open_house(tmp_path) as house:
        house.tenants.apply(word(Claim(1, "a:1", 5)))
        await house.until(lambda: Serving(Claim(1, "a:1", 5)) in house.told)
        house.tenants.apply(word(Claim(1, "a:1", 7)))
        await house.until(lambda: Serving(Claim(1, "a:1", 7)) in house.told)

        assert house.told.index(Ended(Claim(1, "a:1", 5))) < house.told.index(Serving(Claim(1, "a:1", 7)))
        assert [note[:2] for note in house.notes("ended")] == [["1", "5"]]


async def test_a_process_that_crashes_is_started_again_under_its_claim(tmp_path: Path) -> None:
    """The node hears that it is away for a while."""
    claim = Claim(1, "a:1", 5)
    (tmp_path / "1").write_text("crash")
    async with open_house(tmp_path) as house:
        house.tenants.apply(word(claim))
        await house.until(lambda: len(house.told) == 3)

        assert house.told == [Serving(claim), Away(claim), Serving(claim)]


async def test_a_process_that_was_fenced_is_not_started_again(tmp_path: Path) -> None:
    """Though the node names it until it has heard; then it may want it all the same."""
    claim = Claim(1, "a:1", 5)
    (tmp_path / "1").write_text("fenced")
    async with open_house(tmp_path) as house:
        house.tenants.apply(word(claim))
        await house.until(lambda: Ended(claim, fenced=True) in house.told)
        house.tenants.apply(word(claim))
        house.tenants.apply(word(claim, Claim(2, "a:1", 1)))
        await house.until(lambda: Serving(Claim(2, "a:1", 1)) in house.told)
        assert len(house.notes("started")) == 2
        house.tenants.apply(word(claim, heard=1))
        await house.until(lambda: Serving(claim) in house.told)


async def test_a_node_that_is_silent_for_its_lease_has_lost_its_shards(tmp_path: Path) -> None:
    """They end, and run again at its next word."""
    claim = Claim(1, "a:1", 5)
    async with open_house(tmp_path) as house:
        house.tenants.apply(word(claim))
        await house.until(lambda: Serving(claim) in house.told)
        house.tenants.apply(word(claim, seconds=0.05))
        await house.until(lambda: Ended(claim) in house.told)
        house.tenants.apply(word(claim, heard=1))
        await house.until(lambda: house.told.count(Serving(claim)) == 2)


async def test_a_shard_that_can_never_be_served_is_told(tmp_path: Path) -> None:
    """The server ends for it, and its other shards go to hosts that can."""
    claim = Claim(1, "a:1", 5)
    (tmp_path / "1").write_text("never")
    async with open_house(tmp_path) as house:
        house.tenants.apply(word(claim))
        await house.until(lambda: house.failures)

        assert str(house.failures[0]) == "the store is of another make"
        assert Ended(claim) in house.told


async def test_nothing_outlives_the_supervisor(tmp_path: Path) -> None:
    """What is left when it is cancelled is killed and waited for."""
    house = House(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.tenants.run)
        house.tenants.apply(word(Claim(1, "a:1", 5)))
        await house.until(lambda: house.told)
        nursery.cancel_scope.cancel()

    assert not any(runs(int(note[-1])) for note in house.notes("started"))


@pytest.mark.parametrize("claims", [(), (Claim(1, "a:1", 5),)])
async def test_waiting_for_shards_to_serve_ends(tmp_path: Path, claims: tuple[Claim, ...]) -> None:
    """At once where there are none."""
    async with open_house(tmp_path) as house:
        house.tenants.apply(word(*claims))
        with trio.fail_after(SECONDS_MAX):
            await house.tenants.wait_served()

        assert set(house.tenants.serving) == set(claims)
