"""Memory follows the jobs that there are, not those that there were. Counted in entries, never in seconds."""

from __future__ import annotations

from proteus_shards.core import deadlines, queue
from proteus_shards.core.commands import Complete, Heartbeat, Next, Reason
from tests.core.rig import LIMITS, SECOND, WALL, YEAR, Bench, check_books

MANY = 10_000


def entries(bench: Bench) -> dict[str, int]:
    """Return how many entries each inner structure has."""
    shard = bench.shard
    queues = shard.queues.values()
    return {
        "deadlines": len(shard._deadlines),
        "schedule": len(shard._schedule),
        "polls": len(shard._polls),
        "graves": len(shard._graves),
        "waiting": len(shard._waiting),
        "ledger": len(shard._ledger)
        + len(shard._ledger._touched)
        + len(shard._ledger._sealed.inserted)
        + len(shard._ledger._sealed.deleted),
        "fresh": sum(len(queue._fresh) for queue in queues),
        "returned": sum(len(queue._returned) for queue in queues),
    }


def test_heartbeats_add_nothing_to_the_heap() -> None:
    """Ten thousand heartbeats are ten thousand assignments."""
    bench = Bench()
    bench.enqueue("job", timeout=10)
    [job] = bench.take()
    for _ in range(MANY):
        bench.pass_time(0.01)
        bench.shard.apply(None, Heartbeat("q", "job", job.run_id))
        assert entries(bench)["deadlines"] == 1

    assert bench.job("job").run_id == job.run_id


def test_a_hundred_thousand_jobs_leave_nothing_behind_one_old_one() -> None:
    """A job that stays ready, one in flight and one scheduled for a year do not keep what passes them by."""
    bench = Bench()
    bench.enqueue("old in flight", timeout=YEAR // SECOND)
    bench.take()
    bench.enqueue("old ready")
    bench.enqueue("old scheduled", run_at_us=WALL + YEAR)
    apply, bound = bench.shard.apply, 4 * deadlines.STALE_MIN
    for number in range(100_000):
        name = f"{number}"
        bench.enqueue(name, "churn", timeout=YEAR // SECOND)
        bench.shard.apply(None, Next("churn"))
        apply(None, Complete("churn", name))
        bench.answers.clear()
        if number % 100 == 0:
            bench.enqueue(name, timeout=10)
            apply(None, Complete("q", name))
            bench.enqueue(name, run_at_us=WALL + YEAR)
            apply(None, Complete("q", name))
            bench.pass_time(0.000001)
    bench.advance()

    assert all(count <= bound for count in entries(bench).values()), entries(bench)
    assert list(bench.shard.queues) == ["q"]
    check_books(bench.shard)


def test_jobs_completed_while_they_wait_are_swept_out() -> None:
    """The line of a queue follows the jobs that wait in it, though its head never moves."""
    bench = Bench()
    bench.enqueue("head")
    for number in range(MANY):
        bench.enqueue(f"{number}")
        bench.shard.apply(None, Complete("q", f"{number}"))

    assert entries(bench)["fresh"] <= 2 * queue.STALE_MIN + 2


def test_returned_jobs_that_are_completed_are_swept_out() -> None:
    """So does the heap of returned jobs."""
    bench = Bench()
    bench.enqueue("head")
    bench.take()
    for number in range(MANY):
        bench.enqueue(f"{number}", timeout=1, max_retries=1)
    bench.take(MANY)
    bench.enqueue("last")
    for _ in range(3):
        bench.pass_time(1)
    assert entries(bench)["returned"] == MANY
    for number in range(MANY):
        bench.shard.apply(None, Complete("q", f"{number}"))

    assert entries(bench)["returned"] <= 2 * queue.STALE_MIN + 2
    bench.pass_time(10)
    assert bench.take_ids() == ["last"]


def test_polls_that_come_and_go_are_swept_out() -> None:
    """Cancelled polls with an hour to wait do not pile up."""
    bench = Bench(LIMITS)
    bench.send(Next("q", 1, 3600 * SECOND))
    for _ in range(MANY):
        bench.shard.cancel(bench.send(Next("q", 1, 3600 * SECOND)))
        bench.advance()

    assert entries(bench)["polls"] <= 2 * deadlines.STALE_MIN + 2
    assert bench.shard.polls == 1


def test_dead_letters_that_are_dropped_leave_no_grave() -> None:
    """The list of deaths follows the letters that are kept."""
    bench = Bench(dead_letters_max=10)
    for number in range(MANY):
        bench.enqueue(f"{number}", timeout=0)
        bench.shard.apply(None, Next("q"))
        bench.advance()

    assert len(bench.shard.queues["q"].dead) == 10
    assert entries(bench)["graves"] <= 1000


def test_undone_completions_of_scheduled_jobs_are_swept_out() -> None:
    """Each undo files the job's schedule again; the entries too many go."""
    bench = Bench()
    names = [f"{number}" for number in range(100)]
    for name in names:
        bench.enqueue(name, persist=True, run_at_us=WALL + YEAR)
    bench.commit()
    for _ in range(50):
        for name in names:
            bench.shard.apply(None, Complete("q", name))
        bench.shard.cut()
        bench.shard.failed(Reason.BUSY, "no")
        bench.heal()
        bench.advance()

    assert entries(bench)["schedule"] <= 2 * deadlines.STALE_MIN + len(names)
    bench.set_wall(WALL + YEAR)
    assert len(bench.take_durably(1000)) == 100


def test_a_shard_that_was_emptied_holds_nothing() -> None:
    """After the last job is gone and the last commit is done, every structure is empty."""
    bench = Bench()
    for number in range(1000):
        bench.enqueue(f"{number}", f"{number % 7}", persist=number % 2 == 0, timeout=1000, run_at_us=WALL if number % 3 else WALL + SECOND)
    bench.commit()
    bench.pass_time(1)
    for name in range(7):
        for job in bench.take_durably(1000, f"{name}"):
            bench.send(Complete(job.queue, job.id, job.run_id))
    bench.commit()
    bench.pass_time(2000)

    assert set(entries(bench).values()) == {0}, entries(bench)
    assert (bench.shard.queues, bench.shard.bytes, bench.shard.totals, bench.store.rows) == ({}, 0, [0] * 5, {})
    assert bench.shard.due_in(bench.now, bench.wall) is None
