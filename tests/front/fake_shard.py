"""A shard for tests: a trio task on a Unix socket that speaks the protocol and answers what it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio

from proteus_shards.config import Settings, socket_path
from proteus_shards.core.commands import Cancel, Command, Delivered, Delivery, Done, Inspect, Next, Outcome, Statistics
from proteus_shards.front.link import Link
from proteus_shards.front.router import Router
from proteus_shards.ipc.frames import FrameReader, pack_frame
from proteus_shards.ipc.messages import Goodbye, Hello, decode_greeting, decode_requests, encode, hello

PATIENCE_SECONDS = 60
RUN_ID = bytes(range(16))

Item = TypeVar("Item")

_FIELDS: dict[str, Any] = {
    **dict.fromkeys(Statistics.__struct_fields__, 0),
    "store": "memory",
    "durability": "memory",
    "terms": "nothing is kept",
    "store_away": False,
}
STATISTICS = Statistics(**_FIELDS)


def delivery(queue: str = "q", job_id: str = "a", payload: bytes = b"{}", state: bytes | None = None) -> Delivery:
    """Return a delivered job."""
    return Delivery(queue, job_id, 30, False, 0, payload, state, None, RUN_ID, 1, 1_700_000_000_000_000, 1_700_000_000_000_001)


def obliging(command: Command) -> Outcome | None:
    """Answer as a shard does whose every queue is empty."""
    match command:
        case Inspect():
            return STATISTICS
        case Next():
            return Delivered([]) if command.wait_us == 0 else None
        case Cancel():
            return Delivered([]) if command.answered else None
    return Done()


class FakeShard:
    """Answers each command with `answer(command)`; None leaves it unanswered, for `reply` to do so later."""

    def __init__(self, path: str, answer: Callable[[Command], Outcome | None] = obliging, shard: int = 0, shards: int = 1) -> None:
        self.path = path
        self.answer = answer
        self.greeting: Hello | Goodbye | bytes | None = hello(shard, shards)  # None: hang up instead
        self.reading = trio.Event()
        self.reading.set()
        self.received: list[tuple[int, Command]] = []
        self.frames: list[int] = []  # how many requests each frame had
        self.connects = 0
        self._stream: trio.SocketStream | None = None
        self._changed = trio.Event()
        self._sending = trio.Lock()

    @property
    def commands(self) -> list[Command]:
        """What was asked, without the questions that each link asks at its start."""
        return [command for _, command in self.received if not isinstance(command, Inspect)]

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled."""
        await trio.Path(self.path).unlink(missing_ok=True)
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(self.path)
        sock.listen()
        task_status.started()
        await trio.serve_listeners(self._serve, [trio.SocketListener(sock)])

    async def send(self, data: bytes) -> None:
        """Send raw bytes to the front."""
        assert self._stream is not None
        async with self._sending:
            await self._stream.send_all(data)

    async def reply(self, *replies: tuple[int, Outcome]) -> None:
        """Send replies in one frame."""
        await self.send(pack_frame(encode(list(replies))))

    async def hang_up(self) -> None:
        """Close the link."""
        assert self._stream is not None
        await self._stream.aclose()

    async def wait_for(self, find: Callable[[], Item | None]) -> Item:
        """Wait until `find` finds something, looking again whenever something has arrived."""
        with trio.fail_after(PATIENCE_SECONDS):
            while not (found := find()):
                await self._changed.wait()
        return found

    async def wait_command(self, kind: type[Command], count: int = 1) -> list[tuple[int, Command]]:
        """Wait until `count` commands of a kind have arrived, and return all of that kind."""
        found: list[tuple[int, Command]] = []

        def enough() -> bool:
            found[:] = [(number, command) for number, command in self.received if isinstance(command, kind)]
            return len(found) >= count

        await self.wait_for(enough)
        return found

    def _change(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _serve(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.connects += 1
        self._change()
        frames = FrameReader()
        greeted = False
        try:
            while data := await stream.receive_some(65536):
                for body in frames.feed(data):
                    if greeted:
                        await self._take(body, stream)
                    elif self.greeting is None:
                        return
                    else:
                        decode_greeting(body)
                        greeted = True
                        await stream.send_all(self.greeting if isinstance(self.greeting, bytes) else pack_frame(encode(self.greeting)))
                await self.reading.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def _take(self, body: bytes, stream: trio.SocketStream) -> None:
        requests = decode_requests(body)
        self.frames.append(len(requests))
        self.received += requests
        self._change()
        replies = [
            (command.request if isinstance(command, Cancel) else number, outcome)
            for number, command in requests
            if (outcome := self.answer(command)) is not None
        ]
        if replies:
            async with self._sending:
                await stream.send_all(pack_frame(encode(replies)))


@asynccontextmanager
async def linked(
    run_dir: Path, settings: Settings, answer: Callable[[Command], Outcome | None] = obliging
) -> AsyncIterator[tuple[Router, list[FakeShard]]]:
    """Run fake shards and links to them; gives the router of the links, and the shards."""
    async with trio.open_nursery() as nursery:
        shards = [FakeShard(socket_path(str(run_dir), number), answer, number, settings.shards) for number in range(settings.shards)]
        links = [Link(shard.path, number, settings) for number, shard in enumerate(shards)]
        for shard, link in zip(shards, links, strict=True):
            await nursery.start(shard.run)
            nursery.start_soon(link.run)
            with trio.fail_after(PATIENCE_SECONDS):
                await link.wait_connected()
                await link.wait_settled()
        yield Router(links, settings=settings), shards
        nursery.cancel_scope.cancel()
