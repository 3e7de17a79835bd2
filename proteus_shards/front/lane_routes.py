"""What the fast lane serves: the native calls by their exact paths, and relay's by their form."""

from __future__ import annotations

from typing import TypeAlias

from proteus_shards.front import relay
from proteus_shards.front.access import Rule, rule_of
from proteus_shards.front.counts import OTHER, RequestCounts
from proteus_shards.front.http1 import serves_among
from proteus_shards.front.operations import PREFIXES, Parse
from proteus_shards.front.routes import LANE_ROUTES

NATIVE = {(verb, (prefix + path).encode()): parse for (verb, path), parse in LANE_ROUTES.items() for prefix in PREFIXES}
serves = serves_among(NATIVE, relay.PREFIXES)

Route: TypeAlias = "tuple[Parse, list[int], Rule | None]"
"""What a call means, where its answers are counted, and who may ask for it."""


class Routes(dict[tuple[str, bytes], Route]):
    """Route by method and raw path, of all that `serves` says yes to. One of relay's is made when it is asked for."""

    def __init__(self, counts: RequestCounts) -> None:
        super().__init__()
        self._counts = counts
        for (method, path), parse in NATIVE.items():
            self[method, path] = (parse, counts.of("lane", relay.label_of(path.decode())), rule_of(method, path.decode()))

    def __missing__(self, key: tuple[str, bytes]) -> Route:
        """Return a route of relay's."""
        method, path = key
        call = relay.route_of(method, path)
        assert call is not None, "the lane serves its own routes and those of relay"
        pattern = call.pattern if call.pattern is not None else OTHER
        return call, self._counts.of("lane", pattern), rule_of(method, pattern)
