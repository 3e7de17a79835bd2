"""Requests that another site's page makes a browser send. They are refused: whoever runs a server on loopback, without tokens, also reads the web.

A page of another site may make a browser send many a request here without asking anyone: any GET (an image will do), a form's POST. It sees no
answer, but a `next` has taken its job by then. A browser says where a request comes from: `Sec-Fetch-Site`, or where it is too old for that `Origin`,
which must then be this host. What is no browser sends neither, and is none of this module's business.

A link to the dashboard, and to what else is there to be read, may be followed from anywhere. So may a page opened by hand or from a bookmark.
"""

from __future__ import annotations

from collections.abc import Iterable

from proteus_shards.front.answers import Problem

FIELDS = frozenset({b"sec-fetch-site", b"origin"})  # the fast lane leaves a request with one of them to those who look closer

_OWN_SITES = frozenset({b"same-origin", b"none"})
_LINKED = frozenset({"/", "/docs", "/openapi.json", "/health", "/ready", "/metrics"})
_FOREIGN = Problem(status=403, detail="this request comes from a page of another site")


def foreign(method: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> Problem | None:
    """Return the problem of a request that comes from a page of another site, if it does. `headers` have lower-case names."""
    found = {name: value for name, value in headers if name in FIELDS or name in {b"host", b":authority", b"sec-fetch-mode"}}
    site, origin = found.get(b"sec-fetch-site"), found.get(b"origin")
    if site is not None:
        if site in _OWN_SITES:
            return None
    elif origin is None or _is_host(origin, found.get(b"host") or found.get(b":authority") or b""):
        return None
    reads = method in {"GET", "HEAD"} and path.removeprefix("/v1") in _LINKED
    return None if reads and found.get(b"sec-fetch-mode") == b"navigate" else _FOREIGN


def _is_host(origin: bytes, host: bytes) -> bool:
    """Say whether an origin (scheme://host:port) is this host."""
    scheme, _, authority = origin.lower().partition(b"://")
    default = b":443" if scheme == b"https" else b":80"
    return bool(host) and authority.removesuffix(default) == host.lower().removesuffix(default)
