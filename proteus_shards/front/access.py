"""Who may ask what: every route and its rule, in one table, and the check that the fast lane and Quart share.

How to think about it: a request shows a token or a certificate, which is a `Grant` (see `tokens`) or nothing. Its route has a `Rule`, which names the scopes of which it needs one.
What it asks for names queues, and the grant must cover each of them, by the very text that goes to the shard: whatever was escaped, folded or doubled
on the way has been decoded by then. In a batch each operation is checked by itself, and one that is not allowed is a 403 among the answers.
What adds jobs beside what its route is for (relay's requeue and replace) needs PRODUCE as well.

- **A route without a rule is refused** wherever there are tokens, and a test walks all routes.
- **Without a tokens file nobody is asked**, and none of this runs.
- **The token stands in the header and nowhere else**, since URLs are logged everywhere. A token beside a certificate is what counts.
- A token that was right is remembered by its text until the file changes: a lookup instead of a comparison with every line. What was wrong is not remembered.
- The file is looked at every second. One that cannot be used is logged, and what was read before goes on to count: an error in an editor locks nobody out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
import trio

from proteus_shards.core.commands import Command, Complete, Enqueue, Heartbeat, Next, Replace
from proteus_shards.core.commands_control import Fail, Release
from proteus_shards.errors import SettingError
from proteus_shards.front.answers import Problem
from proteus_shards.front.errands import CompleteAndNext
from proteus_shards.front.operations import Ask
from proteus_shards.tokens import Grant, Grants, Scope, read_grants

LOOK_SECONDS = 1.0
REMEMBERED_MAX = 1024

log = logging.getLogger("proteus_shards.front")


class Rule(msgspec.Struct, frozen=True):
    """What a route needs: one of these scopes, or none at all. `whole`: what it shows is of all queues, and so must the grant be."""

    scopes: frozenset[Scope] = frozenset()
    whole: bool = False


OPEN = Rule()
_PRODUCE = Rule(frozenset({Scope.PRODUCE}))
_CONSUME = Rule(frozenset({Scope.CONSUME}))
_READ = Rule(frozenset({Scope.READ}))
_READ_ALL = Rule(frozenset({Scope.READ}), whole=True)
_ADMIN = Rule(frozenset({Scope.ADMIN}))
_ADMIN_ALL = Rule(frozenset({Scope.ADMIN}), whole=True)
_LOOK = Rule(frozenset({Scope.READ, Scope.CONSUME}))  # shows what only a runner gets otherwise
_ANY = Rule(frozenset({Scope.READ, Scope.PRODUCE, Scope.CONSUME}))  # relay's clients look whether a job is there
_EITHER = Rule(frozenset({Scope.PRODUCE, Scope.CONSUME}))  # what it holds is checked one by one

RULES: dict[tuple[str, str], Rule] = {
    ("POST", "/enqueue"): _PRODUCE,
    ("GET", "/next"): _CONSUME,
    ("PATCH", "/heartbeat"): _CONSUME,
    ("DELETE", "/complete"): _CONSUME,
    ("POST", "/complete-and-next"): _CONSUME,
    ("POST", "/fail"): _CONSUME,
    ("POST", "/release"): _CONSUME,
    ("POST", "/batch"): _EITHER,
    ("GET", "/queues"): _READ_ALL,
    ("GET", "/queue"): _READ,
    ("PATCH", "/queue"): _ADMIN,
    ("POST", "/pause"): _ADMIN,
    ("POST", "/resume"): _ADMIN,
    ("POST", "/purge"): _ADMIN,
    ("GET", "/jobs"): _READ,
    ("GET", "/job"): _READ,
    ("DELETE", "/job"): _ADMIN,
    ("PATCH", "/job"): _ADMIN,
    ("GET", "/find"): _READ_ALL,
    ("GET", "/dead"): _READ,
    ("POST", "/redrive"): _ADMIN,
    ("GET", "/schedules"): _READ,
    ("GET", "/schedule"): _READ,
    ("PUT", "/schedule"): _ADMIN,
    ("DELETE", "/schedule"): _ADMIN,
    ("GET", "/cluster"): _READ_ALL,
    ("POST", "/cluster/move"): _ADMIN_ALL,
    ("POST", "/cluster/drain"): _ADMIN_ALL,
    ("POST", "/cluster/forget"): _ADMIN_ALL,
    ("POST", "/v1/queues/jobs"): _PRODUCE,
    ("PUT", "/v1/queues/jobs"): _CONSUME,
    ("GET", "/v1/queues/<queue>/jobs"): _CONSUME,
    ("HEAD", "/v1/queues/<queue>/jobs/<job_id>"): _ANY,
    ("GET", "/v1/queues/<queue>/jobs/<job_id>"): _LOOK,
    ("PATCH", "/v1/queues/<queue>/jobs/<job_id>"): _CONSUME,
    ("DELETE", "/v1/queues/<queue>/jobs/<job_id>"): _CONSUME,
    ("POST", "/v2/queues/jobs"): _PRODUCE,
    ("GET", "/v2/queues/<queue>/jobs"): _CONSUME,
    ("HEAD", "/v2/queues/<queue>/jobs/<job_id>"): _ANY,
    ("GET", "/v2/queues/<queue>/jobs/<job_id>"): _LOOK,
    ("DELETE", "/v2/queues/<queue>/jobs/<job_id>"): _CONSUME,
    ("PATCH", "/v2/queues/<queue>/jobs/<job_id>/run-id/<run_id>"): _CONSUME,
    ("PUT", "/v2/queues/<queue>/jobs/<job_id>/run-id/<run_id>"): _CONSUME,
    ("DELETE", "/v2/queues/<queue>/jobs/<job_id>/run-id/<run_id>"): _CONSUME,
    ("GET", "/health"): OPEN,
    ("HEAD", "/health"): OPEN,
    ("GET", "/ready"): _READ,
    ("HEAD", "/ready"): _READ,
    ("GET", "/metrics"): _READ_ALL,
    ("GET", "/openapi.json"): OPEN,
    ("GET", "/docs"): OPEN,
    ("GET", "/"): OPEN,  # the dashboard's page and its files hold no data
    ("HEAD", "/"): OPEN,
    ("GET", "/dashboard/access"): OPEN,  # what one's own token allows
    ("GET", "/dashboard/events"): _READ_ALL,
}
OPEN_PREFIXES = ("/dashboard/static/",)

_SCOPES: dict[type[Any], Scope] = {  # of the operations in a batch
    Enqueue: Scope.PRODUCE,
    Next: Scope.CONSUME,
    Heartbeat: Scope.CONSUME,
    Complete: Scope.CONSUME,
    Fail: Scope.CONSUME,
    Release: Scope.CONSUME,
}
_OF_ONE_QUEUE = frozenset({Enqueue, Next, Heartbeat, Complete})
_BAD_SCHEME = "authorization: must be Bearer and a token of this server"


def rule_of(method: str, path: str) -> Rule | None:
    """Return the rule of a route, or None where there is none."""
    rule = RULES.get((method, path)) or RULES.get((method, path.removeprefix("/v1")))
    if rule is None and method in {"GET", "HEAD"} and path.startswith(OPEN_PREFIXES):
        return OPEN
    return rule


class Access:
    """The tokens file of one front. `read_wall` gives the time in seconds since 1970."""

    def __init__(self, path: str, read_wall: Callable[[], float] = time.time) -> None:
        """Raise `SettingError` where the file can't be used."""
        self._path = path
        self._read_wall = read_wall
        self._stamp = self._look()
        self._grants: Grants = read_grants(path)
        self._known: dict[bytes | None, Grant] = {}

    async def watch_forever(self) -> None:
        """Read the file again whenever it changes."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            self.refresh()

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._grants = read_grants(self._path)
        except SettingError as error:
            log.error("the tokens file has changed and can't be used, what was read before counts", extra={"error": str(error)})  # noqa: TRY400
            return
        self._known.clear()
        log.info("the tokens file has changed and counts from now on", extra={"lines": len(self._grants)})

    def grant_of(self, authorization: bytes | None, names: Collection[str] = ()) -> Grant | Problem:
        """Return what a request may do that shows this header field (None: none), and whose client's certificate has these names."""
        known = self._known.get(authorization)
        if known is not None and known.expires is None:
            return known
        if authorization is None:
            grant = self._grants.of_certificate(names) if names else None
            if grant is None:
                return _unauthorized("authorization: is required: Bearer and a token", "")
        else:
            grant = known or self._read(authorization)
            if grant is None:
                return _unauthorized(_BAD_SCHEME, ', error="invalid_token"')
            if known is None:
                if len(self._known) >= REMEMBERED_MAX:
                    self._known.clear()
                self._known[authorization] = grant
        if grant.expires is not None and self._read_wall() >= grant.expires:
            return _unauthorized("authorization: has expired", ', error="invalid_token"')
        return grant

    def _read(self, authorization: bytes) -> Grant | None:
        scheme, _, token = authorization.partition(b" ")
        return self._grants.of_token(token.strip(b" ")) if scheme.lower() == b"bearer" else None

    def _look(self) -> tuple[int, int, int]:
        try:
            found = Path(self._path).stat()
        except OSError:
            return 0, 0, 0
        return found.st_ino, found.st_mtime_ns, found.st_size


def check_route(grant: Grant, rule: Rule | None) -> Problem | None:
    """Say why a grant is not enough for a route, if it is not."""
    if rule is None:
        return _forbidden("nobody may use this path", None)
    if rule.scopes and rule.scopes.isdisjoint(grant.scopes):
        return _lacks(rule.scopes)
    return _forbidden("this needs a token for every queue", None) if rule.whole and not grant.every_queue else None


def check_asked(grant: Grant, asked: Any) -> Problem | None:
    """Say why a grant is not enough for what a request has turned out to ask, if it is not. Operations of a batch that are not allowed become problems.

    What is asked is a `Problem`, which needs no right, an `Ask`, or an errand: that has `items`, a `command`, `queues`, or it is for grants of every queue. One that `adds` jobs needs PRODUCE.
    """
    if type(asked) is Ask and type(asked.command) in _OF_ONE_QUEUE:
        return None if grant.allows(asked.command.queue) else _not_this_queue(asked.command.queue)
    if isinstance(asked, Problem):
        return None
    if type(asked) is CompleteAndNext:
        if grant.allows(asked.command.queue) and all(map(grant.allows, asked.queues)):
            return None
        return _not_this_queue(next(queue for queue in (asked.command.queue, *asked.queues) if not grant.allows(queue)))
    items = getattr(asked, "items", None)
    if items is not None:
        asked.items = check_items(grant, items)
        return None
    command, queues = getattr(asked, "command", None), getattr(asked, "queues", None)
    if (type(command) is Replace or getattr(asked, "adds", False)) and Scope.PRODUCE not in grant.scopes:
        return _lacks({Scope.PRODUCE})
    if grant.every_queue:
        return None
    if command is not None:
        own = queues_of(command)
        queues = [*own, *(queues or ())] if own is not None else None
    if queues is None:
        return _forbidden("this needs a token for every queue", None)
    wrong = next((queue for queue in queues if not grant.allows(queue)), None)
    if wrong == "":  # all of them
        return _forbidden("this needs a token for every queue", None)
    return None if wrong is None else _not_this_queue(wrong)


def check_items(grant: Grant, items: Sequence[Any]) -> list[Any]:
    """Return items with the problem in the place of each command that is not allowed."""
    return [item if isinstance(item, Problem) else _wrong_with(grant, item) or item for item in items]


def queues_of(command: Command) -> list[str] | None:
    """Return the queues that a command touches, or None where it touches any."""
    queue = getattr(command, "queue", None)
    if queue is None:
        return None
    job = getattr(command, "job", None)
    jobs = [*getattr(command, "jobs", ()), *([job] if isinstance(job, Enqueue) else ())]
    target = getattr(command, "to", None)
    return [queue, *(each.queue for each in jobs), *([target] if target is not None else ())]


def _wrong_with(grant: Grant, command: Any) -> Problem | None:
    scope = _SCOPES.get(type(command), Scope.ADMIN)
    if scope not in grant.scopes:
        return _lacks({scope})
    return None if grant.allows(command.queue) else _not_this_queue(command.queue)


def _unauthorized(detail: str, error: str) -> Problem:
    return Problem(
        status=401, detail=detail, field="authorization", headers=(("www-authenticate", f'Bearer realm="proteus-shards"{error}'),)
    )


def _lacks(scopes: Collection[Scope]) -> Problem:
    names = sorted(scopes)
    challenge = f'Bearer realm="proteus-shards", error="insufficient_scope", scope="{" ".join(names)}"'
    return Problem(status=403, detail=f"the token lacks the scope {' or '.join(names)}", headers=(("www-authenticate", challenge),))


def _not_this_queue(queue: str) -> Problem:
    return _forbidden("the token is not for this queue", queue)


def _forbidden(detail: str, queue: str | None) -> Problem:
    return Problem(status=403, detail=detail, queue=queue)
