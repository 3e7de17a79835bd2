"""The settings of a host in a cluster, and its address."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from proteus_shards.cluster.address import split_address
from proteus_shards.config import load_settings
from proteus_shards.errors import SettingError
from tests.conftest import server_environ


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1:9000", ("127.0.0.1", 9000)), ("host-1.example:1", ("host-1.example", 1)), ("[::1]:65535", ("::1", 65535))],
)
def test_an_address_is_a_host_and_a_port(address: str, expected: tuple[str, int]) -> None:
    """An IPv6 address stands in brackets."""
    assert split_address(address) == expected


@pytest.mark.parametrize("address", ["host", "host:", ":9000", "host:0", "host:65536", "::1:9000", "http://host:1", "a b:1", "host:1/"])
def test_anything_else_is_none(address: str) -> None:
    """And the message says what it should be."""
    with pytest.raises(SettingError, match="HOST:PORT"):
        split_address(address)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"cluster": True}, "--cluster needs node_address"),
        ({"node_address": "127.0.0.1:1"}, "--node-address needs cluster"),
        ({"cluster_cert": "x"}, "--cluster-cert needs cluster"),
        ({"cluster": True, "node_address": "127.0.0.1"}, "--node-address must be HOST:PORT"),
        ({"cluster": True, "node_address": "10.0.0.1:1"}, "--node-address: others can reach 10.0.0.1"),
        ({"cluster": True, "node_address": "10.0.0.1:1", "cluster_cert": "x"}, "--cluster-cert needs cluster_ca"),
        ({"cluster": True, "node_address": "10.0.0.1:1", "cluster_ca": "x"}, "--cluster-ca needs cluster_cert"),
        ({"cluster": True, "node_address": "10.0.0.1:1", "cluster_key": "x"}, "--cluster-key needs cluster_cert"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given: dict[str, object], text: str) -> None:
    """The message names the option."""
    with pytest.raises(SettingError, match=text):
        load_settings(given, {})


@pytest.mark.parametrize(
    "more", [{}, {"node_address": "10.0.0.1:1", "insecure": True}, {"node_address": "10.0.0.1:1", "cluster_cert": "x", "cluster_ca": "y"}]
)
def test_hosts_speak_plainly_on_loopback_or_where_they_are_told_to(more: dict[str, object]) -> None:
    """Else under TLS."""
    assert load_settings({"cluster": True, "node_address": "localhost:1"} | more, {}).cluster


@pytest.mark.parametrize("store", ["sqlite:///data", "memory:"])
def test_a_store_that_hosts_cannot_share_is_refused(tmp_path: Path, store: str) -> None:
    """Before anything is started."""
    command = [sys.executable, "-m", "proteus_shards", "serve", "--cluster", "--node-address", "127.0.0.1:1", "--store", store]
    ended = subprocess.run(command, cwd=tmp_path, env=server_environ({}), capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 2
    assert "hosts cannot share a" in ended.stderr
    assert not list(tmp_path.iterdir())
