"""Requests for the tests of what they mean."""

from __future__ import annotations

import json
import uuid
from typing import Any

from proteus_shards.config import Settings
from proteus_shards.core.commands import (
    Delivery,
)
from proteus_shards.front.answers import PROBLEM_HEADERS, Problem
from proteus_shards.front.operations import Ask, Parse, QueueCommand

SETTINGS = Settings(shards=1, num_jobs_max=10, wait_seconds_max=60.0)
RUN_ID = uuid.UUID("0190b5a4-7c3e-7abc-8def-0123456789ab")
RUN = f"queue=q&job_id=j&run_id={RUN_ID}".encode()


def job_body(**changes: object) -> bytes:
    """Return a job as JSON; a field that is changed to `...` is left out."""
    job: dict[str, object] = {"id": "j", "queue": "q", "timeout": 30, **changes}
    return json.dumps({field: value for field, value in job.items() if value is not ...}).encode()


def command_of(parse: Parse, body: bytes = b"", query: bytes = b"") -> QueueCommand:
    """Return the command that a good request means."""
    asked = parse(body, query, SETTINGS)
    assert isinstance(asked, Ask), asked
    return asked.command


def problem_of(parse: Parse, body: bytes = b"", query: bytes = b"") -> dict[str, Any]:
    """Return the body of the problem that a bad request gets. It is always 422 and names a field."""
    asked = parse(body, query, SETTINGS)
    assert isinstance(asked, Problem), asked
    shown = asked.answer()
    assert shown.status == 422
    assert shown.headers == PROBLEM_HEADERS
    problem: dict[str, Any] = json.loads(shown.body)
    assert {"title", "status", "detail", "retryable", "field"} == set(problem)
    assert problem["detail"].startswith(f"{problem['field']}: ")
    return problem


DELIVERY = Delivery("q", "jü", 30, True, -1, b'{ "a":1.00}', b"[ ]", 1_896_082_200_500_000, RUN_ID.bytes, 2, 0, 1)


def ask(parse: Parse, query: bytes = b"", body: bytes = b"") -> Ask:
    """Return a good request understood."""
    asked = parse(body, query, SETTINGS)
    assert isinstance(asked, Ask)
    return asked
