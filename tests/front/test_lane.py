"""The fast lane on real sockets, against a fake shard: order, limits, slow clients, lost deliveries, and what is handed over."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from proteus_shards.config import Settings
from proteus_shards.core.commands import Cancel, Command, Complete, Delivered, Done, Enqueue, Heartbeat, Next, Outcome, Undeliver
from proteus_shards.front.lane import Lane
from proteus_shards.front.router import Router
from tests.front.fake_shard import PATIENCE_SECONDS, FakeShard, delivery, linked, obliging

JOB = b'{"id":"a","queue":"q","timeout":30}'
HOST = b"Host: localhost\r\n"


def post(body: bytes = JOB, fields: bytes = b"") -> bytes:
    """Return an enqueue."""
    return b"POST /enqueue HTTP/1.1\r\n%sContent-Length: %d\r\n%s\r\n%s" % (HOST, len(body), fields, body)


def get(target: bytes = b"/next?queue=q", fields: bytes = b"") -> bytes:
    """Return a GET."""
    return b"GET %s HTTP/1.1\r\n%s%s\r\n" % (target, HOST, fields)


class Stand:
    """A lane that runs, its fake shard, and what it handed over."""

    def __init__(self, lane: Lane, router: Router, shard: FakeShard, address: Any) -> None:
        self.lane = lane
        self.router = router
        self.shard = shard
        self.address = address
        self.handed: list[tuple[socket.socket, bytes]] = []
        self.handed_over = trio.Event()
        self.callers: list[Caller] = []

    async def connect(self) -> Caller:
        """Connect a client."""
        caller = Caller(await trio.open_tcp_stream(*self.address))
        self.callers.append(caller)
        return caller


class Caller:
    """A client on a raw socket."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        await self.stream.send_all(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one answer: status, fields, body."""
        with trio.fail_after(PATIENCE_SECONDS):
            while b"\r\n\r\n" not in self._buffer:
                await self._more()
            head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
            line, *rest = head.decode("latin-1").split("\r\n")
            fields = {name.lower(): value for name, value in (field.split(": ", 1) for field in rest)}
            length = int(fields.get("content-length", 0))
            while len(self._buffer) < length:
                await self._more()
            body, self._buffer = self._buffer[:length], self._buffer[length:]
            return int(line.split(" ")[1]), fields, body

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a request and read its answer."""
        await self.send(data)
        return await self.answer()

    async def ended(self) -> bool:
        """Wait for the end of the connection, and tell whether nothing came before it."""
        with trio.fail_after(PATIENCE_SECONDS):
            try:
                return not self._buffer and not await self.stream.receive_some()
            except trio.BrokenResourceError:
                return True

    def reset(self) -> None:
        """Vanish: the server's next look at this connection finds it broken."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.stream.socket.close()

    async def _more(self) -> None:
        data = await self.stream.receive_some()
        assert data, f"the connection ended early, after {self._buffer!r}"
        self._buffer += data


@asynccontextmanager
async def stand(tmp_path: Path, answer: Callable[[Command], Outcome | None] = obliging, **changes: Any) -> AsyncIterator[Stand]:
    """Run a lane for the length of a test."""
    settings = Settings(shards=1, **changes)
    listener = socket.create_server(("127.0.0.1", 0))
    async with linked(tmp_path, settings, answer) as (router, shards), trio.open_nursery() as nursery:

        def hand_over(sock: socket.socket, unread: bytes, _ended: Callable[[], None]) -> None:
            made.handed.append((sock, unread))
            made.handed_over.set()

        made = Stand(Lane(listener, router, settings, hand_over), router, shards[0], listener.getsockname())
        nursery.start_soon(made.lane.run)
        yield made
        nursery.cancel_scope.cancel()
    for sock, _ in made.handed:
        sock.close()
    for caller in made.callers:
        caller.stream.socket.close()
    listener.close()


async def test_each_hot_call_is_answered_as_the_api_says(tmp_path: Path) -> None:
    """Enqueue 202, next 200 and 204, heartbeat 202, complete 200, with and without the prefix, on one connection."""

    def answer(command: Command) -> Outcome | None:
        if isinstance(command, Next) and command.queue == "full":
            return Delivered([delivery()])
        return obliging(command)

    async with stand(tmp_path, answer) as made:
        caller = await made.connect()
        for prefix in (b"", b"/v1"):
            assert 202 == (await caller.ask(post().replace(b"/enqueue", prefix + b"/enqueue")))[0]
            status, fields, body = await caller.ask(get(prefix + b"/next?queue=full"))
            assert (200, "application/json") == (status, fields["content-type"])
            assert body.startswith(b'{"id":"a","queue":"q",')
            assert (204, b"") == (await caller.ask(get(prefix + b"/next?queue=empty")))[::2]
            line = prefix + b"/heartbeat?queue=q&job_id=a HTTP/1.1\r\n" + HOST
            assert 202 == (await caller.ask(b"PATCH " + line + b"Content-Length: 1\r\n\r\n7"))[0]
            line = prefix + b"/complete?queue=q&job_id=a HTTP/1.1\r\n" + HOST
            assert 200 == (await caller.ask(b"DELETE " + line + b"\r\n"))[0]

        kinds = [type(command) for command in made.shard.commands]
        assert [Enqueue, Next, Next, Heartbeat, Complete] * 2 == kinds


async def test_pipelined_requests_are_answered_in_order_and_travel_together(tmp_path: Path) -> None:
    """Answers keep the order of requests even where the shard answers in another."""
    held: list[int] = []

    async with stand(tmp_path, lambda command: None if isinstance(command, Next) else obliging(command)) as made:
        caller = await made.connect()
        await caller.send(b"".join(get(b"/next?queue=%d" % count) for count in range(5)) + get(b"/next?nonsense=1"))
        asked = await made.shard.wait_command(Next, 5)
        held = [number for number, _ in asked]
        await made.shard.reply(*[(number, Delivered([delivery(str(place))])) for place, number in reversed(list(enumerate(held)))])

        for count in range(5):
            status, _, body = await caller.answer()
            assert 200 == status
            assert f'"queue":"{count}"'.encode() in body
        assert 422 == (await caller.answer())[0]
        assert 5 in made.shard.frames


async def test_a_client_that_pipelines_too_much_is_not_read_until_it_has_answers(tmp_path: Path) -> None:
    """No more than connection_pipeline_max requests of a connection are under way."""
    async with stand(tmp_path, lambda _: None, connection_pipeline_max=3) as made:
        caller = await made.connect()
        await caller.send(get() * 10)
        answered = 0
        while answered < 10:
            asked = await made.shard.wait_command(Next, min(10, answered + 3))
            assert len(asked) <= answered + 3
            await made.shard.reply((asked[answered][0], Delivered([])))
            assert 204 == (await caller.answer())[0]
            answered += 1


async def test_a_fault_is_told_once_and_ends_the_connection(tmp_path: Path) -> None:
    """A malformed request gets its 400 after the answers before it, and nothing behind it is served."""
    async with stand(tmp_path) as made:
        caller = await made.connect()
        await caller.send(post() + b"NONSENSE\r\n\r\n" + post())

        assert 202 == (await caller.answer())[0]
        status, fields, body = await caller.answer()
        assert (400, "close") == (status, fields["connection"])
        assert b'"title":"Bad Request"' in body
        assert await caller.ended()
        assert 1 == len(made.shard.commands)


async def test_a_large_body_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """The 413 reaches even a client that sends on regardless."""
    async with stand(tmp_path, body_size_max=1000) as made:
        caller = await made.connect()
        await caller.send(post(b"x" * 100_000))

        status, fields, _ = await caller.answer()
        assert (413, "close") == (status, fields["connection"])
        assert await caller.ended()


async def test_a_client_that_expects_to_be_told_to_continue_is_told(tmp_path: Path) -> None:
    """100 Continue comes before the body, the answer after it."""
    async with stand(tmp_path) as made:
        caller = await made.connect()
        head, body = post(fields=b"Expect: 100-continue\r\n").split(b"\r\n\r\n")
        await caller.send(head + b"\r\n\r\n")
        assert 100 == (await caller.answer())[0]
        assert 202 == (await caller.ask(body))[0]


async def test_gzip_bodies_are_unpacked(tmp_path: Path) -> None:
    """A body with a content coding means the same."""
    import gzip

    async with stand(tmp_path) as made:
        caller = await made.connect()
        assert 202 == (await caller.ask(post(gzip.compress(JOB), b"Content-Encoding: gzip\r\n")))[0]
        assert 415 == (await caller.ask(post(JOB, b"Content-Encoding: br\r\n")))[0]


async def test_http_1_0_closes_unless_asked_to_stay(tmp_path: Path) -> None:
    """An HTTP/1.0 client gets its answer and the end of the connection, or keep-alive said aloud."""
    async with stand(tmp_path) as made:
        caller = await made.connect()
        status, fields, _ = await caller.ask(b"GET /next?queue=q HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (204, "keep-alive") == (status, fields["connection"])
        status, fields, _ = await caller.ask(b"GET /next?queue=q HTTP/1.0\r\n\r\n")
        assert (204, "close") == (status, fields["connection"])
        assert await caller.ended()


async def test_connection_close_and_the_request_limit_close(tmp_path: Path) -> None:
    """The last answer says close, and then the connection ends."""
    async with stand(tmp_path, connection_requests_max=2) as made:
        caller = await made.connect()
        assert "close" == (await caller.ask(get(fields=b"Connection: close\r\n")))[1]["connection"]
        assert await caller.ended()
        caller = await made.connect()
        assert "connection" not in (await caller.ask(get()))[1]
        assert "close" == (await caller.ask(get()))[1]["connection"]
        assert await caller.ended()


async def test_another_route_is_handed_over_with_its_bytes_after_the_answers_before_it(tmp_path: Path) -> None:
    """The lane answers what it serves, and gives the rest away untouched."""
    async with stand(tmp_path) as made:
        caller = await made.connect()
        other = get(b"/health") + get()
        await caller.send(post() + other)
        assert 202 == (await caller.answer())[0]
        with trio.fail_after(PATIENCE_SECONDS):
            await made.handed_over.wait()

        ((sock, unread),) = made.handed
        assert other == unread
        assert 0 == made.lane.statistics().connections
        sock.close()


async def test_a_poll_whose_client_closes_is_cancelled(tmp_path: Path) -> None:
    """The shard is told at once that nobody waits any more."""
    async with stand(tmp_path) as made:
        caller = await made.connect()
        await caller.send(get(b"/next?queue=q&wait=30"))
        ((number, _),) = await made.shard.wait_command(Next)
        await caller.stream.aclose()

        assert [Cancel(number)] == [command for _, command in await made.shard.wait_command(Cancel)]


async def test_a_delivery_that_finds_its_client_gone_goes_back(tmp_path: Path) -> None:
    """A job that was on its way when the client closed is given back."""
    async with stand(tmp_path) as made:
        caller = await made.connect()
        await caller.send(get(b"/next?queue=q&wait=30"))
        ((number, _),) = await made.shard.wait_command(Next)
        caller.reset()
        await made.shard.wait_command(Cancel)
        await made.shard.reply((number, Delivered([delivery()])))

        ((_, command),) = await made.shard.wait_command(Undeliver)
        assert isinstance(command, Undeliver)
        assert ("q", "a") == (command.queue, command.id)


async def test_a_delivery_that_the_client_does_not_read_goes_back_when_its_time_is_up(tmp_path: Path) -> None:
    """A client that takes no more of a large answer is cut off, and its jobs return."""
    payload = b'"' + b"x" * 3_000_000 + b'"'

    def answer(command: Command) -> Outcome | None:
        return Delivered([delivery(payload=payload)] * 5) if isinstance(command, Next) else obliging(command)

    async with stand(tmp_path, answer, request_seconds_max=0.5) as made:
        caller = await made.connect()
        caller.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await caller.send(get(b"/next?queue=q&num_jobs=5"))

        assert 5 == len(await made.shard.wait_command(Undeliver, 5))
        assert 1 == made.lane.statistics().timeouts


async def test_half_a_request_is_told_408_and_costs_others_nothing(tmp_path: Path) -> None:
    """A head that does not come to its end in time is refused, while another connection is served."""
    async with stand(tmp_path, header_seconds_max=0.3, request_seconds_max=0.4) as made:
        slow_head, slow_body, healthy = await made.connect(), await made.connect(), await made.connect()
        await slow_head.send(b"POST /enqueue HTTP/1.1\r\nHost:")
        await slow_body.send(post()[:-5])
        assert 202 == (await healthy.ask(post()))[0]

        for slow in (slow_head, slow_body):
            assert 408 == (await slow.answer())[0]
            assert await slow.ended()
        assert 202 == (await healthy.ask(post()))[0]


async def test_an_idle_connection_is_closed_without_a_word(tmp_path: Path) -> None:
    """Keep-alive ends after connection_idle_seconds_max."""
    async with stand(tmp_path, connection_idle_seconds_max=0.3) as made:
        caller = await made.connect()
        assert 202 == (await caller.ask(post()))[0]
        assert await caller.ended()


async def test_a_half_closed_client_gets_the_answer_to_what_it_sent(tmp_path: Path) -> None:
    """Shutting down the sending side does not lose an enqueue's answer."""
    async with stand(tmp_path, lambda command: None if isinstance(command, Enqueue) else obliging(command)) as made:
        caller = await made.connect()
        await caller.send(post())
        await caller.stream.send_eof()
        ((number, _),) = await made.shard.wait_command(Enqueue)
        await made.shard.reply((number, Done()))

        assert 202 == (await caller.answer())[0]
        assert await caller.ended()


async def test_beyond_connections_max_a_client_waits_until_another_leaves(tmp_path: Path) -> None:
    """Connections over the limit are not refused and not served, until there is room."""
    async with stand(tmp_path, connections_max=1) as made:
        first, second = await made.connect(), await made.connect()
        assert 202 == (await first.ask(post()))[0]
        await second.send(post())
        assert 202 == (await first.ask(post()))[0]
        assert not made.lane.statistics().accepting
        await first.stream.aclose()

        assert 202 == (await second.answer())[0]


async def test_with_no_file_descriptor_left_accepting_pauses_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE costs a pause, nothing else."""
    import errno

    class Poor(socket.socket):
        refusals = 3

        def accept(self) -> tuple[socket.socket, Any]:
            if Poor.refusals:
                Poor.refusals -= 1
                raise OSError(errno.EMFILE, "no descriptor left")
            return super().accept()

    def create_server(address: tuple[str, int]) -> socket.socket:
        server = Poor()
        server.bind(address)
        server.listen()
        return server

    monkeypatch.setattr(socket, "create_server", create_server)
    async with stand(tmp_path) as made:
        caller = await made.connect()
        assert 202 == (await caller.ask(post()))[0]
        assert 0 == Poor.refusals


async def test_a_bug_in_one_connection_ends_that_one_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception is logged, and the next connection is served."""
    async with stand(tmp_path) as made:
        caller, other = await made.connect(), await made.connect()
        assert 202 == (await caller.ask(post()))[0]
        with monkeypatch.context() as broken:
            broken.setattr(Lane, "_read_requests", lambda *_: 1 / 0)
            await caller.send(post())
            assert await caller.ended()
        assert 202 == (await other.ask(post()))[0]
        assert "a connection failed" in caplog.text


async def test_a_fault_in_a_call_is_a_500_that_tells_no_more_than_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an exception says stays in the log."""
    async with stand(tmp_path) as made:

        def fail(*_: object) -> None:
            raise KeyError("secret")

        monkeypatch.setattr(made.router, "submit", fail)
        caller = await made.connect()
        status, _, body = await caller.ask(post())

        assert 500 == status
        assert b"request_id" in body
        assert b"secret" not in body


async def test_stop_answers_what_is_under_way_and_closes_what_is_idle(tmp_path: Path) -> None:
    """A drained lane has no connection left, and owes nobody an answer."""
    async with stand(tmp_path, lambda command: None if isinstance(command, Enqueue) else obliging(command)) as made:
        idle, busy = await made.connect(), await made.connect()
        assert 204 == (await idle.ask(get()))[0]
        await busy.send(post())
        ((number, _),) = await made.shard.wait_command(Enqueue)
        made.lane.stop()
        assert await idle.ended()
        await made.shard.reply((number, Done()))

        assert 202 == (await busy.answer())[0]
        assert await busy.ended()
        with trio.fail_after(PATIENCE_SECONDS):
            while not made.lane.empty:
                await trio.lowlevel.checkpoint()


async def test_the_polls_of_hundreds_of_connections_wait_at_once(tmp_path: Path) -> None:
    """Polls cost the lane a connection each, and are answered together."""
    async with stand(tmp_path) as made:
        callers = [await made.connect() for _ in range(300)]
        for caller in callers:
            await caller.send(get(b"/next?queue=q&wait=30"))
        asked = await made.shard.wait_command(Next, 300)
        assert 300 == made.lane.statistics().waiting
        await made.shard.reply(*[(number, Delivered([])) for number, _ in asked])
        for caller in callers:
            assert 204 == (await caller.answer())[0]


async def test_bytes_that_come_while_a_handover_waits_go_along(tmp_path: Path) -> None:
    """A connection that is to be handed over loses nothing of what arrives before that: the rest of a body is no request."""
    async with stand(tmp_path, lambda command: None if isinstance(command, Enqueue) else obliging(command)) as made:
        caller = await made.connect()
        await caller.send(post() + get(b"/health"))
        ((number, _),) = await made.shard.wait_command(Enqueue)
        (client,) = made.lane._clients.values()
        assert client.handover == get(b"/health")
        await caller.send(b"more")
        with trio.fail_after(PATIENCE_SECONDS):
            while client.handover == get(b"/health"):
                made.lane._receive(client)  # as a poll would that saw the socket readable before the wish to read had ended
                await trio.lowlevel.checkpoint()
        await made.shard.reply((number, Done()))
        assert 202 == (await caller.answer())[0]
        with trio.fail_after(PATIENCE_SECONDS):
            await made.handed_over.wait()

        assert get(b"/health") + b"more" == made.handed[0][1]


async def test_a_delivery_that_was_taken_whole_is_not_given_back_with_the_one_behind_it(tmp_path: Path) -> None:
    """Of two pipelined answers, only the one that the client has not got returns to its queue."""

    def answer(command: Command) -> Outcome | None:
        if not isinstance(command, Next):
            return obliging(command)
        payload = b'"' + b"x" * 20_000_000 + b'"' if command.queue == "large" else b"1"
        return Delivered([delivery(command.queue, payload=payload)])

    async with stand(tmp_path, answer) as made:
        caller = await made.connect()
        caller.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await caller.send(get(b"/next?queue=small") + get(b"/next?queue=large"))
        assert b'"queue":"small"' in (await caller.answer())[2]
        await caller.stream.receive_some(1)
        caller.reset()

        ((_, command),) = await made.shard.wait_command(Undeliver)
        assert isinstance(command, Undeliver)
        assert "large" == command.queue


async def test_a_client_that_reads_steadily_is_not_cut_off_however_long_it_takes(tmp_path: Path) -> None:
    """The time to take answers begins anew with every piece."""

    def answer(command: Command) -> Outcome | None:
        return Delivered([delivery(payload=b'"' + b"x" * 1_000_000 + b'"')]) if isinstance(command, Next) else obliging(command)

    async with stand(tmp_path, answer, request_seconds_max=0.6) as made:
        caller = await made.connect()
        caller.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await caller.send(get() * 16)
        for _ in range(16):
            assert 200 == (await caller.answer())[0]
            await trio.sleep(0.1)  # the pace is what the test is about
        assert 0 == made.lane.statistics().timeouts


async def test_stop_lets_a_request_that_has_begun_come_to_its_end(tmp_path: Path) -> None:
    """Half a head and half a body are waited for, and answered with close."""
    async with stand(tmp_path) as made:
        head, body = await made.connect(), await made.connect()
        await head.send(post()[:10])
        await body.send(post()[:-5])
        while made.lane.statistics().connections < 2 or any(client.reader.idle() for client in made.lane._clients.values()):
            await trio.lowlevel.checkpoint()
        made.lane.stop()
        await head.send(post()[10:])
        await body.send(post()[-5:])

        for caller in (head, body):
            status, fields, _ = await caller.answer()
            assert (202, "close") == (status, fields["connection"])


async def test_half_a_body_behind_a_large_answer_has_its_time_too(tmp_path: Path) -> None:
    """Once the answer before it is out, a body that does not come is told 408, and is not taken for an idle connection."""

    def answer(command: Command) -> Outcome | None:
        return Delivered([delivery(payload=b'"' + b"x" * 8_000_000 + b'"')]) if isinstance(command, Next) else obliging(command)

    async with stand(tmp_path, answer, request_seconds_max=0.4) as made:
        caller = await made.connect()
        await caller.send(get() + post()[:-5])

        assert 200 == (await caller.answer())[0]
        assert 408 == (await caller.answer())[0]
        assert await caller.ended()
