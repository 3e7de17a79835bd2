"""HTTP/2 as Hypercorn speaks it, but that a body which goes on after its answer does not end the connection.

A request may be answered before its body is there: it is too large, or goes to a path that does not exist. What still comes of it belongs to a stream
that is over. Hypercorn looks that stream up, does not find it, and fails, with all other requests of the connection. Here such data is thrown away and
counted against the flow of the connection as usual, so that the client gets its body out and then reads its answer. A client that goes on for longer than that
may take is cut off.

Hypercorn makes its protocol objects by a name in its own module, and that name is set here, once, when this module is loaded.
"""

from __future__ import annotations

import h2.events
import hypercorn.protocol
from hypercorn.events import Closed
from hypercorn.protocol.h2 import H2Protocol

UNWANTED_BYTES_MAX = 64 * 1024 * 1024  # of all streams of one connection, twice the largest body that may be set


class TolerantH2Protocol(H2Protocol):
    """Throws away what comes for streams that are over."""

    _unwanted_bytes = 0

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        wanted: list[h2.events.Event] = []
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams and not _begins(wanted, event.stream_id):
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self._unwanted_bytes += event.flow_controlled_length
            else:
                wanted.append(event)
        await super()._handle_events(wanted)
        if self._unwanted_bytes > UNWANTED_BYTES_MAX:
            self.connection.close_connection()
            await self._flush()
            await self.send(Closed())


def _begins(events: list[h2.events.Event], stream_id: int | None) -> bool:
    """Say whether a stream begins among events that are still to be handled."""
    return any(isinstance(event, h2.events.RequestReceived) and event.stream_id == stream_id for event in events)


vars(hypercorn.protocol)["H2Protocol"] = TolerantH2Protocol
