"""From a whole request of the fast lane to what is asked: who asks, whether that is allowed, and what the body and the query mean. Sync."""

from __future__ import annotations

from proteus_shards.config import Settings
from proteus_shards.front.access import Access, Rule, check_asked, check_route
from proteus_shards.front.answers import Problem
from proteus_shards.front.batches import batch
from proteus_shards.front.bodies import unpack_body
from proteus_shards.front.errands import Errand
from proteus_shards.front.http1 import Request
from proteus_shards.front.once import enqueue_once, not_for_batches
from proteus_shards.front.operations import Ask, Parse, enqueue
from proteus_shards.front.relay import Call
from proteus_shards.front.routes import ROUTES_WITH_BODY
from proteus_shards.front.tracing import traced


def understand(request: Request, parse: Parse, rule: Rule | None, access: Access | None, settings: Settings) -> Ask | Errand | Problem:
    """Return what a request asks for, or why it may not or cannot."""
    if access is None:
        return _read(request, parse, settings)
    grant = access.grant_of(request.authorization)
    if isinstance(grant, Problem):
        return grant
    refused = check_route(grant, rule)
    if refused is not None:
        return refused
    asked = _read(request, parse, settings)
    return check_asked(grant, asked) or asked


def _read(request: Request, parse: Parse, settings: Settings) -> Ask | Errand | Problem:
    body: bytes | Problem = request.body
    if request.content_encoding is not None:
        if isinstance(parse, Call):
            body = parse.unpack(request.body, request.content_encoding, settings)
        elif parse in ROUTES_WITH_BODY:
            body = unpack_body(request.body, request.content_encoding, settings.body_size_max)
    if isinstance(body, Problem):
        return body
    if request.idempotency_key is not None and parse is enqueue:
        asked: Ask | Errand | Problem = enqueue_once(request.idempotency_key, body, request.query, settings)
    elif request.idempotency_key is not None and parse is batch:
        asked = not_for_batches()
    else:
        asked = parse(body, request.query, settings)
    return asked if request.traceparent is None else traced(asked, request.traceparent)
