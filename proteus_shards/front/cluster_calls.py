"""The calls about the cluster: who owns what, and what operators want of it. Each is asked of the node of this host, whichever host it concerns.

A wish is written down in the store and carried out by the hosts that it concerns, in their own time: 202 says that it stands there. Without `cluster` there is
nothing at these paths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from proteus_shards.cluster.model import NOBODY
from proteus_shards.front.answers import ACCEPTED, Answer, Problem, fault, json_answer
from proteus_shards.front.job_bodies import UNREADABLE, Rules, explain
from proteus_shards.front.queries import parse_query
from proteus_shards.ipc.hosts import Asked, Drain, Forget, Move

if TYPE_CHECKING:
    from proteus_shards.config import Settings
    from proteus_shards.front.errands import OnAnswer
    from proteus_shards.front.operations import Parse
    from proteus_shards.front.owners import Cluster, Wish
    from proteus_shards.front.router import Router

HOST_LENGTH_MAX = 300  # of an address: a name of 253 characters, a port, and brackets

_NO_CLUSTER = Problem(status=404, detail="this server is in no cluster (cluster)")
_NO_NODE = Problem(status=503, detail="the node process of this host is away")
_LATE = Problem(status=503, detail="the node process of this host did not answer; look whether the wish stands (request_seconds_max)")


class AskCluster:
    """One question about the cluster, or one wish. It concerns all queues."""

    delivers = False

    def __init__(self, wish: Wish | None = None) -> None:
        self._wish = wish
        self._over = False

    def begin(self, router: Router, on_answer: OnAnswer) -> None:
        """See `Errand`."""
        cluster = router.cluster
        self._on_answer = on_answer
        if self._wish is None and cluster is not None:
            self._tell(_shown(cluster))
        elif self._wish is None or cluster is None or not cluster.connected:
            self._tell(_NO_NODE.answer())
        else:
            self._cluster = cluster
            cluster.ask(self._wish, self._take)

    def abandon(self, number: int = 0) -> None:  # noqa: ARG002  # so that a link may stand in its place
        """See `Errand`. A wish has its effect all the same."""
        self._over = True

    def _take(self, asked: Asked | None) -> None:
        if asked is None:
            self._tell(_LATE.answer())
        elif asked.fault:
            away = self._cluster.said is None or self._cluster.said.store_away
            self._tell(Problem(status=404 if asked.missing else 503 if away else 409, detail=asked.fault).answer())
        else:
            self._tell(ACCEPTED)

    def _tell(self, shown: Answer) -> None:
        if not self._over:
            self._on_answer(shown, ())


def get_cluster(_body: bytes, query: bytes, settings: Settings) -> AskCluster | Problem:
    """`GET /cluster`: all hosts, and who owns each shard."""
    return _apart(query, settings) or AskCluster()


def move_shard(body: bytes, query: bytes, settings: Settings) -> AskCluster | Problem:
    """`POST /cluster/move`: the host of the body shall have the shard of the body; null: no particular one."""
    move = _apart(query, settings) or _read(_moves, body, _MOVE_RULES)
    if isinstance(move, Problem):
        return move
    if move.shard >= settings.shards:
        return fault("shard", f"must be an integer from 0 to {settings.shards - 1}")
    return AskCluster(lambda number: Move(number, move.shard, move.host or NOBODY))


def drain_host(body: bytes, query: bytes, settings: Settings) -> AskCluster | Problem:
    """`POST /cluster/drain`: the host of the body shall give its shards away, or take shards again."""
    drain = _apart(query, settings) or _read(_drains, body, _DRAIN_RULES)
    return drain if isinstance(drain, Problem) else AskCluster(lambda number: Drain(number, drain.host, drain.draining))


def forget_host(body: bytes, query: bytes, settings: Settings) -> AskCluster | Problem:
    """`POST /cluster/forget`: the host of the body is gone for good."""
    forget = _apart(query, settings) or _read(_forgets, body, _FORGET_RULES)
    return forget if isinstance(forget, Problem) else AskCluster(lambda number: Forget(number, forget.host))


_Host = Annotated[str, msgspec.Meta(min_length=1, max_length=HOST_LENGTH_MAX)]
_Shard = Annotated[int, msgspec.Meta(ge=0)]


class _Move(msgspec.Struct, forbid_unknown_fields=True):
    shard: _Shard
    host: _Host | None


class _Drain(msgspec.Struct, forbid_unknown_fields=True):
    host: _Host
    draining: bool


class _Forget(msgspec.Struct, forbid_unknown_fields=True):
    host: _Host


_moves = msgspec.json.Decoder(_Move)
_drains = msgspec.json.Decoder(_Drain)
_forgets = msgspec.json.Decoder(_Forget)
_HOST_RULE = f"must be the address of a host, a string of 1 to {HOST_LENGTH_MAX} characters"
_FORGET_RULES: Rules = {"host": (msgspec.json.Decoder(_Host), _HOST_RULE)}
_DRAIN_RULES: Rules = {**_FORGET_RULES, "draining": (msgspec.json.Decoder(bool), "must be true or false")}
_MOVE_RULES: Rules = {
    "shard": (msgspec.json.Decoder(_Shard), "must be the number of a shard"),
    "host": (msgspec.json.Decoder(_Host | None), f"{_HOST_RULE}, or null"),
}

CLUSTER_OPERATIONS: dict[tuple[str, str], Parse] = {
    ("GET", "/cluster"): get_cluster,
    ("POST", "/cluster/move"): move_shard,
    ("POST", "/cluster/drain"): drain_host,
    ("POST", "/cluster/forget"): forget_host,
}
CLUSTER_WITH_BODY: frozenset[Parse] = frozenset({move_shard, drain_host, forget_host})


def _apart(query: bytes, settings: Settings) -> Problem | None:
    """Say what is wrong with a request but for its body."""
    if not settings.cluster:
        return _NO_CLUSTER
    found = parse_query(query, ())
    return found if isinstance(found, Problem) else None


def _read(decoder: msgspec.json.Decoder[Any], body: bytes, rules: Rules) -> Any:
    """Return what a body says, or the problem that it is."""
    try:
        if not body.isascii():
            body.decode()
        return decoder.decode(body)
    except UNREADABLE:
        return explain(body, rules, tuple(rules), f"is not a field here (there are: {', '.join(rules)})")


def _shown(cluster: Cluster) -> Answer:
    shown = cluster.shown()
    return json_answer(shown) if shown is not None else Problem(status=503, detail=cluster.unready()[0]).answer()
