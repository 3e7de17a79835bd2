"""What a server takes from its machine."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from proteus_shards.config import Settings, socket_path
from proteus_shards.errors import StartError
from proteus_shards.surroundings import child_environment, open_listeners, private_dir, redacted, sd_notify, start_line

SECONDS_MAX = 30.0


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory:", "memory:"),
        ("sqlite:///proteus-data", "sqlite:///proteus-data"),
        ("sqlite:////var/lib/a@b", "sqlite:////var/lib/a@b"),
        ("postgres://host/db", "postgres://host/db"),
        ("postgres://user:secret@host:5432/db", "postgres://host:5432/db"),
        ("postgres://user:sec/ret@host/db", "postgres://host/db"),
        ("postgres://user:sec@ret@host/db?password=secret", "postgres://host/db"),
        ("postgres://user:sec#ret@host/db", "postgres://…"),
        ("redis://host/0#secret", "redis://host/0"),
    ],
)
def test_the_start_line_shows_the_store_without_its_secrets(url: str, shown: str) -> None:
    """User, password and query of a URL may be secret, or next to a secret."""
    assert redacted(url) == shown
    assert start_line(Settings(store=url, shards=3), ("127.0.0.1", 80)).endswith(
        f" listening on http://127.0.0.1:80 · store {shown} · shards 3 · fronts 1"
    )


def test_the_start_line_shows_an_ipv6_address_as_a_url_does() -> None:
    """The colons of the address stand in brackets."""
    assert " http://[::1]:80 " in start_line(Settings(), ("::1", 80, 0, 0))


@pytest.mark.parametrize("count", [1, 3])
def test_a_port_in_use_is_refused(count: int) -> None:
    """A second server does not share a port in silence, not even with several fronts."""
    first = open_listeners("127.0.0.1", 0, count)
    port = first[0].getsockname()[1]
    try:
        for second in (1, 3):
            with pytest.raises(StartError, match=rf"^cannot listen on 127\.0\.0\.1 port {port}: Address already in use$"):
                open_listeners("127.0.0.1", port, second)
    finally:
        for listener in first:
            listener.close()


def test_several_fronts_share_one_port() -> None:
    """Port 0 is picked once, by the first socket."""
    listeners = open_listeners("127.0.0.1", 0, 3)

    assert len({listener.getsockname() for listener in listeners}) == 1
    for listener in listeners:
        listener.close()


def test_a_host_that_is_none_is_refused() -> None:
    """The message names the host."""
    with pytest.raises(StartError, match=r"^cannot listen on a{300} port 0: "):
        open_listeners("a" * 300, 0, 1)


def test_a_host_without_a_usable_address_is_refused_and_one_with_several_takes_the_first_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may stand for an IPv6 address that this machine does not have, too."""
    absent, present = ((socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("192.0.2.1", "127.0.0.1"))

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [absent, present])
    with open_listeners("name", 0, 1)[0] as listener:
        assert listener.getsockname()[0] == "127.0.0.1"

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [absent])
    with pytest.raises(StartError, match=r"^cannot listen on name port 0: Cannot assign requested address$"):
        open_listeners("name", 0, 1)


def test_the_private_folder_is_private_and_does_not_stay() -> None:
    """No other user may enter it, and nothing of it is left."""
    with private_dir(2) as path:
        Path(path, "shard-0.sock").touch()

        assert Path(path).stat().st_mode & 0o777 == 0o700
    assert not Path(path).exists()


def test_the_private_folder_has_a_path_that_a_socket_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long TMPDIR is passed over."""
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))

    with private_dir(1024) as path, socket.socket(socket.AF_UNIX) as sock:
        sock.bind(socket_path(path, 1023))
    assert list(long.iterdir()) == []


def test_children_see_no_settings_in_their_environment() -> None:
    """Settings, and secrets in them, travel in the boot line only."""
    seen = child_environment({"PROTEUS_STORE": "s", "PROTEUS_TEST_SEED": "1", "NOTIFY_SOCKET": "n", "PATH": "p", "PYTHONPATH": "x"})

    assert {name: seen.get(name) for name in ("PROTEUS_STORE", "PROTEUS_TEST_SEED", "NOTIFY_SOCKET", "PATH")} == {
        "PROTEUS_STORE": None,
        "PROTEUS_TEST_SEED": "1",
        "NOTIFY_SOCKET": None,
        "PATH": "p",
    }
    assert seen["PYTHONPATH"].split(os.pathsep)[-1] == "x"


@pytest.mark.parametrize("abstract", [False, pytest.param(True, marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux only"))])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    """Both kinds of socket name work."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        name = f"@{tmp_path}" if abstract else str(tmp_path / "notify")
        heard.bind("\0" + name[1:] if abstract else name)
        heard.settimeout(SECONDS_MAX)
        monkeypatch.setenv("NOTIFY_SOCKET", name)

        sd_notify("READY=1")

        assert heard.recv(100) == b"READY=1"


def test_a_systemd_that_does_not_hear_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))

    sd_notify("READY=1")

    assert [record.message for record in caplog.records] == ["systemd could not be told"]
