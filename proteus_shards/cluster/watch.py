"""Which other hosts are alive, judged by what this one has seen of their beats.

A host is dead once the same beat was seen for a whole lease and a margin. The time is that between looks, on this host's own monotonic clock, from when the beat was
first seen: so it never begins before the other host's own lease, which runs from before the beat was sent.

Time in which nobody looked counts for half a lease at most. A host that was stopped, or could not reach the store for a while, has missed the beats of the others,
and they may have been unable to write any: it must not take all their shards the moment it can.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from proteus_shards.cluster.model import Host

_AFTER_SECONDS = 0.001  # a look at that very moment might come out a rounding too early


@dataclass
class _Seen:
    boot: str
    beat: int
    looked_at: float
    silent_seconds: float = 0.0


class Watch:
    """What was seen of the beats of all hosts."""

    def __init__(self, silence_seconds_max: float, gap_seconds_max: float) -> None:
        self._silence_seconds_max = silence_seconds_max
        self._gap_seconds_max = gap_seconds_max
        self._seen: dict[str, _Seen] = {}

    def see(self, hosts: Iterable[Host], sent_at: float, now: float) -> None:
        """Take what a look has found that was sent at one monotonic time and answered at another."""
        before, self._seen = self._seen, {}
        for host in hosts:
            seen = before.get(host.address)
            if seen is None or (seen.boot, seen.beat) != (host.boot, host.beat):
                seen = _Seen(host.boot, host.beat, now)
            else:
                seen.silent_seconds += min(max(0.0, sent_at - seen.looked_at), self._gap_seconds_max)
                seen.looked_at = max(seen.looked_at, sent_at)
            self._seen[host.address] = seen

    def alive(self, address: str) -> bool:
        """Say whether a host is there and not dead."""
        seen = self._seen.get(address)
        return seen is not None and seen.silent_seconds < self._silence_seconds_max

    def due(self) -> float | None:
        """Return when the next host that is silent would be dead, if a look were sent then."""
        dues = [
            seen.looked_at + self._silence_seconds_max - seen.silent_seconds + _AFTER_SECONDS
            for seen in self._seen.values()
            if 0.0 < seen.silent_seconds < self._silence_seconds_max
        ]
        return min(dues, default=None)
