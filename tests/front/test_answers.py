"""What outcomes look like, and what holds for any request, without a server."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proteus_shards.core.commands import (
    Complete,
    DeadLetter,
    Delivered,
    Done,
    Enqueue,
    Listed,
    Outcome,
    Reason,
    Refused,
)
from proteus_shards.front import operations
from proteus_shards.front.answers import RETRYABLE, Problem
from proteus_shards.front.operations import OPERATIONS, Ask, Parse, answer
from tests.front.asking import DELIVERY, RUN, SETTINGS, ask, command_of, job_body


def test_a_delivered_job_has_its_fields_in_order() -> None:
    """Times in UTC to the microsecond, payload and state to the byte."""
    shown = answer(ask(operations.next_job, b"queue=q"), Delivered([DELIVERY]))

    assert (shown.status, shown.headers) == (200, (("content-type", "application/json"),))
    assert (
        shown.body
        == (
            '{"id":"jü","queue":"q","timeout":30,"persist_data":true,"max_retries":-1,"payload":{ "a":1.00},"state":[ ],'
            '"run_at":"2030-01-31T09:30:00.500000Z","run_id":"0190b5a4-7c3e-7abc-8def-0123456789ab","attempt":2,'
            '"created_at":"1970-01-01T00:00:00.000000Z","updated_at":"1970-01-01T00:00:00.000001Z"}'
        ).encode()
    )


def test_what_is_not_set_is_not_shown() -> None:
    """Neither state nor run_at."""
    bare = msgspec.structs.replace(DELIVERY, state=None, run_at=None)

    job = json.loads(answer(ask(operations.next_job, b"queue=q"), Delivered([bare])).body)

    assert {"state", "run_at"} & set(job) == set()


def test_next_answers_with_an_array_where_num_jobs_was_said() -> None:
    """Even with an array of one; and with 204 where there is none."""
    one, many = ask(operations.next_job, b"queue=q"), ask(operations.next_job, b"queue=q&num_jobs=1")

    assert json.loads(answer(many, Delivered([DELIVERY])).body) == [json.loads(answer(one, Delivered([DELIVERY])).body)]
    for asked in (one, many):
        assert (answer(asked, Delivered([])).status, answer(asked, Delivered([])).body) == (204, b"")


def test_what_was_done_has_no_body() -> None:
    """202 for what is accepted, 200 for what is gone."""
    asked = [ask(operations.enqueue, body=job_body()), ask(operations.heartbeat, RUN), ask(operations.complete, RUN)]

    assert [(answer(one, Done()).status, answer(one, Done()).body) for one in asked] == [(202, b""), (202, b""), (200, b"")]


@pytest.mark.parametrize(
    ("reason", "status", "retryable"),
    [
        (Reason.EXISTS, 409, False),
        (Reason.NOT_FOUND, 404, False),
        (Reason.INVALID, 422, False),
        (Reason.BUSY, 429, True),
        (Reason.FULL, 429, True),
        (Reason.UNKNOWN, 503, True),
        (Reason.FAULT, 500, False),
    ],
)
def test_a_refusal_becomes_a_problem(reason: Reason, status: int, retryable: bool) -> None:
    """Which names the job; 429 and 503 say when to try again, in whole seconds of at least one."""
    for retry_after, shown_after in ((7, "7"), (0, "1"), (-5, "1")):
        shown = answer(ask(operations.complete, RUN), Refused(reason, "because", "run_id", retry_after))

        headers = dict(shown.headers)
        problem = json.loads(shown.body)
        assert shown.status == status
        assert headers.pop("content-type") == "application/problem+json"
        assert headers.pop("x-content-type-options") == "nosniff"
        assert headers == ({"retry-after": shown_after} if retryable else {})
        assert (problem["status"], problem["detail"], problem["retryable"]) == (status, "because", retryable)
        assert (problem["queue"], problem["job_id"], problem["field"]) == ("q", "j", "run_id")
        assert problem["title"]


def test_only_a_queue_is_named_where_no_job_was_meant() -> None:
    """A problem has no members that mean nothing."""
    shown = answer(ask(operations.next_job, b"queue=q"), Refused(Reason.BUSY, "because"))

    assert set(json.loads(shown.body)) == {"title", "status", "detail", "retryable", "queue"}
    assert {408, 429, 503} == RETRYABLE


def test_dead_letters_are_shown_with_the_place_of_the_next_page() -> None:
    """Null after the last."""
    asked = ask(operations.dead, b"queue=q")
    letter = DeadLetter("q", "j", 41, 30, True, 1, b"1", None, None, 2, "timeout", 0, 1_000_000)

    page = json.loads(answer(asked, Listed([letter])).body)

    assert page["next"] == 41
    assert list(page["jobs"][0]) == [
        *("id", "queue", "timeout", "persist_data", "max_retries", "payload", "attempt", "reason", "history", "created_at", "died_at")
    ]
    assert page["jobs"][0]["died_at"] == "1970-01-01T00:00:01.000000Z"
    assert json.loads(answer(asked, Listed([])).body) == {"jobs": [], "next": None}


# --- properties ------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(payload=JSON, state=JSON, indent=st.sampled_from([None, 0, 3]), ascii_only=st.booleans())
def test_any_json_comes_back_byte_for_byte(payload: object, state: object, indent: int | None, ascii_only: bool) -> None:
    """However it was written."""
    payload_text, state_text = (_written(value, indent, ascii_only) for value in (payload, state))
    body = b'{"id":"j","queue":"q","timeout":1,"payload":' + payload_text + b',"state":' + state_text + b"}"

    enqueued = command_of(operations.enqueue, body)
    assert isinstance(enqueued, Enqueue)
    delivered = msgspec.structs.replace(DELIVERY, payload=enqueued.payload, state=enqueued.state)
    shown = answer(ask(operations.next_job, b"queue=q"), Delivered([delivered])).body

    assert enqueued.payload == payload_text
    assert enqueued.state == (None if state is None else state_text)
    assert b'"payload":' + payload_text + b"," in shown
    assert json.loads(shown)["payload"] == json.loads(payload_text)


def _written(value: object, indent: int | None, ascii_only: bool) -> bytes:
    return json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()


NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=50)


@given(queue=NAMES, job_id=NAMES)
def test_any_name_comes_back_as_it_was(queue: str, job_id: str) -> None:
    """Through a body, a query string and an answer."""
    from urllib.parse import quote, quote_plus, urlencode

    queries = [
        urlencode({"queue": queue, "job_id": job_id}),
        f"queue={quote(queue, safe='')}&job_id={quote_plus(job_id)}",
    ]
    enqueued = command_of(operations.enqueue, job_body(queue=queue, id=job_id))

    assert (enqueued.queue, getattr(enqueued, "id", None)) == (queue, job_id)
    for query in queries:
        assert command_of(operations.complete, b"", query.encode()) == Complete(queue, job_id)
    job = msgspec.structs.replace(DELIVERY, queue=queue, id=job_id)
    shown = json.loads(answer(ask(operations.next_job, b"queue=q"), Delivered([job])).body)
    assert (shown["queue"], shown["id"]) == (queue, job_id)


OUTCOMES: list[Outcome] = [Refused(reason, "because") for reason in Reason]


@given(
    body=st.binary(max_size=200)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.builds(job_body, id=JSON, timeout=JSON, payload=JSON, run_at=st.text()),
    query=st.binary(max_size=60) | st.text(alphabet="queue=&job_id%+run_id0123456789abcdefwait.", max_size=60).map(str.encode),
    parse=st.sampled_from(sorted(OPERATIONS.values(), key=lambda parse: parse.__name__)),
)
def test_no_input_raises(body: bytes, query: bytes, parse: Parse) -> None:
    """Garbage gets a 4xx; what is understood can show every refusal."""
    asked = parse(body, query, SETTINGS)

    if isinstance(asked, Problem):
        shown = asked.answer()
        assert shown.status in (413, 422)
        assert json.loads(shown.body)["field"] is not None
    elif isinstance(asked, Ask):
        for outcome in OUTCOMES:
            json.loads(answer(asked, outcome).body)
