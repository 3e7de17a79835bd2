"""Works that measure time: arrivals that do not wait for answers, and the wake-up of waiting runners.

Coordinated omission, and how it is avoided: a client that waits for each answer asks less while the server is slow, and so leaves out of
its sample just the requests that would have waited. Here arrival times are fixed beforehand, and a latency counts from the arrival time of the request,
not from when it could be sent. A request that finds all connections busy waits for one, and that counts too. How late the generator
itself was is measured apart (`lag`): where that is large, the latency is the generator's.
"""

from __future__ import annotations

import random
import time
from array import array
from collections import deque

from bench.engine import Wire
from bench.jobs import ENQUEUE_TAIL, ID_FIRST, next_job
from bench.load import Order, Paced, Wake
from bench.works import ANSWER_SECONDS_MAX, Session

WARM_SHARE = 0.1  # of the time, at the start, which is not counted
IDLE_SECONDS_MAX = 0.05
PARK_SECONDS = 0.5  # for the last waiting requests to reach their shard


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Return the arrival times of a Poisson process."""
    gap = random.Random(seed).expovariate
    times: list[float] = []
    at = gap(rate)
    while at < seconds:
        times.append(at)
        at += gap(rate)
    return times


class _Timed(Session):
    """Sends at each time of `due`, in seconds from the start, what `arrive` sends."""

    due: list[float]
    first_counted = 0.0  # on the monotonic clock

    def begin(self) -> None:
        """Send nothing yet: `run` does, when it is time."""

    def arrive(self, number: int, due: float) -> bool:
        """Send the request of an arrival, `due` on the monotonic clock. False: that must wait for an answer."""
        raise NotImplementedError

    def run(self) -> None:
        clock = time.monotonic
        due, poll, arrive = self.due, self.engine.poll, self.arrive
        self.report.began = started = clock()
        last = started + (due[-1] if due else 0.0)
        self.first_counted = started + WARM_SHARE * (last - started)
        number, total = 0, len(due)
        while number < total or self.under_way:
            now = clock()
            blocked = False
            while number < total and started + due[number] <= now and not blocked:
                blocked = not arrive(number, started + due[number])
                number += not blocked
            if now > last + ANSWER_SECONDS_MAX:
                self.report.unanswered = self.under_way + total - number
                self.fault(f"{self.report.unanswered} requests were not answered {ANSWER_SECONDS_MAX:g} s after the last arrival")
                break
            wait = IDLE_SECONDS_MAX if blocked or number == total else started + due[number] - clock()
            poll(min(max(wait, 0.0), IDLE_SECONDS_MAX))
        self.report.ended = clock()


class PacedSession(_Timed):
    """See `Paced`."""

    def __init__(self, order: Order) -> None:
        assert isinstance(order.work, Paced)
        super().__init__(order)
        self._first = order.work.first
        self._heads = [order.work.family.enqueue_head(queue) for queue in order.work.family.slots]
        self._free = deque(self.engine.wires)
        self._latency = array("d")
        self._lag = array("d")
        self.due = arrivals(order.work.rate / order.parts, order.work.seconds, order.work.seed * 1000 + order.part)

    def arrive(self, number: int, due: float) -> bool:
        if not self._free:
            return False
        wire = self._free.popleft()
        wire.note = due
        if due >= self.first_counted:
            self._lag.append(time.monotonic() - due)
        job = self._first + self.order.part + number * self.order.parts
        self.under_way += 1
        self.engine.send(wire, b"%s%d%s" % (self._heads[job % len(self._heads)], ID_FIRST + job, ENQUEUE_TAIL))
        return True

    def answered(self, wire: Wire, status: int, body: bytes) -> None:
        self.report.requests += 1
        self.under_way -= 1
        if self.expect(202, status, body):
            self.report.jobs += 1
        if wire.note >= self.first_counted:
            self._latency.append(time.monotonic() - wire.note)
        self._free.append(wire)

    def verify(self) -> None:
        self.report.times = {"latency": self._latency.tobytes(), "lag": self._lag.tobytes()}


class _Waiter:
    """One waiting runner on a queue of its own, and the times of the job that is on its way to it."""

    __slots__ = ("accepted", "ask", "delivered", "due", "number", "sent", "slot", "wire")

    def __init__(self, wire: Wire, slot: int, ask: bytes) -> None:
        self.wire = wire
        self.slot = slot
        self.ask = ask
        self.number = slot  # of its next job
        self.due = self.sent = self.accepted = self.delivered = 0.0


class WakeSession(_Timed):
    """See `Wake`. The connections of the order wait, the extra ones enqueue."""

    extra = 8

    def __init__(self, order: Order) -> None:
        assert isinstance(order.work, Wake)
        super().__init__(order)
        work = order.work
        self._family = work.family
        assert len(self._family.slots) == order.connections
        waiting = self.engine.wires[: -self.extra]
        slots = [self.index(wire) for wire in waiting]
        asks = [next_job(self._family.slots[slot], wait_seconds=work.wait_seconds) for slot in slots]
        self._waiters = [_Waiter(*each) for each in zip(waiting, slots, asks, strict=True)]
        self._idle = deque(self.engine.wires[-self.extra :])
        self._from_due, self._from_sent, self._from_accepted = array("d"), array("d"), array("d")
        rate = work.rate / order.parts
        self.due = [i / rate for i in range(1, int(work.seconds * rate) + 1)]  # steady: one at a time

    def prepare(self) -> None:
        """Have all of them wait."""
        for waiter in self._waiters:
            self.engine.send(waiter.wire, waiter.ask)
        until = time.monotonic() + PARK_SECONDS
        while time.monotonic() < until:
            self.engine.poll(0.01)

    def arrive(self, number: int, due: float) -> bool:
        index = number % len(self._waiters)
        waiter = self._waiters[index]
        if not self._idle or waiter.due:
            return False
        wire = self._idle.popleft()
        wire.note = float(index)
        waiter.due = due
        waiter.accepted = waiter.delivered = 0.0
        waiter.sent = time.monotonic()
        self.under_way += 2
        self.engine.send(wire, self._family.enqueue(waiter.number))
        return True

    def answered(self, wire: Wire, status: int, body: bytes) -> None:
        now = time.monotonic()
        if wire.index < len(self._waiters):
            waiter = self._waiters[wire.index]
            if status == 204:  # the longest wait that may be asked for is over
                self.engine.send(wire, waiter.ask)
                return
            waiter.delivered = now
            if self.expect(200, status, body):
                self.report.jobs += 1
                if b'"id":"%s"' % self._family.id(waiter.number).encode() not in body:
                    self.fault(f"a waiter was given another job than {self._family.id(waiter.number)}")
        else:
            waiter = self._waiters[int(wire.note)]
            waiter.accepted = now
            self.expect(202, status, body)
            self._idle.append(wire)
        self.report.requests += 1
        self.under_way -= 1
        if waiter.accepted and waiter.delivered:
            self._settle(waiter)

    def _settle(self, waiter: _Waiter) -> None:
        """Note the times, and have it wait again."""
        if waiter.due >= self.first_counted:
            self._from_due.append(waiter.delivered - waiter.due)
            self._from_sent.append(waiter.delivered - waiter.sent)
            self._from_accepted.append(waiter.delivered - waiter.accepted)
        waiter.due = 0.0
        waiter.number += len(self._family.slots)
        self.engine.send(waiter.wire, waiter.ask)

    def verify(self) -> None:
        self.report.times = {
            "from_due": self._from_due.tobytes(),
            "from_sent": self._from_sent.tobytes(),
            "from_accepted": self._from_accepted.tobytes(),
        }
