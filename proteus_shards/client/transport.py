"""What both clients share: where the server is, how to speak to it, and how what httpx2 raises is told apart.

httpx2 carries the requests: it is the one kept-up library that serves threads, trio and asyncio with one interface, and it keeps connections open.
Measured against a server on loopback: 2,000 enqueues a second from one thread, 0.5 ms each, nearly all of it in the library.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import Any, TypeVar

import httpx2
import msgspec

from proteus_shards.client.calls import Call
from proteus_shards.client.errors import BadAnswer, ClientError, Conflict, NotFound, NotReached, Unanswered, refusal_of
from proteus_shards.client.retries import Retries, leaves_open
from proteus_shards.errors import SettingError

T = TypeVar("T")

URL_VARIABLE = "PROTEUS_URL"
TOKEN_VARIABLE = "PROTEUS_TOKEN"  # noqa: S105 the name of a variable
URL_DEFAULT = "http://127.0.0.1:8080"

CONNECT_SECONDS_MAX = 5.0
ANSWER_SECONDS_MAX = 40.0  # more than the server's own request_seconds_max, so that its 503 is heard
CONNECTIONS_IDLE_SECONDS_MAX = 30.0  # less than the server's connection_idle_seconds_max: the client closes first
CONNECTIONS_MAX = 1000

_SURELY_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a client reaches its server. Times are seconds."""

    url: str
    token: str | None
    verify: Any
    answer_seconds_max: float
    retries: Retries

    @property
    def kwargs(self) -> dict[str, Any]:
        """What httpx2's clients are made with."""
        headers = {"accept": "application/json"}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        return {
            "headers": headers,
            "verify": self.verify,
            "timeout": httpx2.Timeout(self.answer_seconds_max, connect=CONNECT_SECONDS_MAX),
            "limits": httpx2.Limits(
                max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX, keepalive_expiry=CONNECTIONS_IDLE_SECONDS_MAX
            ),
            "follow_redirects": False,
        }

    def request(self, call: Call[Any]) -> dict[str, Any]:
        """Return the arguments of httpx2's `request` for a call; a body of many pieces is left to the caller."""
        timeout = httpx2.Timeout(self.answer_seconds_max + call.wait, connect=CONNECT_SECONDS_MAX)
        return {"method": call.method, "url": self.url + call.target, "headers": call.headers, "timeout": timeout}


def options_of(
    url: str | None,
    token: str | None,
    verify: ssl.SSLContext | bool,
    ca: str | None,
    cert: tuple[str, str] | str | None,
    answer_seconds_max: float,
    retries: Retries | None,
    environ: Mapping[str, str] = os.environ,
) -> Options:
    """Return the options of a client, those that were left out from the environment. Raises `SettingError`."""
    place = (url or environ.get(URL_VARIABLE) or URL_DEFAULT).rstrip("/")
    try:
        parsed = httpx2.URL(place)
    except httpx2.InvalidURL as error:
        raise SettingError("url: is not a URL") from error
    if (parsed.port or 0) > 65535 or parsed.scheme not in {"http", "https"} or not parsed.host or parsed.query or parsed.fragment:
        raise SettingError("url: must be http://HOST:PORT or https://HOST:PORT, with a path at most")
    token = token or environ.get(TOKEN_VARIABLE)
    if token is not None and (not token.isascii() or not token.isprintable()):
        raise SettingError("token: must be printable ASCII")
    try:
        if ca is not None or cert is not None:
            if not isinstance(verify, bool):
                raise SettingError("verify: an SSL context has its own ca and cert")
            context = ssl.create_default_context(cafile=ca)
            if not verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if cert is not None:
                context.load_cert_chain(*([cert] if isinstance(cert, str) else cert))
            verify = context
    except OSError as error:  # ssl.SSLError is one
        raise SettingError(f"ca, cert: cannot be used: {error.strerror or error}") from error
    return Options(url=place, token=token, verify=verify, answer_seconds_max=answer_seconds_max, retries=retries or Retries())


def fault_of(error: httpx2.HTTPError) -> ClientError:
    """Return what a fault of the transport means to a caller."""
    what = str(error) or type(error).__name__
    kind = NotReached if isinstance(error, (*_SURELY_NOT_SENT, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)) else Unanswered
    return kind(f"{(kind.__doc__ or '').rstrip('.')}: {what}")


def read(call: Call[T], response: httpx2.Response) -> T:
    """Return what an answer means. Raises `Refusal` and `BadAnswer`."""
    if response.status_code not in call.accepts:
        raise refusal_of(response.status_code, response.content, response.headers.get("retry-after"))
    try:
        return call.read(response.status_code, response.content)
    except (msgspec.DecodeError, KeyError, UnicodeDecodeError) as error:
        raise BadAnswer from error


def note_earlier(error: ClientError, before: ClientError | None) -> None:
    """Mark a last answer that may be the trace of an earlier try of the same call."""
    if before is not None and isinstance(error, NotFound | Conflict):
        error.after_unknown = True


def open_of(error: ClientError, before: ClientError | None) -> ClientError | None:
    """Return the latest error that left open what became of a call."""
    return error if leaves_open(error) else before
