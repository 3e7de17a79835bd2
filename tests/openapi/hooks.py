"""What schemathesis is told of this API that a schema cannot say. Loaded by its own process.

A whole number is written without a fraction: `30.0` is an integer to JSON Schema, and not to the server.
"""

from __future__ import annotations

from typing import Any

import schemathesis


def whole(value: Any) -> Any:
    """Return a value whose whole numbers are written as such."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: whole(part) for name, part in value.items()}
    return [whole(part) for part in value] if isinstance(value, list) else value


@schemathesis.hook
def map_body(_context: Any, body: Any) -> Any:
    """See `whole`."""
    return whole(body)


@schemathesis.serializer("application/x-ndjson", "application/jsonl")
def as_it_is(_context: Any, value: Any) -> bytes:
    """Lines are a text."""
    return str(value).encode("utf-8", "surrogatepass")
