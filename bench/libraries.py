"""The peers that are libraries, and how their rates are measured.

The number of processes is the best of 1, 2, 4 and 8 on two cores that the generator, which is the library, shares with the database; see README.md.
"""

from __future__ import annotations

from bench import load
from bench.backings import Backing, Postgres
from bench.cpu import CpuMeter
from bench.engine import LoadError
from bench.jobs import BATCH_JOBS, PAYLOAD_BYTES, balanced
from bench.run import QUEUES, Run, Sample, done_of, sample_of
from bench.subjects import Subject
from bench.targets import Target

WARM_SECONDS_MAX = 0.5
PROCESSES = {"procrastinate": 2, "rq": 4}


def measure(scenario: str, run: Run, subject: Subject, target: Target) -> Sample:
    """Measure a library in a scenario that it knows: "enqueue", "batch-enqueue" or "life"."""
    assert isinstance(target, Backing)
    url = target.conninfo() if isinstance(target, Postgres) else target.url()
    seconds = run.options.seconds
    work = load.Library(
        subject.name, scenario, url, balanced("q", QUEUES, 1), PAYLOAD_BYTES, seconds, min(WARM_SECONDS_MAX, seconds / 4), BATCH_JOBS
    )
    connections, processes = run.options.connections, PROCESSES[subject.name]
    meter = CpuMeter(target.roles())
    loaded = load.run(target.address, work, connections=connections, processes=processes, when_ready=meter.begin)
    spent = meter.spent()
    target.roles()  # raises where the server has ended
    if scenario == "life" and loaded.jobs != loaded.requests:
        raise LoadError(f"{loaded.requests} jobs were enqueued and {loaded.jobs} done")
    return sample_of(done_of(loaded), spent)
