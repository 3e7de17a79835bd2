"""Jobs line by line, read as they come: one request, as many jobs as the client has, in bounded memory.

`POST /enqueue` with content-type application/x-ndjson. Neither the lane nor Quart serves it: both hold a whole body before anything is done with it. So the
lane hands such a connection over, and the gate before Quart calls `enqueue_as_it_comes`, which reads from the connection no faster than
the shards take.

**Two tasks.** One reads: bytes to lines to jobs, up to `HELD_BYTES_MAX` ahead. The other takes what has collected, sends it as one batch, and waits until all of that is
settled. While a store commits, the next batch grows, as in the shards. One batch at a time, because jobs of one queue must enter in the order of their lines,
and because nothing can be said of what follows a refusal that is not known yet.

**A line that is wrong is counted, and reading goes on**: lines cannot lose their frame. That holds for a line over the limit, too, of which no
more than the limit is kept.

**Busy shards are waited for.** What was surely without effect is sent again after a moment, and nothing behind it before that: so many uploads at once, or a
shard that starts again, slow a body down and do not end it.

**What may be tried again ends the reading.** When a job is still refused for the moment (429), or perhaps was not enqueued (503), those behind it would be
refused too, or would pass it. The answer then says in `stopped` from which line on nothing was looked at. The same goes for the limits of the whole: ndjson_bytes_max,
ndjson_seconds_max, and a body that does not come, or cannot be unpacked. What still comes of the body is thrown away, up to a bound: a client that sends all of it before
it reads would else lose the answer, and over HTTP/2 its connection, as Hypercorn takes data for a stream that has ended as a fault of the connection.

Jobs that were accepted stay so, whatever comes after them, also when the client goes away in the midst of its body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import trio

from proteus_shards.config import Settings
from proteus_shards.core.commands import Done, Enqueue, Outcome, Reason, Refused
from proteus_shards.front.access import check_items
from proteus_shards.front.answers import Answer, Problem, fault
from proteus_shards.front.batches import Tally, line_too_long
from proteus_shards.front.bodies import Unpacker, unpacker_of
from proteus_shards.front.exchange import grant_of
from proteus_shards.front.heads import is_ndjson
from proteus_shards.front.job_bodies import read_job
from proteus_shards.front.operations import PREFIXES
from proteus_shards.front.queries import parse_query
from proteus_shards.front.router import Router
from proteus_shards.tokens import Grant

HELD_BYTES_MAX = 1024 * 1024  # of lines that are read and not sent yet; one line may be larger
LINE_BYTES = 512  # what a line weighs beside its text: a thousand short ones are objects, too
STEP_BYTES = 8 * 1024  # of a body that are read before others have their turn
REST_BYTES_MAX = 256 * 1024 * 1024  # of a body, read to no purpose but that its client comes to see the answer
REST_PAUSE_SECONDS_MAX = 1.0
RETRY_SECONDS_MIN = 0.02
RETRY_SECONDS_MAX = 1.0

Line: TypeAlias = tuple[int, "Enqueue | Problem", int]  # number, job, bytes
_PATHS = frozenset(prefix + "/enqueue" for prefix in PREFIXES)


def comes_in_lines(scope: Any, path: str) -> bool:
    """Say whether an ASGI request is one for `enqueue_as_it_comes`."""
    return (
        scope["method"] == "POST"
        and path in _PATHS
        and any(name == b"content-type" and is_ndjson(value) for name, value in scope["headers"])
    )


class LineReader:
    """Cuts bytes into lines, and lines into jobs."""

    def __init__(self, settings: Settings) -> None:
        self.next_line = 1  # the number of the line that is not whole yet
        self._settings = settings
        self._rest = bytearray()
        self._too_long = False  # the line at hand is, and what still comes of it is thrown away

    def feed(self, data: bytes) -> Iterator[Line]:
        """Take the next bytes, and give back the lines that end in them, but for blank ones."""
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._keep(piece)
            yield from self.end()
            self.next_line += 1
        self._keep(rest)

    def end(self) -> Iterator[Line]:
        """Take note that the line at hand ends here."""
        if self._too_long:
            yield self.next_line, line_too_long(self._settings), LINE_BYTES
        elif self._rest and not self._rest.isspace():
            yield self.next_line, read_job(bytes(self._rest)), len(self._rest) + LINE_BYTES
        self._rest.clear()
        self._too_long = False

    def _keep(self, piece: bytes) -> None:
        if not self._too_long:
            self._rest += piece
        if len(self._rest) > self._settings.body_size_max:
            self._rest.clear()
            self._too_long = True


async def enqueue_as_it_comes(scope: Any, receive: Callable[[], Awaitable[Any]], router: Router, settings: Settings) -> Answer | None:
    """Enqueue the lines of a request's body and return the answer, or None where the client has gone away."""
    fields = {name: value.decode("latin-1") for name, value in scope["headers"]}
    unpacker = unpacker_of(fields.get(b"content-encoding"))
    wrong: Any = parse_query(scope["query_string"], ())
    if not isinstance(wrong, Problem):
        wrong = unpacker
    if (
        not isinstance(wrong, Problem)
        and fields.get(b"content-length", "").isdigit()
        and int(fields[b"content-length"]) > settings.ndjson_bytes_max
    ):
        wrong = _too_large(settings)
    if isinstance(wrong, Problem):
        return wrong.answer()
    assert isinstance(unpacker, Unpacker)
    upload = _Upload(receive, router, settings, unpacker, grant_of(scope))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload.read)
        await upload.send()
        nursery.cancel_scope.cancel()
    return upload.answer()


async def read_rest(receive: Callable[[], Awaitable[Any]], ended: Callable[[], bool], settings: Settings) -> None:
    """Throw away what still comes of a body that was answered early: most clients look for no answer before all of it is out."""
    left = REST_BYTES_MAX
    with trio.move_on_after(settings.request_seconds_max):
        while left > 0 and not ended():
            message = None
            with trio.move_on_after(REST_PAUSE_SECONDS_MAX):
                message = await receive()
            if message is None or message["type"] != "http.request":
                return
            left -= len(message.get("body", b""))


class _Upload:
    """One body under way."""

    def __init__(
        self, receive: Callable[[], Awaitable[Any]], router: Router, settings: Settings, unpacker: Unpacker, grant: Grant | None
    ) -> None:
        self._receive = receive
        self._router = router
        self._settings = settings
        self._unpacker = unpacker
        self._grant = grant
        self._lines = LineReader(settings)
        self._tally = Tally()
        self._held: list[Line] = []
        self._held_bytes = 0
        self._bytes = 0
        self._read_all = False
        self._stopped: Problem | None = None
        self._stopped_line = 0
        self._client_gone = False
        self._changed = trio.Event()

    def answer(self) -> Answer | None:
        """Return the answer to the whole."""
        if self._client_gone:
            return None
        tally = self._tally
        if self._stopped is None:
            if not tally.accepted and not tally.refused:
                return fault("body", "must hold at least one job").answer()
            return tally.answer()
        if not tally.accepted and not tally.refused:
            return self._stopped.answer()
        return tally.answer(self._stopped, self._stopped_line or self._lines.next_line)

    # --- reading -----------------------------------------------------------------------------------------------

    async def read(self) -> None:
        """Read up to the end of the body, or to what ends it early."""
        deadline = trio.current_time() + self._settings.ndjson_seconds_max
        while not self._read_all and self._stopped is None:
            message = None
            with trio.move_on_at(min(deadline, trio.current_time() + self._settings.request_seconds_max)):
                message = await self._receive()
            if message is None:
                name = "ndjson_seconds_max" if trio.current_time() >= deadline else "request_seconds_max"
                self._stopped = Problem(status=408, detail=f"body: did not arrive in time ({name})", field="body")
            elif message["type"] != "http.request":
                self._client_gone = True
                self._read_all = True
            else:
                await self._take(message.get("body", b""))
                if not message.get("more_body", False) and self._stopped is None:
                    self._stopped = self._unpacker.fault_at_end()
                    if self._stopped is None:
                        self._hold(self._lines.end())
                    self._read_all = True
        self._change()

    async def _take(self, data: bytes) -> None:
        for piece in self._unpacker.feed(data):
            if isinstance(piece, Problem):
                self._stopped = piece
                return
            self._bytes += len(piece)
            if self._bytes > self._settings.ndjson_bytes_max:
                self._stopped = _too_large(self._settings)
                return
            for at in range(0, len(piece), STEP_BYTES):
                self._hold(self._lines.feed(piece[at : at + STEP_BYTES]))
                await trio.lowlevel.checkpoint()
                while self._held_bytes > HELD_BYTES_MAX:
                    await self._wait_changed()

    def _hold(self, lines: Iterator[Line]) -> None:
        for line in lines:
            self._held.append(line)
            self._held_bytes += line[2]
        if self._held:
            self._change()

    # --- sending -----------------------------------------------------------------------------------------------

    async def send(self) -> None:
        """Send what has been read, until all is, or something ends it early."""
        while True:
            while not self._held and not self._read_all and self._stopped is None:
                await self._wait_changed()
            if not self._held:
                return
            lines = self._held[: self._settings.batch_jobs_max]
            if self._router.draining:
                self._stop(503, "the server is shutting down", lines[0][0])
                return
            del self._held[: len(lines)]
            self._held_bytes -= sum(size for _, _, size in lines)
            self._change()
            items = [item for _, item, _ in lines]
            if self._grant is not None:
                items = check_items(self._grant, items)
            self._tally.add([number for number, _, _ in lines], items, await self._settle(items))
            if self._tally.retryable is not None:
                # the last line may have no end, and then it is still the one at hand
                after = self._held[0][0] if self._held else max(self._lines.next_line, lines[-1][0] + 1)
                self._stop(self._tally.retryable, "a line was refused for the moment; those from this one on were not looked at", after)
                return

    async def _settle(self, items: list[Enqueue | Problem]) -> list[Outcome]:
        """Enqueue what is right, and return the outcomes. What a busy shard did not take is tried again, in order, for request_seconds_max.

        But not once a later job of the same queue was taken (while a store is away, one without persist_data is): it must not be passed.
        """
        jobs = [item for item in items if not isinstance(item, Problem)]
        outcomes = await self._submit(jobs)
        deadline = trio.current_time() + self._settings.request_seconds_max
        pause = RETRY_SECONDS_MIN
        while trio.current_time() + pause < deadline and not self._router.draining:
            busy = [place for place, outcome in enumerate(outcomes) if isinstance(outcome, Refused) and outcome.reason is Reason.BUSY]
            if not busy or _any_passed(jobs, outcomes):
                break
            await trio.sleep(pause)
            pause = min(2 * pause, RETRY_SECONDS_MAX)
            for place, outcome in zip(busy, await self._submit([jobs[place] for place in busy]), strict=True):
                outcomes[place] = outcome
        return outcomes

    async def _submit(self, jobs: list[Enqueue]) -> list[Outcome]:
        found: list[Outcome] = []
        settled = trio.Event()

        def take(outcomes: list[Outcome]) -> None:
            found.extend(outcomes)
            settled.set()

        self._router.submit_all(jobs, take)
        await settled.wait()
        return found

    def _stop(self, status: int, detail: str, line: int) -> None:
        self._stopped = Problem(status=status, detail=detail)
        self._stopped_line = line

    async def _wait_changed(self) -> None:
        await self._changed.wait()

    def _change(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def _any_passed(jobs: list[Enqueue], outcomes: list[Outcome]) -> bool:
    """Say whether a job that a busy shard did not take stands before one of its queue that was taken."""
    taken: set[str] = set()
    for job, outcome in zip(reversed(jobs), reversed(outcomes), strict=True):
        if isinstance(outcome, Done):
            taken.add(job.queue)
        elif isinstance(outcome, Refused) and outcome.reason is Reason.BUSY and job.queue in taken:
            return True
    return False


def _too_large(settings: Settings) -> Problem:
    return Problem(status=413, detail=f"body: must have at most {settings.ndjson_bytes_max} bytes (ndjson_bytes_max)", field="body")
