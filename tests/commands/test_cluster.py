"""The commands about a cluster, and the methods of the client below them: what they send, and what they print."""

from __future__ import annotations

import json

import msgspec
import pytest

from proteus_shards.client import Client, Conflict
from proteus_shards.front.cluster_views import cluster_shown
from tests.client.scripted import Reply, scripted
from tests.commands.conftest import RunCommand
from tests.front.fake_node import HERE, THERE, owners_of

SHOWN = msgspec.json.encode(cluster_shown(owners_of(HERE, THERE, ""), store_away=False))
PROBLEM = (("content-type", "application/problem+json"),)


def problem(status: int, detail: str) -> Reply:
    """Return a problem."""
    return Reply(status, json.dumps({"title": "", "status": status, "detail": detail, "retryable": False}).encode(), PROBLEM)


def test_status_shows_hosts_and_shards(command: RunCommand) -> None:
    """Those that nobody has, too."""
    with scripted(Reply(200, SHOWN)) as server:
        ended = command("cluster", "status", "--url", server.url)

    assert (0, "") == (ended.code, ended.err)
    assert [
        "host            state  shards  version",
        "127.0.0.1:7001  alive       1  1.0",
        "127.0.0.2:7001  alive       1  1.0",
        "",
        "shard  host            turn  epoch  wanted on",
        "    0  127.0.0.1:7001     1      1  -",
        "    1  127.0.0.2:7001     1      1  -",
        "    2  -                  1      1  -",
    ] == ended.out.splitlines()


def test_status_as_json_is_what_the_server_says(command: RunCommand) -> None:
    """One object."""
    with scripted(Reply(200, SHOWN)) as server:
        ended = command("cluster", "status", "--json", "--url", server.url)

    assert json.loads(SHOWN) == ended.json()


@pytest.mark.parametrize(
    ("arguments", "target", "body", "printed"),
    [
        (["move", "2", THERE], "move", {"shard": 2, "host": THERE}, {"shard": 2, "wanted": THERE}),
        (["move", "2", "--anywhere"], "move", {"shard": 2, "host": None}, {"shard": 2, "wanted": None}),
        (["drain", THERE], "drain", {"host": THERE, "draining": True}, {"host": THERE, "draining": True}),
        (["drain", THERE, "--undo"], "drain", {"host": THERE, "draining": False}, {"host": THERE, "draining": False}),
        (["forget", THERE, "--yes"], "forget", {"host": THERE}, {"host": THERE, "forgotten": True}),
    ],
)
def test_a_wish_is_sent(arguments: list[str], target: str, body: object, printed: object, command: RunCommand) -> None:
    """In silence, or with --json."""
    with scripted(Reply(202), Reply(202)) as server:
        silent = command("cluster", *arguments, "--url", server.url)
        shown = command("cluster", *arguments, "--json", "--url", server.url)

    assert [f"/v1/cluster/{target}"] * 2 == [asked.target for asked in server.asked]
    assert body == json.loads(server.asked[0].body)
    assert (0, "", "") == silent
    assert printed == shown.json()


@pytest.mark.parametrize(("status", "code"), [(404, 3), (409, 1), (422, 1)])
def test_a_refusal_is_told_with_its_exit_code(status: int, code: int, command: RunCommand) -> None:
    """In the server's words."""
    with scripted(problem(status, "not so")) as server:
        ended = command("cluster", "forget", THERE, "--url", server.url)

    assert (code, "", f"proteus-shards: {status} not so\n") == ended


@pytest.mark.parametrize("arguments", [["2"], ["2", THERE, "--anywhere"]])
def test_a_move_goes_to_one_host_or_anywhere(arguments: list[str], command: RunCommand) -> None:
    """Neither both, nor nothing."""
    assert (2, "", "proteus-shards: HOST: give one, or --anywhere\n") == command("cluster", "move", *arguments)


def test_a_server_in_no_cluster_ends_with_3(command: RunCommand) -> None:
    """There is none."""
    assert (3, "", "proteus-shards: 404 this server is in no cluster (cluster)\n") == command("cluster", "status")


def test_the_client_has_it_all() -> None:
    """As values and exceptions."""
    with scripted(Reply(200, SHOWN), Reply(202), Reply(202), problem(409, "it is alive")) as server, Client(server.url) as client:
        found = client.cluster()
        client.move_shard(0, THERE)
        client.drain_host(HERE)
        with pytest.raises(Conflict):
            client.forget_host(HERE)

    assert [HERE, THERE, None] == [owner.host for owner in found.owners]
    assert [(HERE, "alive", 1), (THERE, "alive", 1)] == [(host.host, host.host_state, host.shards_held) for host in found.hosts]
