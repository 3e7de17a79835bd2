"""The scenarios that measure a rate. Each is a function of a run, a subject and that subject started and empty.

Where a rate is measured, every connection has one request under way at a time, and as many jobs as it takes are made before the clock starts.
"""

from __future__ import annotations

import msgspec

from bench import load
from bench.cpu import CpuMeter
from bench.engine import LoadError
from bench.jobs import BATCH_JOBS, PAYLOAD_BYTES, Family, balanced
from bench.run import FILL_SHARE, TRIES, Done, Run, Sample, done_of
from bench.subjects import Subject
from bench.targets import Target

WARM_SECONDS_MAX = 0.5
LARGE_CONNECTIONS = 4
BEANSTALK_FILL_CONNECTIONS = 16
BEANSTALK_PROCESSES = 2  # of our client: one alone would be the limit


def enqueue(run: Run, subject: Subject, target: Target) -> Sample:
    """Measure the jobs enqueued a second, starting empty."""
    seconds = run.options.seconds
    warm_seconds = min(WARM_SECONDS_MAX, seconds / 4)
    if subject.protocol == "beanstalk":
        return _beanstalk(run, target, "put", warm_seconds)
    run.enqueue(target, run.family(subject), 0, warm_seconds)
    family = run.family(subject)
    return run.measure(target, lambda meter: run.enqueue(target, family, 0, seconds, meter))


def next_job(run: Run, subject: Subject, target: Target) -> Sample:
    """Measure the jobs delivered a second, from queues that are never empty."""
    if subject.protocol == "beanstalk":
        return _beanstalk(run, target, "reserve", 0)
    for attempt in range(TRIES):
        family = run.family(subject)
        run.fill_for(target, family, FILL_SHARE * run.options.seconds * 2**attempt)
        sample = _next(run, target, family)
        if run.take(target, family, len(family.slots)):  # what is left proves that no answer was "no job"
            return sample
    raise LoadError("the queues ran empty, however much was enqueued before")


def _next(run: Run, target: Target, family: Family) -> Sample:
    return run.measure(target, lambda meter: run.next_jobs(target, family, run.options.seconds, meter))


def life(run: Run, subject: Subject, target: Target) -> Sample:
    """Measure the jobs that go through enqueue, next, heartbeat and complete a second: four requests each."""
    if subject.protocol == "beanstalk":
        return _beanstalk(run, target, "life", min(WARM_SECONDS_MAX, run.options.seconds / 4))
    family = run.family(subject)
    return run.measure(target, run.live(target, family, run.options.seconds, connections=run.options.connections))


def life_checked(run: Run, subject: Subject, target: Target) -> Sample:
    """Measure the same with the own generator, which reads and checks every answer: ids, order, attempts, payloads, run ids."""
    connections = run.options.connections
    family = msgspec.structs.replace(run.family(subject), slots=balanced("checked", connections, subject.shards))
    work = load.Life(family, run.options.seconds)
    return run.measure(target, lambda meter: run.own(target, work, meter))


def batch(run: Run, subject: Subject, target: Target) -> Sample:
    """Measure the jobs delivered a second, 100 an answer, and check that each came exactly once and in order."""
    count = run.options.batch_jobs
    family = run.family(subject)
    run.fill(target, family, count)
    numbers: list[int] = []

    def fetch(meter: CpuMeter) -> Done:
        loaded = load.run(
            target.address,
            load.Batch(family, count, BATCH_JOBS),
            connections=run.options.connections,
            processes=run.options.processes,
            when_ready=meter.begin,
        )
        numbers.extend(loaded.numbers)
        return done_of(loaded)

    sample = run.measure(target, fetch)
    if sorted(numbers) != list(range(count)):
        raise LoadError(f"{len(set(numbers))} of {count} jobs were delivered, {len(numbers) - len(set(numbers))} of them twice")
    return sample


def batch_enqueue(run: Run, subject: Subject, target: Target) -> Sample:
    """Measure the jobs enqueued a second, 100 a request."""
    seconds = run.options.seconds
    run.own(target, load.EnqueueArrays(run.family(subject), BATCH_JOBS, min(WARM_SECONDS_MAX, seconds / 4)), None)
    work = load.EnqueueArrays(run.family(subject), BATCH_JOBS, seconds)
    return run.measure(target, lambda meter: run.own(target, work, meter))


def batch_complete(run: Run, subject: Subject, target: Target) -> Sample:
    """Measure the jobs completed a second, 100 a request."""
    count = max(1, run.options.batch_jobs // BATCH_JOBS) * BATCH_JOBS
    family = run.family(subject)
    run.fill(target, family, count)
    work = load.CompleteArrays(family, count, BATCH_JOBS)
    return run.measure(target, lambda meter: run.own(target, work, meter))


def loop(run: Run, subject: Subject, target: Target) -> Sample:
    """Measure the jobs that go through a runner's loop a second: enqueue and complete-and-next, two requests each."""
    family = run.family(subject)
    return run.measure(target, run.loop(target, family, run.options.seconds, connections=run.options.connections))


def relay_life(run: Run, subject: Subject, target: Target) -> Sample:
    """Measure the jobs that go through enqueue, next and complete in relay's words a second: three requests each, every answer read."""
    connections = run.options.connections
    family = msgspec.structs.replace(run.family(subject), slots=balanced("relay", connections, subject.shards))
    work = load.RelayLife(family, run.options.seconds)
    return run.measure(target, lambda meter: run.own(target, work, meter))


def mixed(run: Run, subject: Subject, target: Target) -> Sample:
    """Measure whole lives, half of them in one hot queue, the others spread over cold ones."""
    cold = balanced("cold", run.options.cold_queues, subject.shards)
    slots = [queue for name in cold for queue in ("hot", name)]
    family = msgspec.structs.replace(run.family(subject), slots=slots)
    return run.measure(target, run.live(target, family, run.options.seconds, connections=run.options.connections))


def large(run: Run, subject: Subject, target: Target) -> Sample:
    """Measure whole lives of jobs with 1 MiB of payload: MB/s in, and as much out."""
    family = run.family(subject, payload_bytes=run.options.large_bytes)
    sample = run.measure(target, run.live(target, family, run.options.seconds, connections=LARGE_CONNECTIONS, pipeline=2))
    return msgspec.structs.replace(sample, value=sample.value * run.options.large_bytes / 1e6, figures={"jobs_per_second": sample.value})


def refilled(run: Run, subject: Subject, target: Target, family: Family, first: int) -> tuple[Sample, Sample]:
    """Measure enqueue and next on queues that hold many jobs already. `first` is the first number that is free."""
    seconds = run.options.seconds
    run.enqueue(target, run.family(subject), 0, min(WARM_SECONDS_MAX, seconds / 4))
    into = run.measure(target, lambda meter: run.enqueue(target, family, first, seconds, meter))
    return into, _next(run, target, family)


def _beanstalk(run: Run, target: Target, verb: str, warm_seconds: float) -> Sample:
    """Load beanstalkd with the own client."""
    connections = run.options.connections
    if warm_seconds:
        load.run(target.address, load.Beanstalk("life", PAYLOAD_BYTES, seconds=warm_seconds), connections=connections)
    work = load.Beanstalk(verb, PAYLOAD_BYTES, seconds=run.options.seconds)
    for attempt in range(TRIES):
        if verb == "reserve":
            filling = load.Beanstalk("put", PAYLOAD_BYTES, seconds=FILL_SHARE * run.options.seconds * 2**attempt, pipeline=16)
            load.run(target.address, filling, connections=BEANSTALK_FILL_CONNECTIONS, processes=BEANSTALK_PROCESSES)
        sample = run.measure(target, lambda meter: run.own(target, work, meter, processes=BEANSTALK_PROCESSES))
        if verb != "reserve" or not sample.errors:
            return sample
    raise LoadError("the tube ran empty, however much was put before")
