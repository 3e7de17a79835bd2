"""The proxy does to a connection what its mode says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.conftest import eventually
from tests.faults.proxy import Proxy

SECONDS_MAX = 10.0


class Echo:
    """Answers each line with itself, and counts the lines."""

    def __init__(self) -> None:
        self.lines = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(SECONDS_MAX)

    def _serve(self) -> None:
        threads = []
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                break
            threads.append(threading.Thread(target=self._answer, args=(connection,)))
            threads[-1].start()
        for thread in threads:
            thread.join(SECONDS_MAX)

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            try:
                for line in stream:
                    self.lines += 1
                    stream.write(line)
                    stream.flush()
            except OSError:
                return


@pytest.fixture
def echo() -> Iterator[Echo]:
    """Return a server."""
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    """Return a proxy before it."""
    proxy = Proxy(echo.port)
    yield proxy
    proxy.close()


def connect(proxy: Proxy, seconds_max: float = SECONDS_MAX) -> socket.socket:
    """Return a connection through the proxy."""
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=seconds_max)


def ask(connection: socket.socket, text: bytes = b"hello\n") -> bytes:
    """Send a line and return what comes."""
    connection.sendall(text)
    return connection.recv(100)


def test_bytes_pass(proxy: Proxy) -> None:
    """Both ways."""
    with connect(proxy) as connection:
        assert b"hello\n" == ask(connection)


def test_a_cut_connection_ends_in_order_and_so_does_a_new_one(proxy: Proxy) -> None:
    """The client reads the end of the stream."""
    with connect(proxy) as connection:
        assert b"hello\n" == ask(connection)
        proxy.cut()
        assert b"" == connection.recv(100)
    with connect(proxy) as connection:
        assert b"" == connection.recv(100)
    proxy.passes()
    with connect(proxy) as connection:
        assert b"hello\n" == ask(connection)


def test_a_reset_connection_is_reset_and_so_is_a_new_one(proxy: Proxy) -> None:
    """The client gets an error, no end."""
    with connect(proxy) as connection:
        assert b"hello\n" == ask(connection)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            connection.recv(100)
    with pytest.raises(ConnectionResetError), connect(proxy) as connection:  # perhaps before it is there
        connection.recv(100)


def test_a_black_hole_says_nothing_and_lets_nothing_through(proxy: Proxy, echo: Echo) -> None:
    """Old and new connections stay; afterwards they are reset, since there is a hole in their stream."""
    with connect(proxy, 0.2) as old:
        assert b"hello\n" == ask(old)
        proxy.black_hole()
        with connect(proxy, 0.2) as new:
            for connection in (old, new):
                with pytest.raises(TimeoutError):
                    ask(connection)
            eventually(lambda: 12 <= proxy.dropped_bytes)
            proxy.passes()
            for connection in (old, new):
                connection.settimeout(SECONDS_MAX)
                with pytest.raises(ConnectionResetError):
                    connection.recv(100)
    assert 1 == echo.lines


def test_answers_are_lost_after_their_requests_have_passed(proxy: Proxy, echo: Echo) -> None:
    """What was asked was done, and its client does not hear of it."""
    with connect(proxy, 0.2) as connection:
        assert b"hello\n" == ask(connection)
        proxy.lose_answers()
        with pytest.raises(TimeoutError):
            ask(connection)
        eventually(lambda: 2 == echo.lines)
        eventually(lambda: 6 == proxy.dropped_bytes)


def test_delayed_bytes_come_all_the_same(proxy: Proxy) -> None:
    """In order."""
    proxy.delay(0.01)
    with connect(proxy) as connection:
        assert [b"one\n", b"two\n"] == [ask(connection, b"one\n"), ask(connection, b"two\n")]


def test_a_server_that_is_away_is_an_end_for_its_clients(proxy: Proxy) -> None:
    """As a cut is."""
    proxy.target_port = 1
    with connect(proxy) as connection:
        assert b"" == connection.recv(100)
