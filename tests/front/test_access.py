"""Who may ask what: every route with every kind of token, on the lane, on Quart and over HTTP/2; names of queues however they are written; renewal of the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trustme

from proteus_shards.config import Settings
from proteus_shards.core.commands import Command, Done, ListDead, Listed, Next, Outcome
from proteus_shards.core.commands_control import (
    Counted,
    FindJobs,
    GetJob,
    GetQueue,
    Jobs,
    JobView,
    ListJobs,
    ListQueues,
    ListSchedules,
    Purge,
    Queues,
    QueueView,
    Redrive,
    Schedules,
    ScheduleView,
    SetQueue,
)
from proteus_shards.errors import SettingError
from proteus_shards.front.access import OPEN, RULES, Access, rule_of
from proteus_shards.front.answers import Problem
from proteus_shards.front.app import make_app
from proteus_shards.front.operations import OPERATIONS
from proteus_shards.front.router import Router
from proteus_shards.tokens import Grant, Scope
from tests.front.fake_shard import obliging
from tests.front.sites import SETTINGS, Site, serving, trusting, with_tls

WAYS = ["fast lane", "Quart", "HTTP/2"]
JOB = {"id": "a", "queue": "q", "timeout": 1}
LINES: dict[str, dict[str, Any]] = {  # token: its line
    "right": {"scopes": ["admin"]},
    "expired": {"scopes": ["admin"], "expires": "2020-01-01T00:00:00Z"},
    "both of q": {"scopes": ["produce", "consume"], "queues": ["q", "q-*"]},
    **{scope: {"scopes": [scope]} for scope in Scope},
    **{f"{scope} of q": {"scopes": [scope], "queues": ["q", "q-*"]} for scope in Scope},
}
RELAY_JOB = {"id": "a", "queue": "q", "timeout": 1, "payload": None}
RUN = "/v2/queues/<queue>/jobs/<job_id>/run-id/<run_id>"
ADDING = {("PUT", "/v1/queues/jobs"), ("PUT", RUN)}  # which take a runner's token, and one that may enqueue as well
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/queues/jobs"): [RELAY_JOB],
    ("PUT", "/queues/jobs"): RELAY_JOB,
    ("POST", "/v2/queues/jobs"): [RELAY_JOB, RELAY_JOB],
    ("PUT", RUN): [RELAY_JOB],
    ("PATCH", "/queue"): {},
    ("PATCH", "/job"): {"priority": 1},
    ("PUT", "/schedule"): {"every": 60, "job": {"timeout": 1}},
    ("POST", "/enqueue"): JOB,
    ("POST", "/batch"): [{"op": "next", "queue": "q"}],
}
QUERIES = {"/enqueue": "", "/batch": "", "/queues": "limit=1", "/find": "job_id=a"}
QUERIES |= dict.fromkeys(("/next", "/dead", "/queue", "/jobs", "/pause", "/resume", "/purge", "/redrive", "/schedules"), "queue=q")
QUERIES["/schedule"] = "queue=q&name=a"
JOB_VIEW = JobView("q", "a", 1, "ready", 1, False, 0, b"1", None, None, 0, None, None, None, 0, 0, None)
SCHEDULE_VIEW = ScheduleView("q", "a", b'{"every":60,"job":{}}', None)
QUEUE_VIEW = QueueView("q", 0, 0, 0, 0, 0, 0, 0, 0, False)


def answering(command: Command) -> Outcome | None:
    """Answer as a shard without jobs."""
    if isinstance(command, ListDead):
        return Listed([])
    if isinstance(command, GetJob | FindJobs | ListJobs):
        return Jobs([JOB_VIEW])
    if isinstance(command, GetQueue | ListQueues):
        return Queues([QUEUE_VIEW])
    if isinstance(command, Purge | Redrive):
        return Counted(1)
    if isinstance(command, ListSchedules):
        return Schedules([SCHEDULE_VIEW])
    return Done() if isinstance(command, SetQueue) else obliging(command)


def write_tokens(path: Path, lines: dict[str, dict[str, Any]]) -> str:
    """Write the file of tokens, each token being its own name."""
    rows = [{"name": token, "sha256": hashlib.sha256(token.encode()).hexdigest(), **line} for token, line in lines.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def settings_of(way: str, folder: Path) -> Settings:
    """Return the settings of a server with tokens that is spoken to in one of the ways."""
    settings = msgspec.structs.replace(SETTINGS, fast_lane=way == "fast lane", tokens_file=write_tokens(folder / "tokens", LINES))
    return with_tls(settings, folder) if way == "HTTP/2" else settings


@asynccontextmanager
async def client_of(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of a server."""
    tls = site.trusting is not None
    url = f"{'https' if tls else 'http'}://127.0.0.1:{site.port}"
    async with httpx.AsyncClient(
        base_url=url, http2=tls, verify=site.trusting if site.trusting is not None else False, timeout=60
    ) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    """Return the header that shows a token."""
    return {"authorization": f"Bearer {token}"}


def routes() -> list[tuple[str, str]]:
    """Return every route of the app, method by method, those with parts as they are written."""
    app = make_app(Router([]), SETTINGS)
    found = {(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods or ()}
    return sorted(found | {(method, path) for method, path in OPERATIONS})


def test_every_route_has_a_rule() -> None:
    """A new one must say who may use it."""
    assert [route for route in routes() if rule_of(*route) is None] == []


def test_what_is_open_to_all_is_known() -> None:
    """Nothing of it shows a job, a queue or a count."""
    found = {path for (_, path), rule in RULES.items() if rule == OPEN}

    assert found == {"/", "/dashboard/access", "/docs", "/health", "/openapi.json"}


@pytest.mark.parametrize("way", WAYS)
async def test_every_route_asks_for_its_token(way: str, tmp_path: Path) -> None:
    """None, a wrong and an expired one are 401 with a challenge; one for other things 403, with the scope that is missing; for other queues 403; the right one passes."""
    wrong: list[str] = []
    async with serving(tmp_path, settings_of(way, tmp_path), answering) as site, client_of(site) as client:

        async def ask(route: tuple[str, str], token: str | None, queue: str = "q") -> httpx.Response:
            method, path = route
            plain = (method, path.removeprefix("/v1"))
            body = BODIES.get(plain)
            content = json.dumps(body).replace('"q"', json.dumps(queue)) if body is not None else None
            query = QUERIES.get(plain[1], "queue=q&job_id=a").replace("=q", f"={queue}")
            path = (
                path.replace("<queue>", queue).replace("<job_id>", "a").replace("<run_id>", f"{0:032x}"[:8] + "-0000" * 3 + "-" + "0" * 12)
            )
            target = f"{path}?{query}" if query and plain[1] not in {"/health", "/ready", "/metrics", "/docs", "/openapi.json"} else path
            return await client.request(method, target, content=content, headers=bearer(token) if token is not None else {})

        for route in routes():
            rule = rule_of(*route)
            assert rule is not None
            if rule == OPEN:
                if (await ask(route, None)).status_code >= 400:
                    wrong.append(f"{route} is not open")
                continue
            for token in (None, "nonsense", "expired"):
                answer = await ask(route, token)
                if answer.status_code != 401 or not answer.headers["www-authenticate"].startswith('Bearer realm="proteus-shards"'):
                    wrong.append(f"{route} with {token}: {answer.status_code}")
            for scope in set(Scope) - rule.scopes - {Scope.ADMIN}:
                answer = await ask(route, scope)
                needed = " ".join(sorted(rule.scopes))
                if answer.status_code != 403 or f'error="insufficient_scope", scope="{needed}"' not in answer.headers["www-authenticate"]:
                    wrong.append(f"{route} with {scope}: {answer.status_code}")
            scopes: set[str] = {"both"} if route in ADDING else set(rule.scopes)
            for each in scopes:
                answer = await ask(route, f"{each} of q", queue="p")
                refused = answer.status_code == 403 or (answer.status_code == 207 and [each["status"] for each in answer.json()] == [403])
                if refused == (route[1].removeprefix("/v1") == "/ready"):
                    wrong.append(f"{route} with {each} for another queue: {answer.status_code}")
            for token in ("right", *(scopes - {"both"}), *([] if rule.whole else [f"{scope} of q" for scope in scopes])):
                answer = await ask(route, token)
                if answer.status_code in {401, 403} or (b'"status":403' in answer.content and not token.startswith("produce")):
                    wrong.append(f"{route} with {token}: {answer.status_code} {answer.text}")
    assert wrong == []


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_no_route_is_told_to_those_only_who_may_ask_for_something(way: str, tmp_path: Path) -> None:
    """To all others every path looks alike."""
    async with serving(tmp_path, settings_of(way, tmp_path), answering) as site, client_of(site) as client:
        seen = [
            (await client.request(method, path, headers=headers)).status_code
            for method, path in (("GET", "/nowhere"), ("PUT", "/next"), ("GET", "/next/"), ("OPTIONS", "/next"))
            for headers in ({}, bearer("read"))
        ]

    assert seen == [401, 404, 401, 405, 401, 404, 401, 405]


@pytest.mark.parametrize("way", WAYS)
async def test_each_operation_of_a_batch_is_checked(way: str, tmp_path: Path) -> None:
    """What is not allowed is refused by itself, and no shard hears of it."""
    operations = [
        {"op": "enqueue", "job": JOB},
        {"op": "next", "queue": "q"},
        {"op": "next", "queue": "p"},
        {"op": "heartbeat", "queue": "q-1", "job_id": "a"},
        {"op": "complete", "queue": "Q", "job_id": "a"},
    ]
    async with serving(tmp_path, settings_of(way, tmp_path), answering) as site, client_of(site) as client:
        mixed = await client.post("/batch", json=operations, headers=bearer("consume of q"))
        array = await client.post("/enqueue", json=[JOB, {**JOB, "queue": "p"}], headers=bearer("produce of q"))
        lines = b'{"id":"b","queue":"p","timeout":1}\n{"id":"c","queue":"q","timeout":1}\n'
        text = await client.post("/enqueue", content=lines, headers=bearer("produce of q"))
        stream = await client.post("/enqueue", content=lines, headers={**bearer("produce of q"), "content-type": "application/x-ndjson"})
        refused = await client.post("/enqueue", content=lines, headers={**bearer("consume"), "content-type": "application/x-ndjson"})
        unknown = await client.post("/enqueue", content=lines, headers={"content-type": "application/x-ndjson"})
        heard = [getattr(command, "queue", None) for command in site.shard.commands]

    assert [each["status"] for each in mixed.json()] == [403, 204, 403, 202, 403]
    assert [each["status"] for each in array.json()] == [202, 403]
    assert [(found.json()["accepted"], found.json()["failures"][0]["status"]) for found in (text, stream)] == [(1, 403)] * 2
    assert (refused.status_code, unknown.status_code) == (403, 401)
    assert heard == ["q", "q-1", "q", "q", "q"]


@pytest.mark.parametrize("way", WAYS)
async def test_a_runner_may_not_add_jobs_by_ending_its_own(way: str, tmp_path: Path) -> None:
    """A requeue with jobs and a replacement need PRODUCE too, for each queue of the body; a requeue without jobs is a completion."""
    run = "/v2/queues/q/jobs/a/run-id/00000000-0000-0000-0000-000000000000"
    foreign = {**RELAY_JOB, "queue": "p"}
    async with serving(tmp_path, settings_of(way, tmp_path), answering) as site, client_of(site) as client:

        async def put(target: str, body: Any, token: str) -> int:
            return (await client.put(target, json=body, headers=bearer(token))).status_code

        runner = [await put(run, [RELAY_JOB], "consume"), await put("/v1/queues/jobs", RELAY_JOB, "consume of q")]
        heard = len(site.shard.commands)
        empty = await put(run, [], "consume of q")
        both = [await put(run, [RELAY_JOB], "both of q"), await put("/v1/queues/jobs", RELAY_JOB, "both of q")]
        elsewhere = [await put(run, [foreign], "both of q"), await put("/v1/queues/jobs", foreign, "both of q")]
        admin = [await put(run, [foreign], "right"), await put("/v1/queues/jobs", foreign, "right")]

    assert (runner, heard, empty, elsewhere) == ([403, 403], 0, 202, [403, 403])
    assert (both, admin) == ([202, 202], [202, 202])


@pytest.mark.parametrize("way", WAYS)
async def test_who_may_only_enqueue_sees_no_payload(way: str, tmp_path: Path) -> None:
    """By relay's routes it may ask whether a job is there, and no more."""
    async with serving(tmp_path, settings_of(way, tmp_path), answering) as site, client_of(site) as client:
        seen = {
            (method, token): [
                (await client.request(method, f"/{version}/queues/q/jobs/a", headers=bearer(token))).status_code for version in ("v1", "v2")
            ]
            for method in ("GET", "HEAD")
            for token in ("produce", "consume", "read")
        }

    assert seen.pop(("GET", "produce")) == [403, 403]
    assert seen == {key: [200, 200] for key in seen}


async def test_a_list_over_all_queues_needs_a_token_for_all(tmp_path: Path) -> None:
    """And the answer says so, and names no queue."""
    async with serving(tmp_path, settings_of("Quart", tmp_path), answering) as site, client_of(site) as client:
        answer = await client.get("/schedules", headers=bearer("read of q"))

    assert (answer.status_code, answer.json()["detail"], answer.json().get("queue")) == (403, "this needs a token for every queue", None)


NAMES = {  # how the queue "q-\u00e9/x" is written, and is not
    "q-%C3%A9%2Fx": True,
    "%71-%c3%a9%2fx": True,
    "q-\u00e9/x": True,
    "q-e%CC%81%2Fx": False,
    "Q-%C3%A9%2Fx": False,
    "q-%25C3%25A9%252Fx": False,
    "q-%C3%A9%2Fx/": False,
    "+q-%C3%A9%2Fx": False,
    "q-%C3%A9%2Fx%00": False,
    "p%2F..%2Fq-%C3%A9%2Fx": False,
}


@pytest.mark.parametrize("way", WAYS)
async def test_the_name_that_is_checked_is_the_one_that_the_shard_gets(way: str, tmp_path: Path) -> None:
    """However it is escaped, doubled or composed."""
    settings = settings_of(way, tmp_path)
    write_tokens(tmp_path / "tokens", {"one": {"scopes": ["consume"], "queues": ["q-\u00e9/x"]}})
    async with serving(tmp_path, settings, answering) as site, client_of(site) as client:
        seen = {}
        for name in NAMES:
            answer = await client.get(f"/next?queue={name}", headers=bearer("one"))
            seen[name] = answer.status_code
        twice = await client.get("/next?queue=q-%C3%A9%2Fx&queue=p", headers=bearer("one"))
        twisted = await client.post("/complete-and-next?queue=p&job_id=a&next_queue=q-%C3%A9%2Fx", headers=bearer("one"))
        other = await client.post("/complete-and-next?queue=q-%C3%A9%2Fx&job_id=a&next_queue=p", headers=bearer("one"))
        heard = {command.queue for command in site.shard.commands if isinstance(command, Next)}

    assert {name: status == 204 for name, status in seen.items()} == NAMES
    assert (twice.status_code, twisted.status_code, other.status_code) == (403, 403, 403)
    assert heard == {"q-\u00e9/x"}


@pytest.mark.parametrize("way", WAYS[:2])
@pytest.mark.parametrize(
    "fields",
    [
        "Authorization: Basic cmlnaHQ=",
        "Authorization: right",
        "Authorization: Bearer",
        "Authorization: Bearer ",
        "Authorization: Bearer right, right",
        "Authorization: Bearer right\r\nAuthorization: Bearer right",
        "Authorization: Bearer\tright",
        "Authorization: Bearer \xff",
        "X-Authorization: Bearer right",
        "Cookie: authorization=right",
    ],
)
async def test_a_token_is_shown_in_one_way_only(fields: str, way: str, tmp_path: Path) -> None:
    """Anything else is no token."""
    async with serving(tmp_path, settings_of(way, tmp_path), answering) as site:
        client = await site.client()
        await client.send(f"GET /next?queue=q HTTP/1.1\r\nHost: 127.0.0.1\r\n{fields}\r\n\r\n".encode("latin-1"))
        refused = await client.receive()
        in_query = await client.ask("GET", "/next?queue=q&access_token=right")
        right = await client.ask("GET", "/next?queue=q", b"", "authorization: bearer  right")

    assert (refused.status, in_query.status, right.status) == (401, 401, 204)


def test_a_file_that_changes_counts_from_then_on(tmp_path: Path) -> None:
    """A token that is taken out ends, one that is put in begins; a broken file changes nothing."""
    path = tmp_path / "tokens"
    access = Access(write_tokens(path, {"old": {"scopes": ["read"]}}))

    def seen() -> list[bool]:
        access.refresh()
        return [isinstance(access.grant_of(f"Bearer {token}".encode()), Grant) for token in ("old", "new")]

    before = seen()
    write_tokens(path, {"old": {"scopes": ["read"]}, "new": {"scopes": ["read"]}})
    both = seen()
    path.write_text("{")
    broken = seen()
    path.unlink()
    away = seen()
    write_tokens(path, {"new": {"scopes": ["read"]}})

    assert (before, both, broken, away, seen()) == ([True, False], [True, True], [True, True], [True, True], [False, True])


def test_a_token_ends_when_it_expires(tmp_path: Path) -> None:
    """Though it was right a moment before."""
    now = 0.0
    access = Access(write_tokens(tmp_path / "tokens", {"a": {"scopes": ["read"], "expires": "1970-01-01T00:01:00Z"}}), lambda: now)

    alive = access.grant_of(b"Bearer a")
    now = 60.0
    expired = access.grant_of(b"Bearer a")

    assert isinstance(alive, Grant)
    assert isinstance(expired, Problem)
    assert (expired.status, expired.detail) == (401, "authorization: has expired")


async def test_a_client_certificate_is_worth_what_its_line_says(tmp_path: Path) -> None:
    """By any name in it; a token beside it counts instead; one without a line may do nothing, though its authority is known."""
    clients = trustme.CA()
    clients.cert_pem.write_to_path(str(tmp_path / "clients.pem"))
    path = tmp_path / "tokens"
    write_tokens(path, LINES)
    with path.open("a") as file:
        file.write(json.dumps({"name": "c", "certificate": "runner.example.org", "scopes": ["consume"], "queues": ["q"]}) + "\n")
    settings = msgspec.structs.replace(with_tls(SETTINGS, tmp_path), tls_client_ca=str(tmp_path / "clients.pem"), tokens_file=str(path))
    seen: dict[str, list[int]] = {}
    async with serving(tmp_path, settings, answering) as site:
        for name in ("runner.example.org", "other.example.org"):
            context = trusting(tmp_path)
            clients.issue_cert("first.example.org", name).configure_cert(context)
            site.trusting = context
            async with client_of(site) as client:
                asked = [("/next?queue=q", {}), ("/next?queue=p", {}), ("/dead?queue=q", {}), ("/dead?queue=q", bearer("read"))]
                seen[name] = [(await client.get(target, headers=headers)).status_code for target, headers in asked]

    assert seen == {"runner.example.org": [204, 403, 403, 200], "other.example.org": [401, 401, 401, 200]}


def test_a_file_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    """As any wrong setting does."""
    with pytest.raises(SettingError, match=r"^tokens_file: "):
        Access(str(tmp_path / "none"))
