"""`GET /openapi.json`: OpenAPI 3.1, made from the types and tables that the server itself works with, and from its settings.

The document is of this very server: the bounds in it are those of its settings, and its calls are the routes that are served. It is made once, when the app is made. A test
sees that no route is left out.

Paths are shown without `/v1`; where they also work with it, `servers` of the path says so.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import msgspec
from quart import Response
from quart_trio import QuartTrio

from proteus_shards import __version__
from proteus_shards.config import Settings
from proteus_shards.front.access import OPEN, rule_of
from proteus_shards.front.answers import JSON_HEADERS, Answer
from proteus_shards.front.docs import docs_page
from proteus_shards.front.openapi_cluster import CLUSTER_CALLS
from proteus_shards.front.openapi_relay import RELAY_CALLS
from proteus_shards.front.openapi_shapes import shapes_of
from proteus_shards.front.openapi_words import ALSO_HEAD, CALLS, MEANINGS, PARAMETERS, RULES, TYPE_NAMES, Body, Described
from proteus_shards.front.operations import PREFIXES
from proteus_shards.front.responses import response_of
from proteus_shards.front.schemas import Schema, Schemas

PAGE_HEADERS = (
    ("content-type", "text/html; charset=utf-8"),
    (
        "content-security-policy",
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
)
ALL_CALLS = {**CALLS, **CLUSTER_CALLS, **RELAY_CALLS}
_REFUSED = {
    401: "A token is missing, or not known.",
    403: "The token does not allow this.",
    413: "The body, or the number of things in it, is over a limit, which the detail names.",
    422: "Something in the request is wrong, which `field` names. No retry can mend it.",
    429: "Not now, and surely without effect.",
    500: "A fault inside. The log has the details.",
    503: "Not now, and it may have had an effect.",
}
_RETRY_AFTER: Schema = {
    "description": "Seconds to wait before the next try.",
    "schema": {"type": "integer", "minimum": 1},
    "required": True,
}
_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_SCHEMES = {"token": {"type": "http", "scheme": "bearer", "description": "A token of the server's tokens file."}}
_ABOUT = """An ordered job runner over HTTP. Errors are problem documents (RFC 9457). Before a request gets to its call it may also be told 400, 405, 408, 414, 431, 501 or 505, \
as HTTP has it. A body may be compressed (`Content-Encoding: gzip`)."""


def add_openapi_routes(app: QuartTrio, settings: Settings) -> None:
    """Add the document and its page. A test sees that all routes are in it."""
    shown: dict[str, Answer] = {}
    for path in ("/openapi.json", "/docs"):
        app.add_url_rule(path, f"GET {path}", _view_of(path, shown), methods=["GET"], provide_automatic_options=False)
    for rule in app.url_map.iter_rules():
        if rule.methods is not None and rule.rule in {"/openapi.json", "/docs"}:
            rule.methods.discard("HEAD")
    document = make_document(settings, {(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods or ()})
    shown["/openapi.json"] = Answer(200, JSON_HEADERS, msgspec.json.format(msgspec.json.encode(document), indent=1))
    shown["/docs"] = Answer(200, PAGE_HEADERS, docs_page(document))


def _view_of(path: str, shown: dict[str, Answer]) -> Any:
    async def view() -> Response:
        return response_of(shown[path])

    return view


def described_routes(document: Schema) -> set[tuple[str, str]]:
    """Return the routes that a document has: method and path, with each prefix."""
    return {
        (method.upper(), server["url"].rstrip("/") + path)
        for path, item in document["paths"].items()
        for method in item.keys() - {"servers"}
        for server in item["servers"]
    }


def make_document(settings: Settings, routes: Collection[tuple[str, str]]) -> Schema:
    """Return the document of a server with these settings and routes."""
    schemas = Schemas(MEANINGS, RULES, TYPE_NAMES)
    shapes = shapes_of(schemas, settings)
    paths: dict[str, Schema] = {}
    served = {(method, rule.replace("<", "{").replace(">", "}")) for method, rule in routes}
    for (method, path), call in ALL_CALLS.items():
        if (method, path) not in served:
            continue
        servers = [{"url": prefix or "/"} for prefix in (PREFIXES if call.native else ("",))]
        item = paths.setdefault(path, {"servers": servers})
        item[method.lower()] = _operation(method, path, call, shapes, settings)
        if method == "GET" and path in ALSO_HEAD:
            item["head"] = _head_of(item["get"])
    return {
        "openapi": "3.1.0",
        "info": {"title": "proteus-shards", "version": __version__, "description": _ABOUT, "license": {"name": "MIT OR Apache-2.0"}},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(call.tag for call in ALL_CALLS.values())],
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.components.items()))}
        | ({"securitySchemes": _SCHEMES} if settings.tokens_file else {}),
    }


def _operation(method: str, path: str, call: Described, shapes: dict[str, Schema], settings: Settings) -> Schema:
    shown: Schema = {
        "operationId": f"{method.lower()}{re.sub(r'[^a-z0-9]+', '_', path)}",
        "summary": call.summary,
        "tags": [call.tag],
    }
    if call.help:
        shown["description"] = call.help
    if call.parameters:
        shown["parameters"] = [_parameter(name, settings) for name in call.parameters]
    if call.body is not None:
        shown["requestBody"] = {"required": call.body.required, "content": _contents(call.body, shapes)}
        if call.body.help:
            shown["requestBody"]["description"] = call.body.help
    responses = {str(status): _response(answer, shapes) for status, answer in call.answers.items()}
    wrong = ([422] if call.native and call.asks_shards else []) + ([413] if call.body is not None and 413 not in call.answers else [])
    for status in wrong + ([429, 500, 503] if call.asks_shards else []):
        responses[str(status)] = {"description": _REFUSED[status], "content": _PROBLEM}
    for late in {"429", "503"} & responses.keys():
        responses[late]["headers"] = {"Retry-After": _RETRY_AFTER}
    rule = rule_of(method, path)
    if settings.tokens_file and rule != OPEN:
        shown["security"] = [{"token": sorted(rule.scopes) if rule is not None else []}]
        for status in (401, 403):
            responses[str(status)] = {"description": _REFUSED[status], "content": _PROBLEM}
    shown["responses"] = dict(sorted(responses.items()))
    return shown


def _head_of(get: Schema) -> Schema:
    """Return a HEAD: the answers of the GET without their bodies."""
    bare = {status: {name: part for name, part in answer.items() if name != "content"} for status, answer in get["responses"].items()}
    return {**get, "operationId": get["operationId"].replace("get_", "head_", 1), "responses": bare}


def _parameter(word: str, settings: Settings) -> Schema:
    name = word.rstrip("!").lstrip("/")
    schema, meaning = PARAMETERS[name]
    bounds = {
        "relay_wait": settings.wait_seconds_max,
        "num_jobs": settings.num_jobs_max,
        "num_dead": settings.num_jobs_max,
        "limit": settings.num_jobs_max,
        "wait": settings.wait_seconds_max,
    }
    if name in bounds:
        schema = {**schema, "maximum": bounds[name]}
    if name.endswith("*"):
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": settings.next_queues_max, "uniqueItems": True}
    shown = {"num_dead": "num_jobs", "purge_state": "state", "schedule_name": "name", "queue_or_all": "queue"}.get(name, name.rstrip("*"))
    if name.startswith("after_"):
        shown = "after"
    return {
        "name": shown.removeprefix("relay_").lstrip("^"),
        "in": {"/": "path", "^": "header"}.get(word[0], "query"),
        "required": word.endswith("!"),
        "schema": schema,
        "description": meaning,
    }


def _contents(body: Body, shapes: dict[str, Schema]) -> Schema:
    return {media: {"schema": shapes[shape]} for media, shape in body.contents.items()}


def _response(answer: Body, shapes: dict[str, Schema]) -> Schema:
    shown: Schema = {"description": answer.help}
    if answer.contents:
        shown["content"] = _contents(answer, shapes)
    return shown
