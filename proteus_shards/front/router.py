"""From a queue to the link of the shard that owns it, and what concerns all links at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec
import trio

from proteus_shards.config import Settings
from proteus_shards.core.commands import Command, Delivery, Next, Outcome, Refused, Statistics
from proteus_shards.core.placement import shard_of, slot_of
from proteus_shards.front.access import Access
from proteus_shards.front.admission import Admission
from proteus_shards.front.budget import Budget
from proteus_shards.front.counts import RequestCounts
from proteus_shards.front.link import Link, LinkStatistics
from proteus_shards.front.operations import QueueCommand
from proteus_shards.front.owners import Cluster
from proteus_shards.front.pending import UNSETTLED, OnOutcomes, OnReply
from proteus_shards.front.watching import End, Watch, watched


class Router:
    """The links of one front, in the order of their shards: in a cluster those of all its shards, of which some are here."""

    def __init__(self, links: Sequence[Link], access: Access | None = None, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        self.links = tuple(links)
        self.access = access  # who may ask; None: everyone
        self.cluster: Cluster | None = None
        self.draining = False
        self.bodies = Budget("bodies_bytes_max", settings.bodies_bytes_max)  # of requests that are not whole yet
        self.answers = Budget("answers_bytes_max", settings.answers_bytes_max)  # that no client has taken yet
        self.admission = Admission(settings.quart_requests_max)  # of requests outside the fast lane
        self.watches: tuple[Watch, ...] = ()
        self.counts = RequestCounts()  # of all that is asked of this front, whoever serves it

    def link_of(self, queue: str) -> Link:
        """Return the link to the shard that owns a queue."""
        return self.links[shard_of(slot_of(queue), len(self.links))]

    @property
    def full(self) -> bool:
        """Whether no link would take a request for now."""
        return all(link.full for link in self.links)

    def submit(self, command: QueueCommand, on_reply: OnReply) -> tuple[Link, int] | Refused:
        """Send a command to the shard of its queue; see `Link.submit`. Returns the link and the number, to abandon it by."""
        if self.watches:
            return self._submit_watched(command, on_reply)
        link = self.link_of(command.queue)
        number = link.submit(self._timely(command) if self.draining else command, on_reply)
        return number if isinstance(number, Refused) else (link, number)

    def _submit_watched(self, command: QueueCommand, on_reply: OnReply) -> tuple[Link, int] | Refused:
        (command,), end = watched(self.watches, (command,))

        def take(outcome: Outcome) -> None:
            (outcome,) = end((outcome,))
            on_reply(outcome)

        link = self.link_of(command.queue)
        number = link.submit(self._timely(command), take)
        if isinstance(number, Refused):
            end((number,))
            return number
        return link, number

    def submit_all(self, commands: Sequence[QueueCommand], on_outcomes: OnOutcomes) -> None:
        """Send commands, those of one shard in one frame and in order; see `Link.submit_all`.

        `on_outcomes` is called once with the outcomes in the order of the commands: at once, where no shard takes any.
        """
        if self.watches:
            commands, end = watched(self.watches, commands)
            on_outcomes = partial(_show, end, on_outcomes)
        places: dict[Link, list[int]] = {}
        links: dict[str, Link] = {}
        for place, command in enumerate(commands):
            queue = command.queue
            link = links.get(queue)
            if link is None:
                link = links[queue] = self.link_of(queue)
            places.setdefault(link, []).append(place)
        outcomes: list[Outcome] = [UNSETTLED] * len(commands)
        left = len(places)

        def take(own: list[int], found: Sequence[Outcome]) -> None:
            nonlocal left
            for place, outcome in zip(own, found, strict=True):
                outcomes[place] = outcome
            left -= 1
            if not left:
                on_outcomes(outcomes)

        for link, own in list(places.items()):
            refused = link.submit_all([commands[place] for place in own], partial(take, own))
            if refused is not None:
                take(own, [refused] * len(own))
        if not commands:
            on_outcomes(outcomes)

    def ask_all(self, command: Command, on_outcomes: OnOutcomes) -> None:
        """Ask every shard the same. `on_outcomes` is called once with what each said, in the order of the shards: at once, where none is asked."""
        outcomes: list[Outcome] = [UNSETTLED] * len(self.links)
        left = len(self.links)

        def take(place: int, outcome: Outcome) -> None:
            nonlocal left
            outcomes[place] = outcome
            left -= 1
            if not left:
                on_outcomes(outcomes)

        for place, link in enumerate(self.links):
            sent = link.submit(command, partial(take, place))
            if isinstance(sent, Refused):
                take(place, sent)

    async def call(self, command: QueueCommand) -> Outcome:
        """Send a command to the shard of its queue and wait for its outcome; see `Link.call`."""
        if not self.watches:
            return await self.link_of(command.queue).call(self._timely(command))
        (command,), end = watched(self.watches, (command,))
        (outcome,) = end((await self.link_of(command.queue).call(self._timely(command)),))
        return outcome

    def undeliver(self, jobs: Sequence[Delivery]) -> None:
        """Give back runs that surely never reached a runner."""
        for job in jobs:
            self.link_of(job.queue).undeliver((job,))

    def drain(self) -> None:
        """Answer every waiting poll with "no job", and from now on let none wait."""
        self.draining = True
        for link in self.links:
            link.end_polls()

    async def wait_settled(self) -> None:
        """Wait, a bounded time, until no shard has anything left to tell."""
        async with trio.open_nursery() as nursery:
            for link in self.links:
                nursery.start_soon(link.wait_settled)

    def links_here(self) -> tuple[Link, ...]:
        """Return the links to the shards of this host."""
        cluster = self.cluster
        return self.links if cluster is None else tuple(link for link in self.links if cluster.is_here(link.shard))

    def away(self) -> list[int]:
        """Return the shards whose links are down, those of other hosts included."""
        return [link.shard for link in self.links if not link.connected]

    def shard_statistics(self) -> Statistics | None:
        """Return what some shard said of itself when it was connected, or None where none has been yet."""
        return next((link.shard_statistics for link in self.links if link.shard_statistics is not None), None)

    def statistics(self) -> tuple[LinkStatistics, ...]:
        """Return the statistics of each link."""
        return tuple(link.statistics() for link in self.links)

    def _timely(self, command: QueueCommand) -> QueueCommand:
        if self.draining and isinstance(command, Next) and command.wait_us:
            return msgspec.structs.replace(command, wait_us=0)
        return command


def _show(end: End, on_outcomes: OnOutcomes, outcomes: Sequence[Outcome]) -> None:
    on_outcomes(end(outcomes))
