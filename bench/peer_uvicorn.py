"""A bare peer: the least that an ASGI application under uvicorn can do with an enqueued job.

It reads the body, parses the same job with msgspec (types, required fields and unknown fields checked, payload kept raw), and answers
202 without keeping anything: no queue, no second process, no store. What it reaches is about what Python's usual fast HTTP stack leaves for
a server to spend. It takes a free port and prints the address.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec
import uvicorn

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Job(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The fields of an enqueued job, as the product's own API has them."""

    id: str
    queue: str
    timeout: int
    persist_data: bool = False
    max_retries: int = 0
    payload: msgspec.Raw = msgspec.Raw(b"null")
    state: msgspec.Raw = msgspec.Raw(b"null")
    run_at: str | None = None


_jobs = msgspec.json.Decoder(Job)
_LENGTH_0 = [(b"content-length", b"0")]


async def app(_scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Answer every request as if it were an enqueue."""
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    try:
        _jobs.decode(body)
        status = 202
    except msgspec.DecodeError:
        status = 422
    await send({"type": "http.response.start", "status": status, "headers": _LENGTH_0})
    await send({"type": "http.response.body", "body": b""})


def main() -> None:
    """Serve until told to end."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="warning", ws="none")
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
