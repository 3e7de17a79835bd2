"""The URL of a Postgres store: what it means, what of it is refused, and how a password is kept out of sight."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proteus_shards.errors import SettingError, StoreError, StoreRefused
from proteus_shards.store.postgres import store_of_shard
from proteus_shards.store.postgres_prepare import prepare
from proteus_shards.store.postgres_url import PostgresUrl
from proteus_shards.store.registry import check_url
from proteus_shards.store.urls import read_url
from tests.servers.postgres import PostgresServer
from tests.store.postgres_backing import execute, postgres_url
from tests.store.rows import in_asyncio, opened

LOCAL = PostgresUrl(hosts=(("h", 5432),))


def with_tls(**options: str) -> tuple[tuple[str, str], ...]:
    """Return what the driver is told of TLS."""
    return tuple(({"sslmode": "prefer", "sslnegotiation": "postgres"} | options).items())


@pytest.mark.parametrize(
    ("rest", "changes"),
    [
        ("h", {}),
        ("h/", {}),
        ("h:5433/d", {"hosts": (("h", 5433),), "database": "d"}),
        ("u@h/d", {"user": "u", "database": "d"}),
        ("u:p@h", {"user": "u", "password": "p"}),
        ("u%40v:p%3A%40%2F%3F%23%25@h/d%2Fe", {"user": "u@v", "password": "p:@/?#%", "database": "d/e"}),
        ("u:p@q@h", {"user": "u", "password": "p@q"}),
        ("u:p:q@h", {"user": "u", "password": "p:q"}),
        ("u:@h", {"user": "u", "password": ""}),
        ("[::1]:5433,[::2],h", {"hosts": (("::1", 5433), ("::2", 5432), ("h", 5432))}),
        ("a:1,b:2/d", {"hosts": (("a", 1), ("b", 2)), "database": "d"}),
        ("%2Frun%2Fpostgresql:5433", {"hosts": (("/run/postgresql", 5433),)}),
        ("u@/d?host=/run/postgresql&port=5433", {"hosts": (("/run/postgresql", 5433),), "user": "u", "database": "d"}),
        ("?host=a,b&port=1,2", {"hosts": (("a", 1), ("b", 2))}),
        ("a,b?port=1", {"hosts": (("a", 1), ("b", 1))}),
        ("h?user=u&password=p&dbname=d", {"user": "u", "password": "p", "database": "d"}),
        ("h?schema=Jobs%20%22x%22", {"schema": 'Jobs "x"'}),
        ("h?timeout=2.5&connect_timeout=1&load_timeout=60", {"timeout_seconds": 2.5, "connect_timeout_seconds": 1.0, "load_timeout_seconds": 60.0}),
        ("h?synchronous_commit=remote_apply", {"synchronous_commit": "remote_apply"}),
        ("h?application_name=x&passfile=/p", {"application_name": "x", "passfile": "/p"}),
        ("h?target_session_attrs=read-write&krbsrvname=k&gsslib=sspi", {"target_session_attrs": "read-write", "krbsrvname": "k", "gsslib": "sspi"}),
        ("h?sslmode=verify-full&sslrootcert=/r", {"tls": with_tls(sslmode="verify-full", sslrootcert="/r")}),
        ("h?sslmode=require&sslnegotiation=direct", {"tls": with_tls(sslmode="require", sslnegotiation="direct")}),
        (
            "h?sslcert=/c&sslkey=/k&sslcrl=/l&sslpassword=p&ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.3",
            {
                "tls": with_tls(
                    ssl_min_protocol_version="TLSv1.3", ssl_max_protocol_version="TLSv1.3", sslcrl="/l", sslcert="/c", sslkey="/k", sslpassword="p"
                )
            },
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_a_url_means_one_thing(scheme: str, rest: str, changes: dict[str, Any]) -> None:
    """As libpq's users know it; percent-escapes are decoded once."""
    assert msgspec.structs.replace(LOCAL, **changes) == read_url(f"{scheme}://{rest}")


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        ("", "write postgres://"),
        ("//", "names no host"),
        ("//u:secret@", "names no host"),
        ("//u:secret@/d", "names no host"),
        ("u:secret@h", "write postgres://"),
        ("//h,,i", "names no host"),
        ("//u:secret@h/d/e", "%2F"),
        ("//u:secret@h:x", "a port must be a number"),
        ("//u:secret@h:0", "a port must be a number"),
        ("//u:secret@h:65536", "a port must be a number"),
        ("//u:secret@h:", "followed by a port"),
        ("//u:secret/x@h", "a port must be a number"),
        ("//[::1", "brackets"),
        ("//[::1]5", "brackets"),
        ("//u:secret%00@h", "NUL"),
        ("//u:secret%FF@h", "not UTF-8"),
        ("//u:secret@h?user=v", "gives user twice"),
        ("//u:secret@h?password=secret", "gives password twice"),
        ("//h/d?dbname=e", "gives dbname twice"),
        ("//h?host=i", "gives host twice"),
        ("//h:1?port=2", "gives port twice"),
        ("//a,b,c?port=1,2", "one for each host"),
        ("//h?password=secret%00", "NUL"),
        ("//h?service=x", "postgres has no option 'service'"),
        ("//h?search_path=x", "postgres has no option 'search_path'"),
        ("//h?sslmode=on", "sslmode must be"),
        ("//h?sslnegotiation=direct", "needs sslmode=require"),
        ("//h?synchronous_commit=yes", "synchronous_commit must be"),
        ("//h?target_session_attrs=standby", "target_session_attrs must be"),
        ("//h?timeout=0", "timeout must be a number of seconds"),
        ("//h?timeout=nan", "timeout must be a number of seconds"),
        ("//h?connect_timeout=1e9", "connect_timeout must be a number of seconds"),
        ("//h?schema=", "must not be empty"),
        ("//h?schema=pg_x", "must not begin with pg_"),
        ("//h?schema=a%00", "control characters"),
        ("//h?schema=" + "é" * 32, "at most 63 bytes"),
        ("//h?application_name=a%0A", "control characters"),
    ],
)
def test_what_is_not_understood_is_refused(rest: str, told: str) -> None:
    """The message names what is wrong, and never repeats a password."""
    with pytest.raises(SettingError, match=r"^store\b") as raised:
        check_url(f"postgres:{rest}")

    assert told in str(raised.value)
    assert "sec" not in str(raised.value).replace("seconds", "")


def test_a_url_shows_no_secret() -> None:
    """Nor does what it is part of."""
    url = postgres_url("postgres://u:geheim-17@h/d?sslpassword=geheim-18")

    assert "geheim" not in f"{url} {url!r} {url.place} {[url]} {store_of_shard(url, 0, 1)!r}"
    assert repr(url) == "PostgresUrl(h:5432/d schema proteus_shards)"


# --- the way there, for real -------------------------------------------------------------------------------------


@pytest.fixture
def password_postgres(own_postgres: PostgresServer) -> PostgresServer:
    """Return a server that asks the user `guarded` for a password."""
    rules = own_postgres.data / "pg_hba.conf"
    rules.write_text("host all guarded 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
    own_postgres.stop()
    own_postgres.start()
    return own_postgres


@in_asyncio
async def test_a_password_comes_from_the_url_the_environment_or_a_file(
    password_postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong one is told at once, and no message holds it."""
    url = postgres_url(password_postgres.url("guarded"))
    await prepare(url, 1)
    await execute(url, "CREATE ROLE guarded LOGIN SUPERUSER PASSWORD 'geheim-17'")
    guarded = msgspec.structs.replace(url, user="guarded")
    passfile = tmp_path / "pgpass"
    passfile.write_text("*:*:*:guarded:geheim-17\n")
    passfile.chmod(0o600)
    for changes in ({"password": "geheim-18"}, {}):
        store = store_of_shard(msgspec.structs.replace(guarded, **changes), 0, 1)
        with pytest.raises(StoreError) as raised:
            await store.open()
        await store.close()
        assert type(raised.value) is StoreError
        assert "geheim" not in repr(raised.value)
    for changes in ({"password": "geheim-17"}, {"passfile": str(passfile)}):
        async with opened(store_of_shard(msgspec.structs.replace(guarded, **changes), 0, 1)):
            pass
    monkeypatch.setenv("PGPASSWORD", "geheim-17")
    async with opened(store_of_shard(guarded, 0, 1)):
        pass


@in_asyncio
async def test_the_other_variables_of_the_environment_do_not_count(own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be there for another program, and would send the jobs elsewhere."""
    url = postgres_url(own_postgres.url("jobs"))
    for name, value in (
        ("PGHOST", "192.0.2.1"),
        ("PGPORT", "1"),
        ("PGUSER", "nobody"),
        ("PGDATABASE", "none"),
        ("PGSSLMODE", "verify-full"),
        ("PGSSLNEGOTIATION", "direct"),
        ("PGTARGETSESSIONATTRS", "standby"),
        ("PGSERVICE", "none"),
        ("PGOPTIONS", "-c search_path=none"),
        ("PGAPPNAME", "none"),
    ):
        monkeypatch.setenv(name, value)
    await prepare(url, 1)

    assert await execute(url, "SELECT current_user::text, current_setting('application_name')") == [("postgres", "proteus-shards")]


@in_asyncio
async def test_a_socket_and_one_of_several_hosts_lead_there(own_postgres: PostgresServer) -> None:
    """A host that is not there is passed over."""
    with socket.socket() as unused:  # bound and not listening
        unused.bind(("127.0.0.1", 0))
        hosts = f"127.0.0.1:{unused.getsockname()[1]},127.0.0.1:{own_postgres.port}"
        await prepare(postgres_url(f"postgres://postgres@{hosts}/postgres?sslmode=disable"), 1)
    by_socket = postgres_url(f"postgres://postgres@/postgres?host={own_postgres.sockets}&port={own_postgres.port}")
    async with opened(store_of_shard(by_socket, 0, 1)) as store:
        assert await store.read([]) == {}


@in_asyncio
async def test_tls_that_is_asked_for_is_never_done_without(own_postgres: PostgresServer, tmp_path: Path) -> None:
    """This server has none, and a file that is not there is named."""
    url = own_postgres.url("jobs", sslmode="require")
    with pytest.raises(StoreRefused, match="does not speak TLS"):
        await prepare(postgres_url(url), 1)
    with pytest.raises(StoreError, match="the file that the option sslrootcert names"):
        await prepare(postgres_url(own_postgres.url("jobs", sslmode="verify-full", sslrootcert=str(tmp_path / "none"))), 1)


@in_asyncio
async def test_a_host_that_does_not_answer_takes_no_time_from_the_next(own_postgres: PostgresServer) -> None:
    """Each has the time of `connect_timeout` for itself."""
    with socket.socket() as silent:  # takes connections, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hosts = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{own_postgres.port}"
        url = postgres_url(f"postgres://postgres@{hosts}/postgres?sslmode=disable&connect_timeout=0.5")
        await prepare(url, 1)
        alone = msgspec.structs.replace(url, hosts=url.hosts[:1])
        with pytest.raises(StoreRefused, match="did not answer in time"):
            await prepare(alone, 1)
