"""A client that is light enough to keep a thousand others company, and that writes down all it does.

`Wire` speaks just enough HTTP/1.1 for one request at a time on one connection. `Client` asks the four calls on it, and records each before
the first byte leaves and after the last byte has come. A client that does not know what became of its request closes the connection and
goes on under a new process number.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from urllib.parse import quote

import msgspec

from tests.faults.history import NO_STATE, SECOND, Given, Line, Recorder, sha

CONNECT_SECONDS_MAX = 2.0


class Answer(msgspec.Struct, gc=False):
    """What came back."""

    status: int
    retry_after: int | None
    body: bytes
    t: int  # when its last byte was read


class Unsent(Exception):
    """No byte of the request has left."""


class Lost(Exception):
    """Nobody knows what became of the request."""


class _Job(msgspec.Struct, gc=False):
    id: str
    queue: str
    timeout: int
    persist_data: bool
    max_retries: int
    payload: msgspec.Raw
    attempt: int
    state: msgspec.Raw = msgspec.Raw(b"null")
    run_id: str = ""


class _Page(msgspec.Struct, gc=False):
    jobs: list[_Job]
    next: int | None


class _Token(msgspec.Struct, gc=False):
    uid: str = ""


_one = msgspec.json.Decoder(_Job).decode
_many = msgspec.json.Decoder(list[_Job]).decode
_page = msgspec.json.Decoder(_Page).decode
_token = msgspec.json.Decoder(_Token).decode


class Wire(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.open = False
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._waiter: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits."""
        self.open = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(Lost(str(exc) if exc else "closed"))

    def data_received(self, data: bytes) -> None:
        """Take bytes until an answer is whole."""
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        status = int(head[9:12])
        length, retry_after, last = 0, None, False
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            match name.lower():
                case b"content-length":
                    length = int(value)
                case b"retry-after":
                    retry_after = int(value) if value.strip().isdigit() else None
                case b"connection":
                    last = value.strip().lower() == b"close"
        if len(rest) < length:
            return
        self._data = rest[length:]
        assert not self._data, "an answer that nobody asked for"
        if last:  # the server ends the connection: nothing more may be sent on it
            self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(Answer(status, retry_after, rest[:length], time.monotonic_ns()))

    async def ask(self, request: bytes, seconds_max: float) -> Answer:
        """Send a request and wait for its answer. Raises `Lost`."""
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Answer] = loop.create_future()
        self._waiter = waiter
        if not self.open:
            raise Unsent
        self._transport.write(request)
        timer = loop.call_later(seconds_max, self._time_out, waiter)
        try:
            return await waiter
        finally:
            timer.cancel()

    def close(self) -> None:
        """Break the connection off."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    @staticmethod
    def _time_out(waiter: asyncio.Future[Answer]) -> None:
        if not waiter.done():
            waiter.set_exception(Lost("time out"))


class Client:
    """One process of the history. `where` says at each new connection which server to ask; `watch` hears of each request that is over."""

    def __init__(
        self,
        where: Callable[[], tuple[str, int]],
        recorder: Recorder,
        shard_of: Callable[[str], int],
        seconds_max: float,
        watch: Callable[[Line, Line], None],
    ) -> None:
        self.seconds_max = seconds_max
        self._where = where
        self._recorder = recorder
        self._shard_of = shard_of
        self._watch = watch
        self._wire: Wire | None = None
        self._proc = recorder.new_proc()
        self._connections = 0

    async def enqueue(self, job: Line, payload: bytes) -> Line:
        """Send a job: `queue`, `id`, `uid`, `persist`, `timeout`, `max_retries` and perhaps `state` of a line."""
        job.payload_sha = sha(payload)
        state = b"" if job.state is None else b',"state":' + job.state.encode()
        text = msgspec.json.encode(
            {
                "id": job.id,
                "queue": job.queue,
                "timeout": job.timeout,
                "persist_data": job.persist,
                "max_retries": job.max_retries,
            }
        )
        return await self._do(job, b"POST", "/v1/enqueue", text[:-1] + b',"payload":' + payload + state + b"}")

    async def next(self, queue: str, wait: float = 0.0, num_jobs: int = 0) -> Line:
        """Ask for jobs."""
        asked = self.line("next", queue, wait=wait, num_jobs=num_jobs)
        count = f"&num_jobs={num_jobs}" if num_jobs else ""
        return await self._do(asked, b"GET", f"/v1/next?queue={quote(queue)}&wait={wait:g}{count}")

    async def heartbeat(self, given: Given, *, named: bool, state: str | None) -> Line:
        """Say that a run goes on."""
        asked = self.line("heartbeat", given.queue, id=given.id, run_id=given.run_id if named else "", state=state, uid=given.uid)
        return await self._do(asked, b"PATCH", f"/v1/heartbeat?{_run(asked)}", b"" if state is None else state.encode())

    async def complete(self, given: Given, *, named: bool) -> Line:
        """Say that a run is done."""
        asked = self.line("complete", given.queue, id=given.id, run_id=given.run_id if named else "", uid=given.uid)
        return await self._do(asked, b"DELETE", f"/v1/complete?{_run(asked)}")

    async def dead(self, queue: str) -> list[Line]:
        """List all dead letters of a queue."""
        pages: list[Line] = []
        after: int | None = None
        while True:
            beyond = f"&after={after}" if after is not None else ""
            page = await self._do(self.line("dead", queue), b"GET", f"/v1/dead?queue={quote(queue)}&num_jobs=1000{beyond}")
            pages.append(page)
            if page.type != "ok" or not page.jobs:
                return pages
            after = page.counts["next"]

    def line(self, f: str, queue: str, **fields: object) -> Line:
        """Return the first line of an operation, but for its number, process and time."""
        line = Line(0, 0, f, "invoke", 0, queue=queue)
        for name, value in fields.items():
            setattr(line, name, value)
        return line

    def close(self) -> None:
        """Break the connection off."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def _do(self, asked: Line, method: bytes, target: str, body: bytes = b"") -> Line:
        """Record, ask, record. Returns the second line."""
        head = b"%s %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (method, target.encode(), len(body))
        asked.i, asked.proc, asked.shard = self._recorder.new_op(), self._proc, self._shard_of(asked.queue)
        asked.conn_id = self._connections
        asked.t = time.monotonic_ns()
        self._recorder.write(asked)
        over = Line(asked.i, asked.proc, asked.f, "unknown", 0, conn_id=self._connections)
        try:
            wire = await self._connect()
            answer = await wire.ask(head + body, self.seconds_max + asked.wait)
        except Unsent:
            over.type = "fail"
            self.close()
        except Lost as error:
            over.detail = str(error)
            self._proc = self._recorder.new_proc()
            self.close()
        else:
            over.http_status, over.retry_after, over.t = answer.status, answer.retry_after, answer.t
            over.type = "ok" if answer.status < 300 else "fail" if 400 <= answer.status < 500 else "unknown"
            if answer.status == 200 and answer.body:
                _take_jobs(asked, over, answer.body)
            if over.type == "unknown":
                self._proc = self._recorder.new_proc()
        over.t = over.t or time.monotonic_ns()
        self._recorder.write(over)
        self._watch(asked, over)
        return over

    async def _connect(self) -> Wire:
        if self._wire is not None and self._wire.open:
            return self._wire
        self._connections += 1
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                _, self._wire = await loop.create_connection(Wire, *self._where())
        except (OSError, TimeoutError) as error:
            raise Unsent(str(error)) from error
        return self._wire


def _run(line: Line) -> str:
    run = f"&run_id={line.run_id}" if line.run_id else ""
    return f"queue={quote(line.queue)}&job_id={quote(line.id)}{run}"


def _take_jobs(asked: Line, over: Line, body: bytes) -> None:
    if asked.f == "next":
        over.jobs = [_given(job) for job in (_many(body) if asked.num_jobs else [_one(body)])]
    elif asked.f == "dead":
        page = _page(body)
        over.jobs = [_given(job) for job in page.jobs]
        over.counts = {"next": page.next or 0}


def _given(job: _Job) -> Given:
    payload = bytes(job.payload)
    return Given(
        job.queue,
        job.id,
        _token(payload).uid,
        job.attempt,
        job.run_id,
        bytes(job.state).decode() or NO_STATE,
        job.timeout,
        job.max_retries,
        job.persist_data,
        sha(payload),
    )


def seconds_since(t: int) -> float:
    """Return how long ago a time of the history was."""
    return (time.monotonic_ns() - t) / SECOND
