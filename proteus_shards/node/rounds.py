"""Asks the register what the steward wants asked, one call at a time, and tells it what came of that.

Operators' wishes go the same way, between two steps. A call that fails is logged once, and then no more until one succeeds: a store that is away for an hour is one line.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from proteus_shards.cluster.model import NOBODY, View
from proteus_shards.cluster.steps import Beat, Call, Drain, Fault, Hand, Join, Leave, Look, Over, Rest, Want
from proteus_shards.cluster.steward import Steward
from proteus_shards.errors import StoreError
from proteus_shards.store.register import Register

log = logging.getLogger("proteus_shards.node")

AWAY = "the store did not answer; whether the wish is written down is not known"


class Rounds:
    """The steward's way to the register of a cluster of so many shards. `on_change` is called after every answer, `on_handed` after a shard went to another host."""

    def __init__(
        self, steward: Steward, register: Register, shards: int, on_change: Callable[[], None], on_handed: Callable[[Hand], None]
    ) -> None:
        self._steward = steward
        self._shards = shards
        self._register = register
        self._on_change = on_change
        self._on_handed = on_handed
        self._one_at_a_time = asyncio.Lock()
        self._poked = asyncio.Event()
        self._complained = False

    def poke(self) -> None:
        """Ask the steward again, now: something has happened."""
        self._poked.set()

    async def run(self) -> Over:
        """Do what the steward wants until it is over."""
        while True:
            self._poked.clear()
            step = self._steward.step(time.monotonic())
            if isinstance(step, Over):
                self._on_change()
                return step
            if isinstance(step, Rest):
                await self._rest(step.until - time.monotonic())
                continue
            async with self._one_at_a_time:
                sent_at = time.monotonic()
                answer = await self._ask(step)
                self._steward.told(step, answer, sent_at, time.monotonic())
            self._note(step, answer)
            self._on_change()

    async def wish(self, call: Want | Drain | Leave) -> Fault | None:
        """Write down what an operator wants. Returns why that is not done, if it is not."""
        fault = self._steward.fault_of(call)
        if fault is not None:
            return fault
        async with self._one_at_a_time:
            answer = await self._ask(call)
        self._steward.look_soon()
        self.poke()
        if answer is None:
            return Fault(AWAY)
        log.info("an operator's wish is written down", extra={"wish": type(call).__name__.lower(), "host": call.host})
        return None if answer else Fault("there is no such host or shard any more", missing=True)

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._poked.wait()
        except TimeoutError:
            return

    async def _ask(self, call: Call) -> View | bool | None:
        try:
            answer = await self._carry_out(call)
        except StoreError as error:
            if not self._complained:
                log.warning("the store cannot be asked who has which shard", extra={"error": str(error)})
            self._complained = True
            return None
        if self._complained:
            log.info("the store can be asked again")
        self._complained = False
        return answer

    async def _carry_out(self, call: Call) -> View | bool:
        register = self._register
        match call:
            case Look():
                view = await register.look()
                if len(view.holdings) != self._shards:  # it was lost, or is being prepared
                    raise StoreError(f"the store has holdings of {len(view.holdings)} shards, not {self._shards}")
                return view
            case Join(host):
                await register.join(host)
                return True
            case Beat(host):
                return await register.beat(host)
            case Drain(address, draining):
                return await register.drain(address, draining)
            case Hand(shard, turn, address):
                return await register.hand(shard, turn, address)
            case Want(shard, address):
                return await register.want(shard, address)
            case Leave(address, boot):
                return await register.leave(address, boot or None)

    def _note(self, step: Call, answer: View | bool | None) -> None:
        if not answer:
            return
        if isinstance(step, Join):
            log.info("joined the cluster", extra={"host": step.host.address})
        elif isinstance(step, Leave):
            log.info("left the cluster", extra={"host": step.host})
        elif isinstance(step, Hand):
            log.info("shard handed over", extra={"shard": step.shard, "turn": step.turn + 1, "to": step.host or "nobody"})
            if step.host != NOBODY:
                self._on_handed(step)
