"""When a call is sent again, and after how long. Sync and pure: randomness is an argument.

**What is safe.** A call that surely had no effect is tried again, whatever it is: the server was not reached, or answered 429. One that may have had its effect (503, a
lost answer) is tried again only where the same call twice is the same as once (`Call.repeatable`). What else the server says is its last word.

**How long.** Full jitter: a random time between nothing and a bound that doubles with each try, so that clients which were refused together do not come
back together. Where the server says `Retry-After`, that is the least, and the jitter comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from proteus_shards.client.errors import Busy, ClientError, NotReached, Refusal, Unanswered, Unavailable


class Retries(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how patiently a client tries again. Times are seconds."""

    tries_max: int = 5
    first_seconds: float = 0.1  # the bound of the first pause
    pause_seconds_max: float = 10.0
    total_seconds_max: float = 60.0  # no pause goes beyond this since the first try

    def pause(self, error: ClientError, tries: int, seconds: float, *, repeatable: bool, random: Callable[[], float]) -> float | None:
        """Return how long to wait before the next try, in seconds, or None where there is none.

        `tries` have been made so far, the first `seconds` ago. `random` returns a number from 0 to 1.
        """
        if tries >= self.tries_max or not may_repeat(error, repeatable=repeatable):
            return None
        bound = min(self.pause_seconds_max, math.ldexp(self.first_seconds, tries - 1))
        least = (error.retry_after or 0.0) if isinstance(error, Refusal) else 0.0
        pause = least + bound * random()
        return pause if seconds + pause <= self.total_seconds_max else None


NO_RETRIES = Retries(tries_max=1)


def may_repeat(error: ClientError, *, repeatable: bool) -> bool:
    """Say whether a call that ended in an error may be sent again."""
    if isinstance(error, NotReached | Busy):
        return True
    return repeatable and leaves_open(error)


def leaves_open(error: ClientError) -> bool:
    """Say whether an error leaves it open what became of a call."""
    return isinstance(error, Unanswered | Unavailable)
