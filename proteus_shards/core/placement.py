"""Which shard owns a queue.

A queue name hashes to one of `SLOTS` slots, and each shard owns one contiguous range of slots. The slot is stored with
every row and never changes, so another shard count only moves the borders between the ranges.

CRC-32 over the UTF-8 bytes of the name: the same in every language, version and process, unlike Python's `hash()`.
"""

from __future__ import annotations

from zlib import crc32

SLOTS = 1024
SHARDS_MAX = SLOTS


def slot_of(queue: str) -> int:
    """Return the slot (0…1023) of a queue name."""
    return crc32(queue.encode()) % SLOTS


def shard_of(slot: int, shards: int) -> int:
    """Return which of `shards` shards (0…shards-1) owns a slot."""
    return slot * shards // SLOTS


def slots_of(shard: int, shards: int) -> range:
    """Return the slots that a shard owns: the inverse of `shard_of`."""
    return range(-(-shard * SLOTS // shards), -(-(shard + 1) * SLOTS // shards))
