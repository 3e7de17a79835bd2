"""The front as a process: boot line, control line, lifeline, signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from proteus_shards.config import Beat, Failed, FrontBoot, Ready, Settings, socket_path
from proteus_shards.core.commands import Cancel, Delivered, Enqueue, Next, Undeliver
from proteus_shards.core.commands_jobs import RETRIES_OF_QUEUE
from tests.front.fake_shard import PATIENCE_SECONDS, FakeShard, delivery, obliging

SETTINGS = Settings(shards=1, log_format="json")
JOB = b'{"id":"j","queue":"q","timeout":1}'
ENQUEUE = b"POST /enqueue HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(JOB) + JOB

BEAT = msgspec.json.encode(Beat()) + b"\n"


class FrontProcess:
    """A running front, and what the supervisor would hold of it."""

    def __init__(self, process: trio.Process, port: int, log_path: Path) -> None:
        self.process = process
        self.port = port
        self.log_path = log_path

    async def read_line(self) -> bytes:
        """Read one control line that is no mere sign of life."""
        assert self.process.stdout is not None
        line = BEAT
        with trio.fail_after(PATIENCE_SECONDS):
            while line == BEAT:
                line = b""
                while not line.endswith(b"\n") and (data := await self.process.stdout.receive_some(1)):
                    line += data
        return line

    async def connect(self) -> trio.SocketStream:
        """Connect as a client."""
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def wait_exit(self) -> int:
        """Return the exit status."""
        with trio.fail_after(PATIENCE_SECONDS):
            return await self.process.wait()

    async def wait_logged(self, event: str) -> None:
        """Wait until the process has logged an event."""
        with trio.fail_after(PATIENCE_SECONDS):
            while event not in self.log_path.read_text():
                await trio.sleep(0.01)


async def status_of(stream: trio.SocketStream) -> int:
    """Read an answer's status."""
    head = b""
    with trio.fail_after(PATIENCE_SECONDS):
        while b"\r\n" not in head:
            data = await stream.receive_some(4096)
            assert data, "closed without an answer"
            head += data
    return int(head.split()[1])


@asynccontextmanager
async def front_process(run_dir: Path, settings: Settings = SETTINGS, boot: bytes | None = None) -> AsyncIterator[FrontProcess]:
    """Start a front process, and kill it if the test leaves it running."""
    with socket.socket() as listening, (run_dir / "front.log").open("wb") as log:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        if boot is None:
            boot = msgspec.json.encode(FrontBoot(settings, 0, str(run_dir), listening.fileno())) + b"\n"
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "proteus_shards.front"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=[listening.fileno()],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        port = listening.getsockname()[1]
    try:
        assert process.stdin is not None
        await process.stdin.send_all(boot)
        yield FrontProcess(process, port, run_dir / "front.log")
    finally:
        if process.poll() is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.aclose()
        await process.stdout.aclose()


@asynccontextmanager
async def serving(run_dir: Path, settings: Settings = SETTINGS) -> AsyncIterator[tuple[FrontProcess, FakeShard]]:
    """Start a front process and its shard, and wait until both are ready."""
    shard = FakeShard(socket_path(str(run_dir), 0))
    async with trio.open_nursery() as nursery:
        await nursery.start(shard.run)
        async with front_process(run_dir, settings) as front:
            assert msgspec.json.decode(await front.read_line(), type=Ready) == Ready()
            await shard.wait_for(lambda: shard.received)
            yield front, shard
        nursery.cancel_scope.cancel()


async def test_a_front_serves_before_its_shards_do(tmp_path: Path) -> None:
    """It says 429 until a shard is there."""
    async with front_process(tmp_path) as front:
        assert msgspec.json.decode(await front.read_line(), type=Ready) == Ready()
        async with await front.connect() as client:
            await client.send_all(ENQUEUE)
            assert await status_of(client) == 429


async def test_a_front_carries_requests_to_its_shard(tmp_path: Path) -> None:
    """Over the socket in its run folder."""
    async with serving(tmp_path) as (front, shard), await front.connect() as client:
        await client.send_all(ENQUEUE)

        assert await status_of(client) == 202
        assert shard.commands == [Enqueue("q", "j", 1, False, RETRIES_OF_QUEUE, b"null")]


@pytest.mark.parametrize("how", ["SIGTERM", "lifeline"])
async def test_a_front_drains(how: str, tmp_path: Path) -> None:
    """A waiting poll is answered with 204, a request under way with its outcome, an idle connection closes, and the exit is 0."""
    async with serving(tmp_path) as (front, shard):
        shard.answer = lambda command: None if isinstance(command, Enqueue) else obliging(command)
        polling, busy, idle = await front.connect(), await front.connect(), await front.connect()
        await polling.send_all(b"GET /next?queue=q&wait=60 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await busy.send_all(ENQUEUE)
        await idle.send_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert await status_of(idle) == 200
        ((poll, _),) = await shard.wait_command(Next)
        ((enqueue, _),) = await shard.wait_command(Enqueue)

        if how == "SIGTERM":
            front.process.send_signal(signal.SIGTERM)
        else:
            assert front.process.stdin is not None
            await front.process.stdin.aclose()

        assert await status_of(polling) == 204
        assert [command for _, command in await shard.wait_command(Cancel)] == [Cancel(poll, answered=True)]
        await shard.reply((poll, Delivered([delivery()])))
        await shard.wait_command(Undeliver)
        outcome = obliging(Enqueue("q", "j", 1, False, RETRIES_OF_QUEUE, b"null"))
        assert outcome is not None
        await shard.reply((enqueue, outcome))
        assert await status_of(busy) == 202
        assert await front.wait_exit() == 0
        for stream in (polling, busy, idle):
            await stream.aclose()


async def test_a_second_sigterm_exits_at_once(tmp_path: Path) -> None:
    """With 1, whatever is under way."""
    async with serving(tmp_path) as (front, shard):
        shard.answer = lambda command: None if isinstance(command, Enqueue) else obliging(command)
        client = await front.connect()
        await client.send_all(ENQUEUE)
        await shard.wait_command(Enqueue)

        front.process.send_signal(signal.SIGTERM)
        await front.wait_logged("draining")
        front.process.send_signal(signal.SIGTERM)

        assert await front.wait_exit() == 1
        await client.aclose()


async def test_a_drain_has_an_end(tmp_path: Path) -> None:
    """After drain_seconds_max, with a shard that never answers and a client that never reads, the exit is not a clean one."""
    settings = msgspec.structs.replace(SETTINGS, drain_seconds_max=0.5)
    async with serving(tmp_path, settings) as (front, shard):
        shard.answer = lambda command: Delivered([delivery(payload=b"1" * 20_000_000)]) if isinstance(command, Next) else None
        silent, deaf = await front.connect(), await front.connect()
        await silent.send_all(ENQUEUE)
        await deaf.send_all(b"GET /next?queue=q HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await shard.wait_command(Enqueue)
        await deaf.receive_some(1)

        front.process.send_signal(signal.SIGTERM)

        assert await front.wait_exit() == 1
        await silent.aclose()
        await deaf.aclose()


async def test_sigint_is_left_to_the_supervisor(tmp_path: Path) -> None:
    """A terminal sends it to every process."""
    async with serving(tmp_path) as (front, _), await front.connect() as client:
        front.process.send_signal(signal.SIGINT)

        await client.send_all(ENQUEUE)
        assert await status_of(client) == 202


async def test_a_descriptor_that_does_not_listen_is_final(tmp_path: Path) -> None:
    """Starting again would not help."""
    boot = msgspec.json.encode(FrontBoot(SETTINGS, 0, str(tmp_path), 1)) + b"\n"
    async with front_process(tmp_path, boot=boot) as front:
        failed = msgspec.json.decode(await front.read_line(), type=Failed)

        assert (failed.final, "descriptor 1" in failed.detail) == (True, True)
        assert await front.wait_exit() == 1


async def test_a_boot_line_that_is_wrong_is_final(tmp_path: Path) -> None:
    """It is never guessed at."""
    async with front_process(tmp_path, boot=b'{"settings":{"shrads":1}}\n') as front:
        failed = msgspec.json.decode(await front.read_line(), type=Failed)

        assert (failed.final, "shrads" in failed.detail) == (True, True)
        assert await front.wait_exit() == 1


async def test_a_front_without_a_boot_line_says_how_it_is_started(tmp_path: Path) -> None:
    """A person who runs it by hand is told."""
    async with front_process(tmp_path, boot=b"") as front:
        assert front.process.stdin is not None
        await front.process.stdin.aclose()

        assert await front.wait_exit() == 1
        assert "proteus-shards serve" in front.log_path.read_text()
