"""A node for tests: a trio task on the node's socket that says who owns what, and links that only note where they are led."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

from proteus_shards.config import node_socket_path
from proteus_shards.front.link import LinkStatistics
from proteus_shards.ipc.frames import FrameReader, pack_frame
from proteus_shards.ipc.hosts import Asked, Elsewhere, FrontMessage, HostSeen, Owner, Owners, Stale, decode_from_front, encode
from tests.front.fake_shard import PATIENCE_SECONDS

HERE, THERE = "127.0.0.1:7001", "127.0.0.2:7001"

Item = TypeVar("Item")


def owners_of(*hosts: str, turn: int = 1, own: str = HERE, draining: bool = False, store_away: bool = False) -> Owners:
    """Return the word of a node whose shards have these hosts, in order."""
    return Owners(
        own=own,
        hosts=(HostSeen(own, "1.0", alive=True, draining=draining), HostSeen(THERE, "1.0", alive=True, draining=False)),
        owners=tuple(Owner(shard, host, turn, turn, here=host == own) for shard, host in enumerate(hosts)),
        store_away=store_away,
    )


class FakeNode:
    """Says `owners` to whoever connects, and answers each wish with `answer(wish)`; None leaves it unanswered."""

    def __init__(self, run_dir: str, owners: Owners) -> None:
        self.owners = owners
        self.answer: Callable[[FrontMessage], Asked | None] = lambda wish: Asked(getattr(wish, "number", 0))
        self.received: list[FrontMessage] = []
        self._path = node_socket_path(run_dir)
        self._streams: list[trio.SocketStream] = []
        self._changed = trio.Event()

    @property
    def wishes(self) -> list[FrontMessage]:
        """What operators asked for."""
        return [message for message in self.received if not isinstance(message, Stale)]

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled."""
        await trio.Path(self._path).unlink(missing_ok=True)
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(self._path)
        sock.listen()
        task_status.started()
        await trio.serve_listeners(self._serve, [trio.SocketListener(sock)])

    async def say(self, owners: Owners) -> None:
        """Say to all fronts what has changed."""
        self.owners = owners
        for stream in self._streams:
            await stream.send_all(pack_frame(encode(owners)))

    async def hang_up(self) -> None:
        """Close all connections."""
        while self._streams:
            await self._streams.pop().aclose()

    async def wait_for(self, find: Callable[[], Item | None]) -> Item:
        """Wait until `find` finds something, looking again whenever something has arrived."""
        with trio.fail_after(PATIENCE_SECONDS):
            while not (found := find()):
                await self._changed.wait()
        return found

    async def _serve(self, stream: trio.SocketStream) -> None:
        frames = FrameReader()
        try:
            await stream.send_all(pack_frame(encode(self.owners)))
            self._streams.append(stream)
            while data := await stream.receive_some(65536):
                for body in frames.feed(data):
                    message = decode_from_front(body)
                    self.received.append(message)
                    changed, self._changed = self._changed, trio.Event()
                    changed.set()
                    if not isinstance(message, Stale) and (asked := self.answer(message)) is not None:
                        await stream.send_all(pack_frame(encode(asked)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


class FakeLink:
    """A link that only notes where it is led."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.connected = True
        self.on_elsewhere: Callable[[Elsewhere], None] = lambda _: None
        self.led: list[tuple[str, int]] = []
        self.submitted = 0

    def redirect(self, target: str, turn: int) -> None:
        """Note it."""
        self.led.append((target, turn))

    def statistics(self) -> LinkStatistics:
        """Tell what was sent."""
        return LinkStatistics(self.shard, self.connected, 0, 0, 0, 0, 0, self.submitted, 0, 0, 0)
