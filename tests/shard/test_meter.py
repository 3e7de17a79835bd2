"""What a shard process counts, and how it is asked for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from proteus_shards.core.commands import Complete, Done, Measure, Measures, Next, Reason
from proteus_shards.errors import StoreFenced, StorePermanent, StoreRefused, StoreUnknown, StoreWeak
from proteus_shards.shard.meter import ERRORS, Meter
from proteus_shards.shard.pump import SURVEY_QUEUES
from proteus_shards.tally import METRICS, Tally, read_tally, tally_path
from tests.shard.scripted import RecordingLink
from tests.shard.test_pump import Stand, job, reason, run

SHARDS_OWN = {name for name, metric in METRICS.items() if metric.labels and metric.labels[0] in {"shard", "process"}} - {
    "proteus_shard_up",  # the front's to say, as are those of links
    "proteus_link_connects_total",
    "proteus_link_refused_total",
    "proteus_link_timeouts_total",
    "proteus_deliveries_returned_total",
    "proteus_process_restarts_total",  # the supervisor's
    "proteus_process_crashes",
}


async def measured(made: Stand) -> Measures:
    """Ask for the measures."""
    told = await made.link.ask(Measure())
    assert isinstance(told, Measures)
    return told


def value(measures: Measures, name: str, *labels: str) -> float | list[float]:
    """Return one number."""
    (found,) = (value for each, own, value in measures.samples if each == name and set(labels) <= set(own))
    return found


def test_a_shard_tells_every_metric_that_is_its_own() -> None:
    """From the beginning on, with all labels; the page needs not know what there may be."""

    async def test(made: Stand) -> None:
        before = await measured(made)
        await made.link.ask(job("a"))
        await made.link.ask(Next("q"))
        await made.link.ask(Complete("q", "a"))
        after = await measured(made)

        assert {name for name, _, _ in before.samples} == SHARDS_OWN
        assert [sample[:2] for sample in before.samples] == [sample[:2] for sample in after.samples]
        assert all(len(labels) == len(METRICS[name].labels) for name, labels, _ in after.samples)
        assert [value(after, f"proteus_jobs_{what}_total") for what in ("enqueued", "delivered", "completed")] == [1, 1, 1]

    run(test)


def test_commits_are_counted_by_their_rows() -> None:
    """The first alone, then all that came meanwhile."""

    async def test(made: Stand) -> None:
        made.store.gate.clear()
        numbers = made.link.send(job("first"))
        await made.store.began.wait()
        numbers += [made.link.send(job(str(count)))[0] for count in range(50)]
        made.store.gate.set()
        for number in numbers:
            await made.link.answer(number)
        told = await measured(made)

        rows, times = value(told, "proteus_commit_rows"), value(told, "proteus_commit_seconds")
        bounds = METRICS["proteus_commit_rows"].bounds
        assert isinstance(rows, list)
        assert isinstance(times, list)
        assert {bounds[place]: count for place, count in enumerate(rows[:-2]) if count} == {1: 1, 50: 1}
        assert (rows[-1], sum(times[:-1])) == (51, 2)

    run(test)


def test_errors_of_the_store_are_counted_by_outcome() -> None:
    """Failed commits, and tries to reach it again."""

    async def test(made: Stand) -> None:
        made.store.script = [(StoreRefused(), False), (StorePermanent(), False)]
        made.store.away = [StoreUnknown(), StoreRefused(), StoreWeak()]
        assert Reason.BUSY == reason(await made.link.ask(job("a")))
        assert value(await measured(made), "proteus_store_away") in (0, 1)
        while made.pump.shard.away:
            await asyncio.sleep(0.001)
        assert Reason.INVALID == reason(await made.link.ask(job("b")))
        told = await measured(made)

        counts = {outcome: value(told, "proteus_store_errors_total", outcome) for outcome in ERRORS.values()}
        assert counts == {"refused": 2, "unknown": 1, "permanent": 1, "fenced": 0, "weak": 1, "failed": 0}

    run(test)


def test_an_error_that_nobody_foresaw_counts_as_a_failure() -> None:
    """A store may raise what it likes."""
    meter = Meter()
    meter.note_error(StoreFenced())
    meter.note_error(ZeroDivisionError())

    assert (meter.errors["fenced"], meter.errors["failed"]) == (1, 1)


def test_while_ten_thousand_queues_are_looked_over_others_are_served() -> None:
    """Between two parts of the survey; all who ask meanwhile share it."""

    async def test(made: Stand) -> None:
        made.pump.shard.limits = msgspec.structs.replace(made.pump.shard.limits, queues_max=10_000, shard_jobs_max=20_000)
        for number in range(10_000):
            made.pump.shard.apply(None, job("j", queue=f"queue {number}", persist=False))
        made.pump.shard.take_replies()
        asked = made.link.send(Measure())
        served = 0
        while asked[0] not in made.link.answers:
            if served == 3:
                asked += made.link.send(Measure())
            assert Done() == await made.link.ask(job(f"{served}", queue="queue 1", persist=False))
            served += 1
            await asyncio.sleep(0)
        told = [await made.link.answer(number) for number in asked]

        assert served >= 10_000 // SURVEY_QUEUES - 1
        assert told[0] is told[1]
        assert isinstance(told[0], Measures)
        assert (told[0].queues[0].queue, len(told[0].queues)) == ("queue 1", 50)

    run(test)


def test_a_front_that_is_gone_is_not_told() -> None:
    """And the next one is."""

    async def test(made: Stand) -> None:
        gone = RecordingLink(made.pump)
        gone.send(Measure())
        gone.closed = True
        made.pump.lose(gone)

        assert value(await measured(made), "proteus_queues") == 0
        assert gone.answers == {}

    run(test)


def test_what_a_front_is_told_is_in_the_file(tmp_path: Path) -> None:
    """And its successor begins there."""

    async def first(made: Stand) -> None:
        made.pump.meter = Meter(Tally(str(tmp_path), "shard-0"))
        await made.link.ask(job("a"))
        told = await measured(made)
        assert value(told, "proteus_jobs_enqueued_total") == 1
        assert read_tally(tally_path(str(tmp_path), "shard-0")) == told.samples

    async def second(made: Stand) -> None:
        made.pump.meter = Meter(Tally(str(tmp_path), "shard-0"))
        assert value(await measured(made), "proteus_jobs_enqueued_total") == 1
        await made.link.ask(job("b"))
        assert value(await measured(made), "proteus_jobs_enqueued_total") == 2

    run(first)
    run(second)
