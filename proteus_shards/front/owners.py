"""What a front knows of the cluster: who owns which shard, as the node of its host says, and where its links lead because of it.

The node's word is the map: it comes whole, at once and after every change, and each link is led to the socket of the shard's process where that is here, to the
gate of its host where it is not, and nowhere while nobody has it. Nothing here is on the way of a request: a queue's shard has one link, whoever owns it.

**Where the map is wrong** a gate says so (`Elsewhere`), with what it knows. What it knows to be later is believed, for a while: the link is led there, and the node is told
(`Stale`), which looks at the store soon. What is not later means nothing: the gate is behind, or the shard is on its way, and a look at the store each time a link
tries would cost more than it tells. As long as any link to another host is down the node is told so twice a second.

**Forwards are counted by subtraction**: how many operations a link had taken when it was led to a host, and has taken now. So a request costs nothing more in a
cluster than elsewhere. Hosts come and go under new addresses; the first `HOSTS_COUNTED_MAX` have a count of their own.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

import trio

from proteus_shards.cluster.model import NOBODY
from proteus_shards.config import node_socket_path, socket_path
from proteus_shards.core.commands import Sample
from proteus_shards.errors import ProtocolError
from proteus_shards.front.cluster_views import HOST_STATES, ClusterShown, cluster_shown, state_of
from proteus_shards.front.link import LinkStatistics
from proteus_shards.ipc.frames import FrameReader, pack_frame
from proteus_shards.ipc.hosts import Asked, Drain, Elsewhere, Forget, FrontMessage, Move, Owner, Owners, Stale, decode_from_node, encode

BACKOFF_SECONDS_MIN = 0.02
BACKOFF_SECONDS_MAX = 1.0
LOOK_SECONDS = 0.5  # between two looks at links that are down and wishes that are late
HINT_SECONDS = 5.0
OUTBOX_MAX = 1024  # of words that maps are stale; a wish is never dropped, and each has a request that waits for it
RECEIVE_BYTES = 64 * 1024
HOSTS_COUNTED_MAX = 64
OTHER_HOSTS = ""  # under which the forwards to all further hosts are counted

log = logging.getLogger("proteus_shards.front")

Wish: TypeAlias = Callable[[int], Move | Drain | Forget]
OnAsked: TypeAlias = Callable[[Asked | None], None]


class Led(Protocol):
    """What the cluster needs of a link."""

    on_elsewhere: Callable[[Elsewhere], None]

    @property
    def shard(self) -> int:
        """The shard that it is for."""

    @property
    def connected(self) -> bool:
        """Whether it is up."""

    def redirect(self, target: str, turn: int) -> None:
        """Lead the link to a Unix socket (a path), to a gate (HOST:PORT), or nowhere (an empty text)."""

    def statistics(self) -> LinkStatistics:
        """Return its statistics."""


class Cluster:
    """The cluster, as one front sees it. `said` is the node's last word, None before the first. Everything but `run` and the `wait_` function is sync."""

    def __init__(self, run_dir: str, links: Sequence[Led], wish_seconds_max: float) -> None:
        self.said: Owners | None = None
        self._run_dir = run_dir
        self._links = tuple(links)
        for link in self._links:
            link.on_elsewhere = self.note_elsewhere
        self._wish_seconds_max = wish_seconds_max
        self._connected = False
        self._heard = trio.Event()
        self._here: frozenset[int] = frozenset()
        self._hinted: dict[int, float] = {}  # by shard: until when a gate's word is held against an older one of the node
        self._led: list[tuple[str, int]] = [("", -1)] * len(self._links)  # target and turn of each link
        self._outbox: deque[FrontMessage] = deque()
        self._writer = trio.lowlevel.ParkingLot()
        self._wishes: dict[int, tuple[float, OnAsked]] = {}  # by number: when it is late, and who wants to know
        self._number = 0
        self._forwards: dict[str, int] = {}
        self._counted = [0] * len(self._links)  # of the operations that each link has taken
        self._complaint = ""

    # --- what is known -----------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the node of this host is there."""
        return self._connected

    def is_here(self, shard: int) -> bool:
        """Say whether a process of this host serves a shard."""
        return shard in self._here

    def unready(self) -> list[str]:
        """Return why this host should get no requests, if it should not."""
        said = self.said
        if not self._connected:
            return ["the node process of this host is away"]
        if said is None:
            return ["the node process of this host has not seen the cluster yet"]
        reasons = []
        if not self._here:
            reasons.append("this host holds no shard")
        if any(host.draining for host in said.hosts if host.address == said.own):
            reasons.append("this host is draining")
        if said.store_away:
            reasons.append("the node of this host cannot reach the store")
        return reasons

    def shown(self) -> ClusterShown | None:
        """Return the node's last word as it is shown; None before the first."""
        said = self.said
        if said is None:
            return None
        return cluster_shown(said, store_away=said.store_away or not self._connected)

    def samples(self) -> list[Sample]:
        """Return what there is to know of the cluster now. Every front says the same, so one does."""
        said = self.said
        found: list[Sample] = [("proteus_node_up", [], self._connected)]
        if said is None:
            return found
        states = Counter(state_of(host) for host in said.hosts)
        found += [("proteus_cluster_hosts", [state], states[state]) for state in HOST_STATES]
        found.append(("proteus_cluster_shards_unowned", [], sum(owner.host == NOBODY for owner in said.owners)))
        found.append(("proteus_cluster_store_away", [], said.store_away))
        found.append(("proteus_leases_held", [], sum(owner.host == said.own for owner in said.owners)))
        return found

    def forwards(self) -> list[Sample]:
        """Return what this front has sent to the shards of other hosts."""
        for place in range(len(self._links)):
            self._count(place)
        return [("proteus_forwards_total", [host], count) for host, count in self._forwards.items()]

    async def wait_heard(self) -> None:
        """Wait until the node has said something."""
        await self._heard.wait()

    # --- what is asked -----------------------------------------------------------------------------------------

    def ask(self, wish: Wish, on_asked: OnAsked) -> bool:
        """Tell the node what an operator wants; `wish` is given the number. `on_asked` is called once, with None where nobody knows what became of it.

        Returns False, and does nothing, where the node is away.
        """
        if not self._connected:
            return False
        self._number += 1
        self._wishes[self._number] = trio.current_time() + self._wish_seconds_max, on_asked
        self._send(wish(self._number))
        return True

    def note_elsewhere(self, elsewhere: Elsewhere) -> None:
        """Take the word of a gate that a shard is not there."""
        shard = elsewhere.shard
        if not 0 <= shard < len(self._links):
            return
        turn = self._led[shard][1]
        owner = self._owner_of(shard)
        if owner is None or elsewhere.turn > owner.turn:
            self._send(Stale(shard, max(0, turn)))
        if elsewhere.turn > turn and self.said is not None:
            self._hinted[shard] = trio.current_time() + HINT_SECONDS
            self._lead(shard, self._target(shard, elsewhere.host, here=False), elsewhere.turn)
        elif owner is not None and owner.turn < turn:  # the hint was wrong, and the node's word counts again
            self._hinted.pop(shard, None)
            self._lead(shard, self._target(shard, owner.host, here=owner.here), owner.turn)

    def _owner_of(self, shard: int) -> Owner | None:
        owners = self.said.owners if self.said is not None else ()
        return owners[shard] if shard < len(owners) else None

    def _send(self, message: FrontMessage) -> None:
        if self._connected and (len(self._outbox) < OUTBOX_MAX or not isinstance(message, Stale)):
            self._outbox.append(message)
            self._writer.unpark()

    # --- where links lead --------------------------------------------------------------------------------------

    def take(self, said: Owners) -> None:
        """Take the node's word."""
        first, self.said = self.said is None, said
        if len(said.owners) != len(self._links):
            log.error("the node speaks of another number of shards", extra={"shards": len(self._links), "of_node": len(said.owners)})
        self._here = frozenset(owner.shard for owner in said.owners if owner.here)
        now = trio.current_time()
        for owner in said.owners[: len(self._links)]:
            if owner.turn >= self._led[owner.shard][1] or now >= self._hinted.get(owner.shard, 0.0):
                self._hinted.pop(owner.shard, None)
                self._lead(owner.shard, self._target(owner.shard, owner.host, here=owner.here), owner.turn)
        if first:
            log.info("in a cluster", extra={"hosts": len(said.hosts), "shards_here": len(self._here)})
        self._heard.set()

    def _target(self, shard: int, host: str, *, here: bool) -> str:
        own = self.said.own if self.said is not None else NOBODY
        return socket_path(self._run_dir, shard) if here or host == own != NOBODY else host

    def _lead(self, shard: int, target: str, turn: int) -> None:
        if self._led[shard] != (target, turn):
            self._count(shard)
            self._led[shard] = target, turn
            self._links[shard].redirect(target, turn)

    def _count(self, place: int) -> None:
        """Count what a link has taken since it was counted last."""
        host = self._led[place][0]
        submitted = self._links[place].statistics().submitted
        if host and not host.startswith("/"):
            known = host in self._forwards or len(self._forwards) < HOSTS_COUNTED_MAX
            counted = host if known else OTHER_HOSTS
            self._forwards[counted] = self._forwards.get(counted, 0) + submitted - self._counted[place]
        self._counted[place] = submitted

    # --- the connection ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Listen to the node until cancelled."""
        backoff = BACKOFF_SECONDS_MIN
        while True:
            heard = False
            try:
                stream = await trio.open_unix_socket(node_socket_path(self._run_dir))
                async with stream:
                    backoff, heard = BACKOFF_SECONDS_MIN, True
                    reason = await self._converse(stream)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError) as error:
                reason = str(error) or type(error).__name__
            log.log(logging.WARNING if heard or reason != self._complaint else logging.DEBUG, "the node is away", extra={"reason": reason})
            self._complaint = reason
            await trio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 jitter keeps no secret
            backoff = min(backoff * 2, BACKOFF_SECONDS_MAX)

    async def _converse(self, stream: trio.SocketStream) -> str:
        self._connected = True
        ends: list[str] = []

        async def until_it_ends(scope: trio.CancelScope, work: Callable[[trio.SocketStream], Awaitable[None]]) -> None:
            try:
                await work(stream)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError) as error:
                ends.append(str(error) or type(error).__name__)
            scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                for work in (self._read, self._write, self._look):
                    nursery.start_soon(until_it_ends, nursery.cancel_scope, work)
        finally:
            self._connected = False
            self._outbox.clear()
            wishes, self._wishes = self._wishes, {}
            for _, on_asked in wishes.values():
                on_asked(None)
        return ends[0] if ends else "it has closed the connection"

    async def _read(self, stream: trio.SocketStream) -> None:
        frames = FrameReader()
        while data := await stream.receive_some(RECEIVE_BYTES):
            for body in frames.feed(data):
                message = decode_from_node(body)
                if isinstance(message, Owners):
                    self.take(message)
                elif (wish := self._wishes.pop(message.number, None)) is not None:
                    wish[1](message)

    async def _write(self, stream: trio.SocketStream) -> None:
        while True:
            while self._outbox:
                await stream.send_all(pack_frame(encode(self._outbox.popleft())))
            await self._writer.park()

    async def _look(self, _stream: trio.SocketStream) -> None:
        while True:
            await trio.sleep(LOOK_SECONDS)
            now = trio.current_time()
            for number in [number for number, (late, _) in self._wishes.items() if late <= now]:
                self._wishes.pop(number)[1](None)
            down = next((link.shard for link in self._links if not link.connected and link.shard not in self._here), None)
            if down is not None:
                self._send(Stale(down, max(0, self._led[down][1])))
