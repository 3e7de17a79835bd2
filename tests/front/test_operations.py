"""What requests mean, without a server."""

from __future__ import annotations

import pytest

from proteus_shards.config import Settings
from proteus_shards.core.commands import (
    Complete,
    Enqueue,
    Heartbeat,
    ListDead,
    Next,
)
from proteus_shards.core.commands_control import Fail, Release
from proteus_shards.core.commands_jobs import RETRIES_OF_QUEUE, TIMEOUT_OF_QUEUE, Options
from proteus_shards.core.extras import Backoff
from proteus_shards.front import operations
from proteus_shards.front.answers import Problem
from proteus_shards.front.job_bodies import BACKOFF
from proteus_shards.front.operations import Ask, Parse
from tests.front.asking import RUN, RUN_ID, command_of, job_body, problem_of

SETTINGS = Settings(shards=1)

# --- enqueue ---------------------------------------------------------------------------------------------------


def test_a_job_with_all_its_fields_becomes_an_enqueue() -> None:
    """Payload and state travel as the bytes that came."""
    body = (
        b' {"id": "j\\u00fc", "queue":"q/1", "timeout":0, "persist_data": true, "max_retries" : -1,'
        b' "payload": { "a" : 1.00, "a":2 } , "state":[ ], "run_at":"2030-01-31T10:30:00.5+01:00"}\n'
    )

    assert command_of(operations.enqueue, body) == Enqueue(
        "q/1", "jü", 0, True, -1, b'{ "a" : 1.00, "a":2 }', b"[ ]", 1_896_082_200_500_000
    )


def test_a_job_has_defaults() -> None:
    """No payload is null, and what is null is not set."""
    plain = Enqueue("q", "j", 30, False, RETRIES_OF_QUEUE, b"null", None, None)

    assert command_of(operations.enqueue, job_body()) == plain
    assert command_of(operations.enqueue, job_body(payload=None, state=None, run_at=None)) == plain


def test_what_is_left_to_the_queue_is_for_its_shard_to_say() -> None:
    """The front does not know the settings of a queue."""
    asked = operations.enqueue(b'{"id":"j","queue":"q"}', b"", SETTINGS)

    assert isinstance(asked, operations.Ask)
    assert asked.command == Enqueue("q", "j", TIMEOUT_OF_QUEUE, False, RETRIES_OF_QUEUE, b"null")


def test_a_job_has_options() -> None:
    """Durations are seconds; what is not set is not there."""
    backoff = {"seconds": 0.5, "factor": 2, "seconds_max": 60, "jitter": 0.1}

    command = command_of(operations.enqueue, job_body(key="k", priority=-3, ttl=1.5, backoff=backoff))

    assert isinstance(command, Enqueue)
    assert command.options == Options("k", -3, 1_500_000, Backoff(500_000, 2.0, 60_000_000, 0.1))
    assert command_of(operations.enqueue, job_body(key=None, priority=0, ttl=None, backoff=None)) == command_of(
        operations.enqueue, job_body()
    )


@pytest.mark.parametrize(
    ("body", "failed", "released"),
    [
        (b"", (None, None), 0),
        (b"{}", (None, None), 0),
        (b'{"delay":0.25}', (None, 250_000), 250_000),
        (b'{"delay":null}', (None, None), 0),
    ],
)
def test_a_run_can_fail_and_be_released(body: bytes, failed: tuple[str | None, int | None], released: int) -> None:
    """With a delay or without."""
    assert Ask(Fail("q", "j", None, *failed), operations._show_accepted) == operations.fail(body, b"queue=q&job_id=j", SETTINGS)
    assert Ask(Release("q", "j", None, released), operations._show_accepted) == operations.release(body, b"queue=q&job_id=j", SETTINGS)


def test_of_a_long_error_the_beginning_is_kept() -> None:
    """Nobody's failure is refused because too much is said of it."""
    asked = operations.fail(b'{"error":"%s"}' % (b"x" * 5000), b"queue=q&job_id=j", SETTINGS)

    assert isinstance(asked, operations.Ask)
    assert asked.command == Fail("q", "j", None, "x" * 4096)


@pytest.mark.parametrize(
    ("parse", "body", "field", "rule"),
    [
        (operations.fail, b'{"error":1}', "error", "must be a string"),
        (operations.fail, b'{"delay":-1}', "delay", "must be a number of seconds from 0 to 3.16224e+07"),
        (operations.fail, b'{"why":1}', "why", "is not a field of a failure"),
        (operations.release, b'{"error":"x"}', "error", "is not a field of a release"),
        (operations.release, b"[]", "body", "must be a JSON object"),
    ],
)
def test_a_wrong_failure_names_its_field(parse: Parse, body: bytes, field: str, rule: str) -> None:
    """As everywhere."""
    problem = parse(body, b"queue=q&job_id=j", SETTINGS)

    assert isinstance(problem, Problem)
    assert (problem.field, problem.detail) == (field, f"{field}: {rule}")


@pytest.mark.parametrize(("field", "low", "high"), [("timeout", 0, 2**31 - 1), ("max_retries", -(2**31), 2**31 - 1)])
def test_integers_of_a_job_have_a_range(field: str, low: int, high: int) -> None:
    """Both ends are in it, and their neighbours are not."""
    rule = f"{field}: must be an integer from {low} to {high}"
    for value in (low, high):
        assert getattr(command_of(operations.enqueue, job_body(**{field: value})), field) == value
    wrong: object
    for wrong in (low - 1, high + 1, 10**30, -(10**30), 1.0, 1.5, True, "1", None, [], {}):
        problem = problem_of(operations.enqueue, job_body(**{field: wrong}))
        assert (problem["field"], problem["detail"]) == (field, rule)


NAMES_WRONG = ["", "x" * 1025, "a\x00", "a\nb", "\x7f", "\x85"]
NAMES_RIGHT = ["x" * 1024, "ü", "日本語", "🙂" * 1024, " ", "a/b", "'; DROP TABLE jobs; --", '"', "\\", "%2F", "\u202e", "\ufffd", "\uffff"]


@pytest.mark.parametrize("field", ["id", "queue"])
def test_names_have_a_rule(field: str) -> None:
    """Any unicode of 1…1024 characters but control characters, and nothing but a string."""
    for right in NAMES_RIGHT:
        assert getattr(command_of(operations.enqueue, job_body(**{field: right})), field) == right
    for wrong in NAMES_WRONG:
        assert problem_of(operations.enqueue, job_body(**{field: wrong}))["field"] == field
    wrong_type: object
    for wrong_type in (None, 1, True, [], {}, 1.5):
        problem = problem_of(operations.enqueue, job_body(**{field: wrong_type}))
        assert problem["detail"] == f"{field}: must be a string"


@pytest.mark.parametrize(
    ("changes", "field", "detail"),
    [
        ({"id": ...}, "id", "is required"),
        ({"queue": ...}, "queue", "is required"),
        ({"persist_data": 1}, "persist_data", "must be true or false"),
        ({"persist_data": "true"}, "persist_data", "must be true or false"),
        ({"persist_data": None}, "persist_data", "must be true or false"),
        ({"run_at": 1}, "run_at", "must be an RFC 3339 time with an offset, such as 2030-01-31T09:30:00Z"),
        ({"run_at": "tomorrow"}, "run_at", "must be an RFC 3339 time with an offset, such as 2030-01-31T09:30:00Z"),
        ({"run_at": "2030-01-31T09:30:00"}, "run_at", "must be an RFC 3339 time with an offset, such as 2030-01-31T09:30:00Z"),
        ({"weight": 1}, "weight", "is not a field of a job"),
        ({"key": ""}, "key", "must not be empty"),
        ({"key": 1}, "key", "must be a string"),
        ({"priority": 2**31}, "priority", f"must be an integer from {1 - 2**31} to {2**31 - 1}"),
        ({"ttl": -1}, "ttl", "must be a number of seconds from 0 to 3.16224e+07"),
        ({"backoff": {"factor": 2}}, "backoff", BACKOFF),
        ({"Timeout": 1}, "Timeout", "is not a field of a job"),
        ({"": 1}, "", "is not a field of a job"),
        ({"x" * 5000: 1}, "x" * 64 + "…", "is not a field of a job"),
        ({"a\nb": 1}, "a\\nb", "is not a field of a job"),
    ],
)
def test_a_wrong_job_is_refused_by_the_name_of_its_field(changes: dict[str, object], field: str, detail: str) -> None:
    """In words of this API, not of a library's."""
    problem = problem_of(operations.enqueue, job_body(**changes))

    assert (problem["field"], problem["detail"]) == (field, f"{field}: {detail}")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "must be JSON: it ends too early"),
        (b" ", "must be JSON: it ends too early"),
        (b"{", "must be JSON: it ends too early"),
        (b'{"id":"j","queue":"q","timeout":1} x', "must be JSON: trailing characters (byte 36)"),
        (b'{"id":"j","queue":"q","timeout":1}\x00', "must be JSON: trailing characters (byte 35)"),
        (b"\xef\xbb\xbf{}", "must be JSON: invalid character (byte 0)"),
        (b'{"id":"j","queue":"q","timeout":01}', "must be JSON: invalid number (byte 33)"),
        (b"[]", "must hold at least one of the jobs: it is empty"),
        (b'"job"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"id":"\xff","queue":"q","timeout":1}', "must be UTF-8"),
        (b'{"id":"j","queue":"q","timeout":1,"payload":"\xff"}', "must be UTF-8"),
        (b'{"id":"j","queue":"q","timeout":1,"payload":"\xed\xa0\x80"}', "must be UTF-8"),
        (b'{"id":"j","queue":"q","timeout":1,"\xff":1}', "must be UTF-8"),
        (b'{"id":"j","queue":"q","timeout":1,"state":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested too deeply"),
        (b'{"id":1,"id":"j","queue":"q","timeout":1}', "has a member twice, and not both are right"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes, detail: str) -> None:
    """With the place where it went wrong, if there is one."""
    problem = problem_of(operations.enqueue, body)

    assert (problem["field"], problem["detail"]) == ("body", f"body: {detail}")


@pytest.mark.parametrize(
    "payload", [b"NaN", b"Infinity", b"-", b"+1", b".5", b"1.", b"'a'", b'"\\x"', b'"\n"', b"[1,]", b"{1:2}", b"tru", b'"\\ud800"']
)
def test_a_payload_that_is_no_json_is_refused(payload: bytes) -> None:
    """Also one that many parsers let pass, and one with half a surrogate pair."""
    assert problem_of(operations.enqueue, b'{"id":"j","queue":"q","timeout":1,"payload":' + payload + b"}")["field"] == "body"


def test_json_may_nest_some_hundred_levels() -> None:
    """No honest payload meets the limit."""
    payload = b"[" * 800 + b"]" * 800

    command = command_of(operations.enqueue, b'{"id":"j","queue":"q","timeout":1,"payload":' + payload + b"}")

    assert isinstance(command, Enqueue)
    assert command.payload == payload


def test_of_a_field_that_stands_twice_the_last_counts() -> None:
    """As most parsers have it."""
    command = command_of(operations.enqueue, b'{"id":"j","queue":"q","timeout":1,"timeout":2}')

    assert isinstance(command, Enqueue)
    assert command.timeout == 2


def test_enqueue_takes_no_parameters() -> None:
    """What it would ignore it refuses."""
    problem = problem_of(operations.enqueue, job_body(), b"queue=q")

    assert (problem["field"], problem["detail"]) == ("queue", "queue: is not a parameter here (there are none)")


# --- next ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "command"),
    [
        (b"queue=q", Next("q", 1, 0)),
        (b"queue=q&num_jobs=10&wait=60", Next("q", 10, 60_000_000)),
        (b"wait=0.25&queue=q", Next("q", 1, 250_000)),
        (b"queue=q&wait=0.0000001", Next("q", 1, 0)),
        (b"&queue=q&&num_jobs=01&", Next("q", 1, 0)),
        (b"queue=a+b%2Bc%20d", Next("a b+c d", 1, 0)),
        ("queue=ü".encode(), Next("ü", 1, 0)),
        (b"queue=%C3%BC%2f%26%3D", Next("ü/&=", 1, 0)),
        (b"queue=a=b", Next("a=b", 1, 0)),
        (b"%71ueue=q", Next("q", 1, 0)),
    ],
)
def test_a_next_is_read_from_its_parameters(query: bytes, command: Next) -> None:
    """Percent-encoded UTF-8; plus is a space."""
    assert command_of(operations.next_job, b"", query) == command


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (b"", "queue"),
        (b"queue", "queue"),
        (b"queue=", "queue"),
        (b"queue=q&queue=q", "queue"),
        (b"queue=%", "queue"),
        (b"queue=%4", "queue"),
        (b"queue=%zz", "queue"),
        (b"queue=%FF", "queue"),
        (b"queue=\xff", "queue"),
        (b"queue=%ED%A0%80", "queue"),
        (b"queue=%00", "queue"),
        (b"queue=%0A", "queue"),
        (b"queue=" + b"x" * 1025, "queue"),
        (b"queue=q&num_jobs=0", "num_jobs"),
        (b"queue=q&num_jobs=11", "num_jobs"),
        (b"queue=q&num_jobs=-1", "num_jobs"),
        (b"queue=q&num_jobs=+1", "num_jobs"),
        (b"queue=q&num_jobs=1.0", "num_jobs"),
        (b"queue=q&num_jobs=", "num_jobs"),
        (b"queue=q&num_jobs=1_0", "num_jobs"),
        (b"queue=q&num_jobs=" + "١".encode(), "num_jobs"),
        (b"queue=q&num_jobs=" + b"9" * 10_000, "num_jobs"),
        (b"queue=q&wait=", "wait"),
        (b"queue=q&wait=-1", "wait"),
        (b"queue=q&wait=60.1", "wait"),
        (b"queue=q&wait=1e", "wait"),
        (b"queue=q&wait=NaN", "wait"),
        (b"queue=q&wait=inf", "wait"),
        (b"queue=q&wait=.5", "wait"),
        (b"queue=q&wait=1.", "wait"),
        (b"queue=q&wait=" + b"9" * 10_000, "wait"),
        (b"queue=q&num_job=1", "num_job"),
        (b"queue=q&Queue=q", "Queue"),
        (b"queue=q&=1", ""),
        (b"queue=q&%FF=1", "%FF"),
        (b"queue=q&\xff=1", "\\xff"),
        (b"queue=q&%0A=1", "\\n"),
    ],
)
def test_a_wrong_parameter_is_refused_by_its_name(query: bytes, field: str) -> None:
    """Missing, empty, twice, unknown, badly encoded or out of range."""
    assert problem_of(operations.next_job, b"", query)["field"] == field


def test_ranges_of_parameters_are_told() -> None:
    """With the limits that are set."""
    assert problem_of(operations.next_job, b"", b"queue=q&num_jobs=0")["detail"] == "num_jobs: must be an integer from 1 to 10"
    assert problem_of(operations.next_job, b"", b"queue=q&wait=61")["detail"] == "wait: must be a number of seconds from 0 to 60"
    assert problem_of(operations.next_job, b"", b"queue=q&x=1")["detail"] == "x: is not a parameter here (there are: queue, num_jobs, wait)"


# --- heartbeat and complete ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "state"),
    [
        (b"", None),
        (b"null", b""),
        (b" null\n", b""),
        (b"{}", b"{}"),
        (b'{ "a":1.0,\n"a" : 1e400}', b'{ "a":1.0,\n"a" : 1e400}'),
        (b'"null"', b'"null"'),
        (b"\t[0] ", b"[0]"),
        ('"ü"'.encode(), '"ü"'.encode()),
    ],
)
def test_a_heartbeat_keeps_clears_or_saves_the_state(body: bytes, state: bytes | None) -> None:
    """An empty body keeps it, null clears it, anything else is the new state to the byte."""
    assert command_of(operations.heartbeat, body, b"queue=q&job_id=j") == Heartbeat("q", "j", None, state)


@pytest.mark.parametrize("body", [b" ", b"nul", b"{", b"1 2", b'"\xff"', b"[" * 100_000, b"\xff"])
def test_a_state_that_is_no_json_is_refused(body: bytes) -> None:
    """White space alone is no JSON either."""
    assert problem_of(operations.heartbeat, body, b"queue=q&job_id=j")["field"] == "body"


def test_a_run_may_be_named() -> None:
    """In either case of letters."""
    assert command_of(operations.heartbeat, b"", RUN) == Heartbeat("q", "j", RUN_ID.bytes, None)
    assert command_of(operations.complete, b"", RUN) == Complete("q", "j", RUN_ID.bytes)
    assert command_of(operations.complete, b"", RUN.replace(b"7abc", b"7ABC")) == Complete("q", "j", RUN_ID.bytes)
    assert command_of(operations.complete, b"ignored", b"queue=q&job_id=j") == Complete("q", "j", None)


@pytest.mark.parametrize("parse", [operations.heartbeat, operations.complete])
@pytest.mark.parametrize(
    ("query", "field"),
    [
        (b"job_id=j", "queue"),
        (b"queue=q", "job_id"),
        (b"queue=q&job_id=", "job_id"),
        (b"queue=q&job_id=%00", "job_id"),
        (b"queue=q&id=j", "id"),
        (b"queue=q&job_id=j&run_id=", "run_id"),
        (b"queue=q&job_id=j&run_id=x", "run_id"),
        (b"queue=q&job_id=j&run_id=" + RUN_ID.hex.encode(), "run_id"),
        (b"queue=q&job_id=j&run_id={" + str(RUN_ID).encode() + b"}", "run_id"),
        (b"queue=q&job_id=j&run_id=" + str(RUN_ID).encode() + b"%0A", "run_id"),
        (b"queue=q&job_id=j&run_id=" + str(RUN_ID).encode()[:-1] + b"g", "run_id"),
        (RUN + b"&run_id=" + str(RUN_ID).encode(), "run_id"),
    ],
)
def test_a_badly_named_run_is_refused(parse: Parse, query: bytes, field: str) -> None:
    """By the name of the parameter at fault."""
    assert problem_of(parse, b"", query)["field"] == field


# --- dead letters ----------------------------------------------------------------------------------------------


def test_dead_letters_are_asked_for_by_page() -> None:
    """The default page is never larger than num_jobs_max."""
    assert command_of(operations.dead, b"", b"queue=q") == ListDead("q", 10, -1)
    assert command_of(operations.dead, b"", b"queue=q&num_jobs=3&after=7") == ListDead("q", 3, 7)
    assert problem_of(operations.dead, b"", b"queue=q&after=-1")["field"] == "after"
    assert problem_of(operations.dead, b"", b"queue=q&after=9223372036854775808")["field"] == "after"
