"""Whatever operators and runners do, in any order: what a shard holds is what its store holds, and a commit that fails leaves nothing of it."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from proteus_shards.core.commands import Complete, Enqueue, Next, Options, Reason
from proteus_shards.core.commands_control import Change, DropSchedule, Fail, Purge, PutSchedule, Redrive, SetQueue, State
from proteus_shards.core.extras import pack_extras
from proteus_shards.core.model import Status
from tests.core.rig import SECOND, Bench, check_books

QUEUES = ["q", "q", "q", "p"]
IDS = ["1", "2", "3"]
PATCHES = [
    b'{"paused":true}',
    b'{"paused":null}',
    b'{"max_in_flight":1,"on_retry":"skip"}',
    b'{"max_in_flight":null,"delayed_head":"hold"}',
    b'{"dead_letters_max":1}',
    b'{"dead_letters_max":null,"backoff":{"seconds":1}}',
    b'{"ttl":30,"jobs_max":3}',
    b'{"ttl":null,"jobs_max":null}',
]

queues = st.sampled_from(QUEUES)
ids = st.sampled_from(IDS)
enqueues = st.builds(
    lambda queue, job, key, priority, retries: Enqueue(
        queue, job, 5, True, retries, b"1", options=Options(key=key, priority=priority) if key or priority else None
    ),
    queues,
    ids,
    st.sampled_from([None, "k"]),
    st.sampled_from([0, 0, 3]),
    st.integers(0, 1),
)
commands = st.one_of(
    st.builds(Next, queues, st.integers(1, 3)),
    st.builds(Complete, queues, ids),
    st.builds(lambda queue, job: Fail(queue, job, None, "broken"), queues, ids),
    st.builds(SetQueue, queues, st.sampled_from(PATCHES)),
    st.builds(
        lambda queue, states, names: Purge(queue, states, ids=names),
        queues,
        st.sampled_from([[], ["dead"], [str(state) for state in State]]),
        st.sampled_from([None, ["1"], ["2", "3"]]),
    ),
    st.builds(
        lambda queue, names, to: Redrive(queue, names, to=to),
        queues,
        st.sampled_from([None, ["1"], ["2", "3"]]),
        st.sampled_from([None, "p", "q"]),
    ),
    st.builds(
        Change,
        queues,
        ids,
        st.sampled_from([None, 0, 1_800_000_010 * SECOND]),
        st.sampled_from([None, -1, 5]),
    ),
    st.builds(
        lambda queue, every: PutSchedule(
            queue, "s", b'{"every":%d,"job":{},"missed":"all"}' % every, Enqueue(queue, "s", 5, True, 0, b"1")
        ),
        queues,
        st.sampled_from([7, 11]),
    ),
    st.builds(lambda queue: DropSchedule(queue, "s"), queues),
)
arguments: dict[str, st.SearchStrategy[Any]] = {
    "enqueue": enqueues,
    "ask": commands,
    "time": st.sampled_from([0, 1, 6, 40]),
    "commit": st.none(),
    "busy": st.none(),
    "crash": st.none(),
    "unknown": st.booleans(),
}
kinds = st.sampled_from(["enqueue"] * 6 + ["ask"] * 10 + ["time", "time", "commit", "commit", "busy", "crash", "unknown"])
steps = kinds.flatmap(lambda kind: st.tuples(st.just(kind), arguments[kind]))


def held(bench: Bench) -> tuple[Any, ...]:
    """Return all that a shard holds, as a store would tell it."""
    jobs = []
    for queue in bench.shard.queues.values():
        for job in [*queue.jobs.values(), *queue.dead.values()]:
            status = Status.READY if job.status is Status.SCHEDULED else job.status
            jobs.append(
                (
                    job.queue,
                    job.id,
                    job.seq,
                    status,
                    job.ready_at,
                    job.run_at,
                    job.attempt,
                    job.run_id,
                    job.reason,
                    job.updated_at,
                    pack_extras(job.extras),
                )
            )
    set_ones = {name: queue.settings for name, queue in bench.shard.queues.items()}
    kept = {key: schedule.kept for key, schedule in bench.shard.schedules.items()}
    return sorted(jobs, key=str), set_ones, kept


def settled(bench: Bench) -> None:
    """Commit until nothing is left to be, and compare with a shard that reads the store."""
    while bench.shard.has_open:
        bench.commit()
    check_books(bench.shard)
    jobs, set_ones, kept = held(bench)
    other_jobs, other_settings, other_kept = held(bench.restart())
    assert jobs == other_jobs
    assert kept == other_kept
    assert {name: value for name, value in set_ones.items() if value != type(value)()} == {
        name: value for name, value in other_settings.items() if value != type(value)()
    }


@given(st.lists(steps, min_size=20, max_size=60))
@settings(max_examples=150, deadline=None)
def test_what_a_shard_holds_is_what_its_store_holds(script: list[tuple[str, Any]]) -> None:
    """After each commit; and after one that failed, what it held before."""
    bench = Bench(dead_letters_max=3)
    before = held(bench)
    for step, argument in script:
        match step:
            case "ask" | "enqueue":
                bench.send(argument)
                continue
            case "time":
                bench.pass_time(argument)
                continue
            case "commit":
                settled(bench)
            case "busy":
                bench.shard.cut()
                bench.fail()
                assert held(bench) == before
                bench.heal()
                settled(bench)
            case "unknown":
                batch = bench.shard.cut()
                if argument:
                    bench.store.commit(batch)
                bench.heal(bench.fail(Reason.UNKNOWN))
                settled(bench)
            case "crash":
                bench = bench.restart()
                bench.advance()
                settled(bench)
        before = held(bench)
    settled(bench)
