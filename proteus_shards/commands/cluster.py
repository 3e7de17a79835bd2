"""`cluster`: the hosts that share a store, who has which shard, and what operators want of it. Any host may be asked about any other."""

from __future__ import annotations

import argparse

from proteus_shards.commands import EXIT_USAGE, Commands, Done, command, group
from proteus_shards.commands.console import Console
from proteus_shards.commands.jobs import client_of

_HOST = "address of a host, as its --node-address says"


def add(commands: Commands) -> None:
    """Add the commands."""
    cluster = group(commands, "cluster", "look at the hosts of a cluster, move shards, drain and forget hosts")
    status = command(cluster, "status", _status, "list the hosts, and who has which shard")
    status.add_argument("--hosts", action="store_true", help="list the hosts only")

    move = command(
        cluster,
        "move",
        _move,
        "move a shard to a host",
        "Move a shard to a host, where it stays while that lives. It is written down, and carried out by the two hosts soon after.",
    )
    move.add_argument("shard", type=int, metavar="SHARD", help="number of the shard")
    move.add_argument("host", nargs="?", metavar="HOST", help=_HOST)
    move.add_argument("--anywhere", action="store_true", help="in the place of HOST: it may be on any host again")

    drain = command(
        cluster,
        "drain",
        _drain,
        "let a host give its shards away",
        "Let a host give its shards to the others, one after the other, and get no more; it goes on as a host without shards.",
    )
    drain.add_argument("host", metavar="HOST", help=_HOST)
    drain.add_argument("--undo", action="store_true", help="let it take shards again")

    forget = command(
        cluster, "forget", _forget, "forget a host that is gone for good", "Forget a host that is gone for good, and not alive."
    )
    forget.add_argument("host", metavar="HOST", help=_HOST)
    forget.add_argument("--yes", action="store_true", help="do not ask; without a terminal nobody is asked")


def _status(arguments: argparse.Namespace, console: Console) -> int:
    with client_of(arguments) as client:
        found = client.cluster()
    if console.as_json:
        console.json(found)
        return 0
    if found.store_away:
        console.tell("the store cannot be asked: all this may be old")
    console.table(
        ["host", "state", "shards", "version"], [[host.host, host.host_state, host.shards_held, host.version] for host in found.hosts]
    )
    if not arguments.hosts:
        console.line()
        console.table(
            ["shard", "host", "turn", "epoch", "wanted on"],
            [[owner.shard, owner.host, owner.turn, owner.epoch, owner.wanted] for owner in found.owners],
        )
    return 0


def _move(arguments: argparse.Namespace, console: Console) -> int:
    if (arguments.host is None) != arguments.anywhere:
        raise Done("HOST: give one, or --anywhere", EXIT_USAGE)
    with client_of(arguments) as client:
        client.move_shard(arguments.shard, arguments.host)
    if console.as_json:
        console.json({"shard": arguments.shard, "wanted": arguments.host})
    return 0


def _drain(arguments: argparse.Namespace, console: Console) -> int:
    with client_of(arguments) as client:
        client.drain_host(arguments.host, draining=not arguments.undo)
    if console.as_json:
        console.json({"host": arguments.host, "draining": not arguments.undo})
    return 0


def _forget(arguments: argparse.Namespace, console: Console) -> int:
    if not arguments.yes and not console.confirms(f"Forget the host {arguments.host!r}? [y/N] "):
        return 1
    with client_of(arguments) as client:
        client.forget_host(arguments.host)
    if console.as_json:
        console.json({"host": arguments.host, "forgotten": True})
    return 0
