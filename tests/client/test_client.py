"""Both clients against a real server: every call that a producer, a runner or an operator makes."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import msgspec
import pytest

from proteus_shards.client import (
    AsyncClient,
    Backoff,
    Client,
    Conflict,
    Invalid,
    NewJob,
    NotFound,
    NotReached,
    Run,
)
from proteus_shards.errors import SettingError
from tests.conftest import Server, server_environ


@pytest.fixture(scope="module")
def client(memory_server: Server) -> Iterator[Client]:
    """Return a client. Each test has its own queues."""
    with Client(memory_server.url) as made:
        yield made


class Mail(msgspec.Struct):
    """A payload of its own type."""

    to: str


def test_a_job_goes_round(client: Client) -> None:
    """It is enqueued, delivered with its payload, kept alive with a state, and completed."""
    job_id = client.enqueue("mail-1", {"to": "ada"}, timeout=30)
    job = client.next("mail-1")

    assert job is not None
    assert (job.id, job.payload, job.payload_as(Mail), job.state, job.attempt) == (job_id, {"to": "ada"}, Mail("ada"), None, 1)
    client.heartbeat(job, {"sent": 1})
    client.complete(job)
    assert client.next("mail-1") is None


def test_the_bytes_of_a_payload_come_back(client: Client) -> None:
    """Whoever hands a job on hands on what came."""
    client.enqueue("mail-2", msgspec.Raw(b'{"a": 1.0,  "\\u00e9": 18446744073709551616}'), timeout=30)
    job = client.next("mail-2")

    assert job is not None
    assert bytes(job.payload_json) == b'{"a": 1.0,  "\\u00e9": 18446744073709551616}'


def test_an_enqueue_that_is_sent_twice_with_one_key_enqueues_once(client: Client) -> None:
    """Both are told the same, and another request under that key is refused."""
    for _ in range(2):
        assert "1" == client.enqueue("once", id="1", timeout=30, idempotency_key="a-key")

    assert ["1"] == [job.id for job in client.next_many("once", 10)]
    with pytest.raises(Invalid):
        client.enqueue("once", id="2", timeout=30, idempotency_key="a-key")


def test_what_a_job_has_beside_its_plain_fields_goes_along(client: Client) -> None:
    """Ordering key, priority, backoff, and the trace of its producer."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    client.enqueue("rich", timeout=30, key="k", priority=3, ttl=60, backoff=Backoff(seconds=2), traceparent=trace)
    job = client.next("rich")

    assert job is not None
    assert job.backoff is not None
    assert ("k", 3, 2.0, trace) == (job.key, job.priority, job.backoff.seconds, job.trace)


def test_odd_names_arrive_as_they_are(client: Client) -> None:
    """Whatever means something in a URL."""
    queue = "a/b?c=d&e+f %41 ä\N{GRINNING FACE}"
    client.enqueue(queue, id=queue, timeout=30)
    job = client.next(["nothing here", queue])

    assert job is not None
    assert (job.queue, job.id) == (queue, queue)
    client.complete(Run(queue, queue, job.run_id))


def test_a_job_of_the_same_id_is_a_conflict(client: Client) -> None:
    """The problem says of which job."""
    client.enqueue("mail-4", id="1", timeout=30)
    with pytest.raises(Conflict) as caught:
        client.enqueue("mail-4", id="1", timeout=30)

    assert (caught.value.status, caught.value.problem.queue, caught.value.problem.job_id) == (409, "mail-4", "1")
    assert (caught.value.retryable, caught.value.after_unknown) == (False, False)


def test_a_wrong_field_is_named(client: Client) -> None:
    """By the word of the API."""
    with pytest.raises(Invalid) as caught:
        client.enqueue("mail-5", timeout=-1)

    assert caught.value.problem.field == "timeout"


def test_a_run_that_is_over_is_not_found(client: Client) -> None:
    """It can neither be kept alive nor completed."""
    client.enqueue("mail-6", id="1", timeout=30)
    other = Run("mail-6", "1", "00000000-0000-4000-8000-000000000000")
    job = client.next("mail-6")

    assert job is not None
    with pytest.raises(NotFound):
        client.heartbeat(other)
    with pytest.raises(NotFound):
        client.complete(other)


def test_many_jobs_go_in_one_request(client: Client) -> None:
    """Each has its own answer; several are fetched and completed at once."""
    jobs = [NewJob(id=str(number % 3), queue="mail-7", timeout=30) for number in range(4)]
    problems = client.enqueue_many(jobs)
    runs = client.next_many(["empty", "mail-7"], 10)
    outcomes = client.complete_many([*runs, Run("mail-7", "9")])

    assert [problem and problem.status for problem in problems] == [None, None, None, 409]
    assert [run.id for run in runs] == ["0", "1", "2"]
    assert [outcome.problem and outcome.problem.status for outcome in outcomes] == [None, None, None, 404]
    with pytest.raises(NotFound):
        outcomes[3].check()


def test_lines_are_sent_as_they_are_made(client: Client) -> None:
    """A generator of any length is one request; wrong lines are told by their numbers."""
    lines = (NewJob(id=str(number), queue="news-1", timeout=30) if number != 7 else b'{"id": "7"}\n' for number in range(2000))
    summary = client.enqueue_lines(lines)

    assert (summary.accepted, summary.refused, [failure["line"] for failure in summary.failures]) == (1999, 1, [8])


def test_complete_and_next_is_one_step(client: Client) -> None:
    """The next job may be another queue's; with none there is None."""
    client.enqueue("a", id="1", timeout=30)
    client.enqueue("b", id="2", timeout=30)
    first = client.next("a")
    assert first is not None
    second = client.complete_and_next(first, ["a", "b"])
    assert second is not None

    assert second.id == "2"
    assert client.complete_and_next(second) is None
    with pytest.raises(NotFound) as caught:
        client.complete_and_next(second)
    assert caught.value.problem.completed is False


def test_a_poll_waits_for_its_job(client: Client) -> None:
    """A job that is scheduled for soon is delivered to the poll that waits."""
    client.enqueue("mail-10", id="1", timeout=30, run_at=datetime.now(UTC) + timedelta(seconds=0.3))
    job = client.next("mail-10", wait=20)

    assert job is not None
    with pytest.raises(ValueError, match="zone"):
        client.enqueue("mail-10", run_at=datetime(2030, 1, 1))  # noqa: DTZ001 that is what is wrong


def test_dead_letters_are_listed_page_by_page(client: Client) -> None:
    """`each_dead` goes through all pages."""
    for number in range(3):
        client.enqueue("mail-11", id=str(number), timeout=0)
        assert client.next("mail-11", wait=20) is not None
    while len(client.dead("mail-11").items) < 3:
        client.next("mail-11", wait=0.05)

    assert ["0", "1", "2"] == [letter.id for letter in client.each_dead("mail-11", num_jobs=2)]
    assert "timeout" == client.dead("mail-11").items[0].reason


def test_a_server_that_is_not_there_was_surely_not_reached() -> None:
    """After the tries that are allowed, the error says so."""
    from proteus_shards.client import NO_RETRIES

    with Client("http://127.0.0.1:1", retries=NO_RETRIES) as client, pytest.raises(NotReached):
        client.enqueue("mail", timeout=30)


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "ftp://h", "http://", "http://h/?a=1", "http://h:99999"])
def test_a_url_that_is_none_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is sent; an empty one is the default."""
    monkeypatch.delenv("PROTEUS_URL", raising=False)
    if not url:
        assert Client(url).url == "http://127.0.0.1:8080"
        return
    with pytest.raises(SettingError):
        Client(url)


def test_the_environment_says_where_the_server_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """PROTEUS_URL counts where no URL is given."""
    monkeypatch.setenv("PROTEUS_URL", "http://example.test:1234/queues/")

    assert Client().url == "http://example.test:1234/queues"


async def _walk(url: str, queue: str) -> list[Any]:
    async with AsyncClient(url) as client:
        job_id = await client.enqueue(queue, [1], timeout=30)
        job = await client.next(queue, wait=1)
        assert job is not None
        await client.heartbeat(job, {"at": 1})
        await client.complete(job)
        summary = await client.enqueue_lines(NewJob(id=str(number), queue=f"{queue}-news", timeout=30) for number in range(500))
        jobs = await client.next_many(f"{queue}-news", 500)
        letters = [letter.id async for letter in client.each_dead(queue)]
        return [job.id == job_id, job.payload, summary.accepted, len(jobs), letters]


@pytest.mark.parametrize("loop", ["trio", "asyncio"])
def test_the_same_calls_run_on_trio_and_asyncio(memory_server: Server, loop: str) -> None:
    """One client for both loops."""
    assert anyio.run(_walk, memory_server.url, f"mail-{loop}", backend=loop) == [True, [1], 500, 500, []]


def test_both_clients_have_the_same_methods() -> None:
    """With the same parameters and docstrings, since both are made of the same calls."""
    methods = {name for name in vars(Client) if not name.startswith("_")}

    assert methods == {name for name in vars(AsyncClient) if not name.startswith("_")}
    for name in methods - {"url", "run", "close"}:
        sync, other = getattr(Client, name), getattr(AsyncClient, name)
        assert (sync.__doc__, inspect.signature(sync).parameters) == (other.__doc__, inspect.signature(other).parameters)


def test_the_client_needs_nothing_of_the_server() -> None:
    """No web framework, no store, no event loop is loaded by it but what its HTTP library loads itself."""
    heavy = {"quart", "hypercorn", "httptools", "sqlite3", "asyncpg", "redis", "trio", "uvloop", "prometheus_client"}
    code = f"import sys, proteus_shards.client; sys.exit(' '.join({heavy!r} & set(sys.modules)) or None)"

    ran = subprocess.run([sys.executable, "-c", code], env=server_environ({}), capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stderr) == (0, "")
