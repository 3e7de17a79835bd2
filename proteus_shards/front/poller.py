"""Which of many sockets can be read or written: one object that trio can wait for, over epoll where there is one.

trio wakes one task per socket, which costs more than all the rest of a small request. So the lane asks the kernel itself, for all of its
sockets at a time, and trio waits for one file descriptor: that of the epoll (or kqueue) object.
"""

from __future__ import annotations

import select
import selectors
from typing import Protocol

READ = 1
WRITE = 4
EVENTS_MAX = 512


class Poller(Protocol):
    """Level-triggered readiness of file descriptors. Events are a sum of `READ` and `WRITE`; a broken socket counts as readable."""

    def fileno(self) -> int:
        """Return the descriptor that is readable while `poll` would return something."""

    def register(self, fd: int, events: int) -> None:
        """Watch a descriptor; `events` 0 only for its breaking."""

    def modify(self, fd: int, events: int) -> None:
        """Watch it for something else."""

    def unregister(self, fd: int) -> None:
        """Watch it no more."""

    def poll(self) -> list[tuple[int, int]]:
        """Return (descriptor, events) of those that are ready now, up to `EVENTS_MAX` of them. Never waits."""

    def close(self) -> None:
        """Let go of the kernel's object."""


class EpollPoller:
    """Linux."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.fileno = self._epoll.fileno
        self.register = self._epoll.register
        self.modify = self._epoll.modify
        self.unregister = self._epoll.unregister
        self.close = self._epoll.close

    def poll(self) -> list[tuple[int, int]]:
        """See `Poller`."""
        return self._epoll.poll(0, EVENTS_MAX)


class SelectorPoller:
    """Everywhere else: the best of `selectors`, which is kqueue on macOS and BSD."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._idle: set[int] = set()

    def fileno(self) -> int:
        """See `Poller`."""
        return int(self._selector.fileno())

    def register(self, fd: int, events: int) -> None:
        """See `Poller`."""
        if events:
            self._selector.register(fd, _selector_events(events))
        else:
            self._idle.add(fd)

    def modify(self, fd: int, events: int) -> None:
        """See `Poller`."""
        self.unregister(fd)
        self.register(fd, events)

    def unregister(self, fd: int) -> None:
        """See `Poller`."""
        if fd in self._idle:
            self._idle.discard(fd)
        else:
            self._selector.unregister(fd)

    def poll(self) -> list[tuple[int, int]]:
        """See `Poller`."""
        ready = self._selector.select(0)[:EVENTS_MAX]
        return [(key.fd, READ * bool(mask & selectors.EVENT_READ) + WRITE * bool(mask & selectors.EVENT_WRITE)) for key, mask in ready]

    def close(self) -> None:
        """See `Poller`."""
        self._selector.close()


def make_poller() -> Poller:
    """Return the best poller of this platform."""
    return EpollPoller() if hasattr(select, "epoll") else SelectorPoller()


def _selector_events(events: int) -> int:
    return selectors.EVENT_READ * bool(events & READ) | selectors.EVENT_WRITE * bool(events & WRITE)
