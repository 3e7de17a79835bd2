"""The URL of a Redis store: what it means, and what of it is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from proteus_shards.errors import SettingError
from proteus_shards.store.redis_url import RedisUrl, Tls
from proteus_shards.store.urls import read_url
from tests.conftest import server_environ


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", RedisUrl()),
        ("redis://host", RedisUrl(nodes=(("host", 6379),))),
        ("redis://host:7000/3", RedisUrl(nodes=(("host", 7000),), database=3)),
        ("redis://[::1]:7000", RedisUrl(nodes=(("::1", 7000),))),
        ("redis://:pass@host/", RedisUrl(nodes=(("host", 6379),), password="pass")),
        ("redis://me:p%40s%2Fs%3F@host", RedisUrl(nodes=(("host", 6379),), user="me", password="p@s/s?")),
        ("redis://a,b:7001?cluster=yes", RedisUrl(nodes=(("a", 6379), ("b", 7001)), cluster=True)),
        ("redis:///2?socket=/run/redis.sock", RedisUrl(socket="/run/redis.sock", database=2)),
        ("rediss://host", RedisUrl(nodes=(("host", 6379),), tls=Tls())),
        ("rediss://host?ca=/ca&cert=/cert&key=/key", RedisUrl(nodes=(("host", 6379),), tls=Tls("/ca", "/cert", "/key"))),
        ("rediss://host?verify=no", RedisUrl(nodes=(("host", 6379),), tls=Tls(verify=False))),
        (
            "redis://?prefix=a:b&timeout=1.5&connect_timeout=0.5&wait_replicas=2&allow_eviction=yes",
            RedisUrl(prefix="a:b", timeout_seconds=1.5, connect_seconds=0.5, wait_replicas=2, allow_eviction=True),
        ),
    ],
)
def test_a_url_means_one_thing(url: str, expected: RedisUrl) -> None:
    """Percent-escapes decoded once, what is left out at its default."""
    assert read_url(url) == expected


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis:host", "write redis://HOST"),
        ("redis:/host", "write redis://HOST"),
        ("redis://secret@host", "user:password"),
        ("redis://secret:@host", "user:password"),
        ("redis://:%FFsecret@host", "not UTF-8"),
        ("redis://:secret/x@host", "HOST:PORT"),
        ("redis://host:secret", "HOST:PORT"),
        ("redis://host:0", "HOST:PORT"),
        ("redis://host:65536", "HOST:PORT"),
        ("redis://::1", "HOST:PORT"),
        ("redis://ho st", "HOST:PORT"),
        ("redis://host/secret", "number of a database"),
        ("redis://host/1/2", "number of a database"),
        ("redis://host/65536", "number of a database"),
        ("redis://a,b", "add cluster=yes"),
        ("redis://a/1?cluster=yes", "database 0 only"),
        ("redis://a?cluster=1", "cluster must be yes or no"),
        ("redis://a?socket=/x", "goes with no host"),
        ("redis://?socket=/x&cluster=yes", "goes with no host"),
        ("redis://a?prefix=", "must not be empty"),
        ("redis://a?prefix=%7Bx%7D", "prefix must be"),
        ("redis://a?timeout=0", "timeout must be a number of seconds"),
        ("redis://a?wait_replicas=-1", "wait_replicas must be a whole number"),
        ("redis://a?ca=/x", "redis has no option 'ca'"),
        ("redis://a?password=secret", "redis has no option 'password'"),
        ("rediss://a?key=/x", "needs the option cert"),
        ("rediss://a?ca=/x&verify=no", "no meaning with verify=no"),
        ("rediss://?socket=/x", "rediss has no option 'socket'"),
    ],
)
def test_what_is_not_understood_is_refused(url: str, told: str) -> None:
    """The message never repeats a secret."""
    with pytest.raises(SettingError, match=r"^store\b") as raised:
        read_url(url)

    assert told in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_password_is_not_shown() -> None:
    """Not where Python shows the URL, or something that has it."""
    url = read_url("redis://me:secret@host")

    assert "secret" not in f"{url!r} {url} {[url]}"


@pytest.mark.parametrize("call", ["make_store(url, 0, 1)", "asyncio.run(prepare_store(url, 1))", "make_trial(url)"])
def test_a_driver_that_is_not_installed_is_named_by_its_extra(call: str) -> None:
    """Once a store is made; the URL is read without it."""
    code = (
        "import asyncio, sys; sys.modules['redis'] = None\n"
        "from proteus_shards.errors import SettingError\n"
        "from proteus_shards.store.registry import check_url, make_store, make_trial, prepare_store\n"
        "url = 'redis://127.0.0.1:1'; check_url(url)\n"
        f"try: {call}\n"
        "except SettingError as error: sys.exit(str(error))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=server_environ({}), capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )

    assert (
        ran.stderr.strip()
        == "store: redis needs the extra redis, which brings a driver that is not installed: pip install '.[redis]' in the clone"
    )


def test_reading_the_url_loads_no_driver() -> None:
    """The supervisor reads it, and must load neither a driver nor a second event loop."""
    code = (
        "import sys; from proteus_shards.store.registry import check_url; check_url('rediss://:x@h/1?prefix=y'); "
        "sys.exit(' '.join({'redis', 'asyncio', 'ssl'} & set(sys.modules)) or None)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=server_environ({}), capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )

    assert (ran.returncode, ran.stderr) == (0, "")
