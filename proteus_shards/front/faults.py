"""What goes wrong inside: told to the log in full, and to the client as a number under which the log has it."""

from __future__ import annotations

import logging
import secrets

from proteus_shards.front.answers import Problem

log = logging.getLogger("proteus_shards.front")


def log_fault(error: BaseException) -> Problem:
    """Log a fault under a new request id, and return the problem that tells the client no more than that id."""
    request_id = secrets.token_hex(8)
    log.error("a request failed", exc_info=error, extra={"request_id": request_id})
    return Problem(
        status=500,
        detail="an internal error; the server's log has it under the request_id",
        request_id=request_id,
        headers=(("x-request-id", request_id),),
    )
