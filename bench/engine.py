"""The sockets of the own generator: many connections, one epoll, whole answers.

Plain and small on purpose, since its CPU is taken from what it measures: no event loop, no tasks, one callback an answer. An answer that is the same to
the byte as one before (most are, but for the Date) is looked up instead of parsed. Whatever should not happen here, such as a
connection that is closed, raises `LoadError`: a measurement with a hole in it is none.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

READ_BYTES = 1 << 18
KNOWN_MAX = 64

Answered = Callable[["Wire", int, bytes], None]
Split = Callable[[bytes, int], "tuple[int, int, int] | None"]


class LoadError(Exception):
    """The load could not be made or its answers are not what they must be."""


class Wire:
    """One connection. `index` counts from 0; `note` is for whoever uses it."""

    __slots__ = ("fd", "inbox", "index", "note", "outbox", "recv", "sock")

    def __init__(self, sock: socket.socket, index: int) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.recv = sock.recv
        self.index = index
        self.inbox = b""
        self.outbox = b""
        self.note: float = 0.0


def split_http(data: bytes, start: int) -> tuple[int, int, int] | None:
    """Find one HTTP answer in `data[start:]`: its status, and where its body begins and ends. None: not all of it is there."""
    end = data.find(b"\r\n\r\n", start)
    if end < 0:
        return None
    status = int(data[start + 9 : start + 12])
    body = end + 4
    if status in {204, 304}:
        return status, body, body
    head = data[start:end].lower()
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        raise LoadError(f"an answer without a length: {head[:200]!r}")
    after = body + int(head[at + 17 :].split(b"\r\n", 1)[0])
    return None if after > len(data) else (status, body, after)


class Engine:
    """Connections to one address. `answered` is called with every whole answer."""

    def __init__(self, address: tuple[str, int], count: int, answered: Answered, split: Split = split_http) -> None:
        self.wires: list[Wire] = []
        self._answered = answered
        self._split = split
        self._known: dict[bytes, int] = {}
        self._epoll = select.epoll()
        self._by_fd: dict[int, Wire] = {}
        for index in range(count):
            sock = socket.create_connection(address, timeout=30)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            wire = Wire(sock, index)
            self.wires.append(wire)
            self._by_fd[wire.fd] = wire
            self._epoll.register(wire.fd, select.EPOLLIN)

    def close(self) -> None:
        """Close all connections."""
        for wire in self.wires:
            wire.sock.close()
        self._epoll.close()

    def send(self, wire: Wire, data: bytes) -> None:
        """Send bytes, those that the kernel does not take now as soon as it does."""
        if wire.outbox:
            wire.outbox += data
            return
        try:
            taken = wire.sock.send(data)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            raise LoadError(f"the server closed a connection: {error}") from error
        if taken < len(data):
            wire.outbox = data[taken:]
            self._epoll.modify(wire.fd, select.EPOLLIN | select.EPOLLOUT)

    def poll(self, seconds: float) -> None:
        """Wait for up to some seconds (to the microsecond, which epoll alone does not do), and handle what is there."""
        if seconds > 0:
            select.select([self._epoll], [], [], seconds)
        for fd, events in self._epoll.poll(0):
            wire = self._by_fd[fd]
            if events & select.EPOLLOUT:
                self._flush(wire)
            if events & ~select.EPOLLOUT:
                self._receive(wire)

    def _flush(self, wire: Wire) -> None:
        data, wire.outbox = wire.outbox, b""
        self._epoll.modify(wire.fd, select.EPOLLIN)
        self.send(wire, data)

    def _receive(self, wire: Wire) -> None:
        try:
            data = wire.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise LoadError(f"the server closed a connection: {error}") from error
        if not data:
            raise LoadError("the server closed a connection")
        if wire.inbox:
            data = wire.inbox + data
        else:
            status = self._known.get(data)
            if status is not None:
                self._answered(wire, status, b"")
                return
        start = 0
        while start < len(data):
            found = self._split(data, start)
            if found is None:
                break
            status, body, end = found
            if start == 0 and end == len(data) == body and len(data) < 512:
                if len(self._known) >= KNOWN_MAX:
                    self._known.clear()
                self._known[data] = status
            self._answered(wire, status, data[body:end])
            start = end
        wire.inbox = data[start:] if start else data
