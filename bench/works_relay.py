"""What a generator process does in relay's words (second generation): enqueue, next, complete the run."""

from __future__ import annotations

import time

import msgspec

from bench.engine import LoadError, Wire
from bench.jobs import ID_FIRST, TIMEOUT_SECONDS, post
from bench.load import Order, RelayLife, Report
from bench.works import Session

_END = b" HTTP/1.1\r\nHost: localhost\r\n\r\n"


class _Delivered(msgspec.Struct):
    id: str
    run_id: str
    payload: msgspec.Raw


_jobs = msgspec.json.Decoder(list[_Delivered])


class RelayLifeSession(Session):
    """See `RelayLife`."""

    def __init__(self, order: Order) -> None:
        assert isinstance(order.work, RelayLife)
        super().__init__(order)
        self._family = order.work.family
        self._depth = order.work.depth
        wires = len(self.engine.wires)
        self._newest = [0] * wires  # how many jobs this connection has enqueued
        self._oldest = [0] * wires  # how many of them it has taken
        self._phase = [0] * wires  # what was asked last: 0 enqueue, 1 next, 2 complete
        self._filling = 0

    def prepare(self) -> None:
        """Enqueue the first jobs of each connection."""
        self._filling = self.under_way = self._depth * len(self.engine.wires)
        for wire in self.engine.wires:
            self.engine.send(wire, b"".join([self._enqueue(wire) for _ in range(self._depth)]))
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
        phase = self._phase[wire.index]
        self._phase[wire.index] = (phase + 1) % 3
        if phase == 0:
            self.expect(202, status, body)
            self.engine.send(wire, b"GET /v2/queues/%s/jobs%s" % (self._queue(wire).encode(), _END))
        elif phase == 1:
            self._complete(wire, status, body)
        else:
            self.report.jobs += self.expect(200, status, body)
            if time.monotonic() >= self.stop_at:
                self.under_way -= 1
            else:
                self.engine.send(wire, self._enqueue(wire))

    def _complete(self, wire: Wire, status: int, body: bytes) -> None:
        run_id = "0"
        if self.expect(200, status, body):
            [job] = _jobs.decode(body)
            run_id = job.run_id
            if job.id != self._id(wire, self._oldest[wire.index]) or bytes(job.payload) != self._family.payload():
                self.fault(f"{job.id} came, not {self._id(wire, self._oldest[wire.index])}")
        path = f"/v2/queues/{self._queue(wire)}/jobs/{self._id(wire, self._oldest[wire.index])}/run-id/{run_id}"
        self._oldest[wire.index] += 1
        self.engine.send(wire, b"DELETE %s%s" % (path.encode(), _END))

    def _enqueue(self, wire: Wire) -> bytes:
        job_id = self._id(wire, self._newest[wire.index])
        self._newest[wire.index] += 1
        body = b'[{"queue":"%s","timeout":%d,"max_retries":0,"payload":%s,"id":"%s"}]' % (
            self._queue(wire).encode(),
            TIMEOUT_SECONDS,
            self._family.payload(),
            job_id.encode(),
        )
        return post("/v2/queues/jobs?mode=unique", body)

    def _queue(self, wire: Wire) -> str:
        return self._family.slots[self.index(wire)]

    def _id(self, wire: Wire, turn: int) -> str:
        return f"{self._family.tag}{ID_FIRST + turn * self.order.connections + self.index(wire)}"
