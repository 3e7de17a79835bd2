"""A store that another process holds is waited for, a moment."""

from __future__ import annotations

import asyncio

import pytest

from proteus_shards.errors import StoreError, StoreLocked
from proteus_shards.shard import locks


def test_a_store_that_is_let_go_soon_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is tried again until it meets no lock."""
    monkeypatch.setattr(locks, "PAUSE_SECONDS", 0)
    tries = 0

    async def work() -> str:
        nonlocal tries
        tries += 1
        if tries < 5:
            raise StoreLocked
        return "done"

    assert asyncio.run(locks.patiently(work)) == "done"


@pytest.mark.parametrize("error", [StoreLocked("held"), StoreError("wrong")])
def test_a_store_that_stays_held_or_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch, error: StoreError) -> None:
    """Patience has an end, and is for locks only."""
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0)

    async def work() -> None:
        raise error

    with pytest.raises(StoreError, match=str(error)):
        asyncio.run(locks.patiently(work))
