"""The fast lane: HTTP/1.1 for the hot job routes, an order of magnitude faster than the full stack beside it.

The lane owns the listening socket and every plaintext connection until it meets a request that it does not serve: another route, an HTTP/2
preface. Then the connection, with all bytes from that request on, is handed to Hypercorn for good. What a call means
is not decided here: `operations` says it for the lane and for Quart alike.

**One task for all sockets.** A trio task per connection would cost more than parsing and answering. So one task waits for an epoll
object and then handles every socket that is ready, in plain sync code: read what is there, take requests out of it, submit their
commands, go on. Answers come back through the link's callback into their connection, and a second task sends all that one frame of replies has
brought. So requests of one tick travel in one frame to their shard, and pipelined answers in one write to their client.

**Answers in order.** A connection's requests wait in `_line`; an answer is written once those before it are. Most connections have one
request at a time.

**A job that never reaches its runner goes back.** If the client closes while its `next` waits, the poll is cancelled. If the connection breaks
before the kernel has taken the whole answer, its jobs are given back. Once the kernel has it, nobody can know. A client that shuts down
only its sending side counts as gone for a `next`, and is answered for anything else.

**Bounds, each a setting.** Time for a head (header_seconds_max), for a body and for each 64 KiB that a client takes of its answers (request_seconds_max), idle time
(connection_idle_seconds_max), connections, requests on one connection, pipelined requests, unsent bytes. They are deadlines for
the whole, not from byte to byte, and are looked at every `SWEEP_SECONDS`. A connection that asks faster than it reads is not read from. With no file
descriptor left, accepting pauses until one is free.
No exception of one connection touches another: what its handling raises is logged, and ends that connection only.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable, Sequence
from functools import partial

import trio

from proteus_shards.config import Settings
from proteus_shards.core.commands import Delivered, Delivery, Next, Outcome, Refused
from proteus_shards.front.answers import Answer, Problem, too_many_unfinished, too_many_unsent
from proteus_shards.front.asking import understand
from proteus_shards.front.caller import Caller, LaneStatistics, Slot
from proteus_shards.front.counts import count_limit
from proteus_shards.front.doorway import Doorway
from proteus_shards.front.errands import NextOfSeveral
from proteus_shards.front.faults import log_fault
from proteus_shards.front.heads import Fault, limits_of
from proteus_shards.front.http1 import CONTINUE, AnswerWriter, Handover, KnownHeads, Need, Request, RequestReader
from proteus_shards.front.lane_routes import Route, Routes, serves
from proteus_shards.front.operations import Ask, answer
from proteus_shards.front.overflow import Overflow
from proteus_shards.front.poller import READ, WRITE, make_poller
from proteus_shards.front.router import Router

RECEIVE_BYTES = 64 * 1024
SWEEP_SECONDS = 0.25
LINGER_SECONDS = 1.0
DRAIN_IDLE_SECONDS = 1.0  # a client that asks again and again is told with an answer that its connection ends
LINGER_BYTES_MAX = 8 * 1024 * 1024
PIECE_BYTES = 64 * 1024  # of an answer, that a client must take within request_seconds_max
UNSENT_BYTES_MAX = 256 * 1024  # with more unsent, the connection is not read from

log = logging.getLogger("proteus_shards.front")

HandOver = Callable[[socket.socket, bytes, Callable[[], None]], None]


class Lane:
    """The fast lane of one front.

    `hand_over` takes a connection that the lane does not serve, its unread bytes, and what to call when it has ended.
    """

    def __init__(self, listener: socket.socket, router: Router, settings: Settings, hand_over: HandOver) -> None:
        self._router = router
        self._settings = settings
        self._hand_over = hand_over
        self._limits = limits_of(settings)
        self._known_heads = KnownHeads()
        self._poller = make_poller()
        self._answers = router.answers
        self._overflow = Overflow(router)
        self._door = Doorway(listener, self._poller)
        self._clients: dict[int, Caller] = {}
        self._dirty: dict[Caller, None] = {}
        self._sender = trio.lowlevel.ParkingLot()
        self._elsewhere = 0  # connections handed over that have not ended
        self._now = 0.0
        self._stopping = False
        self._writer = AnswerWriter()
        self._routes = Routes(router.counts)
        self._requests = self._handed_over = self._faults = self._timeouts = 0

    # --- life --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until cancelled."""
        self._tick()
        self._door.open()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_forever)
                nursery.start_soon(self._sweep_forever)
                while True:
                    await trio.lowlevel.wait_readable(self._poller.fileno())
                    self._handle_ready()
        finally:
            for client in list(self._clients.values()):
                self._close(client)
            self._poller.close()

    def stop(self) -> None:
        """Accept nothing more, and end each connection: with its next answer, which says so, or after a moment without a request."""
        self._stopping = True
        self._door.close()
        for client in list(self._clients.values()):
            if client.events & READ:
                self._guard(client, self._receive)  # a request that has come already is served
            if client.open and client.reader.idle():  # the others say close with their answer
                if client.line and client.line[-1].data is None:
                    client.closing = True
                    client.line[-1].keep_alive = False
                self._set_deadline(client, Need.NOTHING)

    @property
    def empty(self) -> bool:
        """Whether no connection is left, those handed over included."""
        return not self._clients and not self._elsewhere

    def statistics(self) -> LaneStatistics:
        """Return what the lane holds and has done."""
        return LaneStatistics(
            connections=len(self._clients),
            waiting=sum(len(client.line) for client in self._clients.values()),
            accepted=self._door.accepted,
            requests=self._requests,
            handed_over=self._handed_over,
            faults=self._faults,
            timeouts=self._timeouts,
            accepting=self._door.accepting,
        )

    async def _send_forever(self) -> None:
        while True:
            if not self._dirty:
                await self._sender.park()
            dirty, self._dirty = self._dirty, {}
            self._overflow.problem = None
            for client in dirty:
                try:
                    self._send(client)
                except Exception as error:  # noqa: BLE001 it is logged
                    self._fail(client, error)
            await trio.lowlevel.checkpoint()

    async def _sweep_forever(self) -> None:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            self._tick()
            self._door.look(self._now)
            for client in [client for client in self._clients.values() if client.deadline <= self._now]:
                self._guard(client, self._time_out)

    def _tick(self) -> None:
        self._now = trio.current_time()
        self._writer.tick()

    # --- sockets -----------------------------------------------------------------------------------------------

    def _handle_ready(self) -> None:
        listener = self._door.fileno()  # -1 once it is closed
        self._now = trio.current_time()
        self._overflow.problem = None
        for fd, events in self._poller.poll():
            if fd == listener:
                self._accept_some()
                continue
            client = self._clients.get(fd)
            if client is None:
                continue  # closed by what came before it in this list
            try:  # not by `_guard`: this is the hottest loop
                if events & WRITE:
                    self._send(client)
                # What `_send` has just done may have ended the wish to read; only a broken socket is looked at regardless.
                if client.open and events & (client.events | ~(READ | WRITE)) & ~WRITE:
                    self._receive(client)
            except Exception as error:  # noqa: BLE001 it is logged
                self._fail(client, error)

    def _guard(self, client: Caller, work: Callable[[Caller], None]) -> None:
        try:
            work(client)
        except Exception as error:  # noqa: BLE001 it is logged
            self._fail(client, error)

    def _fail(self, client: Caller, error: Exception) -> None:
        log.error("a connection failed", exc_info=error)
        self._close(client)

    def _accept_some(self) -> None:
        for sock in self._door.accept(self._now, self._settings.connections_max - len(self._clients) - self._elsewhere):
            reader = RequestReader(self._limits, serves, self._known_heads)
            client = Caller(sock, reader, self._now + self._settings.connection_idle_seconds_max)
            self._clients[client.fd] = client
            self._poller.register(client.fd, READ)

    def _receive(self, client: Caller) -> None:
        try:
            data = client.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._close(client)
            return
        if not data:
            self._end_of_stream(client)
        elif client.lingering:
            client.lingered += len(data)
            if client.lingered > LINGER_BYTES_MAX:
                self._close(client)
        elif client.handover is not None:
            client.handover += data
        elif not client.closing:
            client.reader.feed(data)
            self._read_requests(client)

    def _end_of_stream(self, client: Caller) -> None:
        """Note that the client sends no more. A `next` of its is given up; other answers are still sent, if it can take them."""
        gone = client.ended or client.lingering or client.jobs or not (client.line or client.out)
        if gone or any(slot.link is not None or slot.jobs for slot in client.line):
            self._close(client)
            return
        client.ended = client.closing = True
        client.handover = None
        self._watch(client)

    def _hold(self, client: Caller) -> None:
        """Count what a connection holds of requests that are not whole; where all hold too much, end the one that wants more."""
        if not client.hold(self._router.bodies):
            self._finish_with(client, too_many_unfinished())

    def _watch(self, client: Caller) -> None:
        """Ask the poller for what this connection can make use of now."""
        line_max = self._settings.connection_pipeline_max
        reads = client.lingering or (not client.closing and len(client.line) < line_max and len(client.out) <= UNSENT_BYTES_MAX)
        events = READ * reads + WRITE * bool(client.out)
        if events != client.events:
            client.events = events
            self._poller.modify(client.fd, events)

    # --- requests ----------------------------------------------------------------------------------------------

    def _read_requests(self, client: Caller) -> None:
        """Take requests out of what has arrived, as long as there is room for their answers."""
        item: Need | None = None
        reader, line, line_max = client.reader, client.line, self._settings.connection_pipeline_max
        while not client.closing and len(line) < line_max and len(client.out) <= UNSENT_BYTES_MAX:
            taken = reader.next()
            if isinstance(taken, Request):
                self._take(client, taken)
                if not client.open:
                    return
                if reader.idle():
                    break
                continue
            match taken:
                case Need.CONTINUE:
                    self._say_continue(client)
                case Fault():
                    self._faults += 1
                    self._finish_with(client, taken.problem)
                case Handover():
                    client.closing = True  # nothing more is read here
                    client.handover = taken.unread
                    if not client.line and not client.out:
                        self._give_away(client)
                        return
                case _:
                    item = taken
                    break
        if client.held or not reader.idle():
            self._hold(client)
        self._set_deadline(client, item)
        if client.closing or client.out or client.events != READ or len(line) >= line_max:
            self._watch(client)

    def _take(self, client: Caller, request: Request) -> None:
        self._requests += 1
        client.requests += 1
        terms = request.terms
        keep_alive = terms.keep_alive and not self._stopping and client.requests < self._settings.connection_requests_max
        route = self._routes[request.method, request.path]
        slot = Slot(client, route[1], keep_alive, terms.http10)
        client.closing = not keep_alive
        client.line.append(slot)
        try:
            self._ask(slot, request, route)
        except Exception as error:  # noqa: BLE001 it is logged and answered
            self._fill(slot, log_fault(error).answer())

    def _ask(self, slot: Slot, request: Request, route: Route) -> None:
        parse = route[0] if self._overflow.problem is None else self._overflow.instead_of(route[0])
        asked = understand(request, parse, route[2], self._router.access, self._settings)
        if isinstance(asked, Ask):
            command = asked.command
            sent = self._router.submit(command, partial(self._take_outcome, slot, asked))
            if isinstance(sent, Refused):
                self._overflow.note(sent)
                self._fill(slot, answer(asked, sent))
            elif isinstance(command, Next):
                slot.link, slot.number = sent
        elif isinstance(asked, Problem):
            self._fill(slot, asked.answer())
        else:
            if asked.delivers:
                slot.link = asked
            slot.sure = type(asked) is NextOfSeveral
            asked.begin(self._router, partial(self._take_answer, slot))

    def _take_outcome(self, slot: Slot, asked: Ask, outcome: Outcome) -> None:
        if type(outcome) is Delivered:
            slot.jobs = outcome.jobs
        slot.link = None
        try:
            shown = answer(asked, outcome) if type(outcome) is Refused else asked.show(outcome)
        except Exception as error:  # noqa: BLE001 it is logged and answered
            shown = log_fault(error).answer()
        self._fill(slot, shown)

    def _take_answer(self, slot: Slot, shown: Answer, jobs: Sequence[Delivery]) -> None:
        slot.link = None
        slot.jobs = jobs
        self._fill(slot, shown)

    def _fill(self, slot: Slot, shown: Answer) -> None:
        """Put an answer in its place, and have its connection sent."""
        client = slot.client
        data = self._writer.write(shown, keep_alive=slot.keep_alive, http10=slot.request_http10)
        if not client.open:
            return
        size = len(data)
        if not slot.jobs:
            self._answers.held += size
        elif not self._answers.take(size):
            self._router.undeliver(slot.jobs)
            slot.jobs = ()
            self._fill(slot, too_many_unsent(sure=slot.sure).answer())
            return
        client.unsent += size
        slot.tally[shown.status] += 1
        slot.data = data
        if client.line[0].data is not None:
            self._dirty_up(client)

    def _say_continue(self, client: Caller) -> None:
        client.line.append(Slot(client, self._router.counts.faulty, keep_alive=True, data=CONTINUE))
        client.unsent += len(CONTINUE)
        self._router.answers.hold(len(CONTINUE))
        self._dirty_up(client)

    def _finish_with(self, client: Caller, problem: Problem) -> None:
        """Answer with a problem, after what is in line, and close."""
        client.closing = True
        slot = Slot(client, self._router.counts.faulty, keep_alive=False)
        client.line.append(slot)
        self._fill(slot, problem.answer())

    def _dirty_up(self, client: Caller) -> None:
        if not self._dirty:
            self._sender.unpark()
        self._dirty[client] = None

    # --- answers -----------------------------------------------------------------------------------------------

    def _send(self, client: Caller) -> None:
        """Send the answers whose turn has come, as far as the kernel takes them, and see what is next."""
        if not client.open:
            return
        parts = [client.out] if client.out else []
        ready = 0
        for slot in client.line:
            if slot.data is None:
                break
            parts.append(slot.data)
            ready += 1
        out = parts[0] if len(parts) == 1 else b"".join(parts)
        try:
            taken = client.sock.send(out) if out else 0
        except BlockingIOError:
            taken = 0
        except OSError:
            self._close(client)
            return
        client.unsent -= taken
        self._answers.held -= taken
        if taken == len(out):
            client.forget_sent(ready)
            self._go_on(client)
            return
        had_out = bool(client.out)
        client.keep_unsent(ready, out[taken:], taken)
        if not had_out or client.taken >= client.marked + PIECE_BYTES:
            client.marked = client.taken
            client.phase = None
            client.deadline = self._now + self._settings.request_seconds_max
        self._watch(client)

    def _go_on(self, client: Caller) -> None:
        """Do what comes after all answers so far are out."""
        if not client.line and client.closing:
            if client.handover is not None:
                self._give_away(client)
            elif client.ended:
                self._close(client)
            else:
                self._linger(client)
        elif not client.reader.idle():
            self._read_requests(client)
        else:
            self._set_deadline(client, Need.NOTHING if client.phase is None else client.phase)
            if client.events != READ:
                self._watch(client)

    def _linger(self, client: Caller) -> None:
        """Close gently: a client that still sends would otherwise lose the answer to a reset."""
        try:
            client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(client)
            return
        client.lingering = True
        client.deadline = self._now + LINGER_SECONDS
        self._watch(client)

    def _set_deadline(self, client: Caller, need: Need | None) -> None:
        """Note what the connection is about, and until when that may take."""
        if client.out or client.lingering:
            return
        if need is Need.HEAD or need is Need.BODY:
            if client.phase is not need:
                client.phase = need
                seconds = self._settings.header_seconds_max if need is Need.HEAD else self._settings.request_seconds_max
                client.deadline = self._now + seconds
        elif client.line:
            client.phase = None
            client.deadline = math.inf  # the link minds the time
        else:
            client.phase = Need.NOTHING
            client.deadline = self._now + (DRAIN_IDLE_SECONDS if self._stopping else self._settings.connection_idle_seconds_max)

    def _time_out(self, client: Caller) -> None:
        self._timeouts += not client.lingering
        if client.out or client.lingering or client.phase is Need.NOTHING:
            if client.out:
                count_limit("request_seconds_max")
            self._close(client)
            return
        part, limit = ("head", "header_seconds_max") if client.phase is Need.HEAD else ("body", "request_seconds_max")
        client.phase = None
        client.deadline = math.inf
        self._finish_with(client, Problem(status=408, detail=f"the {part} of the request did not arrive in time ({limit})"))
        self._watch(client)

    # --- ends --------------------------------------------------------------------------------------------------

    def _forget(self, client: Caller) -> None:
        client.open = False
        self._poller.unregister(client.fd)
        del self._clients[client.fd]
        self._router.answers.give(client.unsent)
        self._router.bodies.give(client.held)
        self._dirty.pop(client, None)

    def _give_away(self, client: Caller) -> None:
        assert client.handover is not None
        self._forget(client)
        self._handed_over += 1
        self._elsewhere += 1
        self._hand_over(client.sock, client.handover, self._take_note_of_end)

    def _take_note_of_end(self) -> None:
        self._elsewhere -= 1
        self._door.open()

    def _close(self, client: Caller) -> None:
        if not client.open:
            return
        jobs = [job for _, held in client.jobs for job in held]
        for slot in client.line:
            jobs += slot.jobs
            if slot.link is not None:
                slot.link.abandon(slot.number)
        self._forget(client)
        client.sock.close()
        if jobs:
            self._router.undeliver(jobs)
        self._door.open()
