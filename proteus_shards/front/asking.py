"""From a whole request of the fast lane to what is asked: who asks, whether that is allowed, and what the body and the query mean. Sync."""

from __future__ import annotations

from proteus_shards.config import Settings
from proteus_shards.front.access import Access, Rule, check_asked, check_route
from proteus_shards.front.answers import Problem
from proteus_shards.front.batches import batch
from proteus_shards.front.bodies import unpack_body
from proteus_shards.front.errands import Errand
from proteus_shards.front.http1 import Request, Terms
from proteus_shards.front.once import enqueue_once, not_for_batches
from proteus_shards.front.operations import Ask, Parse, enqueue
from proteus_shards.front.relay import Call
from proteus_shards.front.routes import ROUTES_WITH_BODY
from proteus_shards.front.tracing import traced


def understand(request: Request, parse: Parse, rule: Rule | None, access: Access | None, settings: Settings) -> Ask | Errand | Problem:
    """Return what a request asks for, or why it may not or cannot."""
    terms = request.terms
    if access is None:
        return parse(request.body, request.query, settings) if terms.ordinary else _read(request, terms, parse, settings)
    grant = access.grant_of(terms.authorization)
    if isinstance(grant, Problem):
        return grant
    if (refused := check_route(grant, rule)) is not None:
        return refused
    asked = parse(request.body, request.query, settings) if terms.ordinary else _read(request, terms, parse, settings)
    return check_asked(grant, asked) or asked


def _read(request: Request, terms: Terms, parse: Parse, settings: Settings) -> Ask | Errand | Problem:
    """Return what a request asks for that has a content coding, an idempotency key or a trace."""
    body: bytes | Problem = request.body
    if terms.content_encoding is not None:
        if isinstance(parse, Call):
            body = parse.unpack(request.body, terms.content_encoding, settings)
        elif parse in ROUTES_WITH_BODY:
            body = unpack_body(request.body, terms.content_encoding, settings.body_size_max)
    if isinstance(body, Problem):
        return body
    if terms.idempotency_key is not None and parse is enqueue:
        asked: Ask | Errand | Problem = enqueue_once(terms.idempotency_key, body, request.query, settings)
    elif terms.idempotency_key is not None and parse is batch:
        asked = not_for_batches()
    else:
        asked = parse(body, request.query, settings)
    return asked if terms.traceparent is None else traced(asked, terms.traceparent)
