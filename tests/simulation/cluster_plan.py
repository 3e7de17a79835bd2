"""What one seed of the cluster's simulation is about.

Three kinds, since a world in which everything happens at once shows little. In a **calm** one nothing fails: hosts join and leave, operators move shards and drain
hosts, and what lives in memory only must come along. In an **honest** one anything fails, but clocks run about evenly: there no host may claim from
one that still serves. In a **wild** one the clocks do not, and only the epoch keeps order.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")

SECOND = 1_000_000
KINDS = ("calm", "honest", "wild")


class ClusterPlan:
    """The options of one seed, and its one source of randomness. Seconds of virtual time, and probabilities."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        pick = self.pick
        self.kind = KINDS[seed % 3] if seed % 12 else "calm"
        self.calm = self.kind == "calm"
        self.hosts = pick((1, 2, 2, 3, 3, 4, 5))
        self.shards = pick((1, 2, 3, 5, 8))
        self.lease_seconds = pick((1.0, 2.0, 8.0))
        self.troubled_seconds = self.lease_seconds * pick((4, 8, 16)) + 5
        self.event_seconds = self.lease_seconds * pick((0.3, 1.0, 3.0))  # between two things that happen
        # calls of the store
        self.call_seconds_max = pick((0.5, 1.0, 2.0))  # then the caller gives up, whatever becomes of the call
        self.delay_seconds = pick((0.002, 0.02, 0.3)) if not self.calm else self.lease_seconds / 100
        self.late = (
            0.0 if self.calm else pick((0.0, 0.02, 0.1))
        )  # share of calls that take up to twice as long as their caller waits, on either way
        self.lost = 0.0 if self.calm else pick((0.0, 0.02, 0.1))  # share that is lost, on either way
        # processes
        self.start_seconds = pick((0.05, 0.4, 1.0))
        self.stop_seconds = pick((0.01, 0.3, 2.0))
        self.commit_seconds = pick((0.2, 1.0))
        # clocks
        self.rates = {"calm": (0.99, 1.01), "honest": (0.99, 1.01), "wild": (0.9, 1.1)}[self.kind]
        orders = ["join", "leave", "move", "drain", "undrain"]
        faults = ["restart_node", "kill", "kill_back", "pause", "cut", "outage", "part", "crash_shard", "replace"]
        jumps = ["jump", "suspend"] if self.kind == "wild" else []
        self.events = [name for name in orders if self.chance(0.6)] or ["join"]
        if not self.calm:
            self.events += [name for name in faults if self.chance(0.5)] + jumps
            if self.kind == "honest" and self.chance(0.2):
                self.events = ["outage"]  # and nothing else: nobody dies, so nothing may move
                self.late = self.lost = 0.0
            elif self.kind == "honest" and self.chance(0.4):  # answers that take a good part of a lease, and hosts that lose it just then
                self.events, self.late, self.lost, self.lease_seconds, self.delay_seconds = ["cut"], 0.3, 0.0, 4.0, 0.02
                self.call_seconds_max, self.hosts, self.event_seconds = 2.0, max(3, self.hosts), 7.0
                self.troubled_seconds = 90.0
        self.only_outages = self.events == ["outage"]

    def pick(self, options: Sequence[T]) -> T:
        """Return one of some options."""
        return self.random.choice(options)

    def chance(self, probability: float) -> bool:
        """Say yes with a probability."""
        return self.random.random() < probability

    def settle_seconds_max(self) -> float:
        """Return how long after healing every shard may take to be served again: the lease on the slowest clock, 2 s, and what is delayed."""
        delayed = 3 * self.call_seconds_max + 4 * self.delay_seconds + self.start_seconds + self.stop_seconds
        return self.lease_seconds * 1.2 / self.rates[0] + 2.0 + delayed
