"""The dashboard: its page at `/`, the files that the page loads, and the stream that keeps it up to date.

The page is one shell. What it shows follows from its query string (`/?view=job&queue=…&job_id=…`), since a name may hold anything that a path cannot.
It speaks the same API as everybody else, so nothing is decided here that a client could not do, and nothing is allowed here that a
token does not allow elsewhere. Shell and files hold no data and are shown to all.

**The page trusts no text.** What comes from jobs is put in as text and never as markup, and the headers see to it that a slip has no effect: no script,
style, image or connection but from this server, nothing inline, no markup made of strings (`require-trusted-types-for`), no frame around it.

Files are read once, at the start. They go out with an ETag and are asked for again each time: a page never mixes the files of two versions.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import TYPE_CHECKING, Any, cast

import jinja2
from quart import Response, request
from quart_trio import QuartTrio

from proteus_shards import __version__
from proteus_shards.front.answers import Answer, Problem, json_answer
from proteus_shards.front.exchange import GRANT_KEY
from proteus_shards.front.responses import PlainResponse, response_of
from proteus_shards.front.viewers import Viewers
from proteus_shards.tokens import Scope

if TYPE_CHECKING:
    from proteus_shards.tokens import Grant

FILES_PATH = "/dashboard/static"
EVENTS_PATH = "/dashboard/events"
ACCESS_PATH = "/dashboard/access"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'; require-trusted-types-for 'script'; trusted-types 'none'"
)
GUARDS = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
)

View = Callable[[], Awaitable[Response]]


class File:
    """One file as it goes out."""

    def __init__(self, name: str, content: bytes) -> None:
        self._content = content
        self._packed = gzip.compress(content, mtime=0)
        self._type = TYPES[name[name.rindex(".") :]]
        self._tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'

    def answer(self, known: str | None, codings: str | None) -> Answer:
        """Return the answer to a request with these fields If-None-Match and Accept-Encoding."""
        headers = (("content-type", self._type), ("etag", self._tag), ("cache-control", "no-cache"), ("vary", "accept-encoding"), *GUARDS)
        if known is not None and self._tag in known:
            return Answer(304, headers)
        if codings is not None and "gzip" in codings:
            return Answer(200, (*headers, ("content-encoding", "gzip")), self._packed)
        return Answer(200, headers, self._content)


def read_files() -> dict[str, File]:
    """Return the page (under an empty name) and all files beside it, by name."""
    root = resources.files("proteus_shards").joinpath("dashboard")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(root.joinpath("page.html").read_text(encoding="utf-8"))
    page = template.render(version=__version__, files=FILES_PATH, events=EVENTS_PATH)
    found = {"": File("page.html", page.encode())}
    for entry in root.joinpath("static").iterdir():
        found[entry.name] = File(entry.name, entry.read_bytes())
    return found


def add_dashboard_routes(app: QuartTrio, viewers: Viewers) -> None:
    """Add the dashboard."""
    for name, file in read_files().items():
        _add(app, f"{FILES_PATH}/{name}" if name else "/", _file_view(file), head=True)
    _add(app, EVENTS_PATH, _events_view(viewers), head=False)
    _add(app, ACCESS_PATH, _access_view(), head=False)


def _add(app: QuartTrio, path: str, view: View, *, head: bool) -> None:
    endpoint = f"GET {path}"
    app.add_url_rule(path, endpoint, view, methods=["GET"], provide_automatic_options=False)
    for rule in app.url_map.iter_rules(endpoint):
        if rule.methods is not None and not head:
            rule.methods.discard("HEAD")


def _file_view(file: File) -> View:
    async def view() -> Response:
        """Show a file."""
        return response_of(file.answer(request.headers.get("if-none-match"), request.headers.get("accept-encoding")))

    return view


def _access_view() -> View:
    async def view() -> Response:
        """Tell what whoever asks may do, so that a page offers nothing else."""
        grant = cast("Grant | Problem | None", request.scope.get(GRANT_KEY))
        if grant is None:  # nobody is asked, and everyone may do everything
            found: dict[str, Any] = {"scopes": list(Scope), "every_queue": True}
        elif isinstance(grant, Problem):
            found = {"scopes": [], "every_queue": False}
        else:
            found = {"scopes": sorted(grant.scopes), "every_queue": grant.every_queue}
        shown = json_answer(found)
        return response_of(Answer(shown.status, (*shown.headers, ("cache-control", "no-store"), *GUARDS), shown.body))

    return view


def _events_view(viewers: Viewers) -> View:
    async def view() -> Response:
        """Keep a page up to date for as long as it looks."""
        refused = viewers.refusal()
        if refused is not None:
            return response_of(refused.answer())
        response = PlainResponse(viewers.frames(), 200)
        for name, value in (("content-type", "text/event-stream"), ("cache-control", "no-store"), ("x-accel-buffering", "no"), *GUARDS):
            response.headers[name] = value
        return response

    return view
