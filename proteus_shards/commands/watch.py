"""`top`, a live view of the busiest queues, and `bench`, a quick trial of a running server."""

from __future__ import annotations

import argparse
import statistics
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

from proteus_shards.commands import EXIT_USAGE, Commands, Done, command
from proteus_shards.commands.console import Console
from proteus_shards.commands.jobs import client_of
from proteus_shards.commands.queues import COUNTS

if TYPE_CHECKING:
    from proteus_shards.client import Client, Queue

HEADINGS_LINES = 3
QUEUES_MAX = 10_000  # of which top looks for the busiest


def add(commands: Commands) -> None:
    """Add the commands."""
    top = command(
        commands,
        "top",
        _top,
        "show the busiest queues, live",
        "Show the busiest queues, again and again until Ctrl-C. Where the output is no terminal, once.",
    )
    top.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="time between two pictures [default: 2]")
    top.add_argument("--count", type=int, metavar="N", help="so many pictures [default: without end on a terminal, else 1]")

    bench = command(
        commands,
        "bench",
        _bench,
        "try how fast a running server is",
        "Enqueue, fetch and complete small jobs in a queue of their own for a few seconds, each in a request of its own, and show rates and latencies. The numbers are those of this "
        "client as much as of the server: Python sends some thousand requests a second.",
    )
    bench.add_argument("--seconds", type=float, default=3.0, metavar="SECONDS", help="how long [default: 3]")
    bench.add_argument("--concurrency", type=int, default=4, metavar="N", help="threads [default: 4]")
    bench.add_argument("--persist-data", action="store_true", help="let the store keep the jobs")


def _top(arguments: argparse.Namespace, console: Console) -> int:
    count = arguments.count if arguments.count is not None else (None if console.fancy and not console.as_json else 1)
    with client_of(arguments) as client:
        before: dict[str, Any] = {}
        while True:
            found: list[Queue] = []
            for queue in client.each_queue(limit=1000):
                found.append(queue)
                if len(found) == QUEUES_MAX:
                    break
            before = _show_top(console, client.url, found, before)
            if count is not None:
                count -= 1
                if count <= 0:
                    return 0
            try:
                time.sleep(arguments.interval)
            except KeyboardInterrupt:
                return 0


def _show_top(console: Console, url: str, found: list[Queue], before: dict[str, Any]) -> dict[str, Any]:
    """Show one picture, and return what the next is compared with."""
    totals = {count: sum(getattr(queue, count) for queue in found) for count in COUNTS}
    if console.as_json:
        console.json({"queues": len(found), **totals, "busiest": sorted(found, key=_busy, reverse=True)[:20]})
        return totals
    console.clear()
    changes = " ".join(f"{count} {total:,}{_change(total, before.get(count))}" for count, total in totals.items())
    console.line(f"{url}: {len(found):,} {'queue' if len(found) == 1 else 'queues'}; {changes}")
    console.line()
    rows = [
        [queue.queue, *(getattr(queue, count) for count in COUNTS), queue.oldest_ready_seconds, queue.pollers, queue.paused]
        for queue in sorted(found, key=_busy, reverse=True)[: max(1, min(50, console.height() - HEADINGS_LINES - 1))]
    ]
    console.table(["queue", *COUNTS, "oldest_s", "pollers", "paused"], rows)
    return totals


def _busy(queue: Queue) -> tuple[int, int, int]:
    return queue.ready + queue.in_flight + queue.blocked, queue.scheduled, queue.dead


def _change(now: int, before: int | None) -> str:
    return "" if before is None or now == before else f" ({now - before:+,})"


def _bench(arguments: argparse.Namespace, console: Console) -> int:
    if arguments.concurrency < 1 or arguments.seconds <= 0:
        raise Done("--concurrency must be at least 1, --seconds more than 0", EXIT_USAGE)
    queue = f"proteus-bench-{uuid.uuid4()}"
    found: list[tuple[str, float]] = []
    faults: list[Exception] = []
    with client_of(arguments) as client:
        deadline = time.monotonic() + arguments.seconds
        threads = [
            threading.Thread(target=_trial, args=(client, f"{queue}-{number}", deadline, arguments.persist_data, found, faults))
            for number in range(arguments.concurrency)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if faults:
        raise faults[0]
    rows = []
    for call in ("enqueue", "next", "complete"):
        times = sorted(seconds * 1000 for name, seconds in found if name == call)
        rows.append([call, len(times) / arguments.seconds, statistics.median(times), times[int(0.99 * (len(times) - 1))], times[-1]])
    if console.as_json:
        names = ("per_second", "p50_ms", "p99_ms", "max_ms")
        console.json({row[0]: dict(zip(names, row[1:], strict=True)) for row in rows})
    else:
        console.table(["call", "per second", "p50 ms", "p99 ms", "max ms"], rows)
    return 0


def _trial(
    client: Client, queue: str, deadline: float, persist_data: bool, found: list[tuple[str, float]], faults: list[Exception]
) -> None:
    """Send jobs round, each to its end, so that none is left."""
    try:
        while True:
            began = time.perf_counter()
            client.enqueue(queue, {"bench": True}, timeout=60, persist_data=persist_data)
            enqueued = time.perf_counter()
            job = client.next(queue)
            fetched = time.perf_counter()
            if job is not None:
                client.complete(job)
                found += [("enqueue", enqueued - began), ("next", fetched - enqueued), ("complete", time.perf_counter() - fetched)]
            if time.monotonic() >= deadline:
                return
    except Exception as error:  # noqa: BLE001 it is raised by whoever waits for the threads
        faults.append(error)
