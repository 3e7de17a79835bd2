"""`enqueue`, `next`, `complete`, `work`: what producers and runners do."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from proteus_shards.commands import EXIT_FAILED, EXIT_NONE, EXIT_USAGE, Commands, Done, command
from proteus_shards.commands.console import Console
from proteus_shards.commands.lines import open_lines, send_lines

if TYPE_CHECKING:
    from proteus_shards.client import Client


def add(commands: Commands) -> None:
    """Add the commands."""
    enqueue = command(
        commands,
        "enqueue",
        _enqueue,
        "enqueue a job, or many from a file",
        "Enqueue one job, or with --file one a line of NDJSON, and print its id.",
    )
    enqueue.add_argument("queue", nargs="?", metavar="QUEUE", help="the queue")
    enqueue.add_argument("payload", nargs="?", metavar="PAYLOAD", help="the payload, as JSON [default: null]")
    enqueue.add_argument("--text", metavar="TEXT", help="the payload, as a text")
    enqueue.add_argument("--id", metavar="ID", help="the job's id [default: a new UUID]")
    enqueue.add_argument("--timeout", type=int, default=60, metavar="SECONDS", help="time without a heartbeat [default: 60]")
    enqueue.add_argument("--persist-data", action="store_true", help="let the store keep the job")
    enqueue.add_argument("--max-retries", type=int, metavar="N", help="deliveries after the first [default: the queue's]")
    enqueue.add_argument("--run-at", metavar="TIME", help="not before this time, RFC 3339")
    enqueue.add_argument("--key", metavar="KEY", help="ordering key")
    enqueue.add_argument("--priority", type=int, default=0, metavar="N", help="higher is sooner [default: 0]")
    enqueue.add_argument("--ttl", type=float, metavar="SECONDS", help="a job that still waits after so long is dead")
    enqueue.add_argument(
        "--file", metavar="FILE", help="enqueue each line of a file (- is standard input) as a job, whole as the API has it"
    )

    next_ = command(
        commands,
        "next",
        _next,
        "fetch the next job and print it",
        "Fetch the next job and print it as JSON. Ends with 3 where there is none.",
    )
    next_.add_argument("queue", nargs="+", metavar="QUEUE", help="queues, in the order in which they are asked")
    next_.add_argument("--num-jobs", type=int, metavar="N", help="fetch up to so many, one a line")
    next_.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="wait so long for a job [default: 0]")

    complete = command(commands, "complete", _complete, "complete a job")
    complete.add_argument("queue", metavar="QUEUE", help="name of the queue")
    complete.add_argument("id", metavar="ID", help="id of the job")
    complete.add_argument("--run-id", metavar="RUN_ID", help="only if this run is the one in flight")

    work = command(
        commands,
        "work",
        _work,
        "run a Python function on each job of a queue",
        "Run a function on each job until SIGTERM or Ctrl-C; a second one ends the grace. The function has one argument, the job. An async one runs on an "
        "event loop, any other in threads.",
    )
    work.add_argument("handler", metavar="MODULE:FUNCTION", help="the function; its module is looked for here first")
    work.add_argument("--queue", action="append", required=True, metavar="QUEUE", help="may be given several times: asked in this order")
    work.add_argument("--concurrency", type=int, default=1, metavar="N", help="jobs at once [default: 1]")
    work.add_argument("--loop", choices=("asyncio", "trio"), help="what runs an async function [default: asyncio]")
    work.add_argument("--wait", type=float, default=20.0, metavar="SECONDS", help="how long each poll waits for a job [default: 20]")
    work.add_argument("--grace", type=float, default=25.0, metavar="SECONDS", help="time for jobs that run when it is to end [default: 25]")


def client_of(arguments: argparse.Namespace) -> Client:
    """Return a client as the options say."""
    from proteus_shards.client import Client  # noqa: PLC0415 --help need not wait for it

    return Client(arguments.url, token=arguments.token, ca=arguments.ca)


def _enqueue(arguments: argparse.Namespace, console: Console) -> int:
    import msgspec  # noqa: PLC0415 as above

    with client_of(arguments) as client:
        if arguments.file is not None:
            if arguments.queue is not None:
                raise Done("QUEUE: the lines of a file say their queues themselves", EXIT_USAGE)
            with open_lines(arguments.file) as lines:
                return send_lines(client, lines, console, skip_existing=False)
        if arguments.queue is None:
            raise Done("QUEUE: is required without --file", EXIT_USAGE)
        if arguments.text is not None and arguments.payload is not None:
            raise Done("--text: there is a PAYLOAD already", EXIT_USAGE)
        payload: Any = arguments.text
        if arguments.payload is not None:
            try:
                payload = msgspec.json.decode(arguments.payload, type=msgspec.Raw)
            except (msgspec.DecodeError, UnicodeEncodeError) as error:
                raise Done("PAYLOAD: must be JSON; a text is given by --text", EXIT_USAGE) from error
        job_id = client.enqueue(
            arguments.queue,
            payload,
            id=arguments.id,
            timeout=arguments.timeout,
            persist_data=arguments.persist_data,
            max_retries=arguments.max_retries,
            run_at=arguments.run_at,
            key=arguments.key,
            priority=arguments.priority,
            ttl=arguments.ttl,
            idempotency_key=True,
        )
    if console.as_json:
        console.json({"queue": arguments.queue, "id": job_id})
    else:
        console.line(job_id)
    return 0


def _next(arguments: argparse.Namespace, console: Console) -> int:
    with client_of(arguments) as client:
        if arguments.num_jobs is not None:
            jobs = client.next_many(arguments.queue, arguments.num_jobs, wait=arguments.wait)
        else:
            job = client.next(arguments.queue, wait=arguments.wait)
            jobs = [] if job is None else [job]
    for each in jobs:
        console.json(each)
    return 0 if jobs else EXIT_NONE


def _complete(arguments: argparse.Namespace, console: Console) -> int:
    from proteus_shards.client import Run  # noqa: PLC0415 as above

    with client_of(arguments) as client:
        client.complete(Run(arguments.queue, arguments.id, arguments.run_id))
    if console.as_json:
        console.json({"queue": arguments.queue, "id": arguments.id, "completed": True})
    return 0


def _work(arguments: argparse.Namespace, console: Console) -> int:
    from proteus_shards.client import run_worker  # noqa: PLC0415 as above

    handler = _handler_of(arguments.handler)
    if arguments.concurrency < 1:
        raise Done("--concurrency: must be at least 1", EXIT_USAGE)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    console.tell(
        f"working on {', '.join(arguments.queue)} with {arguments.handler}, {arguments.concurrency} at once; SIGTERM or Ctrl-C ends it"
    )
    done = run_worker(
        handler,
        arguments.queue,
        url=arguments.url,
        token=arguments.token,
        ca=arguments.ca,
        concurrency=arguments.concurrency,
        loop=arguments.loop,
        wait_seconds=arguments.wait,
        grace_seconds=arguments.grace,
    )
    if console.as_json:
        console.json(done)
    else:
        console.line(f"completed {done.completed}, failed {done.failed}, released {done.released}, lost {done.lost}")
    return EXIT_FAILED if done.untold else 0


def _handler_of(name: str) -> Any:
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise Done("MODULE:FUNCTION: both are required", EXIT_USAGE)
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 it is a text that is wanted
    try:
        handler: Any = importlib.import_module(module_name)
        for part in function_name.split("."):
            handler = getattr(handler, part)
    except (ModuleNotFoundError, AttributeError) as error:
        raise Done(f"MODULE:FUNCTION: {error}", EXIT_USAGE) from error
    if not callable(handler):
        raise Done(f"MODULE:FUNCTION: {name} is no function", EXIT_USAGE)
    return handler
