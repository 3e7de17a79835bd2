"""One process of the own generator: `python -m bench.worker`, started by `bench.load`.

Standard input brings an `Order` as a line of JSON; `ready` goes out once all connections are up; a second line brings the moment to begin at; a
`Report` goes out as MessagePack.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable

import msgspec

from bench.engine import LoadError
from bench.load import (
    Batch,
    Beanstalk,
    CompleteArrays,
    Enqueue,
    EnqueueArrays,
    Fill,
    Library,
    Life,
    Loop,
    Next,
    Order,
    Paced,
    RelayLife,
    Take,
    Wake,
)
from bench.works import BatchSession, EnqueueSession, FillSession, LifeSession, NextSession, Session, TakeSession
from bench.works_arrays import CompleteArraysSession, EnqueueArraysSession, LoopSession
from bench.works_beanstalk import BeanstalkSession
from bench.works_libraries import LibrarySession, library_session
from bench.works_relay import RelayLifeSession
from bench.works_timed import PacedSession, WakeSession

SESSIONS: dict[type, Callable[[Order], Session | LibrarySession]] = {
    Fill: FillSession,
    Take: TakeSession,
    Enqueue: EnqueueSession,
    Next: NextSession,
    Life: LifeSession,
    Batch: BatchSession,
    EnqueueArrays: EnqueueArraysSession,
    CompleteArrays: CompleteArraysSession,
    Loop: LoopSession,
    RelayLife: RelayLifeSession,
    Paced: PacedSession,
    Wake: WakeSession,
    Beanstalk: BeanstalkSession,
    Library: library_session,
}


def main() -> int:
    """Carry out one order."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    try:
        session = SESSIONS[type(order.work)](order)
        session.prepare()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        begin = float(sys.stdin.readline())
        gc.collect()
        gc.disable()  # a pause of ours is none of the server's
        time.sleep(max(0.0, begin - time.monotonic()))
        before = time.process_time()
        session.run()
        session.report.cpu_seconds = time.process_time() - before
        session.verify()
    except (LoadError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.buffer.write(msgspec.msgpack.encode(session.report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
