"""What many operations in one request mean, without a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from proteus_shards.config import Settings
from proteus_shards.core.commands import Complete, Delivered, Done, Enqueue, Heartbeat, Next, Outcome, Reason, Refused
from proteus_shards.core.commands_control import Fail, Release
from proteus_shards.core.commands_jobs import RETRIES_OF_QUEUE
from proteus_shards.front import batches, operations
from proteus_shards.front.answers import Answer, Problem
from proteus_shards.front.batches import FAILURES_SHOWN_MAX, Tally, looks_like_lines
from proteus_shards.front.errands import Batch, CompleteAndNext, NextOfSeveral
from tests.front.asking import DELIVERY, RUN_ID, job_body, problem_of

SETTINGS = Settings(shards=1, batch_jobs_max=5, next_queues_max=3, num_jobs_max=10, body_size_max=4096)
DONE = Done()


def array(*pieces: bytes) -> bytes:
    """Return a JSON array."""
    return b"[" + b",".join(pieces) + b"]"


def batch_of(body: bytes, parse: operations.Parse = operations.enqueue) -> Batch:
    """Return the batch that a good body means."""
    asked = parse(body, b"", SETTINGS)
    assert isinstance(asked, Batch), asked
    return asked


def refused(body: bytes, parse: operations.Parse = operations.enqueue) -> Problem:
    """Return the problem of a body that is refused as a whole."""
    asked = parse(body, b"", SETTINGS)
    assert isinstance(asked, Problem), asked
    return asked


def statuses(batch: Batch) -> list[int]:
    """Return the status of each item that is wrong, and 0 for each that is right."""
    return [item.status if isinstance(item, Problem) else 0 for item in batch.items]


def shown(batch: Batch, *outcomes: Outcome) -> tuple[int, Any]:
    """Return the status and the JSON of the answer to a batch whose commands had these outcomes."""
    answer: Answer = batch.show(batch.items, list(outcomes))
    assert (("content-type", "application/json"),) == answer.headers
    return answer.status, json.loads(answer.body)


# --- arrays of jobs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [b"", b" \n\t"])
def test_an_array_is_the_same_as_its_jobs_one_by_one(space: bytes) -> None:
    """In order, and with payloads to the byte."""
    batch = batch_of(space + array(job_body(id="1"), b'{"id":"2","queue":"r","timeout":1,"payload":{ "a":1.00}}') + space)

    assert [
        Enqueue("q", "1", 30, False, RETRIES_OF_QUEUE, b"null"),
        Enqueue("r", "2", 1, False, RETRIES_OF_QUEUE, b'{ "a":1.00}'),
    ] == batch.items
    assert not batch.delivers


def test_an_array_of_accepted_jobs_is_202_and_one_that_was_refused_makes_it_207() -> None:
    """Each answer is what the single call would have said."""
    batch = batch_of(array(job_body(id="1"), job_body(id="2")))

    assert (202, [{"status": 202}, {"status": 202}]) == shown(batch, DONE, DONE)
    status, (first, second) = shown(batch, DONE, Refused(Reason.EXISTS, "there"))
    conflict = {"title": "Conflict", "status": 409, "detail": "there", "retryable": False, "queue": "q", "job_id": "2"}
    assert (207, {"status": 202}, conflict) == (status, first, second)


def test_one_bad_job_leaves_the_good_ones_alone() -> None:
    """Whatever is wrong with it, and its answer stands in its place."""
    wrong = [b"7", b"[]", b"null", b"{}", job_body(id=1)]
    for piece in [*wrong, job_body(more=1), job_body(queue=""), job_body(run_at="x")]:
        batch = batch_of(array(job_body(id="1"), piece, job_body(id="2")))

        assert [0, 422, 0] == statuses(batch)
        status, parts = shown(batch, DONE, DONE)
        assert (207, [202, 422, 202]) == (status, [part["status"] for part in parts])
        assert parts[1]["detail"].startswith(parts[1]["field"] + ": ")


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"[]", 422, "body: must hold at least one of the jobs: it is empty"),
        (b"[", 422, "body: must be JSON: it ends too early"),
        (b"[1,]", 422, "body: must be JSON: trailing comma in array (byte 3)"),
        (array(job_body()) + b"x", 422, "body: must be JSON: trailing characters (byte 43)"),
        (array(job_body(), b'{"id":"\xff"}'), 422, "body: must be UTF-8"),
        (array(*[job_body()] * 6), 413, "body: must hold at most 5 jobs, not 6 (batch_jobs_max)"),
        (array(*[b"1"] * 6), 413, "body: must hold at most 5 jobs, not 6 (batch_jobs_max)"),
        (b"[" * 100_000, 422, "body: is nested too deeply"),
    ],
)
def test_an_array_that_cannot_be_read_is_refused_as_a_whole(body: bytes, status: int, detail: str) -> None:
    """Nothing of it is enqueued."""
    problem = refused(body)

    assert (status, "body") == (problem.status, problem.field)
    assert detail == problem.detail


# --- jobs line by line -----------------------------------------------------------------------------------------


def test_lines_are_told_by_a_job_on_the_first_and_the_beginning_of_one_behind_it() -> None:
    """A job in one piece never looks like that, however it is broken into lines."""
    job = job_body()
    pretty = json.dumps(json.loads(job), indent=1).encode()
    assert looks_like_lines(job + b"\n" + job)
    assert looks_like_lines(b"\n " + job + b"\r\n\n\t{")
    for body in (job, pretty, job + b"\n", job + b" " + job, job + b"\n[", pretty + b"\n" + pretty, b"[\n{", b"", b"\n", b"1\n{}"):
        assert not looks_like_lines(body), body
    assert isinstance(operations.enqueue(pretty, b"", SETTINGS), operations.Ask)


def test_lines_are_answered_by_one_summary() -> None:
    """Counts, and the refused ones with the numbers of their lines."""
    lines = b"\n".join([job_body(id="1"), b"", job_body(id="2"), b"{", job_body(id="3")])
    batch = batch_of(lines)
    assert [0, 0, 422, 0] == statuses(batch)

    status, summary = shown(batch, DONE, Refused(Reason.EXISTS, "there"), DONE)

    assert (207, 2, 2) == (status, summary["accepted"], summary["refused"])
    assert [(3, 409, "2"), (4, 422, None)] == [(each["line"], each["status"], each.get("job_id")) for each in summary["failures"]]
    fine = batch_of(job_body(id="1") + b"\n" + job_body(id="2"))
    assert (202, {"accepted": 2, "refused": 0, "failures": []}) == shown(fine, DONE, DONE)


def test_too_many_lines_without_their_content_type_are_refused_with_the_way_out() -> None:
    """The limit is that of arrays."""
    problem = refused(b"\n".join([job_body()] * 6))

    assert 413 == problem.status
    detail = "body: must hold at most 5 jobs, not 6 (batch_jobs_max); with content-type: application/x-ndjson it may hold more"
    assert detail == problem.detail


def test_a_summary_shows_so_many_failures_and_counts_the_others() -> None:
    """Its size is bounded, whatever was sent."""
    tally = Tally()
    count = FAILURES_SHOWN_MAX + 5
    tally.add(range(1, count + 1), [Problem(status=422, detail="x")] * count, [])

    summary = json.loads(tally.answer().body)

    assert (count, FAILURES_SHOWN_MAX, 5) == (summary["refused"], len(summary["failures"]), summary["failures_left_out"])


# --- operations of every kind ----------------------------------------------------------------------------------


def op(name: str, **fields: object) -> bytes:
    """Return an operation."""
    return json.dumps({"op": name, **fields}).encode()


RUN: dict[str, object] = {"queue": "q", "job_id": "j"}


@pytest.mark.parametrize(
    ("operation", "command"),
    [
        (op("enqueue", job={"id": "j", "queue": "q", "timeout": 1}), Enqueue("q", "j", 1, False, RETRIES_OF_QUEUE, b"null")),
        (op("fail", **RUN, error="why", delay=2), Fail("q", "j", None, "why", 2_000_000)),
        (op("release", **RUN, delay=0.5), Release("q", "j", None, 500_000)),
        (op("next", queue="q"), Next("q", 1)),
        (op("next", queue="q", num_jobs=10), Next("q", 10)),
        (op("heartbeat", **RUN), Heartbeat("q", "j")),
        (op("heartbeat", **RUN, run_id=None), Heartbeat("q", "j")),
        (op("heartbeat", **RUN, state=None), Heartbeat("q", "j", None, b"")),
        (b'{"state":[ 1.0],"job_id":"j","queue":"q","op":"heartbeat"}', Heartbeat("q", "j", None, b"[ 1.0]")),
        (op("complete", **RUN), Complete("q", "j")),
        (op("complete", **RUN, run_id=str(RUN_ID).upper()), Complete("q", "j", RUN_ID.bytes)),
    ],
)
def test_an_operation_means_what_the_single_call_means(operation: bytes, command: object) -> None:
    """With the same defaults."""
    assert [command] == batch_of(array(operation), batches.batch).items


@pytest.mark.parametrize(
    ("operation", "field", "rule"),
    [
        (b"1", "body", "must be a JSON object"),
        (b"[]", "body", "must be a JSON object"),
        (b"{}", "op", "is required"),
        (b'{"op":null}', "op", "must be one of enqueue, heartbeat, complete, fail, release, next"),
        (b'{"op":"lose"}', "op", "must be one of enqueue, heartbeat, complete, fail, release, next"),
        (op("enqueue"), "job", "is required"),
        (op("enqueue", job=[]), "job", "must be a JSON object"),
        (op("enqueue", job={"id": "j"}), "queue", "is required"),
        (op("fail", **RUN, delay="1"), "delay", "must be a number of seconds from 0 to 3.16224e+07"),
        (op("release", **RUN, error="why"), "error", "is not a field of the operation release"),
        (op("enqueue", job={}, queue="q"), "queue", "is not a field of the operation enqueue"),
        (op("next"), "queue", "is required"),
        (op("next", queue=""), "queue", "must not be empty"),
        (op("next", queue="q", num_jobs=0), "num_jobs", "must be an integer from 1 to 10"),
        (op("next", queue="q", num_jobs=11), "num_jobs", "must be an integer from 1 to 10"),
        (op("next", queue="q", num_jobs=10**30), "num_jobs", "must be an integer from 1 to 10"),
        (op("next", queue="q", num_jobs="1"), "num_jobs", "must be an integer"),
        (op("next", queue="q", wait=1), "wait", "is not a field of the operation next"),
        (op("heartbeat", queue="q"), "job_id", "is required"),
        (op("heartbeat", queue="q", job_id="\x00"), "job_id", "must not contain control characters or lone surrogates"),
        (op("complete", **RUN, run_id="1"), "run_id", "must be a UUID of 36 characters"),
        (op("complete", **RUN, run_id=1), "run_id", "must be a string"),
        (op("complete", **RUN, state=1), "state", "is not a field of the operation complete"),
    ],
)
def test_a_wrong_operation_names_its_field_and_leaves_the_others_alone(operation: bytes, field: str, rule: str) -> None:
    """Its answer is the problem that the single call would have had."""
    before, problem, after = batch_of(array(op("next", queue="a"), operation, op("complete", **RUN)), batches.batch).items

    assert (Next("a", 1), Complete("q", "j")) == (before, after)
    assert isinstance(problem, Problem)
    assert (422, field, f"{field}: {rule}") == (problem.status, problem.field, problem.detail)


def test_each_operation_has_an_answer_in_its_place() -> None:
    """A next has its jobs, none included; the whole is 200, or 207 where one failed."""
    body = array(op("enqueue", job={"id": "j", "queue": "q", "timeout": 1}), op("next", queue="q"), op("next", queue="r"))
    batch = batch_of(body, batches.batch)
    assert batch.delivers

    status, parts = shown(batch, DONE, Delivered([DELIVERY]), Delivered([]))

    assert (200, [202, 200, 204]) == (status, [part["status"] for part in parts])
    assert ([["jü"], []]) == [[job["id"] for job in part["jobs"]] for part in parts[1:]]
    others = batch_of(array(op("heartbeat", **RUN), op("complete", **RUN)), batches.batch)
    assert not others.delivers
    assert (200, [{"status": 202}, {"status": 200}]) == shown(others, DONE, DONE)
    status, parts = shown(others, DONE, Refused(Reason.NOT_FOUND, "gone", "run_id"))
    assert (207, 404, "run_id", "q", "j") == (status, *(parts[1][name] for name in ("status", "field", "queue", "job_id")))


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"", 422, "body: must be JSON: it ends too early"),
        (b"{}", 422, "body: must be a JSON array"),
        (b"[]", 422, "body: must hold at least one of the operations: it is empty"),
        (array(*[op("complete", **RUN)] * 6), 413, "body: must hold at most 5 operations, not 6 (batch_jobs_max)"),
        (array(*[op("next", queue="q")] * 4), 413, "body: must hold at most 3 operations that are a next, not 4 (next_queues_max)"),
        (array(b'{"op":"next","queue":"\xff"}'), 422, "body: must be UTF-8"),
    ],
)
def test_a_batch_that_cannot_be_read_is_refused_as_a_whole(body: bytes, status: int, detail: str) -> None:
    """And with the limit that it passes."""
    problem = refused(body, batches.batch)

    assert (status, detail) == (problem.status, problem.detail)


def test_a_batch_has_no_parameters() -> None:
    """They stand in its body."""
    assert "query" == problem_of(batches.batch, array(op("complete", **RUN)), b"queue=q")["field"]


# --- several queues --------------------------------------------------------------------------------------------


def test_a_queue_may_be_named_several_times() -> None:
    """One is a single command as ever, more are an errand."""
    assert isinstance(operations.next_job(b"", b"queue=a", SETTINGS), operations.Ask)
    several = operations.next_job(b"", b"queue=b&num_jobs=2&queue=a&queue=c%20d", SETTINGS)

    assert isinstance(several, NextOfSeveral)
    assert ["b", "a", "c d"] == several.queues


@pytest.mark.parametrize(
    ("parse", "query", "detail"),
    [
        (operations.next_job, b"queue=a&queue=a", "queue: must not name a queue twice"),
        (operations.next_job, b"queue=a&queue=b&queue=c&queue=d", "queue: must be given at most 3 times (next_queues_max)"),
        (operations.next_job, b"queue=a&queue=", "queue: must not be empty"),
        (operations.next_job, b"queue=a&queue=%ff", "queue: must be percent-encoded UTF-8"),
        (operations.next_job, b"queue=a&wait=1&wait=1", "wait: must be given only once"),
        (operations.complete_and_next, b"queue=a&queue=b&job_id=j", "queue: must be given only once"),
        (operations.complete_and_next, b"queue=a", "job_id: is required"),
        (operations.complete_and_next, b"queue=a&job_id=j&next_queue=", "next_queue: must not be empty"),
        (operations.complete_and_next, b"queue=a&job_id=j&next_queue=b&next_queue=b", "next_queue: must not name a queue twice"),
        (operations.complete_and_next, b"queue=a&job_id=j&run_id=x", "run_id: must be a UUID of 36 characters"),
        (operations.complete_and_next, b"queue=a&job_id=j&wait=61", "wait: must be a number of seconds from 0 to 60"),
        (operations.complete_and_next, b"queue=a&job_id=j&num_jobs=0", "num_jobs: must be an integer from 1 to 10"),
    ],
)
def test_what_makes_no_sense_is_refused(parse: Callable[..., object], query: bytes, detail: str) -> None:
    """With the parameter at fault."""
    problem = parse(b"", query, SETTINGS)

    assert isinstance(problem, Problem)
    assert (422, detail) == (problem.status, problem.detail)


def test_a_completion_is_followed_by_its_own_queue_unless_others_are_named() -> None:
    """In the order in which they are named."""
    own = operations.complete_and_next(b"", b"queue=a&job_id=j", SETTINGS)
    others = operations.complete_and_next(b"", b"queue=a&job_id=j&next_queue=c&next_queue=b", SETTINGS)

    assert isinstance(own, CompleteAndNext)
    assert isinstance(others, CompleteAndNext)
    assert (["a"], ["c", "b"]) == (own.queues, others.queues)
