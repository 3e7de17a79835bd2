"""The file of settings of queues: what it may say, and when it counts."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from proteus_shards.errors import SettingError
from proteus_shards.shard.queues_file import read_queues
from tests.conftest import StartServer, eventually

GOOD = """
["a b"]
max_in_flight = 1
backoff = { seconds = 5, factor = 2 }
["mail"]
paused = true
"""


def test_a_server_applies_its_file_once(start_server: StartServer, tmp_path: Path) -> None:
    """To the queues of all shards; what is set otherwise later stays, until another start."""
    path = tmp_path / "queues.toml"
    path.write_text(GOOD)
    server = start_server("--queues-file", str(path))

    first = [queue["settings"] for queue in server.request("GET", "/queues").json()["queues"]]
    assert server.request("POST", "/resume?queue=mail").status == 202
    path.write_text("nonsense")  # it is not read again
    shards = [pid for pid, command in server.children().items() if "proteus_shards.shard" in command]
    for pid in shards:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not set(shards) & server.children().keys() and server.request("GET", "/ready").status == 200)
    paused = server.request("GET", "/queue?queue=mail").json()["paused"]
    assert server.stop() == 0
    path.write_text(GOOD)
    again = start_server("--queues-file", str(path))

    assert first == [{"max_in_flight": 1, "backoff": {"seconds": 5.0, "factor": 2.0}}, {"paused": True}]
    assert not paused
    eventually(lambda: again.request("GET", "/queue?queue=mail").json()["paused"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = 1", "'a' must be a table"),
        ("[a]\nttl = -1", "queue 'a': ttl must be a number of seconds"),
        ("[a]\nnonsense = 1", "queue 'a': nonsense is not a setting of a queue"),
        ('["\\u0000"]\nttl = 1', "the name of a queue must not contain control characters"),
        ("[a", "is not TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_part_at_fault(text: str, said: str, tmp_path: Path) -> None:
    """Whatever is wrong with it."""
    path = tmp_path / "queues.toml"
    path.write_text(text)

    with pytest.raises(SettingError) as raised:
        read_queues(str(path))

    assert said in str(raised.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """By its path."""
    with pytest.raises(SettingError, match="cannot be read"):
        read_queues(str(tmp_path / "none"))
