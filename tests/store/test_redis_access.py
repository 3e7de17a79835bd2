"""How a Redis server is reached and what a user of it may do: TLS, sockets, permissions, and what the doctor finds."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import trustme

from proteus_shards.errors import StoreError, StoreRefused
from proteus_shards.store.findings import Finding
from proteus_shards.store.redis import RedisStore
from proteus_shards.store.redis_doctor import examine, permission_line
from proteus_shards.store.redis_prepare import prepare
from proteus_shards.store.redis_register import RedisRegister
from proteus_shards.store.redis_url import RedisUrl, Tls
from tests.conftest import server_environ
from tests.servers.redis import RedisServer, binaries, running
from tests.store.exercise_register import A
from tests.store.redis_backing import RedisBacking, owning, redis_url
from tests.store.rows import in_asyncio, inserting, load_all, make_row

NEWEST = list(binaries().values())[-1]


# --- TLS and sockets ---------------------------------------------------------------------------------------------


def speaks_tls(binary: Path, folder: Path) -> bool:
    """Say whether a server was built with TLS."""
    ran = subprocess.run([binary, "--tls-port", "0", "--port", "0", "--dir", folder, "--save", "", "--unixsocket", "x", "--maxmemory", "x"], capture_output=True, text=True, check=False)  # fmt: skip
    return "tls-port" not in ran.stdout + ran.stderr


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """Return a folder with an authority, a certificate for loopback, and another authority."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "other.pem")
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(folder / "server.key")
    issued.cert_chain_pems[0].write_to_path(folder / "server.pem")
    return folder


@in_asyncio
async def test_tls_is_spoken_and_checked(tmp_path: Path, certificates: Path) -> None:
    """A wrong authority, the system's authorities and files that are not there are refused for good; verify=no believes anyone."""
    tls_speakers = [binary for binary in binaries().values() if speaks_tls(binary, tmp_path)]
    if not tls_speakers:
        pytest.skip("no server here was built with TLS")
    with running(tls_speakers[-1], tmp_path / "redis", tls=certificates) as server:
        url = redis_url(server.url("tls", ca=str(certificates / "ca.pem")))
        await prepare(url, 1)
        async with owning(RedisStore(url, 0, 1)) as store:
            await store.commit(inserting(make_row(1)))
        trusting = msgspec.structs.replace(url, tls=Tls(verify=False))
        async with owning(RedisStore(trusting, 0, 1)) as store:
            assert await load_all(store) == [make_row(1)]
        told = {}
        for name, tls in {
            "other": Tls(ca=str(certificates / "other.pem")),
            "system": Tls(),
            "missing": Tls(ca=str(certificates / "missing.pem")),
        }.items():
            with pytest.raises(StoreError) as raised:
                await RedisStore(msgspec.structs.replace(url, tls=tls), 0, 1).open()
            assert not isinstance(raised.value, StoreRefused)
            told[name] = str(raised.value)
        plain = msgspec.structs.replace(url, tls=None, connect_seconds=0.5)
        with pytest.raises(StoreRefused):
            await RedisStore(plain, 0, 1).open()

    assert "certificate is refused" in told["other"]
    assert "certificate is refused" in told["system"]
    assert "cannot read the file of ca, cert or key" in told["missing"]


@in_asyncio
async def test_a_unix_socket_is_as_good(tmp_path: Path) -> None:
    """And one that is not there is a server that is away."""
    path = tmp_path / "redis.sock"
    with running(NEWEST, tmp_path / "redis", {"unixsocket": str(path)}):
        url = RedisUrl(socket=str(path))
        await prepare(url, 1)
        async with owning(RedisStore(url, 0, 1)) as store:
            await store.commit(inserting(make_row(1)))
            assert await load_all(store) == [make_row(1)]
    with pytest.raises(StoreRefused):
        await RedisStore(url, 0, 1).open()


# --- permissions -------------------------------------------------------------------------------------------------


def allowed(server: RedisServer, url: RedisUrl, *, less: str = "") -> RedisUrl:
    """Make a user as the doctor says, and return the URL with it."""
    line = permission_line(msgspec.structs.replace(url, user="me")).replace(">PASSWORD", ">pass")
    assert server.ask(*line.split(), *less.split()).startswith(b"+OK")
    return msgspec.structs.replace(url, user="me", password="pass")


@in_asyncio
async def test_the_permissions_that_the_doctor_names_are_enough(tmp_path: Path) -> None:
    """To prepare, to work, to move, to be examined, and to be a host of a cluster."""
    with running(NEWEST, tmp_path / "redis") as server:
        url = allowed(server, redis_url(server.url("mine")))
        await prepare(url, 1)
        async with owning(RedisStore(url, 0, 1)) as store:
            await store.commit(inserting(make_row(1)))
        await prepare(url, 3)
        findings = [finding async for finding in examine(url)]
        register = RedisRegister(url)
        await register.join(A)
        assert await register.beat(A)
        assert await register.hand(2, 0, A.address)
        assert (await register.look()).hosts == (A,)
        assert await register.leave(A.address)
        await register.close()

    assert [finding for finding in findings if finding.level in {"fault", "warning"}] == []


@pytest.mark.parametrize("less", ["-evalsha", "-eval", "-hset", "-hscan", "-unlink", "resetkeys"])
@in_asyncio
async def test_a_permission_that_lacks_is_found_by_the_doctor(tmp_path: Path, less: str) -> None:
    """With the line that gives it; the secret is not in it."""
    with running(NEWEST, tmp_path / "redis") as server:
        url = allowed(server, redis_url(server.url("mine")), less=less)
        findings = [finding async for finding in examine(url)]

    faults = [finding for finding in findings if finding.level == "fault"]
    assert [finding.remedy for finding in faults] == [permission_line(url)]
    assert "pass" not in " ".join(f"{finding.what} {finding.remedy}" for finding in findings).replace("PASSWORD", "")


# --- the doctor --------------------------------------------------------------------------------------------------


async def levels(url: RedisUrl) -> dict[str, str]:
    """Return what is not good, by the first words of it."""
    found: list[Finding] = [finding async for finding in examine(url)]
    return {" ".join(finding.what.split()[:3]): finding.level for finding in found if finding.level != "good"}


@in_asyncio
async def test_the_doctor_names_what_is_weak_or_wrong(tmp_path: Path) -> None:
    """And calls nothing weak that is not."""
    settings = {"maxmemory": "100mb", "maxmemory-policy": "noeviction"}
    with running(NEWEST, tmp_path / "redis", settings) as server:
        url = redis_url(server.url("mine"))
        fresh = await levels(url)
        await prepare(url, 2)
        prepared = await levels(url)
        server.ask("CONFIG", "SET", "appendfsync", "everysec")
        server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        weak = await levels(msgspec.structs.replace(url, wait_replicas=1, timeout_seconds=0.5))
        server.ask("CONFIG", "SET", "appendonly", "no")
        server.ask("REPLICAOF", "127.0.0.1", "1")
        replica = await levels(msgspec.structs.replace(url, allow_eviction=True))
    away = await levels(url)

    assert fresh == {"nothing is stored": "note"}
    assert prepared == {}
    assert weak == {
        "appendfsync is everysec:": "warning",
        "maxmemory-policy is allkeys-lru:": "fault",
        "wait_replicas is 1,": "fault",
        "a commit was": "fault",
    }
    assert replica == {"this server is": "fault", "there is no": "warning", "maxmemory-policy is allkeys-lru:": "warning"}
    assert list(away.values()) == ["fault"]


# --- a stale owner -----------------------------------------------------------------------------------------------

_OWNER = """
import asyncio, sys
from proteus_shards.store.registry import make_store
from tests.store.rows import inserting, make_row

async def main():
    store = make_store(sys.argv[1], 0, 1)
    await store.open()
    await store.commit(inserting(make_row(1)))
    print("owns", flush=True)
    sys.stdin.readline()
    for act in (store.commit(inserting(make_row(2))), store.reopen(), store.commit(inserting(make_row(3)))):
        try:
            await act
        except Exception as error:
            print(type(error).__name__, flush=True)
    await store.close()

asyncio.run(main())
"""


def start_owner(url: str) -> subprocess.Popen[str]:
    """Start a process that opens a store, commits a row, and waits for a line."""
    return subprocess.Popen(
        [sys.executable, "-c", _OWNER, url],
        env=server_environ({}),
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@in_asyncio
async def test_an_owner_that_was_stopped_and_goes_on_writes_nothing(tmp_path: Path) -> None:
    """A real process, paused while another took over: it is fenced, whatever it tries, and knows it."""
    with running(NEWEST, tmp_path / "redis") as server:
        backing = RedisBacking(server)
        process = start_owner(server.url(backing.url.prefix))
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "owns\n"
            process.send_signal(signal.SIGSTOP)
            async with owning(backing.store()) as store:
                assert await load_all(store) == [make_row(1)]
                process.send_signal(signal.SIGCONT)
                told, _ = process.communicate("go on\n", timeout=20)
                await store.commit(inserting(make_row(4)))
                assert await load_all(store) == [make_row(1), make_row(4)]
        finally:
            process.kill()
            process.wait()

    assert told.split() == ["StoreFenced"] * 3
