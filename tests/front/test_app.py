"""The app, through Quart's test client: routes, methods, and what goes wrong."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from quart.testing import QuartClient
from quart_trio import QuartTrio

from proteus_shards import __version__
from proteus_shards.config import Settings
from proteus_shards.core.commands import (
    Cancel,
    Complete,
    DeadLetter,
    Delivered,
    Done,
    Enqueue,
    Heartbeat,
    ListDead,
    Listed,
    Next,
    Reason,
    Refused,
    Undeliver,
)
from proteus_shards.core.commands_jobs import RETRIES_OF_QUEUE
from proteus_shards.core.placement import shard_of, slot_of
from proteus_shards.front import native
from proteus_shards.front.app import make_app
from proteus_shards.front.link import Link
from proteus_shards.front.router import Router
from tests.front.fake_shard import RUN_ID, FakeShard, delivery, linked, obliging

SETTINGS = Settings(shards=2, body_size_max=1000, store="memory:")
JOB = b'{"id":"j","queue":"q","timeout":1}'


class Front:
    """An app with its shards."""

    def __init__(self, app: QuartTrio, router: Router, shards: list[FakeShard]) -> None:
        self.app = app
        self.client = cast("QuartClient", app.test_client())
        self.router = router
        self.shards = shards
        self.shard = shards[shard_of(slot_of("q"), len(shards))]  # that owns queue q
        self.other = next(shard for shard in shards if shard is not self.shard)

    async def ask(self, method: str, path: str, data: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the answer."""
        response = await self.client.open(
            path, method=method, data=data, headers={name.replace("_", "-"): headers[name] for name in headers}
        )
        names = {name.lower(): value for name, value in response.headers.items()}
        return response.status_code, names, await response.get_data(as_text=False)

    async def problem(self, method: str, path: str, data: bytes = b"", **headers: str) -> dict[str, Any]:
        """Return the problem that is the answer."""
        status, names, body = await self.ask(method, path, data, **headers)
        assert names["content-type"] == "application/problem+json"
        problem: dict[str, Any] = json.loads(body)
        assert problem["status"] == status
        return problem


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    """An app whose links are up."""
    async with linked(tmp_path, SETTINGS) as (router, shards):
        yield Front(make_app(router, SETTINGS), router, shards)


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_each_call_reaches_the_shard_of_its_queue(prefix: str, front: Front) -> None:
    """With and without the prefix."""
    answers = [
        await front.ask("POST", f"{prefix}/enqueue", JOB),
        await front.ask("GET", f"{prefix}/next?queue=q"),
        await front.ask("PATCH", f"{prefix}/heartbeat?queue=q&job_id=j", b"[1]"),
        await front.ask("DELETE", f"{prefix}/complete?queue=q&job_id=j"),
    ]

    assert front.shard.commands == [
        Enqueue("q", "j", 1, False, RETRIES_OF_QUEUE, b"null"),
        Next("q"),
        Heartbeat("q", "j", None, b"[1]"),
        Complete("q", "j"),
    ]
    assert front.other.commands == []
    assert [(status, body) for status, _, body in answers] == [(202, b""), (204, b""), (202, b""), (200, b"")]


async def test_a_job_is_delivered(front: Front) -> None:
    """As one object, or with num_jobs as an array."""
    front.shard.answer = lambda _: Delivered([delivery(payload=b"[1.0]")])

    status, headers, one = await front.ask("GET", "/next?queue=q")
    _, _, many = await front.ask("GET", "/next?queue=q&num_jobs=2")

    assert (status, headers["content-type"]) == (200, "application/json")
    assert b'"payload":[1.0]' in one
    assert json.loads(many) == [json.loads(one)]


async def test_dead_letters_are_listed(front: Front) -> None:
    """By page."""
    letter = DeadLetter("q", "j", 41, 30, True, 1, b"1", None, None, 2, "timeout", 0, 1)
    front.shard.answer = lambda _: Listed([letter])

    status, _, body = await front.ask("GET", "/dead?queue=q&after=40")

    assert front.shard.commands == [ListDead("q", 100, 40)]
    assert (status, json.loads(body)["next"]) == (200, 41)


async def test_a_refusal_of_the_shard_is_told(front: Front) -> None:
    """With its status and when to come again."""
    front.shard.answer = lambda _: Refused(Reason.FULL, "no room", retry_after=3)

    status, headers, body = await front.ask("POST", "/enqueue", JOB)

    assert (status, headers["retry-after"]) == (429, "3")
    assert json.loads(body) == {
        "title": "Too Many Requests",
        "status": 429,
        "detail": "no room",
        "retryable": True,
        "queue": "q",
        "job_id": "j",
    }


@pytest.mark.parametrize("path", ["/", "/nothing", "/next/", "/v1//next", "/v1", "/v2/next", "/NEXT", "/static/x", "/next%2F"])
async def test_an_unknown_path_is_a_404_problem(path: str, front: Front) -> None:
    """And never a redirect."""
    assert (await front.problem("GET", path))["status"] == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("HEAD", "/next?queue=q", "GET"),
        ("HEAD", "/v1/next?queue=q", "GET"),
        ("HEAD", "/dead?queue=q", "GET"),
        ("POST", "/next?queue=q", "GET"),
        ("OPTIONS", "/next?queue=q", "GET"),
        ("GET", "/enqueue", "POST"),
        ("PUT", "/heartbeat", "PATCH"),
        ("GET", "/complete", "DELETE"),
        ("POST", "/health", "GET, HEAD"),
        ("BREW", "/enqueue", "POST"),
    ],
)
async def test_a_wrong_method_is_405_and_does_nothing(method: str, path: str, allowed: str, front: Front) -> None:
    """The answer says which are right."""
    front.shard.answer = lambda _: Delivered([delivery()])

    status, headers, _ = await front.ask(method, path)

    assert (status, headers["allow"]) == (405, allowed)
    assert front.shard.commands == []


async def test_a_bad_request_reaches_no_shard(front: Front) -> None:
    """It is refused here."""
    assert (await front.problem("POST", "/enqueue", b"{"))["field"] == "body"
    assert (await front.problem("GET", "/next"))["field"] == "queue"
    assert (await front.problem("PATCH", "/heartbeat?queue=q&job_id=j", b"{"))["field"] == "body"
    assert (await front.problem("DELETE", "/complete?queue=q&job_id=j&run_id=1"))["field"] == "run_id"
    assert front.shard.commands == front.other.commands == []


async def test_a_body_may_be_as_large_as_the_limit(front: Front) -> None:
    """And not a byte larger, packed or not."""
    fits = JOB + b" " * (1000 - len(JOB))

    assert (await front.ask("POST", "/enqueue", fits))[0] == 202
    assert (await front.ask("POST", "/enqueue", gzip.compress(fits), content_encoding="gzip"))[0] == 202
    for problem in (
        await front.problem("POST", "/enqueue", fits + b" "),
        await front.problem("POST", "/enqueue", gzip.compress(fits + b" "), content_encoding="gzip"),
        await front.problem("PATCH", "/heartbeat?queue=q&job_id=j", b"1" * 1001),
    ):
        assert (problem["status"], problem["field"], "body_size_max" in problem["detail"]) == (413, "body", True)


async def test_another_content_coding_is_415(front: Front) -> None:
    """The answer says which there is."""
    status, headers, _ = await front.ask("POST", "/enqueue", JOB, content_encoding="br")

    assert (status, headers["accept-encoding"]) == (415, "gzip")


async def test_a_body_where_none_is_asked_for_is_not_looked_at(front: Front) -> None:
    """Whatever it is."""
    assert (await front.ask("GET", "/next?queue=q", b"\xff"))[0] == 204
    assert (await front.ask("DELETE", "/complete?queue=q&job_id=j", b"\xff", content_encoding="br"))[0] == 200


async def test_a_fault_inside_is_told_by_its_id_only(
    front: Front, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the rest under the same id."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(Router, "call", fail)

    status, _, body = await front.ask("POST", "/enqueue", JOB)

    problem = json.loads(body)
    (record,) = [record for record in caplog.records if record.exc_info]
    assert (status, problem["retryable"], b"secret" in body) == (500, False, False)
    assert record.__dict__["request_id"] == problem["request_id"]


async def test_an_outcome_of_the_wrong_kind_is_a_fault(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    """It is a bug of the shard's, and a 500 here."""
    front.shard.answer = lambda _: Done()

    assert (await front.problem("GET", "/next?queue=q"))["status"] == 500
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [AssertionError]


async def test_health_answers_from_memory(front: Front) -> None:
    """It asks no shard; HEAD works too."""
    status, _, body = await front.ask("GET", "/health")
    head, _, nothing = await front.ask("HEAD", "/v1/health")

    assert (status, head) == (200, 200)
    durability = {"durability": "memory", "terms": "nothing is kept"}
    assert json.loads(body) == {"status": "ok", "version": __version__, "store": "memory", **durability, "shards": 2}
    assert nothing in (b"", body)  # the test client shows what the server would suppress
    assert front.shard.commands == []


async def test_health_and_ready_tell_of_shards_that_are_away(tmp_path: Path) -> None:
    """Health is about this process, ready about all of them."""
    settings = Settings(shards=2)
    app = make_app(Router([Link(str(tmp_path / str(shard)), shard, settings) for shard in range(2)]), settings)
    client = app.test_client()

    health = await client.get("/health")
    ready = await client.get("/ready")
    refused = await client.get("/next?queue=q")

    assert (health.status_code, (await health.get_json())["durability"], (await health.get_json())["store"]) == (200, None, "sqlite")
    assert (ready.status_code, (await ready.get_json(force=True))["shards_away"]) == (503, [0, 1])
    assert ready.headers["retry-after"] == "1"
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")


async def test_ready_is_200_with_all_links_up(front: Front) -> None:
    """And 503 while the front drains."""
    assert (await front.ask("GET", "/ready"))[0] == 200

    front.router.drain()

    assert (await front.problem("GET", "/v1/ready"))["status"] == 503


async def test_a_drain_answers_waiting_polls_with_204(front: Front) -> None:
    """And lets none wait from then on."""
    statuses: list[int] = []

    async def poll() -> None:
        statuses.append((await front.ask("GET", "/next?queue=q&wait=60"))[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll)
        await front.shard.wait_command(Next)
        front.router.drain()
    await poll()

    assert statuses == [204, 204]
    assert front.shard.commands[-1] == Next("q", 1, 0)


async def test_a_client_that_leaves_while_its_next_waits_is_forgotten(front: Front) -> None:
    """The shard is told, and a job that comes all the same goes back."""
    gone = trio.Event()
    messages: list[Any] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pytest.fail(f"sent {message}")

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": "/next",
        "query_string": b"queue=q&wait=60",
        "headers": [],
        "scheme": "http",
    }
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cast("Any", front.app), scope, receive, send)
        ((number, _),) = await front.shard.wait_command(Next)
        gone.set()

    assert [command for _, command in await front.shard.wait_command(Cancel)] == [Cancel(number)]
    await front.shard.reply((number, Delivered([delivery()])))
    assert [command for _, command in await front.shard.wait_command(Undeliver)] == [Undeliver("q", "a", RUN_ID)]


async def test_a_job_whose_answer_could_not_be_made_goes_back(
    front: Front, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client got a 500 in its place, and surely not the job."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    front.shard.answer = lambda command: Delivered([delivery()]) if isinstance(command, Next) else obliging(command)
    monkeypatch.setattr(native, "answer", fail)

    assert (await front.problem("GET", "/next?queue=q"))["status"] == 500
    assert [command for _, command in await front.shard.wait_command(Undeliver)] == [Undeliver("q", "a", RUN_ID)]
    caplog.clear()


async def test_a_fault_outside_of_the_views_is_a_problem_too(
    front: Front, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Even one of the framework."""

    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(front.app, "handle_request", fail)

    assert (await front.problem("GET", "/health"))["status"] == 500
    assert [record.__dict__["request_id"] for record in caplog.records if record.exc_info]
