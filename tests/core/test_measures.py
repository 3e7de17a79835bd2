"""What the core counts, and the survey of its queues."""

from __future__ import annotations

from proteus_shards.core.commands import Complete, Delivered, Heartbeat, Next, QueueMeasure, Reason, Undeliver
from proteus_shards.core.measures import RUN_BOUNDS_US, START_BOUNDS_US, Survey, empty, note, seconds
from tests.core.rig import SECOND, WALL, Bench, refused


def survey(bench: Bench, queues_max: int = 3, shown: list[str] | None = None, step: int = 10**6) -> tuple[list[QueueMeasure], int, int]:
    """Look over all queues; return the deepest, the age of the oldest job, and in how many steps."""
    made = Survey(bench.shard.queues, bench.shard.waited_us, queues_max, dict.fromkeys(shown or []))
    steps = 1
    while made.look(step):
        steps += 1
    return made.deepest(), made.oldest_us, steps


def test_each_kind_of_answer_is_counted_once() -> None:
    """Jobs that come together count one by one."""
    bench = Bench()
    for number in range(3):
        bench.enqueue(str(number))
    assert refused(bench.enqueue("0")).reason is Reason.EXISTS
    first, second = bench.take(2)
    bench.ask(Heartbeat("q", "0", first.run_id))
    bench.ask(Undeliver("q", "1", second.run_id))
    bench.ask(Complete("q", "0"))
    bench.ask(Complete("q", "2"))

    counters = bench.shard.counters
    assert (counters.enqueued, counters.delivered, counters.heartbeats, counters.undelivered, counters.completed) == (3, 2, 1, 1, 2)
    assert sum(counters.ran_us[:-1]) == 1, "a job that was completed while it waited has not run"


def test_what_was_undone_is_not_counted() -> None:
    """A commit that failed has told nobody anything; the same once more counts once."""
    bench = Bench()
    bench.enqueue("a", persist=True)
    bench.shard.cut()
    bench.fail()
    assert bench.shard.counters.enqueued == 0
    bench.heal()
    bench.enqueue("a", persist=True)
    assert bench.shard.counters.enqueued == 0
    bench.commit()

    bench.take_durably()
    bench.send(Complete("q", "a"))
    bench.shard.cut()
    bench.fail()
    bench.heal()
    bench.send(Complete("q", "a"))
    bench.commit()

    counters = bench.shard.counters
    assert (counters.enqueued, counters.delivered, counters.completed, sum(counters.ran_us[:-1])) == (1, 1, 1, 1)


def test_a_delivery_is_counted_with_the_time_since_the_job_could_start() -> None:
    """That is its enqueue, or its run_at where that is later; a second delivery is no start."""
    bench = Bench()
    bench.enqueue("now", timeout=1, max_retries=1)
    bench.enqueue("later", run_at_us=WALL + 60 * SECOND)
    bench.pass_time(2)
    bench.take()
    bench.pass_time(58.5)
    bench.take(2)

    expected = empty(START_BOUNDS_US)
    note(expected, START_BOUNDS_US, 2 * SECOND)
    note(expected, START_BOUNDS_US, SECOND // 2)
    assert bench.shard.counters.started_us == expected
    assert bench.shard.counters.delivered == 3


def test_a_poll_that_was_waiting_starts_its_job_at_once() -> None:
    """The time from enqueue to delivery is nothing then."""
    bench = Bench()
    key = bench.send(Next("q", 1, 10 * SECOND))
    bench.enqueue("a")

    assert isinstance(bench.answers[key], Delivered)
    assert (bench.shard.counters.started_us[0], bench.shard.counters.started_us[-1]) == (1, 0)


def test_the_time_of_a_run_goes_from_its_last_delivery_to_its_completion() -> None:
    """Heartbeats do not shorten it, and a run that was recovered is not counted."""
    bench = Bench()
    bench.enqueue("a", persist=True)
    bench.commit()
    bench.take_durably()
    bench.pass_time(4)
    bench.send(Heartbeat("q", "a", None, b"1"))
    bench.commit()
    bench.pass_time(4)
    after = bench.restart()
    for each in (bench, after):
        each.send(Complete("q", "a"))
    bench.commit()
    after.shard.cut()
    after.shard.committed()

    expected = empty(RUN_BOUNDS_US)
    note(expected, RUN_BOUNDS_US, 8 * SECOND)
    assert bench.shard.counters.ran_us == expected
    assert after.shard.counters.ran_us == empty(RUN_BOUNDS_US)
    assert after.shard.counters.completed == 1


def test_a_value_on_a_bound_belongs_below_it() -> None:
    """As Prometheus has it: le is less or equal."""
    histogram = empty((10, 20))
    for value in (0, 10, 11, 20, 21):
        note(histogram, (10, 20), value)

    assert histogram == [2, 2, 1, 62]
    assert seconds(histogram) == [2, 2, 1, 62e-6]


def test_a_survey_finds_the_deepest_queues_and_the_oldest_job() -> None:
    """A job that is scheduled for later adds to the depth and has no age."""
    bench = Bench()
    bench.enqueue("early", "shallow")
    bench.pass_time(5)
    for number in range(3):
        bench.enqueue(str(number), "deep")
    for number in range(2):
        bench.enqueue(str(number), "scheduled", run_at_us=WALL + 1000 * SECOND)
    bench.enqueue("j", "busy")
    bench.take(1, "busy")
    bench.pass_time(1)

    deepest, oldest_us, _ = survey(bench, 2)

    assert deepest == [QueueMeasure("deep", 0, 3, 0, 0, SECOND), QueueMeasure("scheduled", 2, 0, 0, 0, 0)]
    assert oldest_us == 6 * SECOND, "of a queue that is not among the deepest"


def test_the_age_is_that_of_the_head() -> None:
    """A job that timed out has waited since it could first start; once the head is gone, the next one counts."""
    bench = Bench()
    bench.enqueue("first", timeout=1, max_retries=5)
    bench.pass_time(2)
    bench.enqueue("second")
    bench.take()
    assert survey(bench)[1] == 0
    bench.pass_time(3)
    assert survey(bench)[1] == 5 * SECOND
    bench.ask(Complete("q", "first"))
    assert survey(bench)[1] == 3 * SECOND


def test_a_survey_of_many_queues_is_made_in_steps() -> None:
    """10,000 queues, of which a few hundred are looked at before others have their turn; queues that come and go meanwhile do no harm."""
    bench = Bench(queues_max=20_000, shard_jobs_max=10**6, shard_pending_max=10**6)
    for number in range(10_000):
        bench.enqueue("j", f"queue {number}")
    bench.enqueue("more", "queue 7777")
    made = Survey(bench.shard.queues, bench.shard.waited_us, 2, {"queue 4": None})
    steps = 0
    while made.look(500):
        steps += 1
        bench.ask(Complete(f"queue {steps}", "j"))
        bench.enqueue("new", f"new {steps}")

    assert steps == 19
    assert made.deepest()[0].queue == "queue 7777"
    assert len(made.deepest()) == 2


def test_the_queues_of_the_last_survey_stay() -> None:
    """Among equally deep ones, and with zeros where they are gone and there is room."""
    bench = Bench()
    for name in "abcde":
        bench.enqueue("j", name)

    assert {measure.queue for measure in survey(bench, 2, ["b", "d"])[0]} == {"b", "d"}
    assert {measure.queue for measure in survey(bench, 2, ["e", "gone"])[0]} >= {"e"}
    deepest, _, _ = survey(bench, 6, ["gone", "gone too"])
    assert (len(deepest), deepest[-1]) == (6, QueueMeasure("gone", 0, 0, 0, 0, 0))
    assert survey(bench, 0, ["a"])[0] == []
