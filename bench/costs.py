"""The scenario of what a job costs where requests are paid for: DynamoDB.

A job's whole life is led under load by the own generator, with group commit as it comes about. Counted are the requests that the store sends meanwhile, and
the write units that they consume (`counting.py` says how). What a life costs follows from the price of a unit:

    dollars per million jobs = write units per job × dollars per million units

A row of up to 1 KB costs 2 units for each of enqueue, delivery and completion, as these are written in transactions; each transaction 2 more for the check of
the epoch, which all rows of a batch share; a heartbeat writes nothing. Reading happens at a start only. Storage, backups and traffic come on top.
"""

from __future__ import annotations

import msgspec

from bench import load
from bench.backings import Dynamodb
from bench.engine import LoadError
from bench.jobs import balanced
from bench.run import Run, Sample
from bench.subjects import Subject
from bench.targets import Proteus, Target

DOLLARS_PER_MILLION_UNITS = 0.625  # on-demand, standard class, us-east-1, since November 2024; an assumption, not asked for
STEPS = {"Put": "enqueue", "Update": "delivery", "Delete": "completion", "ConditionCheck": "epoch_check"}


def cost(run: Run, subject: Subject, target: Target) -> Sample:
    """Measure the write units that a job consumes from its enqueueing to its completion."""
    assert isinstance(target, Proteus)
    assert isinstance(target.backing, Dynamodb)
    connections = run.options.connections
    family = msgspec.structs.replace(run.family(subject), slots=balanced("cost", connections, subject.shards))
    before = target.backing.counts()
    work = load.Life(family, run.options.seconds, depth=0)  # each job that is enqueued is led to its end, so that whole lives are counted
    sample = run.measure(target, lambda meter: run.own(target, work, meter))
    found = target.backing.counts().since(before)
    jobs = sample.value * sample.seconds
    commits = found.requests.get("TransactWriteItems", 0)
    if not jobs or not commits:
        raise LoadError("the store has written nothing")
    writes = sum(found.actions.values()) - found.actions.get("ConditionCheck", 0)
    units = sum(found.units.values()) / jobs
    figures = {f"{step}_units": found.units.get(kind, 0) / jobs for kind, step in STEPS.items()}
    figures |= {
        "units_per_job": units,
        "units_answered_per_job": found.units_answered / jobs,  # by the double; 0: it answers none
        "requests_per_job": sum(found.requests.values()) / jobs,
        "writes_per_commit": writes / commits,
        "jobs_per_second": sample.value,
        "dollars_per_million": units * DOLLARS_PER_MILLION_UNITS,
    }
    return msgspec.structs.replace(sample, value=units, figures=figures)
