"""`export` and `import`: jobs as NDJSON, one a line as the API takes them. And how lines get into a server.

An export holds what a job is, and not where it stands: one that was in flight is enqueued anew by an import, with all its retries and its last saved state, while its run
goes on in the old server. Whoever moves jobs lets the runners end first. Of a `ttl` it carries what is left. The bytes of payloads and states stay as they are. The jobs of a queue
come in the order of their delivery, and an import keeps it.

Many lines go in requests of LINES_PER_REQUEST, so that one that is cut off is known to that. Each request is answered before the next begins: the order holds.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from proteus_shards.commands import EXIT_AWAY, EXIT_FAILED, EXIT_USAGE, Commands, Done, command
from proteus_shards.commands.console import Console

if TYPE_CHECKING:
    from proteus_shards.client import Client, DeadLetter, JobInfo, NewJob

LINES_PER_REQUEST = 20_000
FAILURES_TOLD_MAX = 20


def add(commands: Commands) -> None:
    """Add the commands."""
    export = command(
        commands,
        "export",
        _export,
        "print the jobs of queues as NDJSON",
        "Print the jobs of some queues, or of all, one a line, as `import` takes them.",
    )
    export.add_argument("queue", nargs="*", metavar="QUEUE", help="queues [default: all]")
    export.add_argument("--dead", action="store_true", help="the dead letters instead of the jobs")
    export.add_argument("--output", metavar="FILE", help="write to a file")

    import_ = command(
        commands,
        "import",
        _import,
        "enqueue the jobs of an export",
        "Enqueue jobs, one a line of NDJSON. A job whose id is in its queue already is left as it is, so an import that broke off can be repeated.",
    )
    import_.add_argument("file", metavar="FILE", help="the file; - is standard input")


def _export(arguments: argparse.Namespace, console: Console) -> int:
    from proteus_shards.commands.jobs import client_of  # noqa: PLC0415 each needs the other

    with client_of(arguments) as client, _output(arguments.output) as output:
        import msgspec  # noqa: PLC0415 as above

        encode = msgspec.json.Encoder().encode
        jobs = _dead_of(client, arguments.queue) if arguments.dead else _jobs_of(client, arguments.queue)
        for job in console.watched(jobs, "jobs"):
            output.write(encode(_portable(job)) + b"\n")
        output.flush()
    return 0


def _queues_of(client: Client, named: list[str]) -> Iterator[str]:
    return iter(named) if named else (queue.queue for queue in client.each_queue(limit=1000))


def _jobs_of(client: Client, named: list[str]) -> Iterator[JobInfo | DeadLetter]:
    for queue in _queues_of(client, named):
        yield from client.each_job(queue)


def _dead_of(client: Client, named: list[str]) -> Iterator[JobInfo | DeadLetter]:
    for queue in _queues_of(client, named):
        yield from client.each_dead(queue)


def _portable(job: JobInfo | DeadLetter) -> NewJob:
    """Return what a job is, without where it stands."""
    from proteus_shards.client import NewJob  # noqa: PLC0415 as above

    state = bytes(job.state_json)
    expires_at = getattr(job, "expires_at", None)
    return NewJob(
        id=job.id,
        queue=job.queue,
        timeout=job.timeout,
        payload=job.payload_json,
        persist_data=job.persist_data,
        max_retries=job.max_retries,
        state=None if state == b"null" else job.state_json,
        run_at=job.run_at,
        key=job.key,
        priority=job.priority,
        ttl=None if expires_at is None else _ttl_of(expires_at, job.run_at),
        backoff=getattr(job, "backoff", None),
    )


def _ttl_of(expires_at: str, run_at: str | None) -> float:
    """Return how long a job may wait, in seconds: from its run_at, or from now where that has passed."""
    since = datetime.now(UTC)
    if run_at is not None:
        since = max(since, datetime.fromisoformat(run_at))
    return max(0.0, (datetime.fromisoformat(expires_at) - since).total_seconds())


def _import(arguments: argparse.Namespace, console: Console) -> int:
    from proteus_shards.commands.jobs import client_of  # noqa: PLC0415 as above

    with client_of(arguments) as client, open_lines(arguments.file) as lines:
        return send_lines(client, lines, console, skip_existing=True)


@contextmanager
def open_lines(name: str) -> Iterator[Iterable[bytes]]:
    """Open a file of lines, or standard input where its name is `-`."""
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 it is closed below
    except OSError as error:
        raise Done(f"{name}: {error.strerror}", EXIT_USAGE) from error
    with file:
        yield file


@contextmanager
def _output(name: str | None) -> Iterator[BinaryIO]:
    if name is None:
        yield sys.stdout.buffer
        return
    try:
        file = Path(name).open("xb")  # noqa: SIM115 it is closed below
    except OSError as error:
        raise Done(f"{name}: {error.strerror}", EXIT_USAGE) from error
    with file:
        yield file


def send_lines(client: Client, lines: Iterable[bytes], console: Console, *, skip_existing: bool) -> int:
    """Enqueue lines, say what became of them, and return the exit code. Ids that are there already may count as done."""
    accepted = existing = refused = told = 0
    source = iter(console.watched(lines, "jobs"))
    stopped: str | None = None
    for offset in itertools.count(0, LINES_PER_REQUEST):
        portion = list(itertools.islice(source, LINES_PER_REQUEST))
        if not portion or stopped is not None:
            break
        if not any(map(bytes.strip, portion)):
            continue
        summary = client.enqueue_lines(line if line.strip() else b"" for line in portion)
        accepted += summary.accepted
        for failure in summary.failures:
            if skip_existing and failure["status"] == 409:
                existing += 1
                continue
            if told < FAILURES_TOLD_MAX:
                console.tell(f"line {offset + failure['line']}: {failure['detail']}")
            told += 1
        refused += summary.refused
        if summary.stopped is not None:
            stopped = f"line {offset + summary.stopped['line']} and all behind it were not sent: {summary.stopped['detail']}"
    refused -= existing
    if console.as_json:
        console.json({"accepted": accepted, "existing": existing, "refused": refused, "stopped": stopped})
    else:
        console.line(f"accepted {accepted:,}, refused {refused:,}" + (f", there already {existing:,}" if skip_existing else ""))
    if stopped is not None:
        raise Done(stopped, EXIT_AWAY)
    return EXIT_FAILED if refused else 0
