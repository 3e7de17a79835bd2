"""What Redis's answers and silences mean to a shard.

`ServerSaid` is an error that the server answered with, `Unreached` that nothing was sent, `Unanswered` that something was sent and no answer came.
A script answers with an error only before its first write (what comes later it returns, see redis_commit.lua), and the server refuses a script or lets
it run; so an answered error means that nothing was written, except that a word nobody has foreseen is not trusted to.

Which error it was is told by its first word, in upper case. Redis 6 puts those that a script met behind a sentence of its own: then it is the
first such word that is known. No text of the server goes into a message: it may quote what it was sent.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from proteus_shards.errors import StoreError, StoreFailed, StoreRefused, StoreUnknown

# what passes by itself, or once somebody has acted
_PASSING = {
    "BUSY": "Redis runs another script",
    "CLUSTERDOWN": "the cluster is down",
    "LOADING": "Redis is loading its data",
    "MASTERDOWN": "this replica has lost its primary",
    "MAXCLIENTS": "Redis takes no more connections (maxclients)",
    "MISCONF": "Redis cannot write to its disk and takes no writes (MISCONF)",
    "NOREPLICAS": "Redis has too few replicas to take writes (min-replicas-to-write)",
    "OOM": "the memory of Redis is full (maxmemory)",
    "READONLY": "this Redis is a replica, which takes no writes",
    "TRYAGAIN": "the cluster is moving these keys",
}
# what no retry mends
_LASTING = {
    "DENIED": "Redis takes connections from its own host only (protected-mode)",
    "MOVED": "this is a node of a cluster: add the option cluster=yes",
    "NOAUTH": "Redis asks for a password: write redis://USER:PASSWORD@… or redis://:PASSWORD@…",
    "NOPERM": "the user lacks a permission: `proteus-shards doctor` says which",
    "WRONGPASS": "Redis refuses this user or password",
    "WRONGTYPE": "a key of ours is of another type: another program uses the same prefix",
}
_CLASSES: tuple[tuple[type[Exception], str], ...] = (
    (BusyLoadingError, "LOADING"),
    (OutOfMemoryError, "OOM"),
    (ReadOnlyError, "READONLY"),
    (NoScriptError, "NOSCRIPT"),
    (NoPermissionError, "NOPERM"),
    (MasterDownError, "MASTERDOWN"),
    (ClusterDownError, "CLUSTERDOWN"),
    (TryAgainError, "TRYAGAIN"),
    (MovedError, "MOVED"),
    (AskError, "ASK"),
)
_WORD = re.compile(r"\b[A-Z]{3,}\b")
_FROM_SCRIPT = "Error running script"


class WireError(Exception):
    """A call did not bring an answer that is none of these."""


class ServerSaid(WireError):
    """The server answered with an error."""

    def __init__(self, code: str) -> None:
        super().__init__(f"Redis answered {code}")
        self.code = code


class Unreached(WireError):
    """There was no connection, and nothing was sent."""

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


class Unanswered(WireError):
    """It was sent, and then the connection or the patience ended."""


def code_of(error: RedisError) -> str | None:
    """Return the word that says which error the server answered with; None: this is no answer of a server."""
    for kind, code in _CLASSES:
        if isinstance(error, kind):
            return code
    text = str(error)
    if isinstance(error, AuthenticationError):
        return "NOAUTH" if "required" in text.lower() else "WRONGPASS"
    if "max number of clients" in text:
        return "MAXCLIENTS"
    if not isinstance(error, ResponseError):
        return None
    first = _WORD.match(text)
    if first is None and text.startswith(_FROM_SCRIPT):
        first = next((found for found in _WORD.finditer(text) if found[0] in _PASSING or found[0] in _LASTING), None)
    return first[0] if first is not None else "ERR"


def fault_of(error: WireError, where: str, *, committing: bool = False) -> StoreError:
    """Return what a failed call means. `committing`: it was one that writes rows."""
    if isinstance(error, ServerSaid):
        return _fault_of_answer(error.code, where, committing=committing)
    if isinstance(error, Unreached):
        return StoreError(f"{where}: {error}") if error.lasting and not committing else StoreRefused(f"{where}: {error}")
    return (StoreUnknown if committing else StoreRefused)(f"{where}: {error}")


def _fault_of_answer(code: str, where: str, *, committing: bool) -> StoreError:
    if code in _PASSING:
        return StoreRefused(f"{where}: {_PASSING[code]}")
    if code == "WRONGTYPE" and committing:
        return StoreFailed(f"{where}: {_LASTING[code]}")
    if code in _LASTING:  # in the middle of its work the shard finds out by `reopen` whether it lasts
        return (StoreRefused if committing else StoreError)(f"{where}: {_LASTING[code]}")
    return (StoreUnknown if committing else StoreError)(f"{where}: Redis answered with the error {code}")


def unreached(error: BaseException, seconds: float, *, tls: bool) -> Unreached:
    """Return why a connection could not be made."""
    for cause in _causes(error):
        if tls and isinstance(cause, FileNotFoundError | PermissionError | IsADirectoryError):
            return Unreached(f"cannot read the file of ca, cert or key: {cause.strerror}", lasting=True)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Unreached(f"the server's certificate is refused: {cause.verify_message}", lasting=True)
        if isinstance(cause, ssl.SSLError):
            return Unreached(
                f"TLS failed ({cause.reason or 'no reason given'}): does this port speak TLS, and are ca, cert and key right?", lasting=True
            )
        if isinstance(cause, TimeoutError):
            return Unreached(f"no connection within {seconds:g} s")
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.strerror:
            return Unreached(f"no connection: {cause.strerror}")
    return Unreached("no connection")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
