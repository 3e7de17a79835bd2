"""Floods of HTTP/2 frames: each ends its own connection, at a bound, without an error in the log, and others are served."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, Event, ResponseReceived
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from proteus_shards.core.commands import Delivered, Next
from tests.front.fake_shard import PATIENCE_SECONDS, delivery, obliging
from tests.front.sites import JOB, SETTINGS, Client, Site, serving

FRAMES = 3000
# :method GET, :scheme http, :path and :authority as literals that are not kept
NEXT = b"\x82\x86\x04\x15/next?queue=q&wait=60\x01\x09localhost"


@pytest.fixture
async def site(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Site]:
    """A server that must log no error."""
    async with serving(tmp_path, msgspec.structs.replace(SETTINGS, request_seconds_max=1.0)) as site:
        yield site
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info] == []


class Flood:
    """One HTTP/2 connection that sends frames written by hand."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.http = H2Connection(H2Configuration(header_encoding="utf-8"))
        self.http.initiate_connection()
        self.data = self.http.data_to_send()

    def add(self, *frames: Frame) -> None:
        """Send these later."""
        self.data += b"".join(frame.serialize() for frame in frames)

    async def send(self) -> None:
        """Send all that was added. The server may have closed already."""
        data, self.data = self.data, b""
        try:
            await self.client.send(data)
        except trio.BrokenResourceError:
            return

    async def read_until(self, enough: Callable[[Event], bool]) -> list[Event]:
        """Read events until one is enough, or the connection ends."""
        seen: list[Event] = []
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                try:
                    data = await self.client.stream.receive_some(65536)
                except trio.BrokenResourceError:
                    return seen
                if not data:
                    return seen
                for event in self.http.receive_data(data):
                    seen.append(event)
                    if enough(event):
                        return seen


def headers(stream_id: int, block: bytes = NEXT, *, end_headers: bool = True) -> HeadersFrame:
    """Return a request without a body."""
    return HeadersFrame(stream_id, block, flags=["END_STREAM", *(["END_HEADERS"] if end_headers else [])])


def add_rapid_resets(flood: Flood) -> None:
    """Open streams and reset each at once."""
    for number in range(FRAMES):
        flood.add(headers(2 * number + 1), RstStreamFrame(2 * number + 1, 8))


def add_resets_in_hand(flood: Flood) -> None:
    """Open a hundred, reset a hundred, again and again."""
    for start in range(0, FRAMES, 100):
        numbers = [2 * number + 1 for number in range(start, start + 100)]
        flood.add(*map(headers, numbers), *(RstStreamFrame(number, 8) for number in numbers))


def add_continuations(flood: Flood) -> None:
    """Begin a head that never ends."""
    flood.add(headers(1, end_headers=False))
    for _ in range(FRAMES):
        flood.add(ContinuationFrame(1, b"\x00\x01a\x01b" * 100))


def add_empty_continuations(flood: Flood) -> None:
    """The same, of nothing at all."""
    flood.add(headers(1, end_headers=False))
    for _ in range(FRAMES):
        flood.add(ContinuationFrame(1, b""))


def add_hpack_bomb(flood: Flood) -> None:
    """Put a field of 4 KB in the table, and name it again and again by one byte."""
    field = b"\x40\x01a\x7f" + bytes([(3900 - 127) & 127 | 128, (3900 - 127) >> 7]) + b"b" * 3900
    flood.add(headers(1, NEXT + field + b"\xbe" * 8000))


def add_settings(flood: Flood) -> None:
    """Change a setting again and again."""
    for number in range(FRAMES):
        flood.add(SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 1000 + number}))


def add_pings(flood: Flood) -> None:
    """Ask for an answer again and again."""
    for _ in range(FRAMES):
        flood.add(PingFrame(0, b"12345678"))


def add_priorities(flood: Flood) -> None:
    """Order streams that do not exist."""
    for number in range(FRAMES):
        flood.add(PriorityFrame(2 * number + 3, depends_on=2 * number + 1, stream_weight=7, exclusive=True))


def add_empty_data(flood: Flood) -> None:
    """Send a body of empty pieces."""
    flood.add(HeadersFrame(1, b"\x83\x86\x04\x08/enqueue\x01\x09localhost", flags=["END_HEADERS"]))
    for _ in range(FRAMES):
        flood.add(DataFrame(1, b""))


def add_small_windows(flood: Flood) -> None:
    """Open the window by one byte again and again."""
    for _ in range(FRAMES):
        flood.add(WindowUpdateFrame(0, window_increment=1))


def add_many_streams(flood: Flood) -> None:
    """Ask for more at once than one may."""
    for number in range(FRAMES):
        flood.add(headers(2 * number + 1))


CALM, NO_CALM = ErrorCodes.ENHANCE_YOUR_CALM, ErrorCodes.PROTOCOL_ERROR
FLOODS = [
    (add_rapid_resets, CALM),
    (add_resets_in_hand, CALM),
    (add_continuations, NO_CALM),
    (add_empty_continuations, NO_CALM),
    (add_hpack_bomb, CALM),
    (add_settings, CALM),
    (add_pings, CALM),
    (add_priorities, CALM),
    (add_empty_data, CALM),
    (add_small_windows, CALM),
    (add_many_streams, NO_CALM),
]


@pytest.mark.parametrize(("add", "code"), FLOODS, ids=[add.__name__ for add, _ in FLOODS])
async def test_a_flood_of_frames_ends_its_own_connection_only(add: Callable[[Flood], None], code: ErrorCodes, site: Site) -> None:
    """With the code that says why, though not every client gets to read it; another client is served."""
    flood, good = Flood(await site.client()), await site.client()
    add(flood)

    await flood.send()
    seen = await flood.read_until(lambda event: isinstance(event, ConnectionTerminated))

    told = [event.error_code for event in seen if isinstance(event, ConnectionTerminated)]
    assert told in ([code], [])
    assert (await good.ask("POST", "/enqueue", JOB)).status == 202
    with trio.fail_after(PATIENCE_SECONDS):
        while site.server.connections > 1:
            await flood.read_until(lambda _: False)
            await trio.lowlevel.checkpoint()
    opened = sum(isinstance(command, Next) for command in site.shard.commands)
    assert opened <= SETTINGS.http2_control_frames_max


async def test_as_many_control_frames_as_may_be_are_answered(site: Site) -> None:
    """At the limit, pings and resets do no harm."""
    flood = Flood(await site.client())
    for number in range(SETTINGS.http2_control_frames_max // 4):
        flood.add(PingFrame(0, b"12345678"), headers(2 * number + 1), RstStreamFrame(2 * number + 1, 8))
    flood.http.send_headers(
        99_999, [(":method", "GET"), (":scheme", "http"), (":path", "/health"), (":authority", "localhost")], end_stream=True
    )
    flood.data += flood.http.data_to_send()
    await flood.send()

    seen = await flood.read_until(lambda event: isinstance(event, ResponseReceived | ConnectionTerminated))

    assert isinstance(seen[-1], ResponseReceived)


@pytest.mark.parametrize("host", ["localhost", "elsewhere"], ids=["of the application", "of what stands before it"])
async def test_an_answer_that_no_window_is_opened_for_is_given_up_though_the_client_pings(host: str, site: Site) -> None:
    """A client that keeps the connection busy and takes nothing of its answer is cut off after request_seconds_max, whoever gave the answer."""
    site.shard.answer = lambda command: Delivered([delivery(payload=b"1" * 500_000)]) if isinstance(command, Next) else obliging(command)
    flood = Flood(await site.client())
    flood.http.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    flood.http.send_headers(1, [(":method", "GET"), (":scheme", "http"), (":path", "/next?queue=q"), (":authority", host)], end_stream=True)
    flood.data += flood.http.data_to_send()
    await flood.send()
    begun = await flood.read_until(lambda event: isinstance(event, ResponseReceived))

    assert isinstance(begun[-1], ResponseReceived)
    with trio.fail_after(PATIENCE_SECONDS):
        while site.server.connections:
            flood.add(PingFrame(0, b"12345678"))
            await flood.send()
            with trio.move_on_after(0.1):  # few pings: it is not to be ended for their number
                await flood.read_until(lambda _: False)
