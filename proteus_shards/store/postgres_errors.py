"""What an error of Postgres, or of the way there, means for the rows.

Three questions decide, in this order.

*Was it asked?* What the driver cannot encode it never sends: nothing is written, and a retry would meet the same.

*Did the session live?* An ERROR ends a statement, and a statement is a transaction here: it is rolled back, surely. FATAL and PANIC end the session, as does
a lost connection, and may do so between a commit and its answer. With synchronous replication that is even how a session ends that was told to while
it waited for the standby, its rows already in the log. So what ends the session during a commit leaves the outcome unknown, whatever its SQLSTATE.

*Would it pass another time?* By the class of the SQLSTATE. 08, 28, 3D, 40, 53, 55, 57, 58 (connections, logins, clashes, resources, locks, an operator, the machine), a
server that is a standby now (25006) and a privilege taken away (42501) pass, although at the first opening a wrong login is told at once. Values that no server takes (22, 23, 54) do not, but the rest of the shard's rows are
sound. All else (a table gone, damage, a row that is there twice) means that memory is not what the store holds.

An fsync that failed never comes as an ERROR: Postgres then ends all sessions and recovers from its log, unless `data_sync_retry` is set (`postgres_session.py`
calls that weak).

No message takes a word from the server, whose words may be values of rows: the SQLSTATE names the error for whoever looks it up.
"""

from __future__ import annotations

import ssl
from enum import Enum, auto

import asyncpg

from proteus_shards.errors import StoreError, StoreFailed, StorePermanent, StoreRefused, StoreUnknown


class Doing(Enum):
    """What was under way."""

    OPENING = auto()  # for the first time: what is wrong with the settings is told at once
    READING = auto()  # or anything else that changes no row
    COMMITTING = auto()


class StandbyMet(StoreRefused):
    """The server is a standby. Its primary may be another host, or it may be promoted."""


DISAGREEMENT = "22012"  # division by zero: how the statement `commit` says that a row was not there
LOCKED = "55P03"
_DAMAGE = {"XX001", "XX002", "22021"}  # a page, an index, a text
_PASSING = {"08", "28", "3D", "40", "53", "55", "57", "58"}
_PASSING_STATES = {"25006", "42501"}
_VALUES = {"22", "23", "54"}
_SETTINGS = {"28", "3D", "42"}  # who may log in, the database, privileges

_SENTENCES = {
    "25006": "the server is read-only: it is a standby now",
    "28P01": "the password is wrong",
    "28000": "this user may not log in from here: see the server's pg_hba.conf",
    "3D000": "there is no such database",
    "40001": "a clash with another transaction",
    "40P01": "a deadlock with another transaction",
    "42501": "a privilege is missing: `proteus-shards doctor` says which",
    "42P01": "a table is gone",
    "42703": "a column is gone",
    "53100": "the server's disk is full",
    "53200": "the server is out of memory",
    "53300": "the server has no connection left: raise max_connections",
    LOCKED: "another session holds a lock that is needed",
    "57014": "the server cancelled the statement: it took too long, or an operator did",
    "57P01": "an operator ended the session",
    "57P02": "the server crashed and is recovering",
    "57P03": "the server is starting, stopping or recovering",
    "57P05": "the server ended an idle session",
    "58030": "the server met an I/O error",
    "XX001": "a page of the database is damaged",
    "XX002": "an index of the database is damaged",
}
_CLASSES = {
    "08": "the connection failed",
    "22": "a value cannot be stored",
    "23": "a value cannot be stored",
    "28": "this user may not log in",
    "40": "the transaction was rolled back",
    "53": "the server is out of some resource",
    "54": "a value is larger than the server takes",
    "55": "the server was not in the state for it",
    "57": "an operator intervened",
    "58": "the server met an error of its machine",
    "XX": "the server met an internal error",
}


def fault_of(error: BaseException, doing: Doing) -> StoreError:
    """Return what an error means. What is no error of a store, a driver or a network is a bug, and raised on."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return StandbyMet("postgres: no host of the URL is a primary at present")
    if isinstance(
        error, asyncpg.InternalClientError
    ):  # met where the server has just ended a session that was idle: it lost count of its states
        return _unknown_if(doing, "the driver lost track of the connection")
    if isinstance(error, asyncpg.UnsupportedClientFeatureError):
        return StoreFailed("postgres: the driver met a fault of its own")
    if isinstance(error, asyncpg.ClientConfigurationError | ssl.SSLCertVerificationError):
        tls = isinstance(error, ssl.SSLError)
        told = (
            "the server's certificate is not trusted"
            if tls
            else "a file that the URL names, or two of its options together, cannot be used"
        )
        return StoreError(f"postgres: {told}") if doing is Doing.OPENING else _unknown_if(doing, told)
    if isinstance(error, asyncpg.PostgresError):
        return _answered(error, doing)
    if isinstance(error, TimeoutError):
        return _unknown_if(doing, "the server did not answer in time")
    if type(error) is ConnectionError:  # the one that the driver itself raises
        return _unknown_if(doing, "the server does not speak TLS, or not just now: sslmode asks for it")
    if isinstance(error, OSError):
        return _unknown_if(doing, f"the connection failed ({error.strerror or type(error).__name__})")
    if isinstance(error, asyncpg.InterfaceError):  # most often: used while it was being closed
        return _unknown_if(doing, "the connection is closed")
    raise error


def cause_of(error: BaseException) -> BaseException | None:
    """Return an error to keep as the cause of what it means: none whose words may be values of rows, or parts of the URL."""
    return error if isinstance(error, OSError) else None


def is_damage(error: BaseException) -> bool:
    """Say whether an error means that some stored row cannot be read, though others can."""
    return isinstance(error, UnicodeDecodeError) or getattr(error, "sqlstate", None) in _DAMAGE


def _answered(error: asyncpg.PostgresError, doing: Doing) -> StoreError:
    state = error.sqlstate or ""
    told = f"postgres: {_SENTENCES.get(state) or _CLASSES.get(state[:2]) or 'the server refused'} (SQLSTATE {state or 'unknown'})"
    severity = getattr(error, "severity_en", None) or getattr(error, "severity", None)
    if doing is Doing.OPENING and state[:2] in _SETTINGS:
        return StoreError(told)
    if severity in {"FATAL", "PANIC"} or state[:2] == "08":
        return StoreUnknown(told) if doing is Doing.COMMITTING else StoreRefused(told)
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return StoreRefused(told)
    if state[:2] in _PASSING or state in _PASSING_STATES:
        return StoreRefused(told)
    if doing is Doing.COMMITTING:
        if state == DISAGREEMENT:
            return StoreFailed("postgres: a row to delete or to change is not in the store: memory and store do not agree")
        if state == "23505":
            return StoreFailed("postgres: a row to insert is in the store already: memory and store do not agree")
        if state[:2] in _VALUES:
            return StorePermanent(told.removeprefix("postgres: "))  # it may reach a client
    return StoreFailed(told)


def _unknown_if(doing: Doing, told: str) -> StoreError:
    return StoreUnknown(f"postgres: {told}") if doing is Doing.COMMITTING else StoreRefused(f"postgres: {told}")
