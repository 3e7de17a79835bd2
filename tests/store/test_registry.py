"""The store setting: what it means, and what of it is refused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from proteus_shards.cluster.model import Claim
from proteus_shards.errors import SettingError
from proteus_shards.store.memory import MemoryStore
from proteus_shards.store.registry import check_url, make_register, make_store, prepare_store
from proteus_shards.store.sqlite import SqliteStore
from proteus_shards.store.urls import MemoryUrl, SqliteUrl, StoreUrl, read_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory:", MemoryUrl()),
        ("MEMORY:", MemoryUrl()),
        ("sqlite:///data", SqliteUrl(Path("data"))),
        ("sqlite:///a/b", SqliteUrl(Path("a/b"))),
        ("sqlite:///./x", SqliteUrl(Path("x"))),
        ("sqlite:////var/lib/x", SqliteUrl(Path("/var/lib/x"))),
        ("sqlite:///with%20space%3F%23%C3%A9", SqliteUrl(Path("with space?#é"))),
        ("sqlite:///d?synchronous=full", SqliteUrl(Path("d"))),
        ("sqlite:///d?synchronous=normal&check=none", SqliteUrl(Path("d"), "normal", "none")),
        ("sqlite:///d?", SqliteUrl(Path("d"))),
    ],
)
def test_a_url_means_one_thing(url: str, expected: StoreUrl) -> None:
    """Folder and options, percent-escapes decoded once."""
    check_url(url)

    assert read_url(url) == expected


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "must be a URL"),
        ("data", "must be a URL"),
        ("/var/lib/data", "must be a URL"),
        (":x", "must be a URL"),
        ("mysql://x", "no store of the scheme 'mysql'"),
        ("postgres://user:secret@host/db?sslmode=no", "sslmode must be disable or allow"),
        ("redis://secret@host", "user:password"),
        ("dynamodb:", "write dynamodb://TABLE"),
        ("memory:x", "nothing may follow"),
        ("memory://", "nothing may follow"),
        ("memory:?synchronous=full", "memory has no option 'synchronous'"),
        ("sqlite:", "write sqlite:///FOLDER"),
        ("sqlite:data", "write sqlite:///FOLDER"),
        ("sqlite://host/data", "write sqlite:///FOLDER"),
        ("sqlite:///", "names no folder"),
        ("sqlite:////", "names no folder"),
        ("sqlite:///?check=none", "names no folder"),
        ("sqlite:///a%00b", "NUL"),
        ("sqlite:///a%FFb", "not UTF-8"),
        ("sqlite:///a#b", "%23"),
        ("sqlite:///d?sync=full", "sqlite has no option 'sync'"),
        ("sqlite:///d?synchronous=off", "synchronous must be full or normal"),
        ("sqlite:///d?synchronous=", "synchronous must be full or normal"),
        ("sqlite:///d?check", "name=value"),
        ("sqlite:///d?check=none&check=quick", "twice"),
    ],
)
def test_what_is_not_understood_is_refused(url: str, told: str) -> None:
    """The message names the setting, and never repeats a secret."""
    with pytest.raises(SettingError, match=r"^store\b") as raised:
        check_url(url)

    assert told in str(raised.value)
    assert "secret" not in str(raised.value)


def test_each_scheme_makes_its_store(tmp_path: Path) -> None:
    """Without touching a file."""
    store = make_store(f"sqlite:///{tmp_path}/x", 0, 1)
    asyncio.run(store.close())

    assert isinstance(store, SqliteStore)
    assert isinstance(make_store("memory:", 0, 1), MemoryStore)
    assert list(tmp_path.iterdir()) == []


def test_prepare_makes_what_a_url_names(tmp_path: Path) -> None:
    """Nothing for memory, the folder and all above it for sqlite; it says nothing where nothing moved."""
    assert asyncio.run(prepare_store("memory:", 3)) is None
    assert asyncio.run(prepare_store(f"sqlite:///{tmp_path}/a/b", 3)) is None
    assert asyncio.run(prepare_store(f"sqlite:///{tmp_path}/a/b", 3)) is None

    assert len(list((tmp_path / "a/b").rglob("*.sqlite3"))) == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda url: check_url(url, cluster=True),
        lambda url: make_store(url, 0, 1, Claim(0, "a:1", 1)),
        make_register,
        lambda url: asyncio.run(prepare_store(url, 1, cluster=True)),
    ],
    ids=["check_url", "make_store", "make_register", "prepare_store"],
)
@pytest.mark.parametrize("scheme", ["sqlite", "memory"])
def test_hosts_share_no_store_of_one_machine(tmp_path: Path, scheme: str, call: Callable[[str], object]) -> None:
    """The message names the setting that asks for it, and the stores that they can share; nothing is made."""
    url = {"sqlite": f"sqlite:///{tmp_path}/x", "memory": "memory:"}[scheme]
    with pytest.raises(SettingError, match=f"^cluster: hosts cannot share a {scheme} store: .*Postgres, Redis or DynamoDB"):
        call(url)

    assert list(tmp_path.iterdir()) == []


def test_checking_a_url_loads_no_driver() -> None:
    """The supervisor does it, and must load neither a database nor a second event loop."""
    code = (
        "import sys; from proteus_shards.store.registry import check_url; check_url('sqlite:///x'); "
        "sys.exit(' '.join({'sqlite3', 'asyncio'} & set(sys.modules)) or None)"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])

    assert (ran.returncode, ran.stderr) == (0, "")
