"""The OpenAPI document says what is: every route, field, limit and status in it is true, and none is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import validate
from quart_trio import QuartTrio

from proteus_shards.config import Settings
from proteus_shards.core.commands import Command, Outcome, Reason, Refused
from proteus_shards.core.model import name_fault
from proteus_shards.front.answers import STATUSES
from proteus_shards.front.app import make_app
from proteus_shards.front.job_bodies import read_job
from proteus_shards.front.openapi import described_routes, make_document
from proteus_shards.front.openapi_words import CALLS, NAME
from proteus_shards.front.router import Router
from tests.conftest import Server
from tests.front.fake_shard import linked

SETTINGS = Settings(shards=1)
PAGES = ("/dashboard",)  # what people look at
JOB = {"id": "1", "queue": "q", "timeout": 30}
RUN_ID = "00000000-0000-4000-8000-000000000000"


def make(settings: Settings = SETTINGS) -> QuartTrio:
    """Return the app of a front without shards."""
    return make_app(Router([]), settings)


def routes_of(app: QuartTrio) -> set[tuple[str, str]]:
    """Return the routes of an app."""
    return {(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods or ()}


def document_of(settings: Settings = SETTINGS) -> dict[str, Any]:
    """Return the document of a server with these settings."""
    return make_document(settings, routes_of(make(settings)))


DOCUMENT = document_of()


def test_it_is_an_openapi_document() -> None:
    """By the specification's own schema."""
    validate(DOCUMENT)

    assert "3.1.0" == DOCUMENT["openapi"]


def test_every_route_is_in_it() -> None:
    """A route that is not described in `openapi_words.CALLS` fails here."""
    served = {
        (method, path.replace("<", "{").replace(">", "}"))
        for method, path in routes_of(make())
        if path != "/" and not path.startswith(PAGES)
    }

    assert served == described_routes(DOCUMENT)


def parts_of(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every object of a document with its place."""
    if isinstance(value, dict):
        yield path, value
        for name, part in value.items():
            yield from parts_of(part, f"{path}/{name}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from parts_of(part, f"{path}/{number}")


def test_every_field_has_a_meaning() -> None:
    """A field of a message that is not in `openapi_words.MEANINGS` fails here."""
    silent = [
        f"{place}/{name}"
        for place, part in parts_of(DOCUMENT["components"])
        for name, field in part.get("properties", {}).items()
        if isinstance(field, dict) and not field.get("description")
    ]

    assert [] == silent


def test_the_limits_are_those_of_the_server() -> None:
    """Other settings, another document."""
    settings = Settings(shards=1, num_jobs_max=7, wait_seconds_max=3.0, next_queues_max=5, batch_jobs_max=11)
    paths = document_of(settings)["paths"]
    parameters = {each["name"]: each["schema"] for each in paths["/next"]["get"]["parameters"]}

    assert (7, 3.0, 5) == (parameters["num_jobs"]["maximum"], parameters["wait"]["maximum"], parameters["queue"]["maxItems"])
    assert 11 == paths["/batch"]["post"]["requestBody"]["content"]["application/json"]["schema"]["maxItems"]


def test_tokens_are_in_it_where_the_server_asks_for_them(tmp_path: Path) -> None:
    """With the scopes of each call, and the two answers that it may give then."""
    settings = Settings(shards=1, tokens_file=str(tmp_path / "tokens"))
    document = document_of(settings)
    validate(document)

    assert "securitySchemes" not in DOCUMENT["components"]
    assert [{"token": ["produce"]}] == document["paths"]["/enqueue"]["post"]["security"]
    assert {"401", "403"} <= document["paths"]["/enqueue"]["post"]["responses"].keys()
    assert "security" not in document["paths"]["/health"]["get"]


@pytest.mark.parametrize("name", ["", "a", "ä" * 1024, "a" * 1025, "a\n", "\x7f", "\x9f", "\xa0", "\u2028", "a\x00", "\U0001f600", " "])
def test_a_name_is_right_where_the_document_says_so(name: str) -> None:
    """Its pattern and lengths are those of the server's own check."""
    says = NAME["minLength"] <= len(name) <= NAME["maxLength"] and re.search(NAME["pattern"].replace("$", r"\Z"), name) is not None

    assert says == (name_fault(name) is None)


@pytest.mark.parametrize("field", ["timeout", "max_retries"])
def test_the_bounds_of_a_job_are_those_of_the_server(field: str) -> None:
    """The last that is right, and the first that is wrong."""
    schema = DOCUMENT["components"]["schemas"]["NewJob"]["properties"][field]

    def taken(value: int) -> bool:
        return type(read_job(json.dumps({**JOB, field: value}).encode())).__name__ == "Enqueue"

    assert [True, True, False, False] == [
        taken(value) for value in (schema["minimum"], schema["maximum"], schema["minimum"] - 1, schema["maximum"] + 1)
    ]


def target_of(method: str, path: str) -> str:
    """Return the target of a good request."""
    parameters = DOCUMENT["paths"][path][method.lower()].get("parameters", ())
    return f"{path}?{'&'.join(each['name'] + '=q' for each in parameters if each['required'])}"


BODIES: dict[tuple[str, str], object] = {
    ("POST", "/enqueue"): JOB,
    ("POST", "/batch"): [{"op": "complete", "queue": "q", "job_id": "1"}],
    ("PATCH", "/queue"): {"paused": True},
    ("PATCH", "/job"): {"priority": 1},
    ("PUT", "/schedule"): {"every": 60, "job": {"timeout": 1}},
}
SHARDS_CALLS = [
    (method, path)
    for (method, path), call in CALLS.items()
    if call.asks_shards and (method, path) in routes_of(make()) and path != "/batch"
]


@pytest.mark.parametrize(("method", "path"), SHARDS_CALLS)
async def test_the_refusals_of_a_call_are_those_that_it_can_give(method: str, path: str, tmp_path: Path) -> None:
    """Whatever a shard may refuse with, and what is refused before a shard is asked."""
    reasons = {status: reason for reason, status in STATUSES.items() if reason not in {Reason.FULL, Reason.INVALID}}
    documented = {int(status) for status in DOCUMENT["paths"][path][method.lower()]["responses"] if int(status) >= 400}
    refused: list[Reason] = []

    def refuse(command: Command) -> Outcome | None:
        return Refused(refused[-1], "so it is") if type(command).__name__ != "Inspect" else None

    settings = msgspec.structs.replace(SETTINGS, body_size_max=100)
    body = json.dumps(BODIES.get((method, path))).encode() if (method, path) in BODIES else b""
    given = set()
    async with linked(tmp_path, settings) as (router, shards):
        shards[0].answer = refuse
        client: Any = make_app(router, settings).test_client()
        for status in documented & reasons.keys():
            refused.append(reasons[status])
            given.add((await client.open(target_of(method, path), method=method, data=body)).status_code)
        given.add((await client.open(f"{path}?no=1", method=method, data=body)).status_code)
        if 413 in documented:
            given.add((await client.open(target_of(method, path), method=method, data=b" " * 101)).status_code)

    assert documented == given


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a running server whose jobs are in memory."""
    server = Server("--port", "0", "--shards", "1", "--store", "memory:", cwd=tmp_path_factory.mktemp("server"), environ={})
    yield server
    server.stop()


def test_the_document_is_served(running: Server) -> None:
    """As JSON, the same that the tests look at but for the number of shards."""
    answer = running.request("GET", "/openapi.json")

    assert (200, "application/json") == (answer.status, answer.headers["content-type"])
    assert DOCUMENT["paths"].keys() <= answer.json()["paths"].keys()


def test_the_page_of_it_works_offline_and_may_do_nothing(running: Server) -> None:
    """No script, nothing from elsewhere, each call and each schema on it."""
    answer = running.request("GET", "/docs")
    page = answer.body.decode()

    assert (200, "text/html; charset=utf-8") == (answer.status, answer.headers["content-type"])
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert [] == re.findall(r"<script|\bsrc=|<link|@import|url\(|https?://", page)
    for path, item in DOCUMENT["paths"].items():
        for method in item.keys() - {"servers"}:
            assert f'id="{item[method]["operationId"]}"' in page, path
    anchors = set(re.findall(r'id="([^"]+)"', page))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= anchors
