"""Where queues live. The numbers below are part of the storage format: they may never change."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proteus_shards.core.placement import SHARDS_MAX, SLOTS, shard_of, slot_of, slots_of

GOLDEN = [
    ("", 0),
    (" ", 651),
    ("a", 777),
    ("q", 913),
    ("-", 127),
    ("default", 1004),
    ("emails", 296),
    ("queue-1", 483),
    ("a-b", 485),
    ("a/b?c=d&e", 606),
    ("naïve", 410),
    ("e\u0301", 723),
    ("\u00e9", 498),
    ("очередь", 962),
    ("キュー", 386),
    ("队列", 656),
    ("\U0001f680", 399),
    ("\U0010ffff", 881),
    ("x" * 1024, 792),
    ("é" * 1024, 951),
    ("\U0001f680" * 1024, 125),
]


def crc32_by_hand(data: bytes) -> int:
    """Return the CRC-32 of IEEE 802.3, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(("queue", "slot"), GOLDEN, ids=range(len(GOLDEN)))
def test_the_slot_of_a_name_never_changes(queue: str, slot: int) -> None:
    """The golden values of the storage format."""
    assert slot_of(queue) == slot
    assert f"{crc32_by_hand(queue.encode('utf-8')) % 1024:010b}" == f"{slot:010b}"[::-1]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=1024))
def test_a_slot_has_the_last_bits_of_the_names_crc_the_last_one_first(queue: str) -> None:
    """For any name, whatever its script."""
    assert f"{slot_of(queue):010b}"[::-1] == f"{zlib.crc32(queue.encode('utf-8')) % 1024:010b}"


@pytest.mark.parametrize(
    "family", ["q{}", "mail{}", "tenant-{}", "queue_{}", "worker-{:02}", "user:{}", "{}", "shard-{}-mail", "eu.{}.orders"]
)
@pytest.mark.parametrize("shards", [2, 4])
def test_numbered_names_are_spread_over_all_shards(family: str, shards: int) -> None:
    """None has more than one and a half times its share of twenty."""
    counts = [0] * shards
    for number in range(20):
        counts[shard_of(slot_of(family.format(number)), shards)] += 1

    assert max(counts) <= 1.5 * 20 / shards


def test_there_are_1024_slots_and_at_most_as_many_shards() -> None:
    """A slot cannot be split."""
    assert (SLOTS, SHARDS_MAX) == (1024, 1024)


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 5, 7, 8, 16, 100, 255, 256, 511, 512, 513, 1000, 1023, 1024])
def test_the_slots_of_the_shards_lie_side_by_side(shards: int) -> None:
    """They cover every slot once, in order, in nearly equal parts."""
    ranges = [slots_of(shard, shards) for shard in range(shards)]

    assert [slot for slots in ranges for slot in slots] == list(range(1024))
    assert {len(slots) for slots in ranges} <= {1024 // shards, 1024 // shards + 1}
    assert all(slots.step == 1 for slots in ranges)


def test_slots_of_is_the_inverse_of_shard_of() -> None:
    """For every shard count there is, at both ends of each range and at one slot between."""
    choose = random.Random(1)
    for shards in range(1, SHARDS_MAX + 1):
        for shard in {0, shards - 1, *(choose.randrange(shards) for _ in range(8))}:
            slots = slots_of(shard, shards)
            for slot in (slots[0], slots[-1], choose.choice(slots)):
                assert shard_of(slot, shards) == shard
            assert slots.start == 0 or shard_of(slots.start - 1, shards) == shard - 1
            assert slots.stop == SLOTS or shard_of(slots.stop, shards) == shard + 1


def test_queues_spread_over_the_shards() -> None:
    """Ten thousand names that differ in a number fall evenly enough."""
    counts = [0] * 8
    for number in range(10_000):
        counts[shard_of(slot_of(f"queue-{number}"), 8)] += 1

    assert min(counts) > 1000
    assert max(counts) < 1500
