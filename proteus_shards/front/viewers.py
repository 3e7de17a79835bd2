"""Those who look at the dashboard of one front, and the survey that all of them share.

While anyone looks, the whole server is surveyed once a second, however many look; the longer a survey takes, the longer the pause after it, so
that looking never costs more than a tenth of the time. A viewer who is slow misses moments, and holds up nobody: there is one newest frame, made once,
and each takes it when it can.

While nobody looks, no shard is asked for anything. Every few seconds the files that the processes write anyway are read, so that
a page that is opened has a past to show.

Measured with 10,000 queues on two shards: twenty viewers cost each shard 5 ms of CPU a second, and the front 5 ms; with none, nothing of it can be told from
what the processes do anyway.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import trio

from proteus_shards.config import Settings
from proteus_shards.front.answers import Problem
from proteus_shards.front.metrics import Page
from proteus_shards.front.router import Router
from proteus_shards.front.vitals import SERIES, Frame, Point, Reading, point_of, process_vitals, shard_vitals
from proteus_shards.tally import tally_path

log = logging.getLogger("proteus_shards.front")

SURVEY_SECONDS = 1.0
IDLE_SECONDS = 5.0
SHARE_MAX = 0.1  # of the time that surveys may take
SILENCE_SECONDS = 10.0  # then a comment goes out, by which a proxy sees that the stream lives
POINTS_MAX = 900
DEEPEST_MAX = 12


class Viewers:
    """The viewers of one front. `run` surveys; `frames` is what one viewer gets, bytes of a text/event-stream."""

    def __init__(self, router: Router, settings: Settings, page: Page, run_dir: str | None = None) -> None:
        self._router = router
        self._settings = settings
        self._page = page
        self._run_dir = run_dir
        self._looking = 0
        self._someone = trio.Event()  # set, and replaced, when the first viewer comes
        self._fresh = trio.Event()  # set, and replaced, with each frame
        self._frame = b""
        self._reading: Reading | None = None
        self._points: deque[Point] = deque(maxlen=POINTS_MAX)
        self._ending = False

    @property
    def looking(self) -> int:
        """How many look."""
        return self._looking

    @property
    def points(self) -> tuple[Point, ...]:
        """The past, oldest first."""
        return tuple(self._points)

    def drain(self) -> None:
        """End the stream of each viewer. Its page will ask again, and find who serves then."""
        self._ending = True
        self._fresh.set()

    def refusal(self) -> Problem | None:
        """Return why one more may not look."""
        if self._ending:
            return Problem(status=503, detail="the server is shutting down")
        most = self._settings.dashboard_viewers_max
        if self._looking >= most:
            return Problem(status=429, detail=f"{most} pages look already (dashboard_viewers_max)", retry_after=5)
        return None

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Yield the past, and then each newest frame, until the drain."""
        self._looking += 1
        if self._looking == 1:
            self._someone.set()
            self._someone = trio.Event()
            self._frame = b""  # of when someone looked before
        try:
            yield _event("past", {"series": SERIES, "points": list(self._points)})
            sent = b""
            while not self._ending:
                if self._frame is sent or not self._frame:
                    fresh = self._fresh
                    with trio.move_on_after(SILENCE_SECONDS) as silence:
                        await fresh.wait()
                    if silence.cancelled_caught:
                        yield b": nothing new\n\n"
                    continue
                sent = self._frame
                yield sent
        finally:
            self._looking -= 1

    async def run(self) -> None:
        """Survey until cancelled."""
        while True:
            someone, looked = self._someone, bool(self._looking)
            began = trio.current_time()
            if looked:
                await self._survey()
            else:
                self._glance()
            took = trio.current_time() - began
            if looked:
                await trio.sleep(max(SURVEY_SECONDS - took, took / SHARE_MAX))
            else:
                with trio.move_on_after(IDLE_SECONDS):
                    await someone.wait()

    def _glance(self) -> None:
        """Read the files."""
        if self._run_dir is None:
            return
        times = []
        for link in self._router.links_here():
            with suppress(OSError):  # it has not written yet
                times.append(Path(tally_path(self._run_dir, f"shard-{link.shard}")).stat().st_mtime)
        if times:
            self._take(Reading(self._page.samples_kept(), sum(times) / len(times), looked=False))

    async def _survey(self) -> None:
        samples = await self._page.samples()
        now = Reading(samples, time.time())
        before = self._reading or now
        point = self._take(now)
        frame = Frame(
            point=point,
            shards=[
                shard_vitals(link.shard, link.shard_statistics, before, now, connected=link.connected) for link in self._router.links_here()
            ],
            cluster=self._router.cluster.shown() if self._router.cluster is not None else None,
            processes=[process_vitals(name, before, now) for name in self._processes()],
            deepest=self._page.deepest(DEEPEST_MAX),
            queues=int(now.total("proteus_queues")),
            viewers=self._looking,
        )
        self._frame = _event("frame", frame)
        fresh, self._fresh = self._fresh, trio.Event()
        fresh.set()

    def _take(self, now: Reading) -> Point | None:
        """Add what a reading tells to the past."""
        before, point = self._reading, None
        if before is not None:
            point = point_of(before, now)
        if before is None or point is not None or now.at < before.at:  # else it is too near: the next one is compared with the same
            self._reading = now
        if point is not None:
            self._points.append(point)
        return point

    def _processes(self) -> list[str]:
        node = ["node"] if self._settings.cluster else []
        return ["supervisor", *node, *(f"front-{front}" for front in range(self._settings.fronts))]


def _event(name: str, data: Any) -> bytes:
    """Return one event of a text/event-stream. JSON has no line feed."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"
