"""The server under test, its store, and all that may be done to them.

A `World` keeps one server on one port, through restarts, and hears what it says: the log is read as it grows, and what it tells of epochs and ended
processes goes into the history. An end that nobody here brought about is noted as one that came "by itself".
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from proteus_shards.core.model import Status
from proteus_shards.core.placement import shard_of, slot_of
from proteus_shards.errors import ProteusError
from proteus_shards.fault_points import EXIT_STATUS
from proteus_shards.store.contract import Damaged
from proteus_shards.store.registry import make_store
from tests.conftest import LOG_SHOWN_MAX, Server, children_of, runs
from tests.faults.history import Recorder
from tests.faults.places import Place
from tests.faults.tail import Tail

WATCH_SECONDS = 0.05
ENDED_SECONDS_MAX = 20.0
PLAIN = ("-m", "proteus_shards")


class World:
    """One server and its store. All coroutines run in the recorder's thread; what blocks goes to others."""

    def __init__(
        self,
        place: Place,
        folder: Path,
        recorder: Recorder,
        queues: Sequence[str],
        *,
        seed: int,
        shards: int = 2,
        options: Sequence[str] = (),
        program: Sequence[str] = PLAIN,
        environ: Mapping[str, str] | None = None,
        clock_path: Path | None = None,
    ) -> None:
        self.place = place
        self.shards = shards
        self.port = 0
        self.clock_path = clock_path  # where the shards look how far their wall clock is off, if they do
        self.random = random.Random(seed)
        self.trouble: list[str] = []
        self.log_paths: list[Path] = []
        self._folder = folder
        self._recorder = recorder
        self._queues = list(queues)
        self._options = list(options)
        self._program = tuple(program)
        self._environ = dict(environ or {})
        self._server: Server | None = None
        self._killed: set[int] = set()
        self._refused: set[str] = set()  # children that said that they cannot serve just now
        self._tail: Tail | None = None  # of the newest log
        self.struck: Counter[str] = Counter()  # fault points
        self._bytes_before = 0  # what the store occupied, before there was a job
        self._life = 0  # how often the number of shards has changed

    @property
    def server(self) -> Server:
        """The server that runs."""
        assert self._server is not None, "no server runs"
        return self._server

    def where(self) -> tuple[str, int]:
        """Return the server's address and port."""
        return "127.0.0.1", self.port

    def shard_of(self, queue: str) -> int:
        """Return which shard has a queue now."""
        return shard_of(slot_of(queue), self.shards)

    def log(self) -> str:
        """Return all that the servers have logged."""
        return "".join(path.read_text(errors="replace") for path in self.log_paths)

    # --- starting and stopping -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the server, watch its log, and end it."""
        await self.start()
        if self.place.size is not None:
            self._bytes_before = await asyncio.to_thread(self.place.size)
        watching = asyncio.create_task(self._watch())
        try:
            yield
            await self.stop()
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            self._hear()
            if self._server is not None:
                self._kill_all()

    async def start(self) -> None:
        """Start the server, on the port that it had before."""
        options = ["--port", str(self.port), "--shards", str(self.shards), "--store", self.place.url, "--log-format", "json"]
        server = await asyncio.to_thread(
            lambda: Server(*options, *self._options, cwd=self._folder, environ=self._environ, program=self._program)
        )
        self.port = server.port
        self._hear()
        self._server, self._tail = server, Tail(server.log_path)
        self.log_paths.append(server.log_path)

    async def stop(self) -> None:
        """Ask the server to end, and wait."""
        server = self.server
        code = await asyncio.to_thread(server.stop)
        self._hear()
        self._server = None
        if code != 0:
            self.trouble.append(f"exit code {code} after SIGTERM; its log ends in {server.log()[-LOG_SHOWN_MAX:]}")

    async def restart(self, shards: int | None = None) -> None:
        """End the server in order and start it, perhaps with another number of shards."""
        await self.stop()
        if shards is not None and shards != self.shards:
            self.shards = shards
            self._life += 1
        await self.start()
        self._note_death("server", "restart", self._queues)

    async def replace_killed(self) -> None:
        """Kill the supervisor, wait until all that it started has ended, and start a server."""
        server = self.server
        children = list(server.children())
        self._killed |= {*children, server.process.pid}
        server.kill()
        await self._wait_ended(children)
        self._hear()
        self._server = None
        await self.start()
        self._note_death("server", "killed", self._queues)

    def _kill_all(self) -> None:
        server, self._server = self._server, None
        assert server is not None
        for pid in [*server.children()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if server.process.returncode is None:
            server.kill()

    async def _wait_ended(self, pids: Sequence[int]) -> None:
        deadline = time.monotonic() + ENDED_SECONDS_MAX
        while any(runs(pid) for pid in pids):
            if time.monotonic() > deadline:
                self.trouble.append(f"processes outlive their supervisor by {ENDED_SECONDS_MAX:g} s")
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return
            await asyncio.sleep(0.02)

    # --- processes -----------------------------------------------------------------------------------------------

    def pids(self, kind: str) -> dict[int, str]:
        """Return the command lines of the running shards or fronts."""
        found = children_of(self.server.process.pid)
        mine = f"proteus_shards.{kind}"
        return {
            pid: command for pid, command in found.items() if (mine in command or f"mutated {kind}" in command) and "prepare" not in command
        }

    def pick(self, kind: str) -> int | None:
        """Return one process of a kind, or None where none runs."""
        if kind == "supervisor":
            return self.server.process.pid
        pids = sorted(self.pids(kind))
        return self.random.choice(pids) if pids else None

    def kill(self, pid: int) -> None:
        """End a process by SIGKILL."""
        self._killed.add(pid)
        os.kill(pid, signal.SIGKILL)

    def expect_end(self, pid: int) -> None:
        """Take note that a process may end of what is done to it."""
        self._killed.add(pid)

    def pause(self, pid: int) -> None:
        """Stop a process. Whoever takes it for hung may end it: that is our doing."""
        self._killed.add(pid)
        os.kill(pid, signal.SIGSTOP)

    async def wait_replaced(self, kind: str, pid: int, count: int) -> None:
        """Wait until a killed process has a successor."""
        deadline = time.monotonic() + ENDED_SECONDS_MAX
        while pid in self.server.children() or len(self.pids(kind)) < count:
            if time.monotonic() > deadline:
                self.trouble.append(f"a killed {kind} was not replaced within {ENDED_SECONDS_MAX:g} s")
                return
            await asyncio.sleep(0.02)

    # --- the store in the end ------------------------------------------------------------------------------------

    async def audit(self) -> None:
        """Open the store as a shard would, once no server runs, and count what it holds."""
        await audit(self.place, self.shards, self._recorder, self._note_epoch)
        if self.place.size is not None:
            held = {"bytes before": self._bytes_before, "bytes": await asyncio.to_thread(self.place.size)}
            self._recorder.note("audit", target="store", counts=held)

    # --- the log -------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self._hear()

    def _hear(self) -> None:
        """Take what the log has grown by."""
        if self._tail is not None:
            for said in self._tail.take():
                self._take(said)

    def _take(self, said: dict[str, object]) -> None:
        process = str(said.get("process"))
        if said["event"] == "fault point":
            self.struck[str(said["point"])] += 1
        elif said["event"] in {"recovered", "store is back"} and self.place.keeps:
            self._note_epoch(int(process.removeprefix("shard-")), int(str(said["epoch"])))
        elif said["event"] == "cannot serve" and not said["final"]:
            self._refused.add(str(said["child"]))  # the store did not answer its start: it is tried again, and has held nothing
        elif said["event"] == "ended" and process == "supervisor":
            child = str(said["child"])
            if child in self._refused:
                self._refused.discard(child)
                return
            pid = said.get("pid") if said["returncode"] != EXIT_STATUS else None
            dead = self.queues_of(int(child.removeprefix("shard-"))) if child.startswith("shard-") else []
            self._note_death(child, f"returncode {said['returncode']}", dead, by_itself=pid is not None and pid not in self._killed)

    def queues_of(self, shard: int) -> list[str]:
        """Return the queues of a shard."""
        return [queue for queue in self._queues if self.shard_of(queue) == shard]

    def _note_death(self, target: str, detail: str, queues: Sequence[str], *, by_itself: bool = False) -> None:
        phase = "by itself" if by_itself else "killed"
        self._recorder.note("server", event="death", target=target, detail=detail, queues=list(queues), phase=phase)

    def _note_epoch(self, shard: int, epoch: int) -> None:
        self._recorder.note("server", event="epoch", target=f"shard {shard} of {self.shards}, {self._life}", server_epoch=epoch)


async def audit(place: Place, shards: int, recorder: Recorder, note_epoch: Callable[[int, int], None]) -> None:
    """Open each shard of a store that nobody uses, as its process would, and write down how many rows it has."""
    for shard in range(shards):
        counts = {"live rows": 0, "dead rows": 0, "damaged rows": 0, "faults": 0}
        detail = ""
        store = make_store(place.direct_url, shard, shards)
        try:
            epoch = await store.open()
            if place.keeps:
                note_epoch(shard, epoch)
            async for chunk in store.load():
                for item in chunk:
                    if isinstance(item, Damaged):
                        counts["damaged rows"] += 1
                    else:
                        counts["dead rows" if item.status == Status.DEAD else "live rows"] += 1
        except ProteusError as error:
            counts["faults"] += 1
            detail = f"{type(error).__name__}: {error}"
        finally:
            await store.close()
        recorder.note("audit", target=f"shard {shard}", counts=counts, detail=detail)
