"""Jobs line by line: cut anywhere, bounded in memory, and told where they ended."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from proteus_shards.config import Settings
from proteus_shards.core.commands import Command, Done, Enqueue, Outcome, Reason, Refused
from proteus_shards.front.answers import Problem
from proteus_shards.front.bodies import GZIP_MEMBERS_MAX, PIECE_BYTES, Unpacker, unpacker_of
from proteus_shards.front.heads import is_ndjson
from proteus_shards.front.ndjson import HELD_BYTES_MAX, LINE_BYTES, STEP_BYTES, LineReader, comes_in_lines, enqueue_as_it_comes
from proteus_shards.front.router import Router
from tests.front.asking import job_body
from tests.front.fake_shard import PATIENCE_SECONDS, linked, obliging

SETTINGS = Settings(shards=1, body_size_max=200, batch_jobs_max=50)
NDJSON = (b"content-type", b"application/x-ndjson")


def scope(*fields: tuple[bytes, bytes], query: bytes = b"", method: str = "POST") -> dict[str, Any]:
    """Return the ASGI scope of an enqueue."""
    return {"type": "http", "method": method, "query_string": query, "headers": [NDJSON, *fields]}


def pieces(data: bytes, size: int) -> list[bytes]:
    """Cut a body."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def body_of(parts: Iterable[bytes], *, whole: bool = True) -> Callable[[], Awaitable[Any]]:
    """Return the `receive` of a body that comes in parts; one that is not whole is followed by silence."""
    left = iter(parts)

    async def receive() -> Any:
        await trio.lowlevel.checkpoint()
        part = next(left, None)
        if part is None and not whole:
            await trio.sleep_forever()
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    return receive


async def enqueue(
    receive: Callable[[], Awaitable[Any]], router: Router, settings: Settings, asked: dict[str, Any] | None = None
) -> tuple[int, Any]:
    """Carry out a request and return its status and the JSON of its answer."""
    with trio.fail_after(PATIENCE_SECONDS):
        shown = await enqueue_as_it_comes(asked or scope(), receive, router, settings)
    assert shown is not None
    return shown.status, json.loads(shown.body)


def lines_of(data: bytes, size: int) -> list[tuple[int, Any]]:
    """Read a body in pieces of one size."""
    reader = LineReader(SETTINGS)
    found = [line for piece in pieces(data, size) for line in reader.feed(piece)]
    found += reader.end()
    return [(number, item.detail if isinstance(item, Problem) else item.id) for number, item, _ in found]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_lines_are_the_same_however_they_are_cut(size: int) -> None:
    """With and without a carriage return, blank ones, an unfinished last one, and one that is too long and is not kept."""
    long = job_body(id="long", payload="x" * 300)
    data = job_body(id="1") + b"\r\n\n \n" + b"{\n" + long + b"\n" + job_body(id="2") + b"\n" + job_body(id="3")

    assert [
        (1, "1"),
        (4, "body: must be JSON: it ends too early"),
        (5, "body: a line must have at most 200 bytes (body_size_max)"),
        (6, "2"),
        (7, "3"),
    ] == lines_of(data, size)


def test_a_line_without_an_end_is_not_kept() -> None:
    """Not even where all of the body is one."""
    reader = LineReader(SETTINGS)
    for _ in range(1000):
        assert [] == list(reader.feed(b"x" * 1000))
        assert len(reader._rest) <= SETTINGS.body_size_max

    assert [413] == [item.status for _, item, _ in reader.end() if isinstance(item, Problem)]


@pytest.mark.parametrize("named", [b"application/x-ndjson", b"Application/JSONL ; charset=utf-8", b"application/ndjson"])
def test_the_content_type_says_that_lines_come(named: bytes) -> None:
    """Of an enqueue only."""
    assert is_ndjson(named)
    assert not is_ndjson(b"application/json")
    assert comes_in_lines(scope(), "/v1/enqueue")
    assert not comes_in_lines(scope(), "/batch")
    assert not comes_in_lines(scope(method="GET"), "/enqueue")


async def test_many_lines_enter_in_order_and_are_counted(tmp_path: Path) -> None:
    """However they arrive, in batches of at most batch_jobs_max."""
    data = b"".join(job_body(id=str(number)) + b"\n" for number in range(1000))

    async with linked(tmp_path, SETTINGS) as (router, (shard,)):
        for size in (10, 999, 100_000):
            shard.received.clear()
            shard.frames.clear()
            assert (202, {"accepted": 1000, "refused": 0, "failures": []}) == await enqueue(body_of(pieces(data, size)), router, SETTINGS)
            assert [str(number) for number in range(1000)] == [command.id for command in shard.commands if isinstance(command, Enqueue)]
            assert max(shard.frames) <= SETTINGS.batch_jobs_max


async def test_lines_that_are_wrong_are_told_with_their_numbers(tmp_path: Path) -> None:
    """And the others are enqueued."""

    def answer(command: Command) -> Outcome | None:
        if isinstance(command, Enqueue) and command.id == "2":
            return Refused(Reason.EXISTS, "there")
        return obliging(command)

    data = b"\n".join([job_body(id="1"), b"", b"[]", job_body(id="2"), job_body(id="3", timeout=-1), job_body(id="4")])
    async with linked(tmp_path, SETTINGS, answer) as (router, _):
        status, summary = await enqueue(body_of([data]), router, SETTINGS)

    assert (207, 2, 3) == (status, summary["accepted"], summary["refused"])
    assert [(3, 422), (4, 409), (5, 422)] == [(each["line"], each["status"]) for each in summary["failures"]]


async def test_a_refusal_for_the_moment_ends_the_reading_and_says_where(tmp_path: Path) -> None:
    """Jobs behind it would pass it."""

    def answer(command: Command) -> Outcome | None:
        if isinstance(command, Enqueue) and int(command.id) >= 120:
            return Refused(Reason.FULL, "full")
        return obliging(command)

    data = b"".join(job_body(id=str(number)) + b"\n" for number in range(1000))
    async with linked(tmp_path, SETTINGS, answer) as (router, (shard,)):
        status, summary = await enqueue(body_of(pieces(data, 10_000)), router, SETTINGS)

        assert (207, 120, 30) == (status, summary["accepted"], summary["refused"])
        assert (429, 151, True) == tuple(summary["stopped"][name] for name in ("status", "line", "retryable"))
        assert 150 == len(shard.commands)


async def test_the_last_line_counts_as_looked_at_though_it_has_no_end(tmp_path: Path) -> None:
    """Where a line before it was refused for the moment: whoever goes on from the line that is named enqueues nothing twice."""
    first, *others = (job_body(id=str(number), queue=f"q{number}") for number in range(1, 5))
    answers: dict[str, Outcome | None] = {"1": None, "2": Refused(Reason.FULL, "full")}
    summaries: list[Any] = []
    async with linked(tmp_path, SETTINGS, lambda command: answers.get(getattr(command, "id", ""), Done())) as (router, (shard,)):

        async def upload() -> None:
            summaries.append((await enqueue(body_of([first + b"\n", b"\n".join(others)]), router, SETTINGS))[1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            ((number, _),) = await shard.wait_command(Enqueue)
            await trio.testing.wait_all_tasks_blocked()  # all of it is read while the first line waits
            await shard.reply((number, Done()))

    assert (3, 1, 5) == (summaries[0]["accepted"], summaries[0]["refused"], summaries[0]["stopped"]["line"])


async def test_a_line_that_was_passed_by_one_of_its_queue_is_not_sent_again(tmp_path: Path) -> None:
    """While a store is away, jobs without persist_data are taken and others are not: those are told as refused, and the reading ends."""

    def answer(command: Command) -> Outcome | None:
        return Refused(Reason.BUSY, "away") if isinstance(command, Enqueue) and command.persist else obliging(command)

    data = b"".join(job_body(id=str(number), persist_data=number % 2 == 1) + b"\n" for number in range(1, 7))
    async with linked(tmp_path, SETTINGS, answer) as (router, (shard,)):
        status, summary = await enqueue(body_of([data]), router, SETTINGS)

        assert (207, 3, [1, 3, 5]) == (status, summary["accepted"], [failure["line"] for failure in summary["failures"]])
        assert 6 == len(shard.commands)


async def test_busy_shards_are_waited_for_and_order_is_kept(tmp_path: Path) -> None:
    """What was refused is sent again before anything behind it, for a time."""
    entered: list[str] = []
    takes = iter([True] * 20 + [False] * 30 + [True] * 30)  # the second try brings in the rest; from then on nothing is taken

    def answer(command: Command) -> Outcome | None:
        if not isinstance(command, Enqueue):
            return obliging(command)
        if not next(takes, False):
            return Refused(Reason.BUSY, "busy")
        entered.append(command.id)
        return Done()

    data = b"".join(job_body(id=str(number)) + b"\n" for number in range(50))
    async with linked(tmp_path, SETTINGS, answer) as (router, _):
        assert 202 == (await enqueue(body_of([data]), router, SETTINGS))[0]
        assert [str(number) for number in range(50)] == entered
        status, summary = await enqueue(body_of([data * 2]), router, Settings(shards=1, request_seconds_max=0.2))
        assert (207, 0, 429, 101) == (status, summary["accepted"], summary["stopped"]["status"], summary["stopped"]["line"])


async def test_a_drain_ends_the_reading(tmp_path: Path) -> None:
    """What was accepted stays, and the client learns from where to go on."""
    async with linked(tmp_path, SETTINGS) as (router, (shard,)):

        def answer(command: Command) -> Outcome | None:
            router.draining = router.draining or isinstance(command, Enqueue)
            return obliging(command)

        shard.answer = answer
        status, summary = await enqueue(body_of([job_body() + b"\n" + job_body()] * 100), router, SETTINGS)

    assert (207, 503) == (status, summary["stopped"]["status"])
    assert summary["stopped"]["line"] == summary["accepted"] + summary["refused"] + 1


async def test_the_limits_of_the_whole_end_the_reading(tmp_path: Path) -> None:
    """Bytes before and after unpacking, time for all and for a piece."""
    line = job_body() + b"\n"
    async with linked(tmp_path, SETTINGS) as (router, _):
        small = Settings(shards=1, ndjson_bytes_max=10 * len(line))
        status, summary = await enqueue(body_of([line] * 11), router, small)
        assert (207, 10, 413, 11) == (status, summary["accepted"], summary["stopped"]["status"], summary["stopped"]["line"])
        asked = scope((b"content-encoding", b"gzip"))
        status, summary = await enqueue(body_of([gzip.compress(line * 100_000)]), router, small, asked)
        assert (413, "body: must have at most 410 bytes (ndjson_bytes_max)") == (status, summary["detail"])
        assert 413 == (await enqueue(body_of([]), router, small, scope((b"content-length", b"1000000"))))[0]
        for name in ("ndjson_seconds_max", "request_seconds_max"):
            quick = Settings(shards=1, **{name: 0.05})  # type: ignore[arg-type]
            status, summary = await enqueue(body_of([line, line, job_body()], whole=False), router, quick)
            assert (207, 2, 408, 3) == (status, summary["accepted"], summary["stopped"]["status"], summary["stopped"]["line"])
            assert name in summary["stopped"]["detail"]


async def test_a_body_without_a_job_is_refused(tmp_path: Path) -> None:
    """As is one that cannot be unpacked, or has parameters."""
    async with linked(tmp_path, SETTINGS) as (router, (shard,)):
        for parts in ([], [b"\n \n"]):
            assert 422 == (await enqueue(body_of(parts), router, SETTINGS))[0]
        for coding, status in ((b"br", 415), (b"gzip", 422)):
            assert status == (await enqueue(body_of([job_body()]), router, SETTINGS, scope((b"content-encoding", coding))))[0]
        assert 422 == (await enqueue(body_of([job_body()]), router, SETTINGS, scope(query=b"x=1")))[0]
        assert [] == shard.commands


async def test_a_client_that_goes_away_gets_no_answer_and_keeps_what_was_accepted(tmp_path: Path) -> None:
    """The line that it broke off is no job."""
    messages: list[Any] = [
        {"type": "http.request", "body": job_body(id="1") + b"\n" + job_body(id="2"), "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async with linked(tmp_path, SETTINGS) as (router, (shard,)):
        with trio.fail_after(PATIENCE_SECONDS):
            assert await enqueue_as_it_comes(scope(), receive, router, SETTINGS) is None
        assert ["1"] == [command.id for command in shard.commands if isinstance(command, Enqueue)]


@pytest.mark.parametrize("line", [job_body(payload="x" * 1000) + b"\n", b"{}\n"])
async def test_no_more_is_read_than_the_shards_take(tmp_path: Path, line: bytes) -> None:
    """A shard that does not answer holds up the body, and memory stays as it is."""
    settings = Settings(shards=1)
    read = 0

    async def receive() -> Any:
        nonlocal read
        await trio.lowlevel.checkpoint()
        read += 1
        return {"type": "http.request", "body": job_body() + b"\n" + line * (60_000 // len(line)), "more_body": True}

    async with linked(tmp_path, settings, lambda command: None if isinstance(command, Enqueue) else obliging(command)) as (
        router,
        (shard,),
    ):
        tracemalloc.start()
        try:
            with trio.CancelScope() as patience:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(enqueue_as_it_comes, scope(), receive, router, settings)
                    await shard.wait_command(Enqueue)
                    before = -1
                    while before != read:  # it has come to rest
                        before = read
                        for _ in range(200):
                            await trio.lowlevel.checkpoint()
                    held = (read - 1) * (60_000 + LINE_BYTES * (60_000 // len(line)))
                    assert held < 2 * HELD_BYTES_MAX + settings.batch_jobs_max * (len(line) + LINE_BYTES) + LINE_BYTES * STEP_BYTES
                    assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
                    patience.cancel()
        finally:
            tracemalloc.stop()


# --- unpacking -------------------------------------------------------------------------------------------------


def unpack(packed: bytes, size: int, coding: str = "gzip") -> tuple[bytes, Problem | None]:
    """Unpack a body that comes in pieces of one size."""
    unpacker = unpacker_of(coding)
    assert isinstance(unpacker, Unpacker)
    whole = b""
    for piece in pieces(packed, size):
        for part in unpacker.feed(piece):
            if isinstance(part, Problem):
                return whole, part
            assert 0 < len(part) <= PIECE_BYTES
            whole += part
    return whole, unpacker.fault_at_end()


@pytest.mark.parametrize("size", [1, 10, 1_000_000])
def test_gzip_is_unpacked_however_it_is_cut(size: int) -> None:
    """One member or several, and a little that becomes much."""
    for data in (b"", b"x", b"0123456789" * 20_000, b"\0" * 1_000_000):
        assert (data * 2, None) == unpack(gzip.compress(data) * 2, size)
    assert (b"plain" * 30_000, None) == unpack(b"plain" * 30_000, 100_000, "identity")


def test_gzip_that_is_none_is_refused() -> None:
    """Garbage, an early end, and more members than anyone needs."""
    packed = gzip.compress(b"hello")
    for wrong, detail in (
        (b"garbage", "body: is not valid gzip"),
        (packed + b"x", "body: is not valid gzip: it ends too early"),
        (packed + b"garbage", "body: is not valid gzip"),
        (packed[:-1], "body: is not valid gzip: it ends too early"),
        (packed * (GZIP_MEMBERS_MAX + 1), f"body: must have at most {GZIP_MEMBERS_MAX} gzip members"),
    ):
        problem = unpack(wrong, 7)[1]
        assert problem is not None
        assert (422, detail) == (problem.status, problem.detail)


async def test_no_command_is_left_out_of_a_summary(tmp_path: Path) -> None:
    """Whatever the shards say, accepted and refused add up to the lines."""
    reasons = [None, *(reason for reason in Reason if reason is not Reason.MOVED)]  # which a link keeps to itself

    def answer(command: Command) -> Outcome | None:
        if not isinstance(command, Enqueue):
            return obliging(command)
        reason = reasons[int(command.id) % len(reasons)]
        return Done() if reason is None or reason in (Reason.BUSY, Reason.FULL, Reason.UNKNOWN) else Refused(reason, "no")

    data = b"".join(job_body(id=str(number)) + b"\n" for number in range(160))
    async with linked(tmp_path, SETTINGS, answer) as (router, _):
        status, summary = await enqueue(body_of([data]), router, SETTINGS)

    assert (207, 160, 80) == (status, summary["accepted"] + summary["refused"], summary["accepted"])
