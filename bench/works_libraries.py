"""What a generator process does with a peer that is a library: no server of its own, its client talks to the database.

So the generator is the library, with all that its client costs, and there is no other way to use it. Everything that it leaves to
its user is set for speed, and the number of processes (`libraries.py`) is the best that was found.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from bench.engine import LoadError
from bench.jobs import TIMEOUT_SECONDS
from bench.load import Library, Order, Report

JOB_SECONDS_MAX = TIMEOUT_SECONDS
VERBS = ("enqueue", "batch-enqueue", "life")


class LibrarySession:
    """One work with a library in one process. `run` leaves its findings in `report`."""

    def __init__(self, order: Order) -> None:
        assert isinstance(order.work, Library)
        if order.work.verb not in VERBS:
            raise LoadError(f"there is no verb {order.work.verb}")
        self.order = order
        self.work = order.work
        self.report = Report()
        self.payload = "x" * (order.work.payload_bytes - 2)

    def queues(self) -> Iterator[str]:
        """Yield the queues of the work by turns, beginning at another one in each process."""
        return itertools.islice(itertools.cycle(self.work.queues), self.order.part, None)

    def prepare(self) -> None:
        """Connect, and do for a while what will be measured."""
        self.open()
        self.act(self.work.warm_seconds)
        self.report = Report()

    def run(self) -> None:
        """Work from now until the time is up; a life until all jobs are done."""
        self.report.began = time.monotonic()
        self.act(self.work.seconds)
        self.report.ended = time.monotonic()

    def verify(self) -> None:
        """Let go of what was opened, once the clock has stopped."""
        raise NotImplementedError

    def open(self) -> None:
        """Connect."""
        raise NotImplementedError

    def act(self, seconds: float) -> None:
        """Use the library for some seconds, and count in `report`: calls that enqueue as requests; jobs."""
        raise NotImplementedError


def library_session(order: Order) -> LibrarySession:
    """Return the session of the library that an order names."""
    assert isinstance(order.work, Library)
    if order.work.library == "procrastinate":
        from bench.works_procrastinate import ProcrastinateSession  # noqa: PLC0415 it is optional

        return ProcrastinateSession(order)
    from bench.works_rq import RqSession  # noqa: PLC0415 it is optional

    return RqSession(order)
