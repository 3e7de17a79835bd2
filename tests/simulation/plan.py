"""What one seed is about: drawn first, and different enough from seed to seed that each kind of trouble gets seeds of its own.

A run in which everything happens at once shows little: a store that is always away never fills a dead letter office. So every seed leaves out most of
what could happen and exaggerates the rest. Every tenth seed has no fault at all, and there no refusal is excused.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

from proteus_shards.core.holdings import Limits
from proteus_shards.core.queue_settings import DEFAULT_SETTINGS, BackoffSettings, QueueSettings, RateSettings

T = TypeVar("T")

SECOND = 1_000_000
DAY = 86_400 * SECOND
PATCHES: dict[str, tuple[bytes, ...]] = {
    "paused": (b'{"paused":true}', b'{"paused":false}', b'{"paused":null}'),
    "max_in_flight": (b'{"max_in_flight":1}', b'{"max_in_flight":3}', b'{"max_in_flight":null}'),
    "rate": (b'{"rate":{"jobs":3,"seconds":2,"burst":null}}', b'{"rate":{"jobs":20,"seconds":1,"burst":1}}', b'{"rate":null}'),
    "on_retry": (b'{"on_retry":"skip"}', b'{"on_retry":"hold"}'),
    "delayed_head": (b'{"delayed_head":"hold"}', b'{"delayed_head":null}'),
    "jobs_max": (b'{"jobs_max":2}', b'{"jobs_max":null}'),
    "dead_letters_max": (b'{"dead_letters_max":1}', b'{"dead_letters_max":0}', b'{"dead_letters_max":null}'),
}
QUEUES = ("a", "bb", "c", "dd", "e", "ff")  # of slots all over the range


class Plan:
    """The options of one seed, and its one source of randomness."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        pick, chance = self._pick, self._chance
        self.healed = False
        faulty = not chance(0.1)

        self.operations = pick((300, 600, 1200, 2400))
        self.queues = QUEUES[: pick((1, 1, 2, 3, 6))]
        self.ids = tuple(str(number) for number in range(pick((3, 6, 12))))
        self.shards = pick((1, 1, 1, 2, 3))
        self.links = pick((1, 2, 4))
        self.resolution_us = pick((1, 1, 1000))

        self.frame_max = pick((1, 4, 12, 32))
        self.gap_us = pick((100, 1_000, 10_000, 100_000, 500_000))
        self.delayed = pick((0.0, 0.0, 0.1, 0.5))
        self.delay_us = pick((2_000, 50_000, 3_000_000))
        self.persisted = pick((0.0, 0.5, 0.9, 1.0, 1.0))
        self.timeouts = pick(((1, 2), (1, 5), (2, 20), (0, 1)))
        self.retries = pick(((0, 1), (0, 1, 2), (1, 3, -1)))
        self.scheduled = pick((0.0, 0.0, 0.2, 0.6))
        self.polls = pick((0.0, 0.2, 0.6))
        self.retried = pick((0.0, 0.05, 0.2))
        self.undelivered = pick((0.0, 0.05, 0.15))

        self.latency_us = pick((0, 3_000, 50_000, 2_000_000))
        self.trouble = pick((0.0, 0.02, 0.1, 0.3)) if faulty else 0.0
        self.outage = pick((0.0, 0.3))
        self.load_fails = pick((0.0, 0.2)) if faulty else 0.0
        self.poison = faulty and chance(0.04)

        self.crashes = self._rate(faulty, 0.01)
        self.takeovers = self._rate(faulty, 0.005)
        self.drains = self._rate(faulty, 0.005)
        self.reshards = self._rate(faulty, 0.005)
        self.closes = self._rate(faulty, 0.04)
        self.jumps = self._rate(faulty, 0.03)
        self.stalls = self._rate(faulty, 0.02)
        self.damages = chance(0.15)

        self.row_bytes_max = pick((None, None, None, 60))
        self.batch_rows_max = pick((None, None, 1, 2, 5))
        self.batch_bytes_max = pick((None, None, None, 700, 2000))
        if self.batch_rows_max is not None or self.batch_bytes_max is not None:
            self.operations = min(self.operations, 600)
            self.latency_us = min(self.latency_us, 50_000)  # a thousand commits one after another, of seconds each, show nothing else
        self._draw_limits()
        self._draw_semantics()
        self._draw_operators()
        self._draw_steps()
        self.recurring = self._draw_recurring()
        self.limits = self._limits()

    def _draw_recurring(self) -> float:
        """Draw how often clients make and drop schedules: not where what comes by itself could be in the way of a rule."""
        roomy = (self.batch_rows_max, self.batch_bytes_max, self.row_bytes_max, self.queue_jobs_max) == (None, None, None, 100_000)
        calm = not (self.jumps or self.damages or self.poison or self.operated or self.settings.rate)
        return 0.04 if roomy and calm else 0.0

    def _draw_limits(self) -> None:
        """Draw what there may be at most: in a few seeds little."""
        pick, chance = self._pick, self._chance
        small = chance(0.2)
        self.pending_max = 6 if small and chance(0.3) else 100_000
        self.queue_jobs_max = 2 if small and chance(0.3) else 100_000
        self.polls_max = 1 if small and chance(0.3) else 100_000
        self.dead_max = pick((0, 1, 2)) if small and chance(0.5) else 100_000
        self.dead_us_max = 20 * SECOND if small and chance(0.3) else 30 * DAY

    def _draw_semantics(self) -> None:
        """Draw what jobs and queues are asked for beside the plain: in half of the seeds nothing."""
        pick, chance = self._pick, self._chance
        rich = chance(0.5)
        self.keyed = pick((0.0, 0.6, 1.0)) if rich else 0.0
        self.keys = tuple("klmn"[: pick((1, 2, 4))])
        self.ranked = pick((0.0, 0.0, 0.5)) if rich else 0.0
        self.mortal = pick((0.0, 0.0, 0.3)) if rich else 0.0
        self.failed = pick((0.0, 0.1, 0.3)) if rich else 0.0
        self.backing_off = pick((0.0, 0.3)) if rich else 0.0
        self.settings = DEFAULT_SETTINGS
        if rich:
            self.row_bytes_max = None
            limit = pick(("", "", "", "max_in_flight", "rate", "paused"))
            self.settings = QueueSettings(
                on_retry="skip" if chance(0.4) else "hold",
                delayed_head="hold" if chance(0.3) else "pass",
                backoff=BackoffSettings(seconds=pick((0.5, 3.0)), factor=pick((1.0, 2.0)), seconds_max=10.0) if chance(0.3) else None,
                ttl=8.0 if chance(0.1) else None,
                max_in_flight=pick((1, 2)) if limit == "max_in_flight" else None,
                rate=RateSettings(jobs=pick((2, 20)), seconds=pick((1.0, 10.0)), burst=pick((None, 1))) if limit == "rate" else None,
                paused=limit == "paused",
            )

    def _draw_steps(self) -> None:
        """Draw how often clients add several jobs in one step, end a run by adding others, and name their requests: in half of the seeds never."""
        fits = self.batch_rows_max not in (1, 2) and self.batch_bytes_max != 700 and self.row_bytes_max is None
        self.stepping = self._pick((0.0, 0.0, 0.05, 0.3)) if fits else 0.0
        self.named = self._pick((0.0, 0.0, 0.3, 0.8)) if fits else 0.0

    def _draw_operators(self) -> None:
        """Draw what operators do: in half of the seeds nothing."""
        pick, chance = self._pick, self._chance
        self.operated = pick((0.0, 0.0, 0.03, 0.15))
        kinds = [kind for kind in ("set", "purge", "redrive", "change") if chance(0.6)]
        self.operators = tuple(kinds) if self.operated and kinds else ("look",)
        self.settable = tuple(name for name in PATCHES if chance(0.5)) or ("paused",)
        self.trims = self.operated > 0 and "set" in kinds and "dead_letters_max" in self.settable
        self.keeps_letters = not self.trims and self.dead_max >= 100 and self.dead_us_max == 30 * DAY
        if self.operated and self.batch_rows_max is not None:
            self.batch_rows_max = max(self.batch_rows_max, 2)  # to change a job takes two rows

    def _limits(self) -> Limits:
        return Limits(
            shard_pending_max=self.pending_max,
            polls_max=self.polls_max,
            queue_jobs_max=self.queue_jobs_max,
            shard_jobs_max=1_000_000,
            shard_bytes_max=1 << 40,
            queues_max=1_000_000,
            dead_letters_max=self.dead_max,
            dead_letters_us_max=self.dead_us_max,
            keeps=True,
            row_bytes_max=self.row_bytes_max,
            batch_rows_max=self.batch_rows_max,
            batch_bytes_max=self.batch_bytes_max,
            idempotency_us_max=100 * 365 * DAY,  # clocks jump by years here, and no answer is to go for that
        )

    def _pick(self, options: Sequence[T]) -> T:
        return options[int(self.random.random() * len(options))]

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    def _rate(self, faulty: bool, rate: float) -> float:
        """Return how often a fault comes in a step: in most seeds never."""
        return rate if faulty and self._chance(0.25) else 0.0
