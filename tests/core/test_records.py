"""What stands in a record, whatever it is, is used or kept aside, and ends no shard."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proteus_shards.core.commands import Command, Complete, Enqueue, ListDead, Next, Options, Outcome
from proteus_shards.core.commands_control import DropSchedule, FindJobs, GetQueue, ListJobs, ListQueues, ListSchedules, SetQueue
from proteus_shards.core.commands_steps import AskDecision, Conclude, EnqueueOnce, Forget, JobRefusal, ListSteps, OpenSteps
from proteus_shards.core.model import TIME_US_MAX, Kind, RecordKey
from proteus_shards.core.once import _Kept
from proteus_shards.core.placement import slot_of
from proteus_shards.core.schedules import KeptSchedule
from proteus_shards.core.spans import _Decision, _Intent
from tests.core.rig import SECOND, WALL, Bench, check_books

STEP = "00" * 16
JOB = Enqueue("q", "x", 5, persist=True, max_retries=0, payload=b"null")
EVERY = b'{"every":1,"missed":"all","job":{}}'

encode = msgspec.msgpack.encode

names = st.sampled_from(["q", "q", "q", "r", "", "\n", "x" * 3000, "\x00"])
numbers = st.sampled_from([0, 1, 10, WALL, WALL - 5 * SECOND, TIME_US_MAX, -1, -(2**62), 2**62, 2**63 - 1])
small = st.sampled_from([0, 1, 2, 5, -1, -(2**31) - 1, 2**31, 2**62, -(2**62)])
maybe = st.none() | numbers
options = st.builds(Options, st.none() | names, small, maybe, trace=st.none() | names)
jobs = st.just(JOB) | st.builds(
    Enqueue,
    names,
    names,
    small,
    st.booleans(),
    small,
    st.sampled_from([b"", b"1", b"{"]),
    st.none() | st.just(b"}"),
    maybe,
    st.none() | options,
)
definitions = st.sampled_from(
    [EVERY, b'{"every":1,"overlap":"skip","job":{}}', b"{}", b"", b'{"every":0,"job":1}', b'{"cron":"* * * * *","job":{}}']
)
refusals = st.lists(st.none() | st.builds(JobRefusal, small, names), max_size=2)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=4) | names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
values = st.one_of(
    st.binary(max_size=30),
    anything.map(encode),
    st.builds(_Intent, names, small, st.lists(jobs, max_size=3)).map(encode),
    st.builds(_Decision, names, st.lists(names, max_size=2)).map(encode),
    st.builds(KeptSchedule, definitions, jobs, numbers, maybe, small, small).map(encode),
    st.builds(_Kept, st.binary(max_size=2), numbers, refusals, st.booleans()).map(encode),
    st.sampled_from([b"{}", b'{"rate":{"jobs":-1}}', b'{"rate":{"jobs":1}}', b'{"ttl":1e300}', b"[]", b'{"paused":true}', b"\xff"]),
)
record_names = st.sampled_from(["q", "q\nn", "q\n", "\nn", STEP, "00", "00 " * 16, "zz", "k q", "k", " ", "", "x" * 3000])
records = st.tuples(
    st.sampled_from([slot_of("q"), slot_of("q"), slot_of("r"), -1, 2**40]), st.sampled_from([*Kind, 0, 77]), record_names, values
)


def ask(bench: Bench, command: Command) -> Outcome | None:
    """Ask, commit, and return the answer."""
    key = bench.send(command)
    while bench.shard.has_open:
        bench.commit()
    return bench.answers.get(key)


def use(bench: Bench) -> None:
    """Ask all there is of a shard, and let time pass."""
    for _ in range(2):
        steps = ask(bench, ListSteps(0))
        assert isinstance(steps, OpenSteps)
        for step in steps.steps:
            assert len(step.step) == 16
            ask(bench, AskDecision(step.home or step.queue, step.step))
            ask(bench, Conclude(step.queue, step.step, done=True))
            ask(bench, Forget(step.queue, step.step))
        asked: list[Command] = [
            ListSchedules("", 100, ""),
            GetQueue("q"),
            ListQueues(100),
            ListJobs("q"),
            FindJobs("x"),
            ListDead("q"),
            EnqueueOnce("q", "k", b"d", [JOB]),
            Enqueue("q", "new", 5, persist=True, max_retries=0, payload=b"1"),
            Next("q", 100),
            Complete("q", "new"),
            SetQueue("q", b'{"paused":null,"rate":null}'),
        ]
        for command in asked:
            assert ask(bench, command) is not None, command
        check_books(bench.shard)
        bench.pass_time(3)
    ask(bench, DropSchedule("q", "n"))
    bench.pass_time(7200)
    assert ask(bench, ListSteps(0)) == OpenSteps([])
    check_books(bench.shard)


@given(st.lists(records, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_no_record_whatever_ends_a_shard(found: list[tuple[int, int, str, bytes]]) -> None:
    """It is used, or kept aside, and all commands go on being answered, also after the next restart."""
    bench = Bench()
    bench.store.records = {RecordKey(slot, kind, name): value for slot, kind, name, value in found}

    use(bench.restart())
    use(bench.restart())


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Kind.INTENT, STEP, _Intent("home", 0, [])),  # type: ignore[arg-type]
        (Kind.INTENT, STEP, _Intent("", 0, [JOB])),  # type: ignore[arg-type]
        (Kind.INTENT, "zz", _Intent("home", 0, [JOB])),  # type: ignore[arg-type]
        (Kind.INTENT, STEP, _Intent("home", 0, [msgspec.structs.replace(JOB, run_at_us=2**62)])),  # type: ignore[arg-type]
        (Kind.INTENT, STEP, _Intent("home", 0, [msgspec.structs.replace(JOB, queue="another")])),  # type: ignore[arg-type]
        (Kind.INTENT, STEP, _Intent("home", 0, [msgspec.structs.replace(JOB, options=Options(ttl_us=2**62))])),  # type: ignore[arg-type]
        (Kind.DECISION, "00", _Decision("q", [])),
        (Kind.DECISION, "zz" * 16, _Decision("q", [])),
        (Kind.DECISION, STEP, _Decision("another", [])),
        (Kind.DECISION, STEP, _Decision("q", [""])),
        (Kind.SCHEDULE, "q\nn", KeptSchedule(EVERY, JOB, 2**62)),
        (Kind.SCHEDULE, "q\nn", KeptSchedule(EVERY, JOB, 0, -(2**62))),
        (Kind.SCHEDULE, "q\nn", KeptSchedule(EVERY, msgspec.structs.replace(JOB, timeout=-5), 0)),
        (Kind.SCHEDULE, "q\nn", KeptSchedule(EVERY, JOB, 0, fired=-1)),
        (Kind.ANSWER, "k", _Kept(b"d", WALL, [None])),
        (Kind.ANSWER, "k q", _Kept(b"d", 2**62, [None])),
        (Kind.ANSWER, "k q", _Kept(b"d", WALL, [JobRefusal(99, "")])),
    ],
)
def test_a_record_that_is_absurd_is_kept_aside(kind: Kind, name: str, value: Any) -> None:
    """It is told, and all else goes on."""
    bench = Bench()
    key = RecordKey(slot_of("q"), kind, name)
    bench.store.records = {key: encode(value)}
    bench = bench.restart()

    assert [key] == [damaged for damaged, _ in bench.damaged_records]
    use(bench)
