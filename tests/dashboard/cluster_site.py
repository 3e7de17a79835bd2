"""A front of a cluster in a thread of its own, for what speaks to it over HTTP. Its node and its shards are doubles."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Self

import msgspec
import trio

from proteus_shards.config import Settings
from proteus_shards.core.commands import Command, Measure, Measures, Outcome
from proteus_shards.front.access import Access
from proteus_shards.front.app import make_app
from proteus_shards.front.metrics import Page
from proteus_shards.front.owners import Cluster
from proteus_shards.front.server import Server
from proteus_shards.front.viewers import Viewers
from proteus_shards.ipc.hosts import FrontMessage, HostSeen, Owners
from tests.front.fake_node import HERE, THERE, FakeLink, FakeNode, owners_of
from tests.front.fake_shard import linked, obliging

GONE = "node-with-a-long-name-2.proteus-shards.jobs.svc.cluster.local:7400"
SETTINGS = Settings(shards=6, cluster=True, node_address=HERE, store="memory:")


def cluster() -> Owners:
    """Return the word of a node: three hosts, one of them dead, and a shard that nobody has."""
    said = owners_of(HERE, THERE, HERE, THERE, HERE, "")
    owners = [*said.owners]
    owners[3] = msgspec.structs.replace(owners[3], wanted=HERE)
    return msgspec.structs.replace(said, hosts=(*said.hosts, HostSeen(GONE, "1.0", alive=False, draining=False)), owners=tuple(owners))


class Site:
    """A front in a thread of its own, with a node that says and does as it is told."""

    def __init__(self, folder: Path, settings: Settings = SETTINGS) -> None:
        self.node = FakeNode(str(folder), cluster())
        self.url = ""
        self._folder = folder
        self._settings = settings
        self._serving = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._serving.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._token.run_sync_soon(self._end.set)
        self._thread.join()

    @property
    def wishes(self) -> list[FrontMessage]:
        """What the node was asked for."""
        return self.node.wishes

    def say(self, owners: Owners) -> None:
        """Let the node say something else."""
        trio.from_thread.run(self.node.say, owners, trio_token=self._token)

    async def _serve(self) -> None:
        def answer(command: Command) -> Outcome | None:
            if isinstance(command, Measure):
                return Measures([("proteus_jobs", ["0", "waiting"], 7)], [])
            return obliging(command)

        self._token = trio.lowlevel.current_trio_token()
        self._end = trio.Event()
        settings = self._settings
        async with linked(self._folder, settings, answer) as (router, _), trio.open_nursery() as nursery:
            router.access = Access(settings.tokens_file) if settings.tokens_file else None
            await nursery.start(self.node.run)
            router.cluster = Cluster(str(self._folder), [FakeLink(shard) for shard in range(settings.shards)], 5.0)
            nursery.start_soon(router.cluster.run)
            await router.cluster.wait_heard()
            page = Page(router, settings)
            viewers = Viewers(router, settings, page)
            nursery.start_soon(viewers.run)
            listener = socket.create_server(("127.0.0.1", 0))
            server = Server(make_app(router, settings, page, viewers), router, settings)
            await nursery.start(server.serve, listener, 1.0)
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            self._serving.set()
            await self._end.wait()
            nursery.cancel_scope.cancel()
        listener.close()
