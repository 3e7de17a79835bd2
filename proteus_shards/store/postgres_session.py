"""One session with a Postgres server: reached, set up, and asked what it stands on.

The session's settings are made by a statement after connecting rather than at connecting, since a pooler refuses start-up settings that it does not
know. A pooler must give each client a session of its own (PgBouncer: `pool_mode = session`): settings and prepared statements belong to it.

**Time.** The server ends a statement a little before this side gives up (statement_timeout), so that most often the outcome is known. It is known even with
a standby to wait for: Postgres takes the timer away before it commits. A session that has fallen silent inside a transaction is ended (idle_in_transaction_
session_timeout), and a peer that takes no bytes is, too (tcp_user_timeout), so that a frozen owner's locks do not last.

**Durability** is found out, not believed:

    synchronous_commit=off, or data_sync_retry=on                  weak      a tail may be lost; a failed fsync may be taken for good
    fsync=off or full_page_writes=off                              process   the log is written before the answer, but may not be on the disk, or not whole
    on or remote_apply, with synchronous_standby_names             replica
    else                                                           machine   remote_write, too: a standby that has it in memory only is none
"""

from __future__ import annotations

import asyncio
import getpass
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import asyncpg
import msgspec

from proteus_shards.errors import StoreError, StoreFailed, StoreRefused
from proteus_shards.store.contract import Durability
from proteus_shards.store.postgres_errors import Doing, StandbyMet, cause_of, fault_of
from proteus_shards.store.postgres_url import PostgresUrl

VERSION_MIN = 13
LOCK_SECONDS_MAX = 2.0  # a statement waits no longer for a lock
SERVER_SHARE = 0.9  # of a time that this side waits, the server may take so much
CLOSE_SECONDS_MAX = 1.0

_SECTION = re.compile(r"^-- (\w+) --\n", re.MULTILINE)
_COMMENT = re.compile(r"^--.*\n", re.MULTILINE)


class Facts(msgspec.Struct, frozen=True):
    """What a session stands on."""

    version: str
    version_number: int  # 180006 for 18.6
    encoding: str
    fsync: str
    synchronous_commit: str
    full_page_writes: str
    data_sync_retry: str
    standbys: str
    standby: bool
    timeline: str

    @property
    def durability(self) -> Durability:
        """What a commit survives there."""
        if self.synchronous_commit == "off" or self.data_sync_retry == "on":
            return Durability.WEAK
        if self.fsync == "off" or self.full_page_writes == "off":
            return Durability.PROCESS
        if self.standbys.strip() and self.synchronous_commit in {"on", "remote_apply"}:
            return Durability.REPLICA
        return Durability.MACHINE

    @property
    def terms(self) -> str:
        """The same in one line, with its reasons."""
        settings = f"fsync={self.fsync}, synchronous_commit={self.synchronous_commit}, full_page_writes={self.full_page_writes}"
        retry = ", data_sync_retry=on" if self.data_sync_retry == "on" else ""
        return f"PostgreSQL {self.version.split()[0]}, {settings}{retry}, {'synchronous standbys' if self.standbys.strip() else 'no synchronous standby'}"


@cache
def query(name: str) -> str:
    """Return a statement of postgres_queries.sql."""
    parts = _SECTION.split((Path(__file__).parent / "postgres_queries.sql").read_text(encoding="utf-8"))
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return _COMMENT.sub("", found[name]).strip()


async def connect(url: PostgresUrl, doing: Doing) -> Any:
    """Return a session that is set up, with a primary. Raises `StoreRefused` while there is none, and `StoreError` where no retry helps."""
    _check_files(url)
    faults: list[StoreError] = []
    for host in url.hosts:  # one by one, so that a host that does not answer takes no time from the next
        connection: Any = None
        try:
            async with asyncio.timeout(url.connect_timeout_seconds):
                connection = await asyncpg.connect(**_arguments(url, *host))
            async with asyncio.timeout(url.timeout_seconds):
                await connection.fetchrow(query("configure"), *_settings(url))
        except Exception as error:  # noqa: BLE001  # what is none of a store's is raised on
            _drop(connection)
            faults.append(fault_of(error, doing))
        except BaseException:
            _drop(connection)
            raise
        else:
            return connection
    # what no retry helps is worth more than a host that is away, and that more than a standby
    raise min(faults, key=lambda fault: (isinstance(fault, StoreRefused), isinstance(fault, StandbyMet)))


def _drop(connection: Any) -> None:
    if connection is not None:
        connection.terminate()


async def look(connection: Any) -> Facts:
    """Return what a session stands on."""
    row = await connection.fetchrow(query("facts"))
    return Facts(**dict(row))


def check_facts(facts: Facts) -> None:
    """Raise where jobs cannot be kept there."""
    if facts.standby:
        raise StoreRefused("postgres: the server is a standby: name the primary, or all hosts, in the URL")
    if facts.version_number < VERSION_MIN * 10_000:
        raise StoreError(f"postgres: the server has version {facts.version.split()[0]}; {VERSION_MIN} is the least")
    if facts.encoding != "UTF8":
        raise StoreError(
            f"postgres: the database has the encoding {facts.encoding}, which cannot hold every name: make one with ENCODING 'UTF8'"
        )


@asynccontextmanager
async def session(url: PostgresUrl, doing: Doing) -> AsyncIterator[Any]:
    """Connect, and disconnect at the end. Driver's errors inside are raised as what they mean."""
    connection = await connect(url, doing)
    try:
        yield connection
    except Exception as error:  # noqa: BLE001  # what is none of a store's is raised on
        connection.terminate()
        raise fault_of(error, doing) from cause_of(error)
    finally:
        await disconnect(connection)


async def disconnect(connection: Any) -> None:
    """End a session in order if that is quickly done, and else at once. Raises nothing of the driver's."""
    if connection.is_closed():
        return
    try:
        async with asyncio.timeout(CLOSE_SECONDS_MAX):
            await connection.close()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        connection.terminate()


@asynccontextmanager
async def bounded(connection: Any, doing: Doing, seconds: float) -> AsyncIterator[None]:
    """Bound what is done inside, and raise an error as what it means. A session that may still be busy with it is ended."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except Exception as error:  # noqa: BLE001  # what is none of a store's is raised on
        raise fault_in(connection, error, doing) from cause_of(error)
    except BaseException:
        connection.terminate()
        raise


def fault_in(connection: Any, error: Exception, doing: Doing) -> StoreError:
    """Return what an error means. A session that may still be busy with what failed is ended."""
    if not isinstance(error, asyncpg.PostgresError | StoreError):
        connection.terminate()
    return fault_of(error, doing)


async def check_layout(connection: Any, known: int) -> int:
    """Return for how many shards the schema was made ready. Raises `StoreError` unless it is of the version that is known."""
    if not await connection.fetchval(query("has_layout")):
        raise StoreError("postgres: the schema has no tables yet, or this user may not see them: start the server, which makes them")
    layout = await connection.fetchrow(query("layout"))
    if layout is None:
        raise StoreError("postgres: the schema is empty: start the server, which fills it")
    if (fault := layout_fault(layout["version"], known)) is not None:
        raise fault
    shards: int = layout["shards"]
    return shards


def layout_fault(version: int, known: int) -> StoreError | None:
    """Return what is wrong with a schema of this version, or None."""
    if version > known:
        return StoreError(
            f"postgres: the schema was made by a newer version of proteus-shards (schema {version}, this one knows {known}): run that one"
        )
    if version < known:
        return StoreFailed(
            f"postgres: the schema is of version {version}, and must be brought to {known} first: start the server, which does it"
        )
    return None


def _arguments(url: PostgresUrl, host: str, port: int) -> dict[str, Any]:
    user = url.user or _login_name()
    return {
        "dsn": f"postgres:///?{urlencode(url.tls)}",
        "host": host,
        "port": port,
        "user": user,
        "password": url.password,
        "database": url.database or user,
        "passfile": url.passfile,
        "target_session_attrs": url.target_session_attrs,
        "krbsrvname": url.krbsrvname,
        "gsslib": url.gsslib,
        "max_cached_statement_lifetime": 0,
        "server_settings": {"application_name": url.application_name},
    }


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, ImportError, OSError) as error:  # a container may run as a number without a name
        raise StoreError("postgres: this process has no user name to log in with: name a user in the URL") from error


def _settings(url: PostgresUrl) -> tuple[str, ...]:
    schema = url.schema.replace('"', '""')
    share = url.timeout_seconds * SERVER_SHARE
    return (
        f'"{schema}"',
        url.synchronous_commit,
        _milliseconds(share),
        _milliseconds(min(LOCK_SECONDS_MAX, share / 3)),
        _milliseconds(url.timeout_seconds),
        _milliseconds(url.timeout_seconds),
    )


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))


def _check_files(url: PostgresUrl) -> None:
    for name, value in url.tls:
        if name in {"sslrootcert", "sslcrl", "sslcert", "sslkey"} and not os.access(value, os.R_OK):
            raise StoreError(f"postgres: the file that the option {name} names cannot be read")
