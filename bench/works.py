"""What a generator process does over HTTP: one class a work, each a few callbacks around an `Engine`.

Every status is checked, whatever the work. An answer that is wrong is counted and the first one told; the work goes on, as a rate that
silently stops is harder to understand than one with errors.
"""

from __future__ import annotations

import re
import time
from array import array
from collections.abc import Iterator
from itertools import count as counter
from itertools import islice

import msgspec

from bench.engine import Engine, LoadError, Wire, split_http
from bench.jobs import ENQUEUE_TAIL, ID_FIRST, Family, next_job
from bench.load import Batch, Enqueue, Fill, Life, Next, Order, Report, Take

ANSWER_SECONDS_MAX = 30.0  # after the end of a work, for what is still under way
POLL_SECONDS = 0.1


class Session:
    """One work in one process. Subclasses fill in `begin` and `answered`, and keep `under_way`."""

    extra = 0  # connections beyond those of the order
    split = staticmethod(split_http)

    def __init__(self, order: Order) -> None:
        self.order = order
        self.report = Report()
        self.under_way = 0
        self.stop_at = 0.0
        self.engine = Engine(order.address, len(order.mine(order.connections)) + self.extra, self.answered, self.split)

    def prepare(self) -> None:
        """Do what must be done before the clock starts."""

    def begin(self) -> None:
        """Send the first requests."""
        raise NotImplementedError

    def answered(self, wire: Wire, status: int, body: bytes) -> None:
        """Take an answer, and ask again or not."""
        raise NotImplementedError

    def verify(self) -> None:
        """Look at what was received, once the clock has stopped."""

    def run(self) -> None:
        """Work from now until the time is up and the last answer is there."""
        started = time.monotonic()
        self.report.began = self.report.ended = started
        seconds: float | None = getattr(self.order.work, "seconds", None)
        self.stop_at = float("inf") if seconds is None else started + seconds
        self.begin()
        self.drain()
        self.report.ended = time.monotonic()

    def drain(self) -> None:
        """Handle answers until none is awaited."""
        last = time.monotonic()
        before = -1
        while self.under_way:
            self.engine.poll(POLL_SECONDS)
            now = time.monotonic()
            if self.report.requests != before:
                before, last = self.report.requests, now
            if now - last > ANSWER_SECONDS_MAX:
                self.report.unanswered = self.under_way
                self.fault(f"{self.under_way} requests were not answered")
                return

    def fault(self, text: str) -> None:
        """Count an error and keep the first one's text."""
        self.report.errors += 1
        self.report.first_error = self.report.first_error or text

    def expect(self, wanted: int, status: int, body: bytes) -> bool:
        """Check a status."""
        if status == wanted:
            return True
        self.fault(f"status {status} in place of {wanted}: {body[:200]!r}")
        return False

    def index(self, wire: Wire) -> int:
        """Return the index of a connection among those of all processes."""
        return self.order.part + wire.index * self.order.parts


class _Piped(Session):
    """Pipelined requests in the order of job numbers; all slots of one queue on one connection, so that its order is kept."""

    pipeline = 1
    wanted = 0

    def begin(self) -> None:
        work = self.order.work
        assert isinstance(work, Fill | Take)
        self.pipeline = work.pipeline
        slots = work.family.slots
        places = {queue: place for place, queue in enumerate(dict.fromkeys(slots))}
        self._rest: list[Iterator[bytes]] = []
        self._open = [0] * len(self.engine.wires)
        for wire in self.engine.wires:
            mine = [slot for slot, queue in enumerate(slots) if places[queue] % self.order.connections == self.index(wire)]
            self._rest.append(self.requests(mine, len(slots), work.count))
            self._send(wire)

    def requests(self, slots: list[int], period: int, count: int) -> Iterator[bytes]:
        """Yield the requests of some slots."""
        raise NotImplementedError

    def answered(self, wire: Wire, status: int, body: bytes) -> None:
        self.report.requests += 1
        self.under_way -= 1
        self._open[wire.index] -= 1
        if self.expect(self.wanted, status, body):
            self.report.jobs += 1
        if 2 * self._open[wire.index] <= self.pipeline and (self.stop_at == float("inf") or time.monotonic() < self.stop_at):
            self._send(wire)

    def _send(self, wire: Wire) -> None:
        found = list(islice(self._rest[wire.index], self.pipeline - self._open[wire.index]))
        if found:
            self._open[wire.index] += len(found)
            self.under_way += len(found)
            self.engine.send(wire, b"".join(found))


class FillSession(_Piped):
    """See `Fill`."""

    wanted = 202

    def requests(self, slots: list[int], period: int, count: int) -> Iterator[bytes]:
        assert isinstance(self.order.work, Fill)
        family = self.order.work.family
        heads = [family.enqueue_head(queue) for queue in family.slots]
        for start in range(0, count, period):
            for slot in slots:
                if start + slot < count:
                    yield b"%s%d%s" % (heads[slot], ID_FIRST + start + slot, ENQUEUE_TAIL)


class TakeSession(_Piped):
    """See `Take`."""

    wanted = 200

    def requests(self, slots: list[int], period: int, count: int) -> Iterator[bytes]:
        assert isinstance(self.order.work, Take)
        asks = [next_job(queue) for queue in self.order.work.family.slots]
        for start in range(0, count, period):
            for slot in slots:
                if start + slot < count:
                    yield asks[slot]


class _Closed(Session):
    """One request at a time on each connection, until the time is up."""

    wanted = 0

    def begin(self) -> None:
        self._more = [self.requests(self.index(wire)) for wire in self.engine.wires]
        self.under_way = len(self.engine.wires)
        for wire in self.engine.wires:
            self.engine.send(wire, next(self._more[wire.index]))

    def requests(self, index: int) -> Iterator[bytes]:
        """Yield the requests of one connection, without end."""
        raise NotImplementedError

    def answered(self, wire: Wire, status: int, body: bytes) -> None:
        self.report.requests += 1
        if self.expect(self.wanted, status, body):
            self.report.jobs += 1
        if time.monotonic() < self.stop_at:
            self.engine.send(wire, next(self._more[wire.index]))
        else:
            self.under_way -= 1


class EnqueueSession(_Closed):
    """See `Enqueue`."""

    wanted = 202

    def requests(self, index: int) -> Iterator[bytes]:
        work = self.order.work
        assert isinstance(work, Enqueue)
        heads = [work.family.enqueue_head(queue) for queue in work.family.slots]
        for number in counter(work.first + index, self.order.connections):
            yield b"%s%d%s" % (heads[number % len(heads)], ID_FIRST + number, ENQUEUE_TAIL)


class NextSession(_Closed):
    """See `Next`."""

    wanted = 200

    def requests(self, index: int) -> Iterator[bytes]:
        assert isinstance(self.order.work, Next)
        asks = [next_job(queue) for queue in self.order.work.family.slots]
        for turn in counter(index):
            yield asks[turn % len(asks)]


class Delivered(msgspec.Struct):
    """A delivered job, as far as it is checked."""

    id: str
    queue: str
    run_id: str
    attempt: int
    payload: msgspec.Raw


class JobChecker:
    """Reads delivered jobs of a family, and says whether one is the job that it should be, at its first attempt."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._payload = family.payload()
        self._jobs = msgspec.json.Decoder(Delivered)
        self.read = self._jobs.decode

    def fault(self, job: Delivered, number: int) -> str:
        """Say what is wrong with the job that came in place of job `number`, or nothing."""
        family = self._family
        got = (job.id, job.queue, job.attempt, bytes(job.payload))
        if got == (family.id(number), family.queue(number), 1, self._payload):
            return ""
        return f"job {family.id(number)} was next in its queue, and {job.id} (attempt {job.attempt}) came"


class LifeSession(Session):
    """See `Life`."""

    def __init__(self, order: Order) -> None:
        assert isinstance(order.work, Life)
        super().__init__(order)
        self._work = order.work
        self._family = order.work.family
        wires = len(self.engine.wires)
        assert order.connections <= len(self._family.slots)
        self._phase = [0] * wires
        self._newest = [0] * wires  # how many jobs this connection has enqueued
        self._oldest = [0] * wires  # how many it has been given
        self._run = [""] * wires
        self._checker = JobChecker(self._family)
        self._filling = 0

    def prepare(self) -> None:
        """Enqueue the first jobs of each connection."""
        self._filling = self.under_way = self._work.depth * len(self.engine.wires)
        for wire in self.engine.wires:
            self.engine.send(wire, b"".join(self._enqueue(wire) for _ in range(self._work.depth)))
        self.drain()
        if self.report.errors:
            raise LoadError(self.report.first_error)
        self.report = Report()

    def begin(self) -> None:
        self.under_way = len(self.engine.wires)
        for wire in self.engine.wires:
            self.engine.send(wire, self._enqueue(wire))

    def answered(self, wire: Wire, status: int, body: bytes) -> None:
        self.report.requests += 1
        if self._filling:
            self._filling -= 1
            self.under_way -= 1
            self.expect(202, status, body)
            return
        index = wire.index
        number = self._number(wire, self._oldest[index])
        match self._phase[index]:
            case 0:
                self.expect(202, status, body)
                data = next_job(self._family.slots[self.index(wire)])
            case 1:
                if self.expect(200, status, body):
                    self._check(index, number, body)
                data = self._family.heartbeat(number, self._run[index])
            case 2:
                self.expect(202, status, body)
                data = self._family.complete(number, self._run[index])
            case _:
                if self.expect(200, status, body):
                    self.report.jobs += 1
                self._oldest[index] += 1
                if time.monotonic() >= self.stop_at:
                    self.under_way -= 1
                    return
                data = self._enqueue(wire)
        self._phase[index] = (self._phase[index] + 1) % 4
        self.engine.send(wire, data)

    def _number(self, wire: Wire, turn: int) -> int:
        return self.index(wire) + turn * len(self._family.slots)

    def _enqueue(self, wire: Wire) -> bytes:
        number = self._number(wire, self._newest[wire.index])
        self._newest[wire.index] += 1
        return self._family.enqueue(number)

    def _check(self, index: int, number: int, body: bytes) -> None:
        job = self._checker.read(body)
        self._run[index] = job.run_id
        if wrong := self._checker.fault(job, number):
            self.fault(wrong)


class BatchSession(Session):
    """See `Batch`."""

    def __init__(self, order: Order) -> None:
        assert isinstance(order.work, Batch)
        super().__init__(order)
        self._family = order.work.family
        self._asks = [next_job(queue, order.work.size) for queue in self._family.slots]
        self._left = set(range(len(self._asks)))  # slots that have not been found empty
        self._slot = [self.index(wire) % len(self._asks) for wire in self.engine.wires]
        self._bodies: list[tuple[int, bytes]] = []
        self._last = 0.0

    def begin(self) -> None:
        self.under_way = len(self.engine.wires)
        for wire in self.engine.wires:
            self.engine.send(wire, self._asks[self._slot[wire.index]])

    def run(self) -> None:
        super().run()
        self.report.ended = self._last or self.report.ended  # the "no job" answers after it are not part of it

    def answered(self, wire: Wire, status: int, body: bytes) -> None:
        slot = self._slot[wire.index]
        if status == 204:
            self._left.discard(slot)
        else:
            self.report.requests += 1
            self._last = time.monotonic()
            if self.expect(200, status, body):
                self._bodies.append((wire.index, body))
        if not self._left:
            self.under_way -= 1
            return
        while slot not in self._left:
            slot = (slot + 1) % len(self._asks)
        self._slot[wire.index] = slot
        self.engine.send(wire, self._asks[slot])

    def verify(self) -> None:
        """Check the order in which each connection was given each queue's jobs, and note all numbers."""
        ids = re.compile(b'"id":"%s([0-9]{10})"' % self._family.tag.encode())
        numbers = array("q")
        newest: dict[tuple[int, str], int] = {}
        for index, body in self._bodies:
            found = [int(digits) - ID_FIRST for digits in ids.findall(body)]
            numbers.extend(found)
            for number in found:
                key = (index, self._family.queue(number))
                if newest.get(key, -1) >= number:
                    self.fault(f"job {number} of {key[1]} came after {newest[key]}")
                newest[key] = number
            if body.count(b'"attempt":1,') != len(found):
                self.fault("a job of a batch is not at its first attempt")
        self.report.jobs = len(numbers)
        self.report.numbers = numbers.tobytes()
