"""What a server takes from the machine that it runs on: sockets to listen on, a private folder, an environment, a service manager.

All of it is sync and done once, at the start; the supervisor decides when. The line that tells a person where the server listens is
made here too, as it is about the same things.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from proteus_shards import __version__
from proteus_shards.config import Settings, socket_path
from proteus_shards.errors import StartError

log = logging.getLogger(__name__)

BACKLOG_MAX = 4096  # connections that wait in the kernel; it takes its own limit where that is lower
NOTIFY_SECONDS_MAX = 0.5
SOCKET_PATH_BYTES_MAX = 100  # macOS allows 104 with the final zero, Linux 108


def open_listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """Return `count` sockets that listen on one address and port. Raises `StartError`.

    SO_REUSEPORT would let a second server of the same user share the port in silence. So with several sockets a first bind
    without it makes sure that the port is free.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for i, (family, _, _, _, address) in enumerate(found):
            try:
                return _listen(family, address, count)
            except OSError as error:
                if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT} or i == len(found) - 1:
                    raise
    except (OSError, ValueError) as error:  # ValueError: cannot be a host name
        raise StartError(f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}") from error
    raise StartError(f"cannot listen on {host} port {port}: the name has no address")


def _listen(family: int, address: tuple[Any, ...], count: int) -> list[socket.socket]:
    if count > 1 and not hasattr(socket, "SO_REUSEPORT"):
        raise StartError("this system has no SO_REUSEPORT, which several fronts need: use --fronts 1")
    with ExitStack() as cleanup:

        def bind(address: tuple[Any, ...], *, shared: bool) -> socket.socket:
            bound = cleanup.enter_context(socket.socket(family, socket.SOCK_STREAM))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind(address)
            return bound

        listeners = [bind(address, shared=False)]
        if count > 1:
            listeners.pop().close()
            for _ in range(count):
                listeners.append(bind(address, shared=True))
                address = listeners[0].getsockname()  # port 0: the first has picked one for all
        for listener in listeners:
            listener.listen(BACKLOG_MAX)
        cleanup.pop_all()
        return listeners


@contextmanager
def private_dir(shards: int) -> Iterator[str]:
    """Make a directory for the sockets that only this user may enter, with a path short enough for a Unix socket."""
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 mkdtemp makes it safe
        path = tempfile.mkdtemp(prefix="proteus-", dir=parent)
        if len(os.fsencode(socket_path(path, shards))) <= SOCKET_PATH_BYTES_MAX:
            break
        Path(path).rmdir()
    else:
        raise StartError("no temporary directory has a path that is short enough for a socket: set TMPDIR to a shorter one")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)  # left in /tmp at worst


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a child sees of the environment, with a way to find this package where it is not installed."""
    kept = {
        name: value
        for name, value in environ.items()
        if name not in {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
        and (not name.startswith("PROTEUS_") or name.startswith("PROTEUS_TEST_"))
    }
    root = Path(__file__).resolve().parent.parent
    if root.name not in {"site-packages", "dist-packages"}:  # a checkout: those two are on the path of every child
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), environ.get("PYTHONPATH", "")]))
    return kept


def start_line(settings: Settings, address: tuple[str | int, ...]) -> str:
    """Return the one line that a ready server prints. It shows no secret."""
    host = f"[{address[0]}]" if ":" in str(address[0]) else address[0]
    scheme = "https" if settings.tls_cert else "http"
    return (
        f"proteus-shards {__version__} listening on {scheme}://{host}:{address[1]} · store {redacted(settings.store)}"
        f" · shards {settings.shards} · fronts {settings.fronts}"
    )


def redacted(url: str) -> str:
    """Return a store's URL without what may be secret: user and password, query, fragment."""
    shown, *dropped = re.split("[?#]", url, maxsplit=1)
    scheme, separator, rest = shown.partition("://")
    if any("@" in part for part in dropped):  # a "#" or "?" in a password, perhaps: where it ends is anyone's guess
        return f"{scheme}://…"
    return scheme + separator + (rest if rest.startswith("/") else rest.rpartition("@")[2])


def sd_notify(state: str) -> None:
    """Tell systemd, where it asked to be told."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.settimeout(NOTIFY_SECONDS_MAX)
            notify.sendto(state.encode(), b"\0" + path[1:].encode() if path.startswith("@") else path)
    except OSError as error:
        log.warning("systemd could not be told", extra={"state": state, "reason": error.strerror or str(error)})


def watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """Return how often systemd wants to hear of this process, or None where it does not."""
    meant = environ.get("WATCHDOG_PID", "")
    usec = environ.get("WATCHDOG_USEC", "")
    if not usec.isascii() or not usec.isdigit() or not int(usec) or meant not in {"", str(os.getpid())}:
        return None
    return int(usec) / 1_000_000
