"""What schemathesis is told of this API that a schema cannot say. Loaded by its own process.

A whole number is written without a fraction: `30.0` is an integer to JSON Schema, and not to the server. A job may lack a timeout only where its queue has a default.
"""

from __future__ import annotations

from typing import Any

import schemathesis


def whole(value: Any) -> Any:
    """Return a value whose whole numbers are written as such, and whose jobs have a timeout."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        value = {"timeout": 30, **value} if {"id", "queue"} <= value.keys() else value
        return {name: whole(part) for name, part in value.items()}
    return [whole(part) for part in value] if isinstance(value, list) else value


@schemathesis.hook
def map_body(_context: Any, body: Any) -> Any:
    """See `whole`."""
    return whole(body)


@schemathesis.hook
def filter_case(_context: Any, case: Any) -> bool:
    """Leave out idempotency keys: whether one is right depends on what was sent with it before."""
    return "Idempotency-Key" not in (case.headers or {})


@schemathesis.serializer("application/x-ndjson", "application/jsonl")
def as_it_is(_context: Any, value: Any) -> bytes:
    """Lines are a text."""
    return str(value).encode("utf-8", "surrogatepass")
