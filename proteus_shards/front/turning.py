"""What a connection to Hypercorn asks of each request that comes by itself: a place, or the words with which it is turned away.

To refuse a request in the app costs nearly as much as to serve it (0.96 and 0.98 ms): most of that is Hypercorn's. Here it is a head that the guard has
read anyway, and bytes that are written once a second.
"""

from __future__ import annotations

from proteus_shards.front import relay
from proteus_shards.front.admission import Place
from proteus_shards.front.answers import Answer, Problem, too_many_at_once
from proteus_shards.front.counts import count_problem
from proteus_shards.front.heads import Head
from proteus_shards.front.http1 import AnswerWriter
from proteus_shards.front.operations import PREFIXES
from proteus_shards.front.router import Router
from proteus_shards.front.routes import ROUTES

_NATIVE = {(method, (prefix + path).encode()): path for method, path in ROUTES for prefix in PREFIXES}


class Turnstile:
    """That of one front. Only calls of the two APIs are turned away here; what else there is goes on to the app."""

    def __init__(self, router: Router) -> None:
        self._admission = router.admission
        self._counts = router.counts
        self._writer = AnswerWriter()
        self._busy = too_many_at_once(self._admission.requests_max)
        self._known: dict[Problem, Answer] = {}

    def pass_or_tell(self, head: Head) -> Place | bytes | None:
        """Return a place for a request, or what it is told; None: that is for the app to say."""
        path = head.target.partition(b"?")[0]
        label = _NATIVE.get((head.method, path))
        call = relay.route_of(head.method, path) if label is None else None
        if call is not None and call.fault is None:
            label = call.pattern
        if label is None:
            return None
        place = self._admission.place()
        if place is not None or head.expects or head.http10 or not head.keep_alive:
            return place
        problem = self._busy if call is None else call.busy(self._busy)
        self._counts.of("quart", label)[problem.status] += 1
        answer = self._known.get(problem)
        if answer is None:
            answer = self._known[problem] = problem.answer(counted=False)
        count_problem(problem.status, problem.detail)
        self._writer.tick()
        return self._writer.write(answer, keep_alive=True, http10=False)
