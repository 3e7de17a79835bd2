"""How many files a process may have open."""

from __future__ import annotations

import resource


def allow_open_files(count: int) -> None:
    """Raise this process's own limit so that it may open so many, as far as it is allowed to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else min(count, hard), hard))
