"""The scenarios of many waiting jobs: what they cost the others, what they weigh, and how fast they come back.

To enqueue a million jobs takes longer than to measure with them, so these repeat by themselves, on one filling.
"""

from __future__ import annotations

import msgspec

from bench.cpu import rss_bytes
from bench.engine import LoadError
from bench.jobs import Family
from bench.run import Run, Sample
from bench.scenarios import enqueue, next_job, refilled
from bench.subjects import Subject
from bench.targets import Proteus, Target

MILLION = 1_000_000
CROWDS = {"blocked": ',"key":"one"', "scheduled": ',"run_at":"2999-01-01T00:00:00Z"', "dead": ',"ttl":0'}


def backlog(run: Run, subject: Subject, target: Target) -> list[Sample]:
    """Measure enqueue and next with many jobs waiting and with none, by turns: the lower of the two ratios.

    "None" is a fresh server of the same kind beside the full one, which rests meanwhile; it holds just what the measurement itself puts there.
    """
    family = run.family(subject)
    first = run.options.backlog
    run.fill(target, family, first)
    samples: list[Sample] = []
    for _ in range(run.options.repeat):
        with run.opened(subject) as empty:
            enqueue_none = enqueue(run, subject, empty)
        with run.opened(subject) as empty:
            next_none = next_job(run, subject, empty)
        enqueue_full, next_full = refilled(run, subject, target, family, first)
        first += 2 * enqueue_full.requests + run.options.connections
        figures = {
            "enqueue_none": enqueue_none.value,
            "enqueue_full": enqueue_full.value,
            "enqueue_ratio": enqueue_full.value / enqueue_none.value,
            "next_none": next_none.value,
            "next_full": next_full.value,
            "next_ratio": next_full.value / next_none.value,
        }
        parts = (enqueue_none, next_none, enqueue_full, next_full)
        samples.append(
            Sample(
                value=min(figures["enqueue_ratio"], figures["next_ratio"]),
                requests=sum(part.requests for part in parts),
                seconds=sum(part.seconds for part in parts),
                generator=enqueue_full.generator,
                errors=sum(part.errors for part in parts),
                first_error=next((part.first_error for part in parts if part.first_error), ""),
                cpu_us=enqueue_full.cpu_us,
                busy=enqueue_full.busy,
                figures=figures,
            )
        )
    if not run.take(target, family, len(family.slots)):
        raise LoadError("the backlog ran empty")
    return samples


def crowd(run: Run, subject: Subject, target: Target) -> list[Sample]:
    """Measure next with many jobs in the queue that can't run, blocked by one of their key, scheduled or dead, and with none: the lowest ratio."""
    family = run.family(subject)
    seconds = run.options.seconds
    samples: list[Sample] = []
    crowds: dict[str, Family] = {}
    for kind, members in CROWDS.items():
        crowds[kind] = msgspec.structs.replace(run.family(subject), members=members)
        run.fill(target, crowds[kind], run.options.backlog)
    for _ in range(run.options.repeat):
        with run.opened(subject) as empty:
            none = next_job(run, subject, empty)
        figures = {"none": none.value}
        for kind, crowded in crowds.items():
            among = msgspec.structs.replace(family, tag=f"{kind}{len(samples)}-", slots=crowded.slots)
            run.fill_for(target, among, 3 * seconds)
            found = run.measure(target, lambda meter, among=among: run.next_jobs(target, among, seconds, meter))  # type: ignore[misc]
            figures[kind] = found.value / none.value
            if found.errors:
                raise LoadError(f"among {kind} jobs: {found.first_error}")
        samples.append(msgspec.structs.replace(none, value=min(figures[kind] for kind in CROWDS), figures=figures))
    return samples


def memory(run: Run, subject: Subject, target: Target) -> list[Sample]:
    """Measure the resident memory that a queued job adds to the shard processes, less the bytes of its payload.

    Measured once: it hardly varies, and a second filling of the same server would find memory that the first one left.
    """
    count = run.options.backlog
    warm = run.family(subject)
    run.fill(target, warm, len(warm.slots) * 100)
    shards = target.roles()["shard"]
    fronts = target.roles()["front"]
    shard_before, front_before = rss_bytes(shards), rss_bytes(fronts)
    family = run.family(subject)
    run.fill(target, family, count)
    shard_after = rss_bytes(shards)
    figures = {
        "jobs": float(count),
        "payload_bytes": float(family.payload_bytes),
        "shard_mib": shard_after / 2**20,
        "front_growth_mib": (rss_bytes(fronts) - front_before) / 2**20,
    }
    return [Sample(value=(shard_after - shard_before) / count - family.payload_bytes, requests=count, generator="own", figures=figures)]


def recovery(run: Run, subject: Subject, target: Target) -> list[Sample]:
    """Measure how long the shards take to read back many persisted jobs after a SIGKILL of everything: seconds for 1,000,000 jobs.

    The time is what each shard logs as its recovery, from opening its store to serving; of several shards the slowest counts.
    """
    assert isinstance(target, Proteus)
    count = run.options.backlog
    run.fill(target, run.family(subject), count)
    samples: list[Sample] = []
    for _ in range(run.options.repeat):
        target.kill()
        target.start()
        records = target.events("recovered")
        rows = sum(record["rows"] for record in records)
        if rows != count or len(records) != subject.shards:
            raise LoadError(f"{len(records)} shards recovered {rows} of {count} jobs")
        seconds = max(record["seconds"] for record in records)
        figures = {
            "rows": float(rows),
            "recovered_seconds": seconds,
            "start_seconds": target.start_seconds,
            "shard_mib": rss_bytes(target.roles()["shard"]) / 2**20,
        }
        samples.append(Sample(value=seconds * MILLION / rows, requests=rows, seconds=seconds, generator="own", figures=figures))
    return samples
