"""HTTP/1.1 as Hypercorn speaks it, but that a connection which a drain ends says so.

Hypercorn closes without a word after the answer that is under way, so that the client learns of it from the request that it sends next, and what it has sent
already waits for ever: for a cycle that never comes, in a task deaf to the end of its socket. Here an answer that begins while the server drains
says `connection: close`, and nothing is closed after one that has not said it.

Set in the place of Hypercorn's own by its name, as `http2` does it.
"""

from __future__ import annotations

import h11
import hypercorn.protocol
from hypercorn.events import Closed, Updated
from hypercorn.protocol.events import Event, Response
from hypercorn.protocol.h11 import H11Protocol


class EndingH11Protocol(H11Protocol):
    """Tells the client that the connection ends, and only then ends it."""

    async def stream_send(self, event: Event) -> None:
        """Send a piece of an answer."""
        if isinstance(event, Response) and event.status_code >= 200 and self.context.terminated.is_set():
            others = [(name, value) for name, value in event.headers if name.lower() != b"connection"]
            event = Response(event.stream_id, [*others, (b"connection", b"close")], event.status_code)
        await super().stream_send(event)

    async def _maybe_recycle(self) -> None:
        if self.connection.our_state is h11.DONE and self.connection.their_state is h11.DONE:
            await self._close_stream()
            try:
                self.connection.start_next_cycle()
            except h11.LocalProtocolError:  # the client has ended meanwhile
                await self.send(Closed())
            else:
                await self.can_read.set()
                await self.send(Updated(idle=True))
        else:
            await super()._maybe_recycle()


vars(hypercorn.protocol)["H11Protocol"] = EndingH11Protocol
