"""Messages: what goes in comes out, and what is none gives one error and no other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proteus_shards import __version__
from proteus_shards.core import commands_control as control
from proteus_shards.core.commands import (
    AskDecision,
    Begin,
    Cancel,
    Command,
    Complete,
    Conclude,
    DeadLetter,
    Decide,
    Decided,
    Delivered,
    Delivery,
    Done,
    Enqueue,
    EnqueueAll,
    EnqueueOnce,
    Forget,
    Heartbeat,
    Inspect,
    JobRefusal,
    ListDead,
    Listed,
    ListSteps,
    Measure,
    Measures,
    Mode,
    Next,
    OpenStep,
    OpenSteps,
    Options,
    Outcome,
    Outcomes,
    Prepare,
    QueueMeasure,
    Reason,
    Refused,
    Replace,
    Requeue,
    Statistics,
    Undeliver,
)
from proteus_shards.core.commands_jobs import RETRIES_OF_QUEUE, TIMEOUT_OF_QUEUE, Moved
from proteus_shards.core.extras import DURATION_US_MAX, Attempt, Backoff, Extras
from proteus_shards.core.model import MAX_RETRIES_MAX, TIME_US_MAX, TIMEOUT_SECONDS_MAX
from proteus_shards.errors import ProtocolError, VersionError
from proteus_shards.ipc.hosts import Elsewhere
from proteus_shards.ipc.messages import (
    PROTOCOL,
    Goodbye,
    Hello,
    check_hello,
    decode_greeting,
    decode_replies,
    decode_requests,
    encode,
    hello,
)

RUN = b"\xff" * 16
LONG = "\U0001f680" * 1024
EVERY_BYTE = bytes(range(256))
NUMBERS = [0, 1, 2**32, 2**63 - 1]
DECODERS: list[Callable[[bytes], object]] = [decode_greeting, decode_requests, decode_replies]

BACKOFF = Backoff(0, 100.0, DURATION_US_MAX, 0.5)
JOB = Enqueue("q", "i", 1, persist=True, max_retries=0, payload=EVERY_BYTE)
EXTRAS = Extras(
    LONG, -(2**31), TIME_US_MAX, BACKOFF, TIME_US_MAX, (Attempt(1, 0, TIME_US_MAX, "failed", LONG), Attempt(2, 0, 0, "timeout")), LONG, LONG
)
COMMANDS: list[Command] = [
    Enqueue("q", "i", 0, persist=False, max_retries=-(2**31), payload=b""),
    Enqueue(
        LONG,
        LONG,
        TIMEOUT_SECONDS_MAX,
        persist=True,
        max_retries=MAX_RETRIES_MAX,
        payload=EVERY_BYTE,
        state=EVERY_BYTE,
        run_at_us=TIME_US_MAX,
    ),
    Enqueue("q", "i", 1, persist=True, max_retries=0, payload=b"null", state=b"", run_at_us=-TIME_US_MAX),
    Next("q"),
    Next(LONG, 2**53, 3600 * 10**6),
    Heartbeat("q", "i"),
    Heartbeat(LONG, LONG, RUN, EVERY_BYTE),
    Heartbeat("q", "i", None, b""),
    Complete("q", "i"),
    Complete(LONG, LONG, RUN),
    Undeliver("q", "i", RUN),
    Cancel(2**63 - 1),
    Cancel(1, answered=True),
    Inspect(),
    Measure(),
    ListDead("q"),
    ListDead(LONG, 2**53, 2**62),
    Enqueue("q", "i", TIMEOUT_OF_QUEUE, True, RETRIES_OF_QUEUE, b"1", None, None, Options()),
    Enqueue("q", "i", 1, True, 0, b"1", None, None, Options(LONG, -(2**31), DURATION_US_MAX, BACKOFF, LONG)),
    Enqueue("q", "i", 1, True, 0, b"1", None, None, Options(moved=Moved(TIME_US_MAX, (Attempt(1, 0, TIME_US_MAX, "failed", LONG),), LONG))),
    EnqueueAll("q", []),
    EnqueueAll(LONG, [JOB, JOB], Mode.REPLACE),
    Replace("q", JOB),
    Requeue("q", "i", RUN, []),
    Requeue(LONG, LONG, RUN, [JOB], Mode.IGNORE),
    control.Fail("q", "i"),
    control.Fail(LONG, LONG, RUN, LONG, DURATION_US_MAX),
    control.Release("q", "i"),
    control.Release(LONG, LONG, RUN, DURATION_US_MAX),
    control.GetJob("q", LONG),
    control.FindJobs("i"),
    control.FindJobs(LONG, 2**53),
    control.ListJobs("q"),
    control.ListJobs(LONG, control.State.BACKING_OFF, LONG, TIME_US_MAX, 2**53, LONG, bodies=False),
    control.ListQueues(),
    control.ListQueues(2**53, LONG, LONG),
    control.GetQueue(LONG),
    control.SetQueue("q", EVERY_BYTE),
    control.Purge("q"),
    control.Purge(LONG, list(control.State), LONG, [LONG, ""], 2**53),
    control.Redrive("q"),
    control.Redrive(LONG, [LONG], LONG, "timeout", LONG, 2**53, 2**62),
    control.PickDead("q", control.Redrive("q", to=LONG)),
    control.Change("q", "i"),
    control.Change(LONG, LONG, TIME_US_MAX, -(2**31)),
    control.PutSchedule("q", LONG, EVERY_BYTE),
    control.DropSchedule("q", LONG),
    control.ListSchedules(),
    control.ListSchedules(LONG, 2**53, LONG),
]
COMMANDS += [
    Begin(LONG, RUN),
    Prepare(LONG, RUN, LONG, [JOB]),
    Prepare(LONG, RUN, LONG, [JOB], Mode.UNIQUE, free_only=True),
    Decide(LONG, RUN, [], Mode.UNIQUE, [LONG]),
    Decide(LONG, RUN, [JOB], Mode.UNIQUE, [], LONG, RUN),
    Decide(LONG, RUN, [], Mode.UNIQUE, [LONG], dead=[0, 2**62]),
    AskDecision(LONG, RUN),
    Conclude(LONG, RUN, done=True),
    Forget(LONG, RUN),
    ListSteps(2**62),
    EnqueueOnce(LONG, LONG, EVERY_BYTE, [JOB]),
]

DELIVERY = Delivery(LONG, LONG, TIMEOUT_SECONDS_MAX, True, -1, EVERY_BYTE, EVERY_BYTE, TIME_US_MAX, RUN, 2**40, 0, TIME_US_MAX)
LETTER = DeadLetter(LONG, LONG, 2**62, 0, False, 0, EVERY_BYTE, None, None, 1, "timeout", 0, TIME_US_MAX)
VIEW = control.JobView(
    LONG, LONG, 2**62, control.State.BLOCKED, 0, True, -1, EVERY_BYTE, EVERY_BYTE, TIME_US_MAX, 2**40, RUN, 2**53, LONG, 0, 1, EXTRAS, ["key", ""],
    LONG, TIME_US_MAX,
)  # fmt: skip
QUEUE_VIEW = control.QueueView("q", 0, 0, 0, 0, 0, 0, 0, 0, False)
OUTCOMES: list[Outcome] = [
    Done(),
    Delivered([]),
    Delivered([msgspec.structs.replace(DELIVERY, extras=EXTRAS)]),
    Delivered([DELIVERY, msgspec.structs.replace(DELIVERY, state=None, run_at=None, payload=b"")]),
    *(Refused(reason, LONG, "field", 2**31) for reason in Reason),
    Refused(Reason.BUSY, ""),
    Listed([]),
    Listed([LETTER, LETTER]),
    Statistics(
        shard=1023,
        epoch=2**63 - 1,
        store="sqlite",
        durability="machine",
        terms="SQLite 3.51.3, synchronous=full",
        store_away=True,
        queues=1,
        scheduled=2,
        ready=3,
        in_flight=4,
        dead=5,
        polls=6,
        bytes=2**62,
        recovered=8,
        recovery_seconds=0.125,
        damaged=9,
        commits=10,
        rows_written=11,
        timeouts=12,
        died=13,
        dead_dropped=14,
    ),
    Listed([msgspec.structs.replace(LETTER, extras=EXTRAS)]),
    control.Jobs([]),
    control.Jobs([VIEW, msgspec.structs.replace(VIEW, extras=None, deadline_us=None)], LONG),
    control.Queues([]),
    control.Queues([control.QueueView(LONG, 1, 2, 3, 4, 5, 6, 2**62, 2**62, True, EVERY_BYTE), QUEUE_VIEW], LONG),
    control.Picked([], []),
    control.Picked([0, 2**62], [JOB, JOB], more=True, after=2**62, too_large=LONG),
    control.Counted(2**53),
    control.Counted(0, more=True, after=2**62),
    control.Schedules([]),
    control.Schedules([control.ScheduleView(LONG, LONG, EVERY_BYTE, TIME_US_MAX, TIME_US_MAX, 2**53, 2**53)], LONG),
    Decided(done=True),
    OpenSteps([]),
    OpenSteps([OpenStep(RUN, LONG, LONG, []), OpenStep(RUN, LONG, None, [LONG])]),
    Outcomes([None, JobRefusal(Reason.FULL, LONG, None)]),
    Measures([], []),
    Measures([("name", ["label", ""], 1), ("histogram", [], [1, 0.5])], [QueueMeasure(LONG, 1, 2, 3, 4, 2**62)]),
]

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
payloads = st.binary(max_size=50)
maybe = st.none() | payloads
integers = st.integers(-(2**63), 2**63 - 1)
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(Enqueue, names, names, integers, st.booleans(), integers, payloads, maybe, st.none() | integers),
    st.builds(Next, names, integers, integers),
    st.builds(Heartbeat, names, names, maybe, maybe),
    st.builds(Complete, names, names, maybe),
    st.builds(Undeliver, names, names, payloads),
    st.builds(Cancel, integers),
    st.builds(Inspect),
    st.builds(ListDead, names, integers, integers),
    st.sampled_from(COMMANDS),
)


def test_every_command_and_outcome_is_tried() -> None:
    """A new one must be added to the lists above."""
    assert {type(command) for command in COMMANDS} == set(Command.__args__)
    assert {type(outcome) for outcome in OUTCOMES} == set(Outcome.__args__)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_a_command_comes_out_as_it_went_in(command: Command) -> None:
    """With any number, and extreme values in every field."""
    for number in NUMBERS:
        assert decode_requests(encode([(number, command)])) == [(number, command)]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
def test_an_outcome_comes_out_as_it_went_in(outcome: Outcome) -> None:
    """With any number, and extreme values in every field; a reason is a Reason again."""
    for number in NUMBERS:
        [(found, decoded)] = decode_replies(encode([(number, outcome)]))
        assert (found, decoded) == (number, outcome)
        assert not isinstance(decoded, Refused) or isinstance(decoded.reason, Reason)


def test_many_messages_go_into_one_frame_in_order() -> None:
    """None at all, too."""
    requests = list(enumerate(COMMANDS))
    replies = list(enumerate(OUTCOMES))

    assert decode_requests(encode(requests)) == requests
    assert decode_replies(encode(replies)) == replies
    assert decode_requests(encode([])) == []


def test_a_frame_may_be_a_view() -> None:
    """A body need not be copied to be read."""
    assert decode_requests(memoryview(encode([(1, Inspect())]))) == [(1, Inspect())]


@settings(deadline=None)
@given(st.lists(st.tuples(integers, commands), max_size=5))
def test_any_requests_come_out_as_they_went_in(requests: list[tuple[int, Command]]) -> None:
    """Whatever stands in them; what they mean is not the business of messages."""
    assert decode_requests(encode(requests)) == requests


# --- garbage -------------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_a_message_or_a_protocol_error(data: bytes) -> None:
    """And no other error."""
    for decode in DECODERS:
        try:
            decode(data)
        except ProtocolError as error:
            assert error.__cause__ is not None  # noqa: PT017


@settings(deadline=None)
@given(st.lists(st.tuples(integers, commands), min_size=1, max_size=3), st.data())
def test_damaged_requests_are_requests_or_a_protocol_error(requests: list[tuple[int, Command]], data: st.DataObject) -> None:
    """With a byte changed, bytes left out or put in."""
    body = bytearray(encode(requests))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        body[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    for decode in DECODERS:
        with contextlib.suppress(ProtocolError):
            decode(bytes(body))


@pytest.mark.parametrize("nested", [b"\x91", b"\x81\xa1x", b"\xdc\x00\x01"])
def test_deep_nesting_is_a_protocol_error(nested: bytes) -> None:
    """Where an unknown field is skipped, and where a known one stands."""
    deep = nested * 100_000 + b"\xc0"
    for body in (
        deep,
        b"\x82\xa4type\xa5hello\xa1x" + deep,
        b"\x91\x92\x01\x95\x02\xa1q\x01\x00" + deep,
        b"\x91\x92\x01\x93\x65\xc0" + deep,
    ):
        for decode in DECODERS:
            with pytest.raises(ProtocolError):
                decode(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xdd\xff\xff\xff\xff",  # an array that claims 2**32 - 1 elements
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        encode([(1, Inspect())]) + b"\x00",  # something after the end
        encode([(1, Inspect())])[:-1],
        encode([(1, Inspect(), 2)]),
        encode([1]),
        encode([("1", Inspect())]),
        encode([(1, [99])]),  # a tag that is none
        encode([(1, [])]),
        encode([(1, [1, "q", "i", 0])]),  # too few fields
        encode([(1, [1, "q", "i", 0, 1, 0, b""])]),  # an int for a bool
        encode([(1, [1, "q", "i", 0, True, 0, "text"])]),
        encode([(1, [2, b"q"])]),
        encode([(1, [6, 1.5])]),
        b"\x91\x92\x01\x93\x02\xa1\xff\x01",  # not UTF-8
        b"\x91\x92\x01\x93\x02\xa3\xed\xa0\x80\x01",  # a surrogate in UTF-8
    ],
)
def test_what_is_no_request_is_a_protocol_error(body: bytes) -> None:
    """With a cause, and without what the bytes held."""
    with pytest.raises(ProtocolError, match="not a frame of requests"):
        decode_requests(body)


@pytest.mark.parametrize("body", [encode([(1, [103, 99, "detail", None, 1])]), encode([(1, [102, [[1]]])]), encode([(1, Inspect())])])
def test_what_is_no_reply_is_a_protocol_error(body: bytes) -> None:
    """A reason that is none, a job that is none, a request."""
    with pytest.raises(ProtocolError, match="not a frame of replies"):
        decode_replies(body)


def test_a_field_that_a_later_version_added_is_skipped() -> None:
    """Positional messages may grow at the end; that no other version is met is what the greeting sees to."""
    assert decode_requests(encode([(1, [2, "q", 1, 0, "new"])])) == [(1, Next("q", 1, 0))]


# --- greetings -----------------------------------------------------------------------------------------------------------------


def test_greetings_come_out_as_they_went_in() -> None:
    """The shard's with its epoch, the front's without, those of a session, a farewell, and what a gate says that has not got the shard."""
    sessions = [
        msgspec.structs.replace(hello(0, 1), session=bytes(16), received=2**40),
        msgspec.structs.replace(hello(0, 1, 7), resumed=True),
    ]
    for greeting in (hello(0, 1), hello(1023, 1024, 2**63 - 1), *sessions, Goodbye("no"), Goodbye(LONG), Elsewhere(3, "host:1", 9)):
        assert decode_greeting(encode(greeting)) == greeting


def test_a_greeting_names_this_process() -> None:
    """Protocol number and package version."""
    assert hello(3, 8, 5) == Hello(PROTOCOL, __version__, 3, 8, 5)


def test_a_greeting_of_the_future_can_be_read() -> None:
    """With fields that nobody knows yet, so that a clear answer can be given."""
    future: dict[str, Any] = {
        "type": "hello",
        "protocol": 99,
        "version": "9.0",
        "shard": 0,
        "shards": 1,
        "epoch": 4,
        "key": b"k",
        "more": {"a": [1]},
    }

    greeting = decode_greeting(encode(future))

    assert greeting == Hello(99, "9.0", 0, 1, 4)
    assert decode_greeting(encode({"type": "goodbye", "detail": "bye", "code": 7})) == Goodbye("bye")


def test_a_greeting_without_an_epoch_can_be_read() -> None:
    """It is the front's."""
    assert decode_greeting(encode({"type": "hello", "protocol": 1, "version": "1", "shard": 0, "shards": 1})) == Hello(1, "1", 0, 1)


@pytest.mark.parametrize(
    "body", [b"", b"\xc0", encode([]), encode({}), encode({"type": "hi"}), encode({"type": "hello"}), encode(Done()), b"GET / HTTP/1.1"]
)
def test_what_is_no_greeting_is_a_protocol_error(body: bytes) -> None:
    """A stranger at the socket is told so."""
    with pytest.raises(ProtocolError, match="the peer's first frame is not a greeting"):
        decode_greeting(body)


@pytest.mark.parametrize("changes", [{"protocol": PROTOCOL + 1}, {"version": "0.0.0"}])
def test_a_peer_of_another_version_is_refused(changes: dict[str, Any]) -> None:
    """The message names both sides and what to do."""
    own = hello(0, 2)
    peer = msgspec.structs.replace(own, **changes)
    with pytest.raises(VersionError, match="run the same version in every process") as caught:
        check_hello(own, peer)

    for part in (own.version, f"protocol {own.protocol}", peer.version, f"protocol {peer.protocol}"):
        assert part in str(caught.value)


@pytest.mark.parametrize("changes", [{"shard": 1}, {"shards": 3}])
def test_a_link_to_another_shard_is_refused(changes: dict[str, Any]) -> None:
    """The message names both."""
    own = hello(0, 2)
    peer = msgspec.structs.replace(own, **changes)
    with pytest.raises(ProtocolError, match=rf"this link is for shard 0 of 2, its peer means {peer.shard} of {peer.shards}"):
        check_hello(own, peer)


def test_a_peer_of_the_same_version_and_shard_is_welcome() -> None:
    """Whatever its epoch."""
    check_hello(hello(1, 2), hello(1, 2, 77))
