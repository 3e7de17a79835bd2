"""The rules of keys, priorities, limits and delays, once more and plainly: each looks at all jobs of a queue, each time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from msgspec.structs import replace

from proteus_shards.core.extras import Attempt, Extras, pack_extras
from proteus_shards.core.queue_settings import DEFAULT_SETTINGS, QueueSettings, RateSettings
from tests.core.naive_words import NaiveJob

SECOND = 1_000_000
DRAWN = 0.5  # what the shard draws whenever it draws


def came_back(job: NaiveJob) -> bool:
    """Whether a waiting job was given out or put off before."""
    return job.attempt > 0 or job.not_before is not None


def blocks(other: NaiveJob, job: NaiveJob, settings: QueueSettings) -> bool:
    """Whether another job of the same queue keeps a waiting one from running."""
    if other is job or other.key is None or other.key != job.key:
        return False
    if other.status == "in flight":
        return True
    if settings.on_retry == "hold" and came_back(other) != came_back(job):
        return came_back(other)
    if other.status == "scheduled":
        backs_off = came_back(other)
        if backs_off and settings.on_retry == "skip":
            return False
        if not backs_off and settings.delayed_head == "pass":
            return False
    if settings.delayed_head == "hold":
        return other.seq < job.seq
    return other.order < job.order


def in_line(jobs: Iterable[NaiveJob], settings: QueueSettings) -> list[NaiveJob]:
    """Return those of a queue's jobs that may run, the next one first."""
    jobs = list(jobs)
    free = [job for job in jobs if job.status == "ready" and not any(blocks(other, job, settings) for other in jobs)]
    return sorted(free, key=lambda job: (-job.priority, *job.order))


def delay_of(job: NaiveJob, settings: QueueSettings) -> int:
    """Return for how long a job backs off after its attempt."""
    if job.backoff is not None:
        first, factor, longest, jitter = job.backoff.first_us, job.backoff.factor, job.backoff.max_us, job.backoff.jitter
    elif settings.backoff is not None:
        own = settings.backoff
        first, factor, longest, jitter = int(own.seconds * SECOND), own.factor, int(own.seconds_max * SECOND), own.jitter
    else:
        return 0
    wait = min(first * factor ** (job.attempt - 1), longest)
    return int(wait * (1 - jitter * DRAWN))


def due_of(job: NaiveJob) -> int | None:
    """Return when a job may start, where something says so."""
    return job.not_before if job.not_before is not None else job.run_at


def extras_of(job: NaiveJob) -> Extras | None:
    """Return what a shard keeps of a job beside its plain fields."""
    extras = Extras(job.key, job.priority, job.expires_at, job.backoff, job.not_before, tuple(job.history), job.trace)
    return None if extras == Extras() else extras


def remember(job: NaiveJob, outcome: str, now: int, error: str | None, row_bytes_max: int | None) -> None:
    """Add the attempt that has just ended to a job's history, as far as there is room."""
    job.history = [*job.history, Attempt(job.attempt, job.started_at, now, outcome, error)]  # type: ignore[arg-type]
    if len(job.history) > 20:
        del job.history[1]
    room = (row_bytes_max or 1 << 60) - job.size - len(job.queue) - len(job.id)
    while job.persist and job.history and len(pack_extras(extras_of(job)) or b"") > room:
        errors = [place for place, attempt in enumerate(job.history) if attempt.error is not None]
        if errors:
            job.history[errors[0]] = replace(job.history[errors[0]], error=None)
        else:
            del job.history[0]


@dataclass
class NaiveQueue:
    """The settings of a queue, and its bucket of tokens."""

    settings: QueueSettings = DEFAULT_SETTINGS
    tokens: Fraction = Fraction(0)
    told: int = 0  # when the tokens were counted
    rate: RateSettings | None = None  # the last one

    def allowance(self, now: int, in_flight: int) -> int:
        """Return how many jobs may be handed out."""
        if self.settings.paused:
            return 0
        allowed = 1 << 60
        if self.settings.max_in_flight is not None:
            allowed = max(0, self.settings.max_in_flight - in_flight)
        if self.settings.rate is not None:
            self._refill(now)
            allowed = min(allowed, int(self.tokens))
        return allowed

    def token_in(self, now: int) -> int | None:
        """Return in how many microseconds there will be a token."""
        if (rate := self.settings.rate) is None:
            return None
        self._refill(now)
        missing = max(Fraction(0), 1 - self.tokens) * Fraction(rate.seconds) * SECOND / rate.jobs
        return -int(-missing // 1)

    def spend(self, jobs: int, now: int) -> None:
        """Take tokens."""
        if self.settings.rate is not None:
            self._refill(now)
            self.tokens -= jobs

    def set(self, settings: QueueSettings, now: int) -> None:
        """Change the settings; the first rate begins with a full bucket, another one with the share that is left, in whole units of its shard's."""
        before, self.settings = self.settings, settings
        if settings.rate is not None and settings.rate != before.rate:
            capacity, share = settings.rate.burst or settings.rate.jobs, Fraction(0)
            if self.rate is not None:
                self._refill(now)
                share = 1 - self.tokens / (self.rate.burst or self.rate.jobs)
            unit = int(settings.rate.seconds * SECOND)
            self.tokens, self.told, self.rate = capacity - Fraction(-(-share * capacity * unit // 1), unit), now, settings.rate

    def _refill(self, now: int) -> None:
        rate = self.rate
        assert rate is not None
        self.tokens = min(
            Fraction(rate.burst or rate.jobs), self.tokens + Fraction(now - self.told) * rate.jobs / (Fraction(rate.seconds) * SECOND)
        )
        self.told = now
