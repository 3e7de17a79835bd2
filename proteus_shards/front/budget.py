"""Bytes that a front holds for its clients, of one kind, over all connections.

Each connection is bounded by itself: a body has its largest size, answers that are not read stop the reading. A thousand connections at their bounds are gigabytes
all the same, so what they hold together has a limit, too. Whoever would hold more is refused; one who is alone passes with whatever one connection may hold.
"""

from __future__ import annotations


class Budget:
    """Counts bytes up to a limit. `limit` is the setting by which messages name it."""

    __slots__ = ("bytes_max", "held", "limit")

    def __init__(self, limit: str, bytes_max: int) -> None:
        self.limit = limit
        self.bytes_max = bytes_max
        self.held = 0

    def take(self, size: int, own: int = 0) -> bool:
        """Hold so many bytes more, and say whether that may be; if not, nothing is held. `own` is what the same connection holds already."""
        if self.held + size > self.bytes_max and self.held > own:
            return False
        self.held += size
        return True

    def hold(self, size: int) -> None:
        """Hold so many bytes more, whatever the limit: they are few, and it would cost more to do without them."""
        self.held += size

    def give(self, size: int) -> None:
        """Hold so many bytes less."""
        self.held -= size
        assert self.held >= 0, f"{self.limit}: more was given back than was taken"
