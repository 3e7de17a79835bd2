"""Relay's API on Quart: one view for all its routes, since what a call means stands in `relay`.

Quart matches decoded paths, in which a name may hold a slash. So the gate before it has found the route by the raw path, and gives it a path that
fits; the names come with the scope.
"""

from __future__ import annotations

from typing import cast

from quart import Response, request
from quart_trio import QuartTrio

from proteus_shards.config import Settings
from proteus_shards.front import relay
from proteus_shards.front.native import respond
from proteus_shards.front.router import Router


def add_relay_routes(app: QuartTrio, router: Router, settings: Settings) -> None:
    """Add the routes of both generations of relay's API."""

    async def view(**_names: str) -> Response:
        call = cast("relay.Call", request.scope.get(relay.SCOPE_KEY))
        arrived = cast("bytes", await request.get_data(cache=False)) if call.method in relay.WITH_BODY else b""
        body = call.unpack(arrived, request.headers.get("content-encoding"), settings)
        return await respond(body if not isinstance(body, bytes) else call(body, request.query_string, settings), router)

    for pattern, calls in relay.ROUTES.items():
        for method in calls:
            app.add_url_rule(pattern, f"{method} {pattern}", view, methods=[method], provide_automatic_options=False)
    for rule in app.url_map.iter_rules():
        if rule.methods is not None and rule.rule in relay.ROUTES and "HEAD" not in relay.ROUTES[rule.rule]:
            rule.methods.discard("HEAD")
