"""What a generator process does with many jobs a request, and with a completion and the next job in one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count as counter

from bench.engine import LoadError, Wire
from bench.jobs import ID_FIRST, next_job, post
from bench.load import CompleteArrays, EnqueueArrays, Loop, Order, Report
from bench.works import Delivered, JobChecker, Session


class _Arrays(Session):
    """Arrays of one size, one request at a time on each connection, until there are no more or the time is up."""

    size = 0
    wanted = 0
    part = b""  # of an answer, for each thing that went well

    def begin(self) -> None:
        self._more = [self.requests(self.index(wire)) for wire in self.engine.wires]
        self._expected = b"[" + b",".join([self.part] * self.size) + b"]"
        for wire in self.engine.wires:
            self._ask(wire)

    def requests(self, index: int) -> Iterator[bytes]:
        """Yield the requests of one connection."""
        raise NotImplementedError

    def answered(self, wire: Wire, status: int, body: bytes) -> None:
        self.report.requests += 1
        self.under_way -= 1
        if self.expect(self.wanted, status, body):
            if body != self._expected:
                self.fault(f"not all of an array went well: {body[:200]!r}")
            self.report.jobs += self.size
        self._ask(wire)

    def _ask(self, wire: Wire) -> None:
        data = next(self._more[wire.index], None) if time.monotonic() < self.stop_at else None
        if data is not None:
            self.under_way += 1
            self.engine.send(wire, data)


class EnqueueArraysSession(_Arrays):
    """See `EnqueueArrays`."""

    wanted = 202
    part = b'{"status":202}'

    def requests(self, index: int) -> Iterator[bytes]:
        work = self.order.work
        assert isinstance(work, EnqueueArrays)
        self.size = work.size
        queues = work.family.slots
        for turn in counter(index, self.order.connections):
            # One array is for one queue: a producer has its jobs from one place.
            template = b"[" + b",".join([work.family.job(queues[turn % len(queues)])] * work.size) + b"]"
            first = ID_FIRST + turn * work.size
            yield post("/enqueue", template % tuple(range(first, first + work.size)))

    def begin(self) -> None:
        assert isinstance(self.order.work, EnqueueArrays)
        self.size = self.order.work.size
        super().begin()


class CompleteArraysSession(_Arrays):
    """See `CompleteArrays`."""

    wanted = 200
    part = b'{"status":200}'

    def begin(self) -> None:
        assert isinstance(self.order.work, CompleteArrays)
        self.size = self.order.work.size
        super().begin()

    def requests(self, index: int) -> Iterator[bytes]:
        work = self.order.work
        assert isinstance(work, CompleteArrays)
        templates = [work.family.completion(queue) for queue in work.family.slots]
        period = len(templates)
        for first in range(index * work.size, work.count, self.order.connections * work.size):
            numbers = range(first, first + work.size)
            template = b"[" + b",".join([templates[number % period] for number in numbers]) + b"]"
            yield post("/batch", template % tuple(ID_FIRST + number for number in numbers))


class LoopSession(Session):
    """See `Loop`."""

    def __init__(self, order: Order) -> None:
        assert isinstance(order.work, Loop)
        super().__init__(order)
        self._work = order.work
        self._family = order.work.family
        self._check = JobChecker(self._family)
        wires = len(self.engine.wires)
        self._newest = [0] * wires  # how many jobs this connection has enqueued
        self._held = [0] * wires  # which of them it has
        self._run = [""] * wires
        self._enqueued = [False] * wires  # what was asked last
        self._filling = 0

    def prepare(self) -> None:
        """Enqueue the first jobs of each connection, and take the first of them."""
        depth, wires = self._work.depth, self.engine.wires
        self._filling = self.under_way = (depth + 1) * len(wires)
        for wire in wires:
            first = next_job(self._family.slots[self.index(wire)])
            self.engine.send(wire, b"".join([self._enqueue(wire) for _ in range(depth)]) + first)
        self.drain()
        if self.report.errors:
            raise LoadError(self.report.first_error)
        self.report = Report()

    def begin(self) -> None:
        self.under_way = len(self.engine.wires)
        for wire in self.engine.wires:
            self._enqueued[wire.index] = True
            self.engine.send(wire, self._enqueue(wire))

    def answered(self, wire: Wire, status: int, body: bytes) -> None:
        self.report.requests += 1
        index = wire.index
        if self._filling:
            self._filling -= 1
            self.under_way -= 1
            if status == 200:
                self._take(wire, body)
            else:
                self.expect(202, status, body)
            return
        if self._enqueued[index]:
            self.expect(202, status, body)
            self._enqueued[index] = False
            self.engine.send(wire, self._family.complete_and_next(self._number(wire, self._held[index]), self._run[index]))
            return
        if self.expect(200, status, body):
            self.report.jobs += 1
            self._held[index] += 1
            self._take(wire, body)
        if time.monotonic() >= self.stop_at:
            self.under_way -= 1
            return
        self._enqueued[index] = True
        self.engine.send(wire, self._enqueue(wire))

    def _take(self, wire: Wire, body: bytes) -> None:
        job: Delivered = self._check.read(body)
        self._run[wire.index] = job.run_id
        wrong = self._check.fault(job, self._number(wire, self._held[wire.index]))
        if wrong:
            self.fault(wrong)

    def _number(self, wire: Wire, turn: int) -> int:
        return self.index(wire) + turn * len(self._family.slots)

    def _enqueue(self, wire: Wire) -> bytes:
        number = self._number(wire, self._newest[wire.index])
        self._newest[wire.index] += 1
        return self._family.enqueue(number)
