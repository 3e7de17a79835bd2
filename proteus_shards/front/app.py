"""The Quart-Trio app of a front: routes, limits, and how everything that goes wrong is told to the client.

Decisions:

- Quart's conveniences that surprise are off: no static files, no redirects (`//next` and `/next/` are 404, not 308), no HEAD
  where nobody said so, no OPTIONS answer, no default content type.
- Every error is a problem document, those of Quart and Werkzeug included. What an exception says stays in the log, under a
  request id that the client is told.
- `_Gate` wraps the app at the ASGI level: it keeps the `Exchange`, mends the request target, and answers 500 where even Quart fails.
- Hypercorn says "disconnect" after every answer, in the midst of the call that ends it. Quart-Trio cancels that call then, and the connection
  is left neither idle nor closed, for ever. So once an answer is whole, Quart hears of a disconnect only after a while: soon enough for an
  HTTP/2 answer whose connection is gone, which waits to be sent for ever.
- An answer that goes out before the whole request has come in closes an HTTP/1 connection, and says so.
- What the front cannot work on at once is refused before Quart sees it (`admission`), but for the probes: whoever watches must not take a busy server for a dead one.
- A body must arrive within request_seconds_max, or the answer is 408.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import trio
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge, RequestTimeout

from proteus_shards.config import Settings
from proteus_shards.front import relay
from proteus_shards.front.access import OPEN, check_route, rule_of
from proteus_shards.front.answers import Answer, Problem, phrase_of, too_many_at_once, too_many_unfinished
from proteus_shards.front.bodies import too_large
from proteus_shards.front.connection import CURRENT_CONNECTION, Connection
from proteus_shards.front.counts import OTHER
from proteus_shards.front.dashboard import FILES_PATH, add_dashboard_routes
from proteus_shards.front.exchange import GRANT_KEY, SCOPE_KEY, Exchange
from proteus_shards.front.faults import log_fault
from proteus_shards.front.heads import origin_form
from proteus_shards.front.hosts import misdirected, names_of
from proteus_shards.front.metrics import Page, add_metrics_route
from proteus_shards.front.native import add_native_routes, add_probe_routes
from proteus_shards.front.ndjson import HELD_BYTES_MAX, comes_in_lines, enqueue_as_it_comes, read_rest
from proteus_shards.front.once import not_for_lines
from proteus_shards.front.openapi import add_openapi_routes
from proteus_shards.front.origins import foreign
from proteus_shards.front.relay_routes import add_relay_routes
from proteus_shards.front.responses import PlainResponse, response_of
from proteus_shards.front.router import Router
from proteus_shards.front.viewers import Viewers

AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]

log = logging.getLogger("proteus_shards.front")

FINISH_SECONDS_MAX = 2.0
RECEIVE_TICKS = 4
REFUSED_BODY_SECONDS = 1.0  # for the rest of a body that nobody will read, so that its connection can go on

_NOTHING_HERE = Problem(status=404, detail="there is nothing at this path")
_PROBES = frozenset({"/health", "/ready"})
_BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})


def make_app(
    router: Router, settings: Settings, page: Page | None = None, viewers: Viewers | None = None, *, metrics_only: bool = False
) -> QuartTrio:
    """Return the app that serves a front's HTTP through these links. `page` is the page of metrics; with `metrics_only` that and the probes are all that there is.

    Without `viewers` there is no dashboard.
    """
    app = QuartTrio("proteus_shards.front", static_folder=None, template_folder=None)
    app.response_class = PlainResponse
    app.config["MAX_CONTENT_LENGTH"] = settings.body_size_max
    app.config["BODY_TIMEOUT"] = settings.request_seconds_max
    app.config["RESPONSE_TIMEOUT"] = None  # the connection has its own, which works
    app.url_map.merge_slashes = False
    page = page or Page(router, settings)
    if not metrics_only:
        add_native_routes(app, router, settings, page.crash_loops)
    else:
        add_probe_routes(app, router, settings, page.crash_loops)
    add_metrics_route(app, page)
    if not metrics_only:
        add_relay_routes(app, router, settings)  # behind those who take HEAD from what is there
        add_openapi_routes(app, settings)  # behind all that it describes
    if viewers is not None:  # a page and its files, no part of the API
        add_dashboard_routes(app, viewers)

    async def http_error(error: HTTPException) -> Response:
        problem = problem_of(error, settings)
        if request.scope.get(relay.SCOPE_KEY) is not None:
            problem = relay.in_plain_text(problem)
        return response_of(problem.answer())

    async def fault(error: Exception) -> Response:
        return response_of(log_fault(error).answer())

    async def admit() -> Response | None:
        """Let a request in if whoever sends it may ask for this route at all. What else it names is looked at once it is understood."""
        refused = _refused(request.scope, rule.rule if (rule := request.url_rule) is not None else None)
        return response_of(refused.answer()) if refused is not None else None

    if router.access is not None and not metrics_only:
        app.before_request(admit)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, fault)
    routes = {(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods or ()}
    app.asgi_app = _Gate(app.asgi_app, router, settings, routes, open_to_all=metrics_only)  # type: ignore[method-assign]
    return app


def problem_of(error: HTTPException, settings: Settings) -> Problem:
    """Return the problem that one of Quart's own errors is."""
    match error:
        case NotFound():
            return _NOTHING_HERE
        case MethodNotAllowed():
            allowed = ", ".join(sorted(error.valid_methods or ()))
            return Problem(status=405, detail=f"the method must be {allowed}", headers=(("allow", allowed),))
        case RequestEntityTooLarge():
            return too_large(settings.body_size_max)
        case RequestTimeout():
            return Problem(status=408, detail="body: did not arrive in time (request_seconds_max)", field="body")
    status = error.code if error.code is not None and error.code >= 400 else 500
    return Problem(status=status, detail=phrase_of(status).lower())


class _Gate:
    """The outermost part of the app: each HTTP request passes it on the way in, each answer on the way out."""

    def __init__(
        self, app: AsgiApp, router: Router, settings: Settings, routes: Collection[tuple[str, str]], *, open_to_all: bool = False
    ) -> None:
        self._counts = {route: router.counts.of("quart", _counted_as(route[1])) for route in routes}
        self._no_route = router.counts.of("quart", OTHER)
        self._app = app
        self._router = router
        self._settings = settings
        self._hosts = names_of(settings)
        self._access = None if open_to_all else router.access
        self._admission = None if open_to_all else router.admission

    def _with_grant(self, scope: Any, connection: Connection | None) -> Any:
        """Return a request's scope with what its sender may do, where that matters."""
        if self._access is None:
            return scope
        names = connection.client_names if connection is not None else ()
        return {**scope, GRANT_KEY: self._access.grant_of(_authorization(scope), names)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = relay.route_of(scope["method"], _raw_path_of(scope))
        path = call.sample if call is not None else _path_of(scope)
        exchange = Exchange(self._router, scope["http_version"], send)
        full = trio.CancelScope()  # of what is done where the body does not fit in
        lines = comes_in_lines(scope, path or "")
        is_http_1 = scope["http_version"].startswith("1")
        has_body = any(name in _BODY_HEADERS for name, _ in scope["headers"])

        async def receive_soon() -> Any:
            if exchange.request_ended:
                return await receive()
            with exchange.waiting():
                return await receive()

        async def watched_receive() -> Any:
            message = await receive_soon()
            if message["type"] == "http.disconnect" and exchange.finishing:
                await trio.sleep(FINISH_SECONDS_MAX)
            if message["type"] == "http.request":
                if not lines and not exchange.take_body(len(message.get("body", b""))):
                    full.cancel()
                    await trio.lowlevel.checkpoint()
                exchange.request_ended = exchange.request_ended or not message.get("more_body", False)
            return message

        async def watched_send(message: Any) -> None:
            if message["type"] == "http.response.start" and connection is not None:
                connection.note_answer()
            if is_http_1 and message["type"] == "http.response.start" and has_body:
                for _ in range(RECEIVE_TICKS):  # a body that has arrived may still wait for the task that reads it
                    if exchange.request_ended:
                        break
                    await trio.lowlevel.checkpoint()
                else:
                    message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            if message["type"] == "http.response.start":
                count[message["status"]] += 1
            await exchange.send(message)

        count = self._counts.get((scope["method"], (call.pattern if call is not None else path) or ""), self._no_route)
        connection = CURRENT_CONNECTION.get()
        scope = self._with_grant(scope, connection)
        if connection is not None:
            exchange.place = connection.begin_exchange()
        try:
            await self._answer({**scope, "path": path, SCOPE_KEY: exchange, relay.SCOPE_KEY: call}, full, watched_receive, watched_send)
        except Exception as error:  # noqa: BLE001 it is logged, and told as what it is
            problem = log_fault(error)
            if not exchange.begun:
                await _send(watched_send, problem.answer())
        finally:
            exchange.settle()
            if connection is not None:
                connection.end_exchange()

    async def _answer(self, scope: Any, full: trio.CancelScope, receive: Any, send: Any) -> None:
        """Answer one request, by Quart or without it. `full` is cancelled where there is no room for its body."""
        path, exchange, call = scope["path"], scope[SCOPE_KEY], scope[relay.SCOPE_KEY]
        broken = (
            misdirected(_host_of(scope), self._hosts) or _broken_rule(scope, path, self._settings) or (None if call is None else call.fault)
        )
        if broken is not None:
            await _send(send, broken.answer())
        elif not self._admit(exchange, path):
            await _read_briefly(receive, exchange)
            busy = too_many_at_once(self._settings.quart_requests_max)
            await _send(send, (busy if call is None else call.busy(busy)).answer())
        elif not comes_in_lines(scope, path or ""):
            with full:
                await self._app(scope, receive, send)
            if full.cancelled_caught and not exchange.begun:
                await _send(send, too_many_unfinished().answer())
        elif not exchange.take_body(HELD_BYTES_MAX):
            await _send(send, too_many_unfinished().answer())
        else:
            with exchange.waiting(long=True):  # its reading is paced by the shards
                answer = await enqueue_as_it_comes(scope, receive, self._router, self._settings)
                if answer is not None:
                    await read_rest(receive, lambda: exchange.request_ended, self._settings)
                    await _send(send, answer)

    def _admit(self, exchange: Exchange, path: str | None) -> bool:
        """Take a place for a request that needs one, and say whether it may go on."""
        if self._admission is None or _counted_as(path or "") in _PROBES:
            return True
        exchange.place = exchange.place or self._admission.place()
        return exchange.place is not None


def _refused(scope: Any, route: str | None) -> Problem | None:
    """Say why whoever sends a request may not ask for a route, if it may not. Of what is no route only those learn who may ask for something."""
    rule = rule_of(scope["method"], route) if route is not None else OPEN
    grant = scope[GRANT_KEY]
    if isinstance(grant, Problem):
        return None if rule == OPEN and route is not None else grant
    return check_route(grant, rule)


def _authorization(scope: Any) -> bytes | None:
    """Return the value of the field, or nothing that could be right where it stands there twice."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    return found[0] if len(found) == 1 else (b"" if found else None)


def _counted_as(path: str) -> str:
    """Return the name under which requests for a path are counted: versions are one, and so are the files of the dashboard."""
    return FILES_PATH if path.startswith(FILES_PATH) else relay.label_of(path)


def _broken_rule(scope: Any, target: str | None, settings: Settings) -> Problem | None:
    """Say what Hypercorn lets pass and the fast lane does not, as far as it can still be seen here."""
    if len(scope["headers"]) > settings.headers_max:
        return Problem(status=431, detail=f"the request has more than {settings.headers_max} header fields (headers_max)")
    path = scope.get("raw_path") or (scope["path"] or "").encode()
    if len(path) + len(scope["query_string"]) + 1 > settings.url_bytes_max:
        return Problem(status=414, detail=f"the target of the request is longer than {settings.url_bytes_max} bytes (url_bytes_max)")
    names = [name for name, _ in scope["headers"]]
    if scope["http_version"].startswith("1") and b"transfer-encoding" in names and b"content-length" in names:
        return Problem(status=400, detail="content-length and transfer-encoding exclude each other", headers=(("connection", "close"),))
    if target is None:
        return Problem(status=400, detail="the target of the request is not on this host")
    if target.startswith("//"):  # Werkzeug would take it for a path with one slash
        return _NOTHING_HERE
    if (wrong := foreign(scope["method"], target, scope["headers"])) is not None:
        return wrong
    if b"idempotency-key" in names and comes_in_lines(scope, target):
        return not_for_lines()
    if GRANT_KEY in scope and comes_in_lines(scope, target):  # Quart does not see it
        return _refused(scope, target)
    return None


def _path_of(scope: Any) -> str | None:
    """Return the path of a request target in origin form, or in absolute form where that names this host."""
    target: str = scope["path"]
    if target.startswith("/"):
        return target
    relative = origin_form(target.encode(), _host_of(scope))
    return relative.decode() if relative is not None else None


def _raw_path_of(scope: Any) -> bytes:
    """Return the path as it came over the wire."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    if raw.startswith(b"/"):
        return raw
    return origin_form(raw, _host_of(scope)) or b""


def _host_of(scope: Any) -> bytes:
    return next((value for name, value in scope["headers"] if name in {b"host", b":authority"}), b"")


async def _read_briefly(receive: Callable[[], Awaitable[Any]], exchange: Exchange) -> None:
    """Throw away the body of a request that is refused: an answer before its end would close the connection."""
    with trio.move_on_after(REFUSED_BODY_SECONDS):
        while not exchange.request_ended and (await receive())["type"] == "http.request":
            pass


async def _send(send: Callable[[Any], Awaitable[None]], answer: Answer) -> None:
    headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in answer.headers]
    headers.append((b"content-length", str(len(answer.body)).encode("ascii")))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})
