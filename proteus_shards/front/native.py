"""The native routes on Quart: thin, since what a call means stands in `operations`.

Each path works with and without `/v1`. A view does four things: read the body where the call has one, ask `operations` what is
wanted, carry it to the shard, and show the outcome.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import trio
from quart import Response, request
from quart_trio import QuartTrio

from proteus_shards import __version__
from proteus_shards.config import Settings
from proteus_shards.core.commands import Delivered, Delivery, Next
from proteus_shards.front import once
from proteus_shards.front.access import check_asked
from proteus_shards.front.answers import Answer, Problem, json_answer
from proteus_shards.front.batches import batch
from proteus_shards.front.bodies import unpack_body
from proteus_shards.front.errands import Errand, NextOfSeveral
from proteus_shards.front.exchange import exchange_of, grant_of
from proteus_shards.front.operations import PREFIXES, Ask, Parse, answer, enqueue
from proteus_shards.front.responses import response_of
from proteus_shards.front.router import Router
from proteus_shards.front.routes import ROUTES, ROUTES_WITH_BODY
from proteus_shards.front.tracing import traced

View = Callable[[], Awaitable[Response]]


def add_native_routes(app: QuartTrio, router: Router, settings: Settings, crash_loops: Callable[[], dict[str, int]]) -> None:
    """Add the routes of the native API. `crash_loops` tells which processes end soon after each start, and how often in a row."""
    views: list[tuple[str, str, View]] = [(method, path, _view_of(parse, router, settings)) for (method, path), parse in ROUTES.items()]
    add_probe_routes(app, router, settings, crash_loops, PREFIXES)
    for method, path, view in views:
        for prefix in PREFIXES:
            app.add_url_rule(prefix + path, f"{method} {prefix}{path}", view, methods=[method], provide_automatic_options=False)
    for rule in app.url_map.iter_rules():
        # Werkzeug lets HEAD through wherever GET is. A HEAD that takes a job off its queue and shows nothing of it is a loss.
        if rule.methods is not None and not rule.rule.endswith(("/health", "/ready")):
            rule.methods.discard("HEAD")


def add_probe_routes(
    app: QuartTrio, router: Router, settings: Settings, crash_loops: Callable[[], dict[str, int]], prefixes: Sequence[str] = ("",)
) -> None:
    """Add `/health` and `/ready`, which ask nothing of the shards: for what watches over this server."""
    for path, view in (("/health", _health_view(router, settings)), ("/ready", _ready_view(router, settings, crash_loops))):
        for prefix in prefixes:
            app.add_url_rule(prefix + path, f"GET {prefix}{path}", view, methods=["GET"], provide_automatic_options=False)


def _view_of(parse: Parse, router: Router, settings: Settings) -> View:
    async def view() -> Response:
        body: bytes | Problem = b""
        if parse in ROUTES_WITH_BODY:
            arrived = cast("bytes", await request.get_data(cache=False))
            body = unpack_body(arrived, request.headers.get("content-encoding"), settings.body_size_max)
        keys = request.headers.getlist(once.HEADER) if parse in {enqueue, batch} else []
        if isinstance(body, Problem):
            asked: Ask | Errand | Problem = body
        elif keys and parse is batch:
            asked = once.not_for_batches()
        elif keys:
            key = keys[0].encode("latin-1") if len(keys) == 1 else b""
            asked = once.enqueue_once(key, body, request.query_string, settings)
        else:
            asked = parse(body, request.query_string, settings)
        return await respond(traced(asked, request.headers.get("traceparent")), router)

    return view


async def respond(asked: Ask | Errand | Problem, router: Router) -> Response:
    """Carry out what the current request has turned out to ask, as far as its sender may, and show what came of it."""
    grant = grant_of(request.scope)
    if grant is not None:
        asked = check_asked(grant, asked) or asked
    if isinstance(asked, Problem):
        return response_of(asked.answer())
    exchange = exchange_of(request.scope)
    if not isinstance(asked, Ask):
        with exchange.waiting(long=type(asked) is NextOfSeveral):
            shown, jobs = await carry_out(asked, router)
        exchange.hold(jobs)
        return response_of(exchange.take_answer(shown, sure=type(asked) is NextOfSeveral))
    command = asked.command
    with exchange.waiting(long=type(command) is Next and command.wait_us > 0):
        outcome = await router.call(command)
    if type(outcome) is Delivered:
        # No await between the two: from the link's hands straight into the exchange's.
        exchange.hold(outcome.jobs)
    return response_of(exchange.take_answer(answer(asked, outcome), sure=True))


async def carry_out(errand: Errand, router: Router) -> tuple[Answer, Sequence[Delivery]]:
    """Wait for the answer of an errand, and the jobs in it. If the waiting task is cancelled, what it asked for and what it brought go back."""
    found: tuple[Answer, Sequence[Delivery]] | None = None
    settled = trio.Event()

    def on_answer(shown: Answer, jobs: Sequence[Delivery]) -> None:
        nonlocal found
        found = shown, jobs
        settled.set()

    errand.begin(router, on_answer)
    try:
        await settled.wait()
    except BaseException:
        if found is None:
            errand.abandon()
        else:
            router.undeliver(found[1])
        raise
    assert found is not None
    return found


def _health_view(router: Router, settings: Settings) -> View:
    async def view() -> Response:
        """Answer from memory: a process that can answer is alive, whatever its shards do."""
        shard = router.shard_statistics()
        health = {
            "status": "ok",
            "version": __version__,
            "store": shard.store if shard is not None else settings.store.partition(":")[0],
            "durability": shard.durability if shard is not None else None,
            "terms": shard.terms if shard is not None else None,
            "shards": settings.shards,
        }
        return response_of(json_answer(health))

    return view


def _ready_view(router: Router, settings: Settings, crash_loops: Callable[[], dict[str, int]]) -> View:
    async def view() -> Response:
        """Say whether requests for every queue can be served; in a cluster, for those whose shards are here."""
        if router.draining:
            return response_of(Problem(status=503, detail="the server is shutting down").answer())
        away, crashes = router.away(), crash_loops()
        reasons, ready = [], {"status": "ready", "shards": settings.shards}
        if router.cluster is not None:  # other hosts answer for their shards
            here = [link.shard for link in router.links_here()]
            reasons = router.cluster.unready()
            ready |= {"shards_here": here} | ({"shards_away": away} if away else {})
            away = [shard for shard in away if shard in here]
        if away:
            reasons.append(f"{len(away)} of {settings.shards} shards are away: {', '.join(map(str, away))}")
        if reasons:
            problem = Problem(status=503, detail="; ".join(reasons), shards_away=away or None, crash_loops=crashes or None)
            return response_of(problem.answer())
        return response_of(json_answer(ready | {"crash_loops": crashes} if crashes else ready))

    return view
