"""What is sent again, and what is not: against a server that follows a script."""

from __future__ import annotations

import json

import pytest

from proteus_shards.client import (
    BadAnswer,
    Busy,
    Client,
    ClientError,
    Forbidden,
    NotFound,
    NotReached,
    Problem,
    Refusal,
    Retries,
    Run,
    ServerFault,
    Unanswered,
    Unauthorized,
    Unavailable,
)
from proteus_shards.client.errors import refusal
from tests.client.scripted import Reply, scripted

QUICK = Retries(first_seconds=0.001)
RUN = Run("q", "1", "6f8a1c52-0b3f-4c7e-9f7d-3f2b1a0c9d8e")
JOB = Reply(200, json.dumps({"id": "1", "queue": "q", "timeout": 1, "run_id": RUN.run_id, "attempt": 1}).encode())
LOST = Reply(0)
OK = Reply(200)


def problem(status: int, **fields: object) -> Reply:
    """Return the answer of a problem."""
    return Reply(status, json.dumps({"status": status, "detail": "so it is", "retryable": status in {429, 503}, **fields}).encode())


def test_what_surely_had_no_effect_is_sent_again() -> None:
    """429, whatever the call is."""
    with scripted(problem(429), problem(429), Reply(202)) as script, Client(script.url, retries=QUICK) as client:
        client.enqueue("q", id="1", timeout=1)

    assert 3 == len({(asked.method, asked.target, asked.body) for asked in script.asked}) + 2 == len(script.asked)


@pytest.mark.parametrize("reply", [problem(503), LOST], ids=["503", "lost"])
def test_an_enqueue_that_may_have_had_its_effect_is_not_sent_again(reply: Reply) -> None:
    """Its job could be done already, and its id be free."""
    with (
        scripted(reply) as script,
        Client(script.url, retries=QUICK) as client,
        pytest.raises(Unanswered if reply is LOST else Unavailable),
    ):
        client.enqueue("q", id="1", timeout=1)

    assert 1 == len(script.asked)


def test_an_enqueue_with_an_idempotency_key_is_sent_again_with_the_same_key() -> None:
    """True draws a key for the call, not for the try."""
    with scripted(LOST, problem(503), Reply(202)) as script, Client(script.url, retries=QUICK) as client:
        client.enqueue("q", id="1", timeout=1, idempotency_key=True)

    assert 3 == len(script.asked)
    assert 1 == len({asked.headers["idempotency-key"] for asked in script.asked})


def test_a_next_whose_answer_was_lost_is_not_sent_again() -> None:
    """It may have brought a job."""
    with scripted(LOST) as script, Client(script.url, retries=QUICK) as client, pytest.raises(Unanswered):
        client.next("q")

    assert 1 == len(script.asked)


def test_the_end_of_a_named_run_is_sent_again_and_a_404_says_that_it_may_be_its_own() -> None:
    """A run ends once."""
    with scripted(LOST, problem(404)) as script, Client(script.url, retries=QUICK) as client, pytest.raises(NotFound) as caught:
        client.complete(RUN)

    assert caught.value.after_unknown
    assert 2 == len(script.asked)


def test_the_end_of_any_run_is_not_sent_again() -> None:
    """Without a run_id it could end another."""
    with scripted(LOST) as script, Client(script.url, retries=QUICK) as client, pytest.raises(Unanswered):
        client.complete(Run("q", "1"))

    assert 1 == len(script.asked)


def test_tries_end() -> None:
    """The last refusal is what the caller gets."""
    with (
        scripted(*[problem(429)] * 3) as script,
        Client(script.url, retries=Retries(tries_max=3, first_seconds=0.001)) as client,
        pytest.raises(Busy),
    ):
        client.next("q")

    assert [] == script.replies


def test_a_pause_is_jitter_beyond_what_the_server_asks_for() -> None:
    """Doubling bounds, drawn anew each time, and never less than Retry-After; beyond the whole time there is no further try."""
    retries = Retries(tries_max=10, first_seconds=0.1, pause_seconds_max=0.5, total_seconds_max=9.0)
    busy = refusal(Problem(status=429), "2")
    error = NotReached()

    def pause(error: ClientError, tries: int, seconds: float, share: float) -> float | None:
        return retries.pause(error, tries, seconds, repeatable=False, random=lambda: share)

    assert [0.1, 0.2, 0.4, 0.5, 0.5] == [pause(error, tries, 0, 1.0) for tries in range(1, 6)]
    assert [0.0, 0.05] == [pause(error, 1, 0, 0.0), pause(error, 1, 0, 0.5)]
    assert [2.0, 2.1] == [pause(busy, 1, 0, 0.0), pause(busy, 1, 0, 1.0)]
    assert pause(busy, 1, 8.0, 0.0) is None
    assert pause(error, 10, 0, 0.0) is None


@pytest.mark.parametrize(
    ("status", "kind"), [(401, Unauthorized), (403, Forbidden), (500, ServerFault), (503, Unavailable), (502, Unavailable), (418, Refusal)]
)
def test_a_status_is_an_exception_of_its_own(status: int, kind: type[Refusal]) -> None:
    """Also where a proxy answers, which does not speak in problems."""
    with (
        scripted(Reply(status, b"<html>no</html>")) as script,
        Client(script.url, retries=Retries(tries_max=1)) as client,
        pytest.raises(kind) as caught,
    ):
        client.next("q")

    assert (status, f"{status} HTTP status {status}") == (caught.value.status, str(caught.value))


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"id": 1}', b"\xff"])
def test_what_is_no_answer_of_the_api_is_told_as_such(body: bytes) -> None:
    """Something else may listen there."""
    with scripted(Reply(200, body)) as script, Client(script.url) as client, pytest.raises(BadAnswer):
        client.next("q")


def test_a_token_goes_with_each_request_and_shows_nowhere_else() -> None:
    """As a bearer token."""
    with scripted(problem(401)) as script, Client(script.url, token="s3cret") as client, pytest.raises(Unauthorized) as caught:
        client.next("q")

    assert "Bearer s3cret" == script.asked[0].headers["authorization"]
    assert "s3cret" not in str(caught.value)


def test_connections_are_kept() -> None:
    """All of a thread's calls take one."""
    with scripted(JOB, OK, JOB) as script, Client(script.url) as client:
        first = client.next("q")
        assert first is not None
        client.complete(first)
        client.next("q")

    assert {"keep-alive"} == {asked.headers["connection"] for asked in script.asked}
