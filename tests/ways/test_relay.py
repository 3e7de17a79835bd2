"""Relay's API, both generations, on the fast lane, on Quart and over HTTP/2, and on every store: statuses, sentences, order of fields, and what clients rest on."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from proteus_shards.config import Settings
from proteus_shards.core.placement import shard_of, slot_of
from tests.conftest import Answer, Server, StartServer
from tests.front.sites import trusting, with_tls
from tests.servers.places import Places, places
from tests.ways.test_ways import RUN_ID, Step, Way

__all__ = ["places"]

WAYS = ["fast lane", "Quart", "HTTP/2"]
STORES = ["postgres", "redis", "dynamodb"]  # on the fast lane
V1_FIELDS = ["id", "queue", "timeout", "max_retries", "payload", "state", "run_at", "updated_at"]
V2_FIELDS = [
    "queue",
    "id",
    "timeout",
    "max_retries",
    "retries_remaining",
    "payload",
    "state",
    "run_id",
    "run_at",
    "updated_at",
    "created_at",
]
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}|\.\d{6})?Z")
TEXT = "text/plain; charset=utf-8"
LONG = "x" * 1025


def job(job_id: str = "a", queue: str = "q", **changes: Any) -> dict[str, Any]:
    """Return a job."""
    return {"id": job_id, "queue": queue, "timeout": 60, "payload": {"n": 1}, **changes}


class Asker:
    """Asks one server in one way, and remembers the last run."""

    def __init__(self, way: Way) -> None:
        self.way = way

    def __call__(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """Send one request; a body that is not bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        return self.way.ask(Step(method, path, data, {name.replace("_", "-"): value for name, value in headers.items()}))

    def status(self, method: str, path: str, body: object = None) -> int:
        """Send one request, expect an empty body of what went well, and return the status."""
        answer = self(method, path, body)
        assert answer.status >= 400 or not answer.body
        return answer.status

    def refused(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        """Send one request that is refused, and return status and sentence."""
        answer = self(method, path, body)
        if answer.body:
            assert answer.headers["content-type"] == TEXT
        return answer.status, answer.body.decode()

    def jobs(self, path: str) -> list[dict[str, Any]]:
        """Fetch jobs."""
        answer = self("GET", path)
        if answer.status == 204:
            assert not answer.body
            return []
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        found = answer.json()
        assert isinstance(found, list)
        return found


@pytest.fixture(scope="module", params=[*WAYS, *STORES])
def asker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, places: Places) -> Iterator[Asker]:
    """Return who asks a server in one of the ways, or on one of the stores, the same for all tests."""
    folder = tmp_path_factory.mktemp("relay")
    options = ["--port", "0", "--shards", "2"]
    if request.param in STORES:
        options += ["--store", places.of(request.param)(f"relay-{uuid4().hex[:12]}")]
    if request.param == "Quart":
        options.append("--no-fast-lane")
    if request.param == "HTTP/2":
        options += ["--tls-cert", with_tls(Settings(), folder).tls_cert]
    server = Server(*options, cwd=folder, environ={})
    way = Way(server, trusting(folder) if request.param == "HTTP/2" else None)
    yield Asker(way)
    way.close()
    assert server.stop() == 0


@pytest.fixture
def ask(asker: Asker) -> Iterator[Asker]:
    """Return who asks a server without jobs."""
    yield asker
    for queue in asker("GET", "/queues").json()["queues"]:
        name = quote(queue["queue"], safe="")
        for each in asker("GET", f"/jobs?queue={name}&limit=1000").json()["jobs"]:
            asker("DELETE", f"/v2/queues/{name}/jobs/{quote(each['id'], safe='')}")


# --- the first generation ------------------------------------------------------------------------------------------


def test_v1_life(ask: Asker) -> None:
    """Enqueue, look, next, heartbeat, reschedule, delete."""
    assert ask.status("POST", "/v1/queues/jobs", [job(unknown=1, state={"s": 0}, max_retries=-5, timeout=-3)]) == 202
    assert ask.refused("POST", "/v1/queues/jobs", [job()]) == (409, "job with id `a` already exists in queue `q`.")
    assert ask.status("POST", "/v1/queues/jobs", [job(), job("b"), job("b"), job("c", "r")]) == 202
    assert ask.status("POST", "/v1/queues/jobs", []) == 202
    assert ask.status("HEAD", "/v1/queues/q/jobs/a") == 200
    assert ask.refused("HEAD", "/v1/queues/q/jobs/x") == ask.refused("GET", "/v1/queues/q/jobs/x") == (404, "")
    shown = ask("GET", "/v1/queues/q/jobs/b").json()
    assert list(shown) == V1_FIELDS
    assert (shown["max_retries"], shown["payload"], shown["state"]) == (0, {"n": 1}, None)
    assert all(INSTANT.fullmatch(shown[field]) for field in ("run_at", "updated_at"))

    first, second = ask.jobs("/v1/queues/q/jobs?num_jobs=5")
    assert (list(first), first["id"], second["id"]) == (V1_FIELDS, "a", "b")
    assert (first["timeout"], first["max_retries"], first["state"]) == (0, -1, {"s": 0})
    assert ask.status("DELETE", "/v1/queues/q/jobs/a") == 200
    assert ask.jobs("/v1/queues/q/jobs") == ask.jobs("/v1/queues/none/jobs?num_jobs=9") == []

    assert ask.status("PATCH", "/v1/queues/q/jobs/b", {"at": 1}) == 202
    assert ask.status("PATCH", "/v1/queues/q/jobs/b") == 202
    assert ask("GET", "/v1/queues/q/jobs/b").json()["state"] == {"at": 1}
    assert ask.status("PATCH", "/v1/queues/q/jobs/b", b"null") == 202
    assert ask("GET", "/v1/queues/q/jobs/b").json()["state"] is None
    assert ask.refused("PATCH", "/v1/queues/q/jobs/x", 1) == (404, "job with id `x` not found in queue `q`.")
    assert ask.refused("PATCH", "/v1/queues/r/jobs/c", 1) == (404, "job with id `c` not found in queue `r`.")
    assert ask.refused("PUT", "/v1/queues/jobs", job("c", "r")) == (404, "job with id `c` not found in queue `r`.")

    assert ask.status("PATCH", "/v1/queues/q/jobs/b", 7) == 202
    assert ask.status("PUT", "/v1/queues/jobs", job("b", payload=2)) == 202
    [again] = ask.jobs("/v1/queues/q/jobs?num_jobs=1")
    assert (again["id"], again["payload"], again["state"]) == ("b", 2, None)
    assert ask.status("DELETE", "/v1/queues/q/jobs/b") == 200
    assert ask.refused("DELETE", "/v1/queues/q/jobs/b") == (404, "job with id `b` not found in queue `q`.")
    assert ask.status("DELETE", "/v1/queues/r/jobs/c") == 200


def test_v1_run_at(ask: Asker) -> None:
    """An instant comes back as it was sent, dates are read in many forms, and what is none means now."""
    sent = {
        "rfc": "2020-02-03T04:05:06.789+02:00",
        "stamp": "1580695506.5",
        "mail": "Mon, 03 Feb 2020 02:05:06 GMT",
        "day": "2020-02-03",
        "none": "whenever",
        "number": 1580695506,
    }
    for name, run_at in sent.items():
        assert ask.status("POST", "/v1/queues/jobs", [job(name, run_at=run_at)]) == 202
    assert ask.status("POST", "/v1/queues/jobs", [job("later", run_at="2099-01-01T00:00:00Z")]) == 202

    found = {each["id"]: each["run_at"] for each in ask.jobs("/v1/queues/q/jobs?num_jobs=100")}

    assert found["rfc"].startswith("2020-02-03T02:05:06.789")
    assert found["stamp"].startswith("2020-02-03T02:05:06.5")
    assert found["mail"].startswith("2020-02-03T02:05:06")
    assert found["day"].startswith("2020-02-03T00:00:00")
    assert all(found[name] > "2024" for name in ("none", "number"))
    assert "later" not in found


# --- the second generation -----------------------------------------------------------------------------------------


def test_v2_life(ask: Asker) -> None:
    """Enqueue, look, next, heartbeat of a run, complete, delete."""
    assert ask.status("POST", "/v2/queues/jobs", [job(max_retries=3, state=1), job("b"), job("c", "r", max_retries=0)]) == 202
    assert ask.refused("POST", "/v2/queues/jobs?mode=unique", [job("a")]) == (409, "job with id `a` already exists in queue `q`.")
    assert ask.status("HEAD", "/v2/queues/q/jobs/a") == 200
    assert ask.refused("HEAD", "/v2/queues/q/jobs/x") == ask.refused("GET", "/v2/queues/q/jobs/x") == (404, "")
    shown = ask("GET", "/v2/queues/q/jobs/b").json()
    assert list(shown) == V2_FIELDS
    assert (shown["max_retries"], shown["retries_remaining"], shown["run_id"], shown["state"]) == (None, None, None, None)
    assert all(INSTANT.fullmatch(shown[field]) for field in ("run_at", "updated_at", "created_at"))

    [first] = ask.jobs("/v2/queues/q/jobs")
    assert (list(first), first["id"], first["state"]) == (V2_FIELDS, "a", 1)
    assert (first["max_retries"], first["retries_remaining"]) == (3, 3)
    run = f"/v2/queues/q/jobs/a/run-id/{first['run_id']}"
    other = f"/v2/queues/q/jobs/a/run-id/{RUN_ID}"
    assert ask.status("PATCH", run, {"at": 2}) == 202
    assert ask.status("PATCH", run) == 202
    assert ask("GET", "/v2/queues/q/jobs/a").json() | {"updated_at": ""} == first | {"state": {"at": 2}, "updated_at": ""}
    assert ask.refused("PATCH", other, 1) == (404, f"job with id `a` not found in queue `q` with {RUN_ID}.")
    assert ask.status("DELETE", other) == 200
    assert ask.status("HEAD", "/v2/queues/q/jobs/a") == 200
    assert ask.status("DELETE", run) == 200
    assert ask.status("DELETE", run) == 200
    assert ask.status("HEAD", "/v2/queues/q/jobs/a") == 404
    assert ask.refused("PATCH", run, 1)[0] == 404
    assert ask.status("DELETE", "/v2/queues/q/jobs/b") == 200
    assert ask.status("DELETE", "/v2/queues/q/jobs/b") == 200
    assert ask.jobs("/v2/queues/q/jobs?num_jobs=10") == []


def test_v2_retries_are_counted_down(ask: Asker) -> None:
    """With each timeout, and then the job is gone."""
    assert ask.status("POST", "/v2/queues/jobs", [job(timeout=0, max_retries=1)]) == 202

    assert [ask.jobs("/v2/queues/q/jobs?wait=5")[0]["retries_remaining"] for _ in range(2)] == [1, 0]
    assert ask.jobs("/v2/queues/q/jobs?wait=0.2") == []
    assert ask.status("HEAD", "/v2/queues/q/jobs/a") == 404


@pytest.mark.parametrize("queues", ["qq", "qt"])
def test_v2_modes(ask: Asker, queues: str) -> None:
    """In one queue, and over two shards: unique is all or nothing, ignore skips, replace ends runs."""
    one, two = queues[0], queues[1]
    assert ask.status("POST", "/v2/queues/jobs", [job("a", one, payload=1), job("b", two, payload=1)]) == 202

    assert ask.refused("POST", "/v2/queues/jobs", [job("x", one), job("y", two), job("b", two)]) == (
        409,
        f"job with id `b` already exists in queue `{two}`.",
    )
    assert ask.refused("POST", "/v2/queues/jobs?mode=other", [job("x", two), job("a", one)])[0] == 409
    assert [ask.status("HEAD", f"/v2/queues/{queue}/jobs/{name}") for queue, name in ((one, "x"), (two, "y"), (two, "x"))] == [404] * 3

    assert ask.status("POST", "/v2/queues/jobs?mode=ignore", [job("a", one, payload=2), job("x", one), job("b", two), job("y", two)]) == 202
    assert ask("GET", f"/v2/queues/{one}/jobs/a").json()["payload"] == 1
    [run, *_] = ask.jobs(f"/v2/queues/{one}/jobs")
    born = run["created_at"]
    replacing = [job("a", one, payload=3), job("b", two, payload=3), job("z", two), job("a", one, payload=4)]
    assert ask.status("POST", "/v2/queues/jobs?mode=replace", replacing) == 202
    new = ask("GET", f"/v2/queues/{one}/jobs/a").json()
    assert (new["payload"], new["run_id"], new["created_at"]) == (4, None, born)
    assert new["run_at"] > born
    assert ask.refused("PATCH", f"/v2/queues/{one}/jobs/a/run-id/{run['run_id']}")[0] == 404
    assert ask.status("POST", "/v2/queues/jobs", []) == 202


@pytest.mark.parametrize("queues", ["qq", "qt"])
def test_v2_requeue(ask: Asker, queues: str) -> None:
    """In one queue, and over two shards: the run ends and the jobs are there, or neither."""
    one, two = queues[0], queues[1]
    ask("POST", "/v2/queues/jobs", [job("a", one), job("b", two)])
    [run, *_] = ask.jobs(f"/v2/queues/{one}/jobs")
    path = f"/v2/queues/{one}/jobs/a/run-id/{run['run_id']}"

    assert ask.refused("PUT", path, [job("c", one), job("b", two)]) == (409, f"job with id `b` already exists in queue `{two}`.")
    assert ask("GET", f"/v2/queues/{one}/jobs/a").json()["run_id"] == run["run_id"]
    assert ask.status("HEAD", f"/v2/queues/{one}/jobs/c") == 404

    matched = ask("PUT", path, [job("a", one, payload=2), job("c", two), job("d", one)])
    assert (matched.status, matched.headers["relay-matched"], matched.body) == (202, None, b"")
    again = ask("GET", f"/v2/queues/{one}/jobs/a").json()
    assert (again["payload"], again["run_id"]) == (2, None)
    assert [ask.status("HEAD", f"/v2/queues/{queue}/jobs/{name}") for queue, name in ((two, "c"), (one, "d"))] == [200, 200]

    over = ask("PUT", path, [job("e", one), job("f", two)])
    assert (over.status, over.headers["relay-matched"], over.body) == (202, "false", b"")
    assert [ask.status("HEAD", f"/v2/queues/{queue}/jobs/{name}") for queue, name in ((one, "e"), (two, "f"))] == [404, 404]
    [run] = [each for each in ask.jobs(f"/v2/queues/{one}/jobs?num_jobs=9") if each["id"] == "d"]
    path = f"/v2/queues/{one}/jobs/d/run-id/{run['run_id']}"
    assert ask.status("PUT", f"{path}?mode=ignore", [job("a", one), job("c", two)]) == 202
    assert ask.status("HEAD", f"/v2/queues/{one}/jobs/d") == 404
    assert ask("PUT", path, []).headers["relay-matched"] == "false"


# --- both ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_names_are_matched_raw_and_then_decoded(ask: Asker, version: str) -> None:
    """A slash in a name is none of the path's, a plus is a plus, and any character may be escaped or not."""
    for name, written in (
        ("a/b", "a%2Fb"),
        ("a+b", "a+b"),
        ("a b", "a%20b"),
        ("jobs", "jobs"),
        ("%2F", "%252F"),
        ("a-b._~", "a%2Db%2E%5F~"),
        ("é\N{GRINNING FACE}", "%C3%A9%F0%9F%98%80"),
        ("..", "%2E%2E"),
        ("run-id", "run-id"),
        ("?&=#", "%3F%26%3D%23"),
    ):
        assert ask.status("POST", f"/{version}/queues/jobs", [job(name, name)]) == 202
        assert [each["id"] for each in ask.jobs(f"/{version}/queues/{written}/jobs")] == [name]
        assert ask("GET", f"/{version}/queues/{written}/jobs/{written}").json()["queue"] == name
        assert ask.status("DELETE", f"/{version}/queues/{written}/jobs/{written}") == 200
        assert ask.refused("GET", f"/{version}/queues/{written}/jobs/{written}") == (404, "")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_malformed_requests(ask: Asker, version: str) -> None:
    """Not JSON is 400, JSON but no job 422, a bad query or path 400; an error of a next has no body."""
    collection = f"/{version}/queues/jobs"
    for body in (b"", b"{", b"nonsense", b'[{"id": }]', b"\xff", b"[" * 100_000):
        status, sentence = ask.refused("POST", collection, body)
        assert (status, sentence[:42]) == (400, "Failed to parse the request body as JSON: ")
    no_jobs: list[Any] = [
        {},
        [1],
        [{**job(), "id": 1}],
        [{"id": "a", "queue": "q", "timeout": 1}],
        [job(timeout="x")],
        [job(timeout=2**31)],
        [job(LONG)],
        [job(queue="")],
        [job("a\nb")],
    ]
    for wrong in no_jobs:
        status, sentence = ask.refused("POST", collection, wrong)
        assert (status, sentence[:58]) == (422, "Failed to deserialize the JSON body into the target type: "), wrong
    for query in ("num_jobs=0", "num_jobs=-1", "num_jobs=x", "num_jobs=", "num_jobs=1.5", "num_jobs=4294967296", "wait=x", "wait=-1"):
        assert ask.refused("GET", f"/{version}/queues/q/jobs?{query}") == (400, "")
    assert ask.jobs(f"/{version}/queues/q/jobs?num_jobs=4294967295&nonsense=1") == []
    assert ask.refused("GET", f"/{version}/queues/%FF/jobs") == (400, "")
    assert ask.refused("HEAD", f"/{version}/queues/q/jobs/%FF") == (400, "")
    assert ask.refused("DELETE", f"/{version}/queues/q/jobs/%FF") == (400, "Invalid URL: a name must be percent-encoded UTF-8")
    assert ask.refused("POST", collection, b"[" + b" " * 5_000_000 + b"]") == (
        413,
        "Failed to buffer the request body: length limit exceeded",
    )
    assert ask.refused("POST", collection, [job(str(each)) for each in range(1001)])[0] == 413
    assert ask.status("HEAD", f"/{version}/queues/q/jobs/a") == 404


def test_what_only_one_generation_refuses(ask: Asker) -> None:
    """Dates, retries and ids of runs."""
    assert ask.refused("POST", "/v2/queues/jobs", [job(run_at="tomorrow")])[0] == 422
    assert ask.refused("POST", "/v2/queues/jobs", [job(max_retries=-1)]) == ask.refused("POST", "/v2/queues/jobs", [job(max_retries=-7)])
    assert "Integer is too small to store in target integer type" in ask.refused("POST", "/v2/queues/jobs", [job(timeout=-1)])[1]
    assert ask.refused("POST", "/v2/queues/jobs", [job(max_retries=32768)])[0] == 422
    assert ask.refused("POST", "/v1/queues/jobs", [job(updated_at="x")])[0] == 422
    assert ask.status("POST", "/v1/queues/jobs", [job(updated_at=None, max_retries=2**31 - 1)]) == 202
    assert ask("GET", "/v2/queues/q/jobs/a").json()["max_retries"] == 32767
    for method in ("PATCH", "PUT", "DELETE"):
        status, sentence = ask.refused(method, "/v2/queues/q/jobs/a/run-id/nonsense", [])
        assert (status, sentence[:13]) == (400, "Invalid URL: ")
    assert ask.refused("PATCH", "/v1/queues/q/jobs/a", b"{")[0] == 400


def test_methods_and_paths_that_are_none(ask: Asker) -> None:
    """405 says what there is; a HEAD of a list takes nothing; an unknown path is 404. None has a body."""
    assert ask.status("POST", "/v2/queues/jobs", [job()]) == 202
    for method, path, allowed in (
        ("HEAD", "/v1/queues/q/jobs", "GET"),
        ("HEAD", "/v2/queues/q/jobs", "GET"),
        ("GET", "/v1/queues/jobs", "POST, PUT"),
        ("PUT", "/v2/queues/jobs", "POST"),
        ("POST", "/v1/queues/q/jobs/a", "DELETE, GET, HEAD, PATCH"),
        ("PATCH", "/v2/queues/q/jobs/a", "DELETE, GET, HEAD"),
        ("GET", f"/v2/queues/q/jobs/a/run-id/{RUN_ID}", "DELETE, PATCH, PUT"),
        ("OPTIONS", "/v2/queues/q/jobs", "GET"),
    ):
        answer = ask(method, path)
        assert (answer.status, answer.headers["allow"], answer.body) == (405, allowed, b"")
    for path in ("/v1/queues/", "/v2/queues//jobs", "/v2/queues/q/jobs/", "/v2/queues/q", f"/v1/queues/q/jobs/a/run-id/{RUN_ID}"):
        assert ask.refused("GET", path) == (404, "")
    assert [each["id"] for each in ask.jobs("/v2/queues/q/jobs")] == ["a"]


def test_all_dialects_share_their_jobs(ask: Asker) -> None:
    """What one brings in another takes; payload and state stay as they were, byte for byte; a body may be compressed, and of any type."""
    payload = b'{"b": 1.50, "a" : [1e300, "\\u00e9"], "b":2}'
    text = b'[{"payload":' + payload + b',"id":"a","queue":"q","timeout":5,"state": [ 1 ]}]'
    assert ask("POST", "/v1/queues/jobs", gzip.compress(text), content_encoding="gzip", content_type="text/css").status == 202
    native = ask("GET", "/next?queue=q")
    assert payload in native.body
    assert b'"state":[ 1 ]' in native.body
    assert native.json()["persist_data"] is True
    assert payload in ask("GET", "/v2/queues/q/jobs/a").body
    assert ask.status("DELETE", f"/v2/queues/q/jobs/a/run-id/{native.json()['run_id']}") == 200
    assert ask("POST", "/enqueue", {"id": "b", "queue": "q", "timeout": 5}).status == 202
    assert [each["id"] for each in ask.jobs("/v1/queues/q/jobs")] == ["b"]


def test_a_batch_comes_in_order_and_is_never_longer_than_asked(ask: Asker) -> None:
    """Oldest first."""
    assert ask.status("POST", "/v1/queues/jobs", [job(str(each)) for each in range(20)]) == 202

    found = [each["id"] for count in (3, 7, 20) for each in ask.jobs(f"/v2/queues/q/jobs?num_jobs={count}")]

    assert found == [str(each) for each in range(20)]


def test_full_queues_are_told_in_each_generations_words(start_server: StartServer) -> None:
    """429 and 503, text and Retry-After; a next has no body."""
    server = start_server("--queue-jobs-max", "1", "--polls-max", "1", "--store", "memory:")
    full = "the queue holds 1 jobs, its limit (queue_jobs_max)"
    assert server.request("POST", "/v1/queues/jobs", [job("a")]).status == 202

    for version, status, sentence in (("v1", 429, f"Backend error: {full}"), ("v2", 503, f"Backend error: {full}. Is retryable: true.")):
        answer = server.request("POST", f"/{version}/queues/jobs", [job("b")])
        assert (answer.status, answer.body.decode(), answer.headers["content-type"]) == (status, sentence, TEXT)
        assert int(answer.headers["retry-after"]) >= 1
        answer = server.request("POST", f"/{version}/queues/jobs?mode=ignore", [job("b"), job("c")])
        assert answer.status == status
        some = server.request("POST", f"/{version}/queues/jobs?mode=ignore", [job("b"), job("a"), job("c", f"other {version}")])
        assert some.status == 503
    shown = server.request("GET", "/next?queue=q").json()
    assert shown["persist_data"] is False


@pytest.mark.parametrize("mode", ["unique", "ignore", "replace"])
def test_an_array_of_which_one_job_does_not_pass_adds_none(start_server: StartServer, mode: str) -> None:
    """In every mode, in one shard and over two."""
    server = start_server("--queue-jobs-max", "1", "--shards", "2")
    assert server.request("POST", "/v2/queues/jobs", [job("a", "q")]).status == 202

    assert [shard_of(slot_of(queue), 2) for queue in "qrt"] == [1, 1, 0]
    for other in ("r", "t"):
        answer = server.request("POST", f"/v2/queues/jobs?mode={mode}", [job("x", other), job("b", "q")])

        assert answer.status == 503
        assert server.request("HEAD", f"/v2/queues/{other}/jobs/x").status == 404
