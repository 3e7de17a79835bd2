"""Giving memory back to the system after a backlog.

Python returns what small objects took by itself; payloads over 512 bytes are the C library's, which keeps what was freed: 20,000 jobs of 5 KB left 110 MiB behind.
So once most of a backlog is gone, the library is asked to return what it holds (`malloc_trim` of glibc; elsewhere nothing is done). That takes
about a millisecond for 100 MiB, and happens a few times for each halving.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

FALL_BYTES_MIN = 16 * 1024 * 1024
LOOKS = 3  # what waits in heaps to be swept out is freed a little later
JOB_BYTES = 512  # of a job beside its payload and state, roughly


def _trim_of_libc() -> Callable[[int], object] | None:
    """Return the function that gives memory back, where there is one."""
    if not sys.platform.startswith("linux"):
        return None
    trim: Callable[[int], object] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim


class Memory:
    """Watches how much is held, and gives back what is not. `trim` takes how many bytes to keep."""

    def __init__(self, trim: Callable[[int], object] | None = None) -> None:
        self._trim = trim or _trim_of_libc()
        self._most = 0
        self._again = 0

    def look(self, jobs: int, size: int) -> None:
        """Take note that so many jobs are held, of so many bytes."""
        held = jobs * JOB_BYTES + size
        self._most = max(self._most, held)
        if self._trim is not None and 2 * held <= self._most and self._most - held >= FALL_BYTES_MIN:
            self._most = held
            self._again = LOOKS
        if self._trim is not None and self._again:
            self._again -= 1
            self._trim(0)
