"""The supervisor, with small programs in the place of shards and fronts, and a few times with the real ones."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from proteus_shards import child, supervisor
from proteus_shards.child import (
    BACKOFF_SECONDS_FIRST,
    BACKOFF_SECONDS_MAX,
    CONTROL_LINE_BYTES_MAX,
    SILENT_STARTS_MAX,
    Backoff,
    Child,
    Lines,
)
from proteus_shards.cluster.model import Claim
from proteus_shards.config import FrontBoot, Settings, ShardBoot
from proteus_shards.errors import StartError
from proteus_shards.supervisor import Programs, Supervisor
from proteus_shards.surroundings import open_listeners
from tests.conftest import runs, server_environ

SECONDS_MAX = 30.0

# A child for tests: notes what happens to it in a file, and does what its arguments say, one argument a start (the last one for all later).
CHILD = """
import json, os, signal, socket, sys

name, folder, *acts = sys.argv[1:]
boot_line = sys.stdin.readline()
boot = json.loads(boot_line)
name += str(boot.get("shard", boot.get("front"))) if name not in ("prepare", "again") else ""
notes = os.open(os.path.join(folder, "notes"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(event):
    os.write(notes, f"{name} {event} {os.getpid()}\\n".encode())

def say(line):
    os.write(1, line.encode() + b"\\n")

def terminated(*_):
    note("terminated")
    os._exit(7 if act == "unclean" else 0)

with open(os.path.join(folder, name + ".starts"), "a+") as starts:
    starts.seek(0)
    before = starts.read().split()
    starts.write(f"{os.getpid()} ")
act = acts[min(len(before), len(acts) - 1)]
for pid in before:
    if os.path.exists(f"/proc/{pid}") and not name.startswith("front"):  # a front is there until its successor serves
        note("met-predecessor")
with open(os.path.join(folder, name + ".boot"), "w") as file:
    file.write(boot_line)
with open(os.path.join(folder, name + ".environ"), "w") as file:
    json.dump(dict(os.environ), file)

signal.signal(signal.SIGTERM, signal.SIG_IGN if act == "deaf" else terminated)
note("started")
if act == "once":
    say('{"type": "ready"}')
elif act == "turns":
    say('{"type": "ready", "turns": [7, 9]}')
elif act == "final":
    say('{"type": "failed", "detail": "the store is of another make", "final": true}')
    sys.exit(1)
elif act == "fenced":
    say('{"type": "failed", "detail": "another server has it", "final": true, "fenced": true}')
    sys.exit(1)
elif act == "fail":
    say('{"type": "failed", "detail": "the store is away"}')
    sys.exit(1)
elif act == "silent":
    sys.exit(3)
elif act == "half":
    say('{"type": "ready"}')
    sys.exit(4)
elif act == "hang":
    while True:
        signal.pause()
else:
    if act == "next":
        note("serves")
    if act == "chatty":
        say("this is no control line")
    say('{"type": "ready", "detail": "fine"}')
    if act == "chatty":
        say('{"type": "ready"}')
    if act == "accept":
        listener = socket.socket(fileno=boot["listen_fd"])
        while True:
            connection, _ = listener.accept()
            connection.sendall(str(os.getpid()).encode())
            connection.close()
    while sys.stdin.read(1):
        pass
    note("orphaned")
    while act == "deaf":
        signal.pause()
"""


class Notes:
    """What the children of a test have noted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "child.py").write_text(CHILD)

    def programs(self, prepare: str = "once", shard: str = "serve", front: str = "serve", again: str = "once") -> Programs:
        """Return programs that do this, one word a start."""
        script = str(self.folder / "child.py")
        return Programs(
            **{
                name: (sys.executable, "-I", "-S", script, name, str(self.folder), *acts.split())
                for name, acts in (("prepare", prepare), ("shard", shard), ("front", front))
            },
            prepare_again=(sys.executable, "-I", "-S", script, "again", str(self.folder), again),
        )

    def all(self) -> list[str]:
        """Return "NAME EVENT" of each note, in order."""
        path = self.folder / "notes"
        return [line.rpartition(" ")[0] for line in path.read_text().splitlines()] if path.exists() else []

    def pids(self, name: str = "") -> list[int]:
        """Return the pid of each process that was started, in order."""
        path = self.folder / "notes"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [int(pid) for who, event, pid in lines if event == "started" and who.startswith(name)]

    async def wait_for(self, note: str, times: int = 1) -> None:
        """Wait until a note was made so many times."""
        await wait_until(lambda: self.all().count(note) >= times)


async def wait_until(condition: Callable[[], object]) -> None:
    """Wait until a condition of another process holds: the only way to see it is to look again."""
    with trio.fail_after(SECONDS_MAX):
        while not condition():
            await trio.sleep(0.005)


def alive(pid: int) -> bool:
    """Say whether there is such a process, a zombie included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def stopped(pid: int) -> bool:
    """Say whether a process stands still after SIGSTOP (where the system shows it)."""
    stat = Path(f"/proc/{pid}/stat")
    return not Path("/proc/self").exists() or stat.read_text().rpartition(")")[2].split()[0] == "T"


class Run:
    """A supervisor under test."""

    def __init__(self, subject: Supervisor, signals: trio.MemorySendChannel[int]) -> None:
        self.subject = subject
        self.announced = trio.Event()
        self.ended = trio.Event()
        self.code: int | None = None
        self.error: StartError | None = None
        self._signals = signals

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Deliver a signal."""
        self._signals.send_nowait(number)

    async def stop(self) -> int:
        """Ask for the end and wait for it."""
        self.signal()
        return await self.wait()

    async def wait(self) -> int:
        """Wait for the end and return the exit code."""
        with trio.fail_after(SECONDS_MAX):
            await self.ended.wait()
        assert self.code is not None, self.error
        return self.code

    async def failure(self) -> str:
        """Wait for the end and return why it never served."""
        with trio.fail_after(SECONDS_MAX):
            await self.ended.wait()
        return str(self.error)

    async def serve(self) -> None:
        """Wait until every child serves."""
        with trio.fail_after(SECONDS_MAX):
            await self.announced.wait()


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Notes:
    """Return the notes of children, which are restarted quickly."""
    monkeypatch.setattr(child, "BACKOFF_SECONDS_FIRST", 0.01)
    monkeypatch.setattr(child, "BACKOFF_SECONDS_MAX", 0.05)
    monkeypatch.setattr(supervisor, "SIGNAL_SECONDS_MIN", 0.0)
    return Notes(tmp_path)


@asynccontextmanager
async def supervised(notes: Notes, programs: Programs, **changes: object) -> AsyncIterator[Run]:
    """Run a supervisor, and check at the end that it left no process behind."""
    settings = msgspec.structs.replace(Settings(port=0, shards=2, fronts=1, store="memory:"), **changes)
    listeners = open_listeners(settings.host, settings.port, settings.fronts)
    gates = open_listeners(settings.host, 0, 1) if settings.cluster else []
    send, receive = trio.open_memory_channel[int](10)
    run = Run(Supervisor(settings, programs, str(notes.folder), listeners, node_listener=gates[0] if gates else None), send)

    async def task() -> None:
        try:
            run.code = await run.subject.run(receive, run.announced.set)
        except StartError as error:
            run.error = error
        finally:
            run.ended.set()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)
            yield run
            if not run.ended.is_set():
                run.signal()
                await run.wait()
    finally:
        for listener in (*listeners, *gates):
            listener.close()
        assert [pid for pid in notes.pids() if alive(pid)] == []
        assert not [note for note in notes.all() if note.endswith("met-predecessor")]


def test_the_wait_before_a_restart_doubles_up_to_its_limit() -> None:
    """A child that cannot live is not started in a tight loop."""
    backoff = Backoff()

    waits = [backoff.after(1.0) for _ in range(10)]

    assert waits[:3] == [BACKOFF_SECONDS_FIRST, 2 * BACKOFF_SECONDS_FIRST, 4 * BACKOFF_SECONDS_FIRST]
    assert waits[-1] == BACKOFF_SECONDS_MAX


def test_a_child_that_served_long_is_restarted_quickly_again() -> None:
    """One crash a day is not a series."""
    backoff = Backoff()
    for _ in range(10):
        backoff.after(1.0)

    assert backoff.after(10.0) == BACKOFF_SECONDS_FIRST


def test_lines_are_the_same_however_they_arrive() -> None:
    """A pipe may cut a line anywhere."""
    text = b"one\n\ntwo\nthr"
    for cut in range(len(text)):
        lines = Lines()

        assert lines.feed(text[:cut]) + lines.feed(text[cut:]) == [b"one", b"", b"two"]


def test_a_line_without_end_is_not_kept_without_end() -> None:
    """What a child writes cannot fill the supervisor's memory."""
    lines = Lines()

    assert lines.feed(b"x" * (CONTROL_LINE_BYTES_MAX + 1)) == [b"x" * (CONTROL_LINE_BYTES_MAX + 1)]
    assert lines.feed(b"\n") == [b""]


async def test_the_store_is_prepared_before_shards_start_and_they_serve_before_fronts_start(notes: Notes) -> None:
    """The line is printed when all of them serve."""
    async with supervised(notes, notes.programs(), fronts=2) as run:
        await run.serve()

        assert [re.sub(r"\d", "", note) for note in notes.all()] == ["prepare started"] + 2 * ["shard started"] + 2 * ["front started"]
        assert [(child.name, child.serves, child.restarts) for child in run.subject.statistics().children] == [
            (name, True, 0) for name in ("shard-0", "shard-1", "front-0", "front-1")
        ]


async def test_each_child_is_told_who_it_is(notes: Notes) -> None:
    """The boot line is all that it needs."""
    async with supervised(notes, notes.programs(), fronts=2) as run:
        await run.serve()

    shards = [msgspec.json.decode((notes.folder / f"shard{i}.boot").read_bytes(), type=ShardBoot) for i in range(2)]
    fronts = [msgspec.json.decode((notes.folder / f"front{i}.boot").read_bytes(), type=FrontBoot) for i in range(2)]
    assert [(boot.shard, boot.run_dir, boot.settings.shards) for boot in shards] == [(i, str(notes.folder), 2) for i in range(2)]
    assert [(boot.front, boot.run_dir, boot.settings.fronts) for boot in fronts] == [(i, str(notes.folder), 2) for i in range(2)]
    assert len({boot.listen_fd for boot in fronts}) == 2


async def test_the_end_drains_fronts_before_shards(notes: Notes) -> None:
    """What a front still has under way needs its shards."""
    async with supervised(notes, notes.programs()) as run:
        await run.serve()

        assert await run.stop() == 0

    assert sorted(notes.all()[-2:]) == ["shard0 terminated", "shard1 terminated"]
    assert notes.all()[-3] == "front0 terminated"


async def test_a_child_that_dies_is_started_again_once_it_was_waited_for(notes: Notes) -> None:
    """`supervised` checks that no process meets its predecessor."""
    async with supervised(notes, notes.programs()) as run:
        await run.serve()
        for restarts in range(1, 4):
            os.kill(notes.pids("shard0")[-1], signal.SIGKILL)
            await notes.wait_for("shard0 started", 1 + restarts)

        await wait_until(lambda: all(child.serves for child in run.subject.statistics().children))
        assert [child.restarts for child in run.subject.statistics().children] == [3, 0, 0]
        assert await run.stop() == 0


async def test_connections_that_wait_for_a_front_are_served_by_its_successor(notes: Notes) -> None:
    """The socket belongs to the supervisor, so a crash loses only what the front had accepted."""
    async with supervised(notes, notes.programs(front="accept")) as run:
        await run.serve()
        address = run.subject._listeners[0].getsockname()
        old = notes.pids("front0")[-1]
        os.kill(old, signal.SIGSTOP)
        await wait_until(lambda: stopped(old))
        stream = await trio.open_tcp_stream(*address)
        os.kill(old, signal.SIGKILL)

        async with stream:
            with trio.fail_after(SECONDS_MAX):
                served_by = int(await stream.receive_some())

        assert served_by == notes.pids("front0")[-1] != old


@pytest.mark.parametrize("kind", ["prepare", "shard", "front"])
async def test_a_failure_that_no_restart_can_mend_stops_the_start(notes: Notes, kind: str) -> None:
    """The message is the child's own, and what had started already is drained."""
    async with supervised(notes, notes.programs(**{kind: "final"})) as run:
        assert await run.failure() == "the store is of another make"

    assert not run.announced.is_set()
    started = [note for note in notes.all() if note.startswith(kind) and note.endswith(" started")]
    assert len(started) == len(set(started)) >= 1, "none was started twice"


@pytest.mark.parametrize("kind", ["prepare", "shard", "front"])
async def test_a_failure_that_may_pass_is_tried_again(notes: Notes, kind: str) -> None:
    """A store that is away at the start may come."""
    served = "once" if kind == "prepare" else "serve"
    async with supervised(notes, notes.programs(**{kind: f"fail fail fail fail fail fail {served}"}), shards=1) as run:
        await run.serve()

        assert notes.all().count("prepare started" if kind == "prepare" else f"{kind}0 started") == 7
        assert await run.stop() == 0


async def test_a_shard_that_has_served_is_tried_again_whatever_it_says(notes: Notes) -> None:
    """Later, a store may be of another make for a while; it is prepared once more, not too often, and the other shards go on."""
    async with supervised(notes, notes.programs(shard="serve final final serve"), shards=1) as run:
        await run.serve()
        os.kill(notes.pids("shard0")[-1], signal.SIGKILL)
        await notes.wait_for("shard0 started", 4)

        await wait_until(lambda: all(child.serves for child in run.subject.statistics().children))
        assert notes.all().count("again started") == 1
        assert await run.stop() == 0


@pytest.mark.parametrize("again", ["once", "fenced"])
async def test_a_shard_whose_rows_another_server_has_ends_the_server(notes: Notes, again: str) -> None:
    """Though it has served: it is not started again, nor is the store prepared for it, unless that is how it is found out."""
    shard = "serve fenced" if again == "once" else "serve final"
    async with supervised(notes, notes.programs(shard=shard, again=again), shards=1) as run:
        await run.serve()
        os.kill(notes.pids("shard0")[-1], signal.SIGKILL)
        assert await run.failure() == "another server has it"

    assert notes.all().count("shard0 started") == 2
    assert notes.all().count("again started") == (again == "fenced")


async def test_shards_are_told_the_turns_that_a_preparation_has_reported(notes: Notes) -> None:
    """And one name, drawn at the start: what they may open the rows under."""
    async with supervised(notes, notes.programs(prepare="turns"), shards=2) as run:
        await run.serve()
        boots = [msgspec.json.decode((notes.folder / f"shard{number}.boot").read_bytes(), type=ShardBoot) for number in range(2)]

    assert [boot.opens_under for boot in boots] == [Claim(0, boots[0].server, 7), Claim(1, boots[0].server, 9)]
    assert boots[0].server.startswith("alone-")


@pytest.mark.parametrize(("act", "code"), [("silent", 3), ("half", 4)])
async def test_a_preparation_that_ends_without_a_word_stops_the_start_after_some_tries(notes: Notes, act: str, code: int) -> None:
    """A program that cannot even say what is wrong is broken."""
    async with supervised(notes, notes.programs(prepare=act)) as run:
        assert await run.failure() == f"prepare: it ends with exit code {code} before it serves; see the log"

    assert len(notes.pids()) == SILENT_STARTS_MAX


async def test_a_program_that_is_not_there_stops_the_start(notes: Notes) -> None:
    """The reason is the system's."""
    async with supervised(notes, Programs(prepare=(str(notes.folder / "nothing"),))) as run:
        assert await run.failure() == "prepare: it cannot be started: No such file or directory"


async def test_unexpected_output_of_a_child_is_logged_and_passed_over(notes: Notes, caplog: pytest.LogCaptureFixture) -> None:
    """A print left in a library does not confuse the supervisor; what it wrote is not repeated."""
    async with supervised(notes, notes.programs(shard="chatty"), shards=1) as run:
        await run.serve()
        await wait_until(lambda: [record.message for record in caplog.records].count("unexpected output") == 2)
        assert await run.stop() == 0


async def test_a_child_that_ends_with_an_error_spoils_the_exit_code(notes: Notes) -> None:
    """A shard that could not write its last batch must not look like a clean end."""
    async with supervised(notes, notes.programs(shard="unclean")) as run:
        await run.serve()

        assert await run.stop() == 1


async def test_a_drain_that_takes_too_long_ends_in_a_kill(notes: Notes, caplog: pytest.LogCaptureFixture) -> None:
    """The exit code and the log say so."""
    async with supervised(notes, notes.programs(front="deaf"), drain_seconds_max=0.05) as run:
        await run.serve()

        assert await run.stop() == 1

    assert [record.__dict__["killed"] for record in caplog.records if record.message == "the drain took too long"] == [
        ["shard-0", "shard-1", "front-0"]
    ]


async def test_a_second_signal_kills(notes: Notes) -> None:
    """Nobody has to wait for a drain that does not end."""
    async with supervised(notes, notes.programs(front="deaf")) as run:
        await run.serve()
        run.signal(signal.SIGINT)
        run.signal(signal.SIGINT)

        assert await run.wait() == 1


async def test_one_signal_that_arrives_twice_does_not_kill(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper may send it to the supervisor and to its process group."""
    monkeypatch.setattr(supervisor, "SIGNAL_SECONDS_MIN", 3600.0)
    async with supervised(notes, notes.programs()) as run:
        await run.serve()
        run.signal(signal.SIGINT)
        run.signal(signal.SIGINT)

        assert await run.wait() == 0


async def test_shards_are_still_restarted_while_fronts_drain(notes: Notes) -> None:
    """Requests under way may need them."""
    async with supervised(notes, notes.programs(front="deaf"), shards=1) as run:
        await run.serve()
        run.signal()
        await wait_until(lambda: run.subject.statistics().draining)
        os.kill(notes.pids("shard0")[-1], signal.SIGKILL)
        await notes.wait_for("shard0 started", 2)
        run.signal()

        assert await run.wait() == 1


@pytest.mark.parametrize("kind", ["prepare", "shard", "front"])
async def test_a_start_that_hangs_can_be_stopped(notes: Notes, kind: str) -> None:
    """A long recovery does not hold a signal back."""
    async with supervised(notes, notes.programs(**{kind: "hang"})) as run:
        await notes.wait_for(f"{kind} started" if kind == "prepare" else f"{kind}0 started")

        assert await run.stop() == 0

    assert not run.announced.is_set()


async def test_a_child_that_waits_for_its_restart_can_be_stopped(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop ends the wait."""
    monkeypatch.setattr(child, "BACKOFF_SECONDS_FIRST", 3600.0)
    async with supervised(notes, notes.programs(front="silent")) as run:
        await notes.wait_for("front0 started")
        await wait_until(lambda: run.subject.statistics().children[-1].pid is None)

        assert await run.stop() == 0


async def test_a_stop_is_harmless_at_any_moment_and_twice(notes: Notes) -> None:
    """Before the start, while it starts, while it serves, after its end."""
    boot = ShardBoot(Settings(), 0, str(notes.folder))
    for turns in range(12):
        child = Child("shard-0", notes.programs().shard, boot)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.keep)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            if turns == 11:
                await child.ready.wait()
            child.stop()
            child.stop()
            with trio.fail_after(SECONDS_MAX):
                await child.ended.wait()
            child.stop()

        assert not child.unclean
        assert child.statistics().pid is None


# The whole thing in a process of its own, for what needs one.
PROGRAM = """
import sys
import trio
from proteus_shards import child, supervisor
from proteus_shards.child import BACKOFF_SECONDS_FIRST, BACKOFF_SECONDS_MAX, CONTROL_LINE_BYTES_MAX, SILENT_STARTS_MAX, Backoff, Child, Lines
from proteus_shards.config import Settings
from proteus_shards.supervisor import Programs, supervise

supervisor.SIGNAL_SECONDS_MIN = 0.0
programs = Programs(**{name: (sys.executable, "-I", "-S", sys.argv[1], name, sys.argv[2], *acts.split())
                       for name, acts in zip(("prepare", "shard", "front"), sys.argv[3:])})
sys.exit(trio.run(supervise, Settings(port=0, shards=2, store="memory:"), programs))
"""


@asynccontextmanager
async def supervisor_process(
    notes: Notes, prepare: str = "once", shard: str = "serve", front: str = "serve"
) -> AsyncIterator[trio.Process]:
    """Run a supervisor in a process of its own until it has printed its line."""
    command = [sys.executable, "-c", PROGRAM, str(notes.folder / "child.py"), str(notes.folder), prepare, shard, front]
    start = partial(
        trio.lowlevel.open_process, command, stdout=subprocess.PIPE, env=server_environ({}) | {"TMPDIR": str(notes.folder)}, process_group=0
    )
    process = await start()
    try:
        assert process.stdout is not None
        with trio.fail_after(SECONDS_MAX):
            line = await process.stdout.receive_some()
        assert line.decode().startswith("proteus-shards "), line
        yield process
    finally:
        process.kill()
        await process.wait()
        assert process.stdout is not None
        await process.stdout.aclose()


async def test_children_end_when_their_supervisor_is_killed(notes: Notes) -> None:
    """The lifeline tells them, whatever became of the supervisor."""
    async with supervisor_process(notes) as process:
        process.kill()
        await process.wait()

        await wait_until(lambda: sorted(notes.all()[-3:]) == ["front0 orphaned", "shard0 orphaned", "shard1 orphaned"])
        await wait_until(lambda: not any(runs(pid) for pid in notes.pids()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_real_signal_drains_and_leaves_nothing(notes: Notes, number: signal.Signals) -> None:
    """The private folder is gone, too."""
    async with supervisor_process(notes) as process:
        process.send_signal(number)
        with trio.fail_after(SECONDS_MAX):
            assert await process.wait() == 0

    assert not any(alive(pid) for pid in notes.pids())
    assert not list(notes.folder.glob("proteus-*"))


async def test_ctrl_c_in_a_terminal_reaches_the_supervisor_alone(notes: Notes) -> None:
    """A signal to the whole process group does not cut a child off in the middle of its work."""
    async with supervisor_process(notes) as process:
        os.killpg(process.pid, signal.SIGINT)
        with trio.fail_after(SECONDS_MAX):
            assert await process.wait() == 0

    assert sorted(notes.all()[-3:]) == ["front0 terminated", "shard0 terminated", "shard1 terminated"]


async def test_a_second_real_signal_kills_and_leaves_nothing(notes: Notes) -> None:
    """A deaf child does not survive it."""
    async with supervisor_process(notes, shard="deaf") as process:
        process.send_signal(signal.SIGTERM)
        await notes.wait_for("front0 terminated")
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(SECONDS_MAX):
            assert await process.wait() == 1

    assert not any(alive(pid) for pid in notes.pids())
    assert not list(notes.folder.glob("proteus-*"))
