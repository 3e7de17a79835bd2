"""HTTP/2 as Hypercorn speaks it, but for what a client should not be able to do to it.

**A body that goes on after its answer** does not end the connection. A request may be answered before its body is there: it is too large, or goes to a path
that does not exist. What still comes of it belongs to a stream that is over. Hypercorn looks that stream up, does not find it, and fails, with all other
requests of the connection. Here such data is thrown away and counted against the flow of the connection as usual, so that the client gets its body out and
then reads its answer. A client that goes on for longer than that may take is cut off.

**Frames that carry nothing** (PING, SETTINGS, PRIORITY, empty DATA, a window opened by a few bytes, RST_STREAM) cost a client nearly nothing and the
server a little, a stream that is opened and reset at once even a task. They are counted, and a connection that sends more than
http2_control_frames_max within `NOISE_SECONDS` is ended (ENHANCE_YOUR_CALM), before what it sent last is looked at. What else there is to
a flood has its bound elsewhere: header blocks (h2: 64 frames; header_bytes_max once unpacked), streams (http2_streams_max), time to take an answer (`Connection`).

**Priorities** are ignored, as RFC 9113 allows: Hypercorn's tree of them fails when it is full. **CONNECT** is refused, and so is a path or method
that is none: for one, Hypercorn would start a websocket, for the others fail.

Hypercorn makes its protocol objects by a name in its own module, and that name is set here, once, when this module is loaded.
"""

from __future__ import annotations

import re
from typing import Any

import h2.errors
import h2.events
import h2.settings
import hypercorn.protocol
import trio
from hypercorn.config import Config
from hypercorn.events import Closed
from hypercorn.protocol.h2 import H2Protocol
from priority.priority import PriorityTree

from proteus_shards.front.connection import CURRENT_CONNECTION
from proteus_shards.front.counts import count_limit

UNWANTED_BYTES_MAX = 64 * 1024 * 1024  # of all streams of one connection, twice the largest body that may be set
NOISE_SECONDS = 10.0
WINDOW_BYTES_LEAST = 1024  # clients that mean it open a window by far more

_METHOD = re.compile(rb"[A-Z]{1,20}")
_PATH = re.compile(rb"[!\"$-~]+")  # no fragment

_NOISE = (
    h2.events.PingReceived,
    h2.events.PingAckReceived,
    h2.events.RemoteSettingsChanged,
    h2.events.PriorityUpdated,
    h2.events.StreamReset,
    h2.events.UnknownFrameReceived,
)


class FrontConfig(Config):
    """Hypercorn's settings, and those of this module."""

    http2_control_frames_max: int


class GuardedH2Protocol(H2Protocol):
    """Bounds what one connection may cost."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self.config, FrontConfig)
        self._unwanted_bytes = 0
        self._noise_max = self.config.http2_control_frames_max
        self._noise = 0
        self._noise_since = trio.current_time()
        self.priority = PriorityTree(maximum_streams=self._noise_max + 10 * self.config.h2_max_concurrent_streams + 1000)
        self.connection.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: self.config.h2_max_concurrent_streams,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: self.config.h2_max_header_list_size,
            },
        )
        self.connection.decoder.max_header_list_size = self.config.h2_max_header_list_size

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        if self._is_too_noisy(events):
            count_limit("http2_control_frames_max")
            await self._end(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
            return
        wanted: list[h2.events.Event] = []
        for event in events:
            if isinstance(event, h2.events.RequestReceived) and (status := _refusal_of(event)):
                assert event.stream_id is not None
                self.connection.send_headers(event.stream_id, [(b":status", status)], end_stream=True)
            elif isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams and not _begins(wanted, event.stream_id):
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self._unwanted_bytes += event.flow_controlled_length
            else:
                wanted.append(event)
        await super()._handle_events(wanted)
        if self._unwanted_bytes > UNWANTED_BYTES_MAX:
            await self._end(h2.errors.ErrorCodes.NO_ERROR)

    def _is_too_noisy(self, events: list[h2.events.Event]) -> bool:
        now = trio.current_time()
        if now - self._noise_since >= NOISE_SECONDS:
            self._noise, self._noise_since = 0, now
        self._noise += sum(map(_is_noise, events))
        return self._noise > self._noise_max

    async def _end(self, code: h2.errors.ErrorCodes) -> None:
        self.connection.close_connection(code)
        await self._flush()
        await self.send(Closed())

    async def _priority_updated(self, event: h2.events.PriorityUpdated) -> None:
        """Ignore it."""

    async def _send_data(self, stream_id: int) -> None:
        buffer = self.stream_buffers.get(stream_id)
        before = len(buffer.buffer) if buffer is not None else 0
        await super()._send_data(stream_id)
        connection = CURRENT_CONNECTION.get()
        if buffer is not None and len(buffer.buffer) < before and connection is not None:
            connection.note_progress()


def _is_noise(event: h2.events.Event) -> bool:
    match event:
        case h2.events.DataReceived():
            return not event.data and event.stream_ended is None
        case h2.events.WindowUpdated():
            return (event.delta or 0) < WINDOW_BYTES_LEAST
    return isinstance(event, _NOISE)


def _refusal_of(event: h2.events.RequestReceived) -> bytes | None:
    """Return the status of a request that Hypercorn should not see."""
    fields = dict(event.headers[:8])  # those with a colon come first
    method, path = fields.get(b":method", b""), fields.get(b":path", b"")
    if method == b"CONNECT":
        return b"405"
    return None if _METHOD.fullmatch(bytes(method)) and _PATH.fullmatch(bytes(path)) else b"400"


def _begins(events: list[h2.events.Event], stream_id: int | None) -> bool:
    """Say whether a stream begins among events that are still to be handled."""
    return any(isinstance(event, h2.events.RequestReceived) and event.stream_id == stream_id for event in events)


vars(hypercorn.protocol)["H2Protocol"] = GuardedH2Protocol
