"""A small raw client of beanstalkd's protocol, one request at a time on each connection, as for HTTP.

`put` sends the payload alone, which is all that beanstalkd keeps of a job besides numbers; `reserve` takes jobs and keeps them reserved; `life` takes
each job through put, reserve, touch and delete. A reserve may give a connection the job of another one, so a life goes on with the job that came.
"""

from __future__ import annotations

import time

from bench.engine import LoadError, Wire
from bench.jobs import TIMEOUT_SECONDS
from bench.load import Beanstalk, Order
from bench.works import Session

_OK = {b"INSERTED": 201, b"RESERVED": 200, b"TOUCHED\r": 202, b"DELETED\r": 204, b"TIMED_OU": 408}


def split_beanstalk(data: bytes, start: int) -> tuple[int, int, int] | None:
    """Find one reply in `data[start:]`; its body is the whole reply. Statuses are made up, 500 for whatever is none of the expected."""
    end = data.find(b"\r\n", start)
    if end < 0:
        return None
    status = _OK.get(data[start : start + 8], 500)
    end += 2
    if status == 200:
        end += int(data[start:end].rsplit(b" ", 1)[1]) + 2
        if end > len(data):
            return None
    return status, start, end


class BeanstalkSession(Session):
    """See `Beanstalk`."""

    split = staticmethod(split_beanstalk)

    def __init__(self, order: Order) -> None:
        assert isinstance(order.work, Beanstalk)
        super().__init__(order)
        work = order.work
        payload = b'"' + b"x" * (work.payload_bytes - 2) + b'"'
        self._put = b"put 0 0 %d %d\r\n%s\r\n" % (TIMEOUT_SECONDS, len(payload), payload)
        self._verb = work.verb
        self._left = len(order.mine(work.count)) if work.count is not None else 1 << 62
        if work.verb not in {"put", "reserve", "life"}:
            raise LoadError(f"there is no verb {work.verb}")

    def begin(self) -> None:
        work = self.order.work
        assert isinstance(work, Beanstalk)
        first = b"reserve-with-timeout 0\r\n" if self._verb == "reserve" else self._put
        for _ in range(work.pipeline):
            for wire in self.engine.wires:
                if self._left > 0:
                    self._left -= 1
                    self.under_way += 1
                    self.engine.send(wire, first)

    def answered(self, wire: Wire, status: int, body: bytes) -> None:
        self.report.requests += 1
        send = self.engine.send
        if self._verb == "life":
            if status == 201:
                send(wire, b"reserve-with-timeout 0\r\n")
                return
            if status == 200:
                number = body.split(b" ", 2)[1]
                self._job(wire, number)
                return
            if status == 202:
                send(wire, b"delete %d\r\n" % int(wire.note))
                return
            wanted = 204
        else:
            wanted = 201 if self._verb == "put" else 200
        if self.expect(wanted, status, body):
            self.report.jobs += 1
        if self._left > 0 and time.monotonic() < self.stop_at:
            self._left -= 1
            send(wire, b"reserve-with-timeout 0\r\n" if self._verb == "reserve" else self._put)
        else:
            self.under_way -= 1

    def _job(self, wire: Wire, number: bytes) -> None:
        wire.note = float(number)
        self.engine.send(wire, b"touch %s\r\n" % number)
