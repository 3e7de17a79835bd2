"""What the OpenAPI document says of the calls about the cluster. No shard is asked, but the node of the host."""

from __future__ import annotations

from proteus_shards.front.openapi_words import JSON, NOTHING, Body, Described

PROBLEM = {"application/problem+json": "Problem"}
_SAYS = {
    409: "It cannot be done, as the detail says.",
    422: "Something in the request is wrong, which `field` names. No retry can mend it.",
    503: "The node process of this host, or the store, is away, or did not answer: look whether the wish stands.",
}


def _wish(summary: str, shape: str, help_: str = "") -> Described:
    answers = {
        202: Body(NOTHING, "Written down. The hosts that it concerns carry it out."),
        404: Body(PROBLEM, "There is no such host or shard, or this server is in no cluster."),
    }
    errors = {status: Body(PROBLEM, text) for status, text in _SAYS.items()}
    return Described(tag="Cluster", summary=summary, help=help_, body=Body({JSON: shape}), answers=answers | errors, asks_shards=False)


CLUSTER_CALLS: dict[tuple[str, str], Described] = {
    ("GET", "/cluster"): Described(
        tag="Cluster",
        summary="Show the hosts of the cluster, and who has which shard",
        help="As the host that is asked sees it.",
        answers={
            200: Body({JSON: "Cluster"}, "All of it."),
            404: Body(PROBLEM, "This server is in no cluster."),
            422: Body(PROBLEM, _SAYS[422]),
            503: Body(PROBLEM, "The node process of this host has said nothing yet."),
        },
        asks_shards=False,
    ),
    ("POST", "/cluster/move"): _wish(
        "Move a shard to a host", "Move", "It stays there while that host lives. `host` null: it may be anywhere again."
    ),
    ("POST", "/cluster/drain"): _wish("Let a host give its shards away, or take shards again", "Drain"),
    ("POST", "/cluster/forget"): _wish("Forget a host that is gone for good", "Forget", "One that is alive is not forgotten."),
}
