"""`queues`, `jobs`, `pause`, `resume`, `purge`, `dead`: what operators do."""

from __future__ import annotations

import argparse
import itertools

from proteus_shards.commands import Commands, command, group
from proteus_shards.commands.console import Console
from proteus_shards.commands.jobs import client_of

COUNTS = ("ready", "in_flight", "scheduled", "blocked", "dead")
_YES = "do not ask; without a terminal nobody is asked"
STATES = ("scheduled", "backing_off", "ready", "blocked", "in_flight", "dead")


def add(commands: Commands) -> None:
    """Add the commands."""
    queues = command(commands, "queues", _queues, "list the queues, and how many jobs each has")
    queues.add_argument("--contains", metavar="TEXT", help="only queues whose name contains this")
    queues.add_argument("--limit", type=int, metavar="N", help="at most so many")

    jobs = command(
        commands,
        "jobs",
        _jobs,
        "list the jobs of a queue, or show one",
        "List the jobs of a queue; with an id show that job, and why it is not running.",
    )
    jobs.add_argument("queue", metavar="QUEUE", help="name of the queue")
    jobs.add_argument("id", nargs="?", metavar="ID", help="id of one job, which is shown whole")
    jobs.add_argument("--state", choices=STATES, help="only jobs that stand there [default: all but dead]")
    jobs.add_argument("--key", metavar="KEY", help="only jobs of an ordering key")
    jobs.add_argument("--older-than", type=float, metavar="SECONDS", help="only jobs that were enqueued longer ago")
    jobs.add_argument("--limit", type=int, default=100, metavar="N", help="at most so many [default: 100]")

    for name, text in (("pause", "deliver no more jobs of a queue"), ("resume", "deliver the jobs of a queue again")):
        switch = command(commands, name, _switch, text)
        switch.set_defaults(action=name)
        switch.add_argument("queue", metavar="QUEUE", help="name of the queue")

    purge = command(
        commands, "purge", _purge, "remove the jobs of a queue", "Remove the jobs of a queue: those that wait, or those of a state."
    )
    purge.add_argument("queue", metavar="QUEUE", help="name of the queue")
    purge.add_argument("--state", choices=("scheduled", "ready", "in_flight", "dead", "all"), help="which [default: all that wait]")
    purge.add_argument("--key", metavar="KEY", help="only jobs of an ordering key")

    purge.add_argument("--yes", action="store_true", help=_YES)

    dead = group(commands, "dead", "list, redrive or purge dead letters")
    listed = command(dead, "list", _list_dead, "list the dead letters of a queue, oldest first")
    listed.add_argument("queue", metavar="QUEUE", help="name of the queue")
    listed.add_argument("--limit", type=int, default=100, metavar="N", help="at most so many [default: 100]")
    redrive = command(dead, "redrive", _redrive, "give dead letters a new life, in their order")
    redrive.add_argument("queue", metavar="QUEUE", help="name of the queue")
    redrive.add_argument("--id", action="append", metavar="ID", help="only this one; may be given several times")
    redrive.add_argument("--reason", metavar="REASON", help="only those that died for it")
    redrive.add_argument("--key", metavar="KEY", help="only those of an ordering key")
    redrive.add_argument("--to", metavar="QUEUE", help="into another queue")
    purged = command(dead, "purge", _purge, "remove the dead letters of a queue")
    purged.set_defaults(state="dead", key=None)
    purged.add_argument("queue", metavar="QUEUE", help="name of the queue")
    purged.add_argument("--yes", action="store_true", help=_YES)


def _queues(arguments: argparse.Namespace, console: Console) -> int:
    with client_of(arguments) as client:
        found = list(itertools.islice(client.each_queue(contains=arguments.contains), arguments.limit))
    if console.as_json:
        for queue in found:
            console.json(queue)
        return 0
    rows = [[queue.queue, *(getattr(queue, count) for count in COUNTS), queue.oldest_ready_seconds, queue.paused] for queue in found]
    console.table(["queue", *COUNTS, "oldest_s", "paused"], rows)
    return 0


def _jobs(arguments: argparse.Namespace, console: Console) -> int:
    with client_of(arguments) as client:
        if arguments.id is not None:
            job = client.get_job(arguments.queue, arguments.id)
            console.json(job)
            return 0
        every = client.each_job(
            arguments.queue, state=arguments.state, key=arguments.key, older_than=arguments.older_than, bodies=console.as_json
        )
        found = list(itertools.islice(every, arguments.limit))
    if console.as_json:
        for job in found:
            console.json(job)
        return 0
    rows = [[job.id, job.state_name, job.attempt, job.key, job.created_at, ", ".join(job.waits_for) or None] for job in found]
    console.table(["id", "state", "attempt", "key", "created_at", "waits for"], rows)
    return 0


def _switch(arguments: argparse.Namespace, console: Console) -> int:
    with client_of(arguments) as client:
        if arguments.action == "pause":
            client.pause(arguments.queue)
        else:
            client.resume(arguments.queue)
    if console.as_json:
        console.json({"queue": arguments.queue, "paused": arguments.action == "pause"})
    return 0


def _purge(arguments: argparse.Namespace, console: Console) -> int:
    if not arguments.yes and not console.confirms(f"Remove {arguments.state or 'waiting'} jobs of {arguments.queue!r}? [y/N] "):
        return 1
    with client_of(arguments) as client:
        count = client.purge(arguments.queue, state=arguments.state, key=arguments.key)
    _say(console, arguments.queue, count, "removed")
    return 0


def _list_dead(arguments: argparse.Namespace, console: Console) -> int:
    with client_of(arguments) as client:
        found = list(itertools.islice(client.each_dead(arguments.queue), arguments.limit))
    if console.as_json:
        for letter in found:
            console.json(letter)
        return 0
    console.table(["id", "reason", "attempt", "died_at"], [[letter.id, letter.reason, letter.attempt, letter.died_at] for letter in found])
    return 0


def _redrive(arguments: argparse.Namespace, console: Console) -> int:
    with client_of(arguments) as client:
        count = client.redrive(arguments.queue, to=arguments.to, ids=arguments.id, key=arguments.key, reason=arguments.reason)
    _say(console, arguments.queue, count, "redriven")
    return 0


def _say(console: Console, queue: str, count: int, what: str) -> None:
    if console.as_json:
        console.json({"queue": queue, what: count})
    else:
        console.line(f"{count:,} {what}")
