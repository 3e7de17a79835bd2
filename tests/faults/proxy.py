"""A TCP proxy that a test can make cruel: it stands between the shards and their store, whatever protocol they speak.

It runs on an event loop in a thread of its own, so that tests of any colour may use it, and each of its modes holds for connections that
are there and for those to come:

* `passes`: bytes go through;
* `cut`: everything is closed in order (FIN), newcomers right after they are accepted;
* `reset`: the same, but by RST (SO_LINGER 0);
* `delay(seconds)`: each piece of bytes waits, both ways;
* `black_hole`: bytes are taken and kept, both ways, and newcomers are accepted: nothing is ever heard. Afterwards they are lost, and
  with them their connections, which are reset: what stands behind a hole in a stream means nothing;
* `lose_answers`: requests pass, and once a connection has passed one, all that the server says on it is dropped. So a commit takes place, and
  its client does not hear of it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from enum import StrEnum

PIECE_BYTES = 64 * 1024
CALL_SECONDS_MAX = 10.0


class Mode(StrEnum):
    """What becomes of bytes."""

    PASS = "pass"
    CUT = "cut"
    RESET = "reset"
    DELAY = "delay"
    BLACK_HOLE = "black hole"
    LOSE_ANSWERS = "lose answers"


class Proxy:
    """One listening port on loopback, and the port behind it."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.mode = Mode.PASS
        self.connections = 0  # ever made
        self.dropped_bytes = 0  # answers and requests that were swallowed
        self._delay_seconds = 0.0
        self._pairs: set[_Pair] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(CALL_SECONDS_MAX)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def passes(self) -> None:
        """Be kind again."""
        self._set(Mode.PASS)

    def cut(self) -> None:
        """Close all connections, and each new one."""
        self._set(Mode.CUT)

    def reset(self) -> None:
        """Reset all connections, and each new one."""
        self._set(Mode.RESET)

    def delay(self, seconds: float) -> None:
        """Let all bytes wait."""
        self._delay_seconds = seconds
        self._set(Mode.DELAY)

    def black_hole(self) -> None:
        """Swallow all bytes."""
        self._set(Mode.BLACK_HOLE)

    def lose_answers(self) -> None:
        """Let the next request of each connection pass, and swallow its answer and all after it."""
        self._set(Mode.LOSE_ANSWERS)

    def close(self) -> None:
        """End everything."""

        async def end() -> None:
            self._server.close()
            for pair in list(self._pairs):
                pair.end(reset=True)
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(end(), self._loop).result(CALL_SECONDS_MAX)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CALL_SECONDS_MAX)
            self._loop.close()

    def _set(self, mode: Mode) -> None:
        async def change() -> None:
            was, self.mode = self.mode, mode
            for pair in list(self._pairs):
                if mode in {Mode.CUT, Mode.RESET}:
                    pair.end(reset=mode is Mode.RESET)
                elif was in {Mode.BLACK_HOLE, Mode.LOSE_ANSWERS} and pair.has_hole:
                    pair.end(reset=True)

        asyncio.run_coroutine_threadsafe(change(), self._loop).result(CALL_SECONDS_MAX)

    @property
    def _resets(self) -> bool:
        return self.mode is Mode.RESET

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        pair = _Pair(writer)
        self._pairs.add(pair)
        try:
            if self.mode in {Mode.CUT, Mode.RESET}:
                return
            try:
                back_reader, pair.back = await asyncio.open_connection("127.0.0.1", self.target_port)
            except OSError:
                return
            await asyncio.wait(
                {
                    asyncio.ensure_future(self._carry(pair, reader, pair.back, answers=False)),
                    asyncio.ensure_future(self._carry(pair, back_reader, writer, answers=True)),
                },
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            pair.end(reset=self._resets or pair.has_hole)
            self._pairs.discard(pair)

    async def _carry(self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        try:
            while data := await reader.read(PIECE_BYTES):
                if self.mode is Mode.DELAY:
                    await asyncio.sleep(self._delay_seconds)
                if self._swallows(pair, answers=answers):
                    pair.has_hole = True
                    self.dropped_bytes += len(data)
                    continue
                writer.write(data)
                await writer.drain()
        except OSError:
            return

    def _swallows(self, pair: _Pair, *, answers: bool) -> bool:
        if self.mode is Mode.BLACK_HOLE or pair.has_hole:
            return self.mode is Mode.BLACK_HOLE or answers
        return self.mode is Mode.LOSE_ANSWERS and answers


class _Pair:
    """The two connections of one client."""

    def __init__(self, front: asyncio.StreamWriter) -> None:
        self.front = front
        self.back: asyncio.StreamWriter | None = None
        self.has_hole = False

    def end(self, *, reset: bool) -> None:
        """Close both."""
        for writer in (self.front, self.back):
            if writer is None or writer.transport.is_closing():
                continue
            raw = writer.get_extra_info("socket")
            if reset:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()
