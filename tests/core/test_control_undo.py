"""What operators do is undone as a whole when its commit fails: memory-only jobs with persisted ones, and lanes of keys under other settings."""

from __future__ import annotations

import pytest

from proteus_shards.core.commands import Complete, Reason
from proteus_shards.core.commands_control import Change, Purge, Redrive, SetQueue
from tests.core.rig import Bench, check_books, refused
from tests.core.test_control import ALL, dead_jobs


def test_a_purge_whose_commit_fails_removes_no_memory_only_job_either() -> None:
    """Though those could have gone at once: it is refused as a whole, and so nothing of it has happened."""
    bench = Bench()
    bench.enqueue("memory")
    bench.enqueue("stored", persist=True)
    bench.commit()

    key = bench.send(Purge("q", ALL))
    bench.lose_store()
    bench.heal()

    assert refused(bench.answers[key]).reason is Reason.BUSY
    assert sorted(job.id for job in bench.take_durably(5)) == ["memory", "stored"]
    check_books(bench.shard)


def test_a_redrive_whose_commit_fails_revives_no_memory_only_job_either() -> None:
    """Neither in its queue nor in another."""
    for to in (None, "other"):
        bench = Bench()
        dead_jobs(bench, "memory")
        dead_jobs(bench, "stored", persist=True)

        key = bench.send(Redrive("q", to=to))
        bench.lose_store()
        bench.heal()

        assert refused(bench.answers[key]).reason is Reason.BUSY
        assert (len(bench.shard.queues["q"].dead), bench.shard.queues["q"].jobs) == (2, {})
        assert "other" not in bench.shard.queues
        check_books(bench.shard)


def test_a_job_that_is_brought_back_under_other_rules_of_its_key_is_next_in_it() -> None:
    """Completed, then the rules were changed, then both were undone: it is filed in the lane as if nothing had been."""
    bench = Bench()
    for job_id in ("1", "2", "3"):
        bench.enqueue(job_id, persist=True, key="k")
    bench.commit()

    bench.send(Complete("q", "2"))
    bench.send(SetQueue("q", b'{"delayed_head":"hold"}'))
    bench.lose_store()
    bench.heal()

    bench.send(Complete("q", "1"))
    bench.commit()

    assert ["2"] == [job.id for job in bench.take_durably(5)]
    check_books(bench.shard)


@pytest.mark.parametrize("written", [True, False])
def test_a_job_stands_by_the_priority_that_its_row_has(written: bool) -> None:
    """A change of priority whose outcome nobody knows: written or not, the job is delivered in the place that the store says."""
    bench = Bench()
    for name in ("first", "second"):
        bench.enqueue(name, persist=True)
    bench.commit()
    bench.send(Change("q", "first", None, -1))
    batch = bench.shard.cut()
    if written:
        bench.store.commit(batch)
    keys = bench.shard.failed(Reason.UNKNOWN, "nobody knows")
    bench.heal(keys)

    assert (["second", "first"] if written else ["first", "second"]) == [job.id for job in bench.take_durably(2)]
