"""Connections to every node that has keys of ours: one where there is no cluster, else one for each primary that was asked.

A shard needs the one node that has its keys (redis_wire.py follows them there). A register needs the leases of all shards, at once: they are asked for in
one breath a node, by the cluster's own table of slots. A key that has moved since is asked for again, by itself and by a new table, so that a node
that left or a slot on its way costs a round more and no error. Replicas are never asked: in a cluster they send a reader on to their primary.
"""

from __future__ import annotations

import asyncio
from binascii import crc_hqx
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from redis.exceptions import AskError

from proteus_shards.store.redis_errors import Unreached
from proteus_shards.store.redis_url import RedisUrl
from proteus_shards.store.redis_wire import REDIRECTS_MAX, Argument, Command, Node, Script, Wire, without_errors

SLOTS_OF_CLUSTER = 16_384


class Nodes:
    """Calls raise `WireError`s, and are made one at a time; `asyncio.timeout` around one ends the connections that it used."""

    def __init__(self, url: RedisUrl) -> None:
        self._url = url
        self.home = Wire(url)  # to any node of a cluster
        self._wires: dict[Node, Wire] = {}
        self._starts: list[int] = []  # first slots of ranges, ascending
        self._nodes: list[Node] = []  # of these ranges
        self._stale = False  # they are no longer what they were

    async def connect(self) -> None:
        """Connect to one node, and in a cluster find out which others there are."""
        await self.home.connect()
        await self._learn()

    async def close(self) -> None:
        """End all connections."""
        await self.home.close()
        while self._wires:
            await self._wires.popitem()[1].close()

    async def run(
        self, script: Script, key: str, *arguments: Argument, keys: Sequence[str] = (), after: Sequence[Command] = ()
    ) -> list[Any]:
        """Run a script about one key, or more of its node, then some commands behind it; return all answers."""
        await self._be_connected()
        node = self._node_of(key)
        wire = await self._wire(node)
        answers = await wire.run(script, [key, *keys], *arguments, after=after)
        self._stale = node is not None and wire.node != node
        return answers

    async def ask(self, commands: Sequence[tuple[str, Command]]) -> list[Any]:
        """Send commands that only read, each with the key that it is about, and return their answers."""
        await self._be_connected()
        answers: dict[int, Any] = {}
        groups: dict[Node | None, list[int]] = {}
        for index, (key, _) in enumerate(commands):
            groups.setdefault(self._node_of(key), []).append(index)
        for _ in range(REDIRECTS_MAX):
            await self._ask_groups(groups, commands, answers)
            strays = [index for index, answer in answers.items() if isinstance(answer, AskError)]  # MovedError is one
            if not self._url.cluster or not strays:
                return without_errors([answers[index] for index in range(len(commands))])
            await self._learn()
            for index in strays:  # a command by itself is sent on wherever its key is
                answers[index] = (await (await self._wire(self._node_of(commands[index][0]))).try_all([commands[index][1]]))[0]
            groups = {}
        raise Unreached("the slots of the cluster move too often")

    async def _ask_groups(
        self, groups: dict[Node | None, list[int]], commands: Sequence[tuple[str, Command]], answers: dict[int, Any]
    ) -> None:
        async def ask(node: Node | None, indices: list[int]) -> None:
            wire = await self._wire(node)
            answers.update(zip(indices, await wire.try_all([commands[index][1] for index in indices]), strict=True))

        try:
            async with asyncio.TaskGroup() as group:
                for node, indices in groups.items():
                    group.create_task(ask(node, indices))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _be_connected(self) -> None:
        if not self.home.usable:
            await self.connect()
        elif self._stale:
            await self._learn()

    async def _wire(self, node: Node | None) -> Wire:
        """Return a connection, to the node where that can be reached."""
        if node is None:
            return self.home
        wire = self._wires.get(node)
        if wire is None or wire.node != node or not wire.usable:
            if wire is not None:
                await wire.close()
            wire = self._wires[node] = Wire(self._url)
            wire.node = node
            await wire.connect()
        return wire

    async def _learn(self) -> None:
        """In a cluster, ask which slots are where."""
        if not self._url.cluster:
            return
        await self.home.learn_nodes()
        answer = await self.home.call("CLUSTER", "SLOTS")
        asked = self.home.node or ("", 0)
        ranges = sorted((first, (primary[0].decode() or asked[0], primary[1])) for first, _, primary, *_ in answer)
        self._starts = [first for first, _ in ranges]
        self._nodes = [node for _, node in ranges]
        self._stale = False
        for gone in self._wires.keys() - set(self._nodes):
            await self._wires.pop(gone).close()

    def _node_of(self, key: str) -> Node | None:
        """Return the node that has a key, by what was last learned; a gap between the ranges is for the node asked to see to."""
        if not self._nodes:
            return None
        tag = key[key.index("{") + 1 : key.index("}")]
        place = bisect_right(self._starts, crc_hqx(tag.encode(), 0) % SLOTS_OF_CLUSTER)
        return self._nodes[max(0, place - 1)]
