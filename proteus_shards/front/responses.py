"""From an `Answer` to what Quart sends. It adds nothing: no default content type, and no content-length on a 204 or 304 (RFC 9110 §8.6)."""

from __future__ import annotations

from quart_trio.wrappers import TrioResponse

from proteus_shards.front.answers import Answer

BODILESS = frozenset({204, 304})


class PlainResponse(TrioResponse):
    """A response with the headers that it was given, and no others."""

    default_mimetype = None  # type: ignore[assignment]


def response_of(answer: Answer) -> PlainResponse:
    """Return an answer as Quart sends it."""
    response = PlainResponse(answer.body, answer.status)
    for name, value in answer.headers:
        response.headers[name] = value
    if answer.status in BODILESS:
        del response.headers["content-length"]
    return response
