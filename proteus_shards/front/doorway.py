"""The listening socket of the fast lane: when it accepts, and when it waits.

It waits while connections_max are open, and for a moment where no file descriptor is left: a listener that stays readable and cannot be accepted from
would else have the event loop spin. What connects meanwhile waits in the kernel, and is served once there is room.
"""

from __future__ import annotations

import errno
import logging
import math
import socket
from collections.abc import Iterator
from contextlib import suppress

from proteus_shards.front.counts import count_limit
from proteus_shards.front.poller import READ, Poller

ACCEPTS_AT_ONCE = 64
PAUSE_SECONDS = 0.1

_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = logging.getLogger("proteus_shards.front")


class Doorway:
    """Accepts from a listener that is ready, as a poller says."""

    def __init__(self, listener: socket.socket, poller: Poller) -> None:
        self.accepting = False
        self.accepted = 0
        self._listener = listener
        self._poller = poller
        self._again = math.inf  # when it tries once more after it ran out of descriptors
        self._closed = False
        listener.setblocking(False)

    def fileno(self) -> int:
        """Return the listener's descriptor; -1 once it is closed."""
        return self._listener.fileno()

    def open(self) -> None:
        """Accept from now on, if it does not, and is not closed for good."""
        if not self.accepting and not self._closed:
            self.accepting = True
            self._again = math.inf
            self._poller.register(self._listener.fileno(), READ)

    def pause(self) -> None:
        """Accept nothing until `open`."""
        if self.accepting:
            self.accepting = False
            self._again = math.inf
            self._poller.unregister(self._listener.fileno())

    def close(self) -> None:
        """Accept nothing ever more."""
        self.pause()
        self._closed = True
        self._listener.close()

    def look(self, now: float) -> None:
        """Open once a pause is over."""
        if now >= self._again:
            self.open()

    def accept(self, now: float, room: int) -> Iterator[socket.socket]:
        """Accept as many as wait, at most `room` and not too many at once. Without room, it pauses."""
        for _ in range(ACCEPTS_AT_ONCE):
            if room <= 0:
                count_limit("connections_max")
                self.pause()
                return
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_DESCRIPTORS:
                    log.warning("no file descriptor left, accepting pauses", extra={"accepted": self.accepted})
                    self.pause()
                    self._again = now + PAUSE_SECONDS
                    return
                continue  # that client is gone already
            sock.setblocking(False)
            with suppress(OSError):  # macOS says so where the client has gone meanwhile; reading finds that out
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.accepted += 1
            room -= 1
            yield sock
