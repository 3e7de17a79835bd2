"""What holds of every store that keeps rows while owners change, beside a trial, and before anything is opened. Part of `exercise.py`."""

from __future__ import annotations

from contextlib import suppress

import pytest

from proteus_shards.core.model import Batch, Row
from proteus_shards.core.placement import slots_of
from proteus_shards.errors import StoreError, StoreFenced, StoreLocked
from proteus_shards.store.contract import Store
from tests.store.backing import Backing, kind_of
from tests.store.rows import (
    commit_all,
    deleting,
    in_asyncio,
    inserting,
    key_of,
    load_all,
    make_mark,
    make_row,
    marked,
    marking,
    opened,
)


class OwnersExercise:
    """Epochs, and what must not take one."""

    @in_asyncio
    async def test_of_two_owners_the_later_one_writes_or_is_refused(self, backing: Backing) -> None:
        """Where a second one opens, the first is fenced for good, and neither reads nor closes to anyone's harm."""
        row = make_row(1)
        first, second = backing.store(), backing.store()
        try:
            await first.open()
            await first.commit(inserting(row))
            if await refused(second):
                await first.commit(marking(make_mark(row)))
            else:
                assert await load_all(second) == [row]
                for batch in (marking(make_mark(row)), deleting(row), inserting(make_row(2)), Batch([], [], [])):
                    with pytest.raises(StoreFenced):
                        await first.commit(batch)
                with suppress(StoreError):  # it need not read any more
                    assert await first.read([key_of(row)]) in ({}, {key_of(row): row})
                await first.close()
                await second.commit(marking(make_mark(row)))
        finally:
            await first.close()
            await second.close()
        async with opened(backing.store()) as third:
            assert await load_all(third) == [marked(row, make_mark(row))]

    @in_asyncio
    async def test_epochs_only_grow_whatever_the_number_of_shards(self, backing: Backing) -> None:
        """Each is above every one that an owner of any of its slots has had."""
        highest = [-1] * 1024
        for shards in (1, 2, 3, 1, 4, 2, 2, 5, 1, 3):
            await backing.prepare(shards)
            for shard in range(shards):
                slots = slots_of(shard, shards)
                store = backing.store(shard, shards)
                try:
                    epoch = await store.open()
                finally:
                    await store.close()
                assert epoch > max(highest[slots.start : slots.stop])
                highest[slots.start : slots.stop] = [epoch] * len(slots)

    @in_asyncio
    async def test_shards_are_owned_apart(self, backing: Backing) -> None:
        """An owner of one shard's slots takes nothing from the owner of another's."""
        await backing.prepare(3)
        stores = [backing.store(shard, 3) for shard in range(3)]
        rows = [make_row(seq, queue=f"q{seq}") for seq in range(60)]
        try:
            for store in stores:
                await store.open()
            for shard, store in enumerate(stores):
                await commit_all(store, inserting(*(row for row in rows if row.slot in slots_of(shard, 3))))
        finally:
            for store in stores:
                await store.close()
        seen: list[Row] = []
        for shard in range(3):
            async with opened(backing.store(shard, 3)) as store:
                seen += [row for row in await load_all(store) if isinstance(row, Row)]

        assert sorted(seen, key=lambda row: row.seq) == rows

    @in_asyncio
    async def test_a_trial_disturbs_no_shard(self, backing: Backing) -> None:
        """It takes no shard's epoch, sees no shard's row, shows none of its own, and leaves nothing for the next trial."""
        rows = [make_row(seq) for seq in range(3)]
        kind = kind_of(backing)
        async with opened(backing.store()) as store:
            await store.commit(inserting(rows[0]))
            for _ in range(2):
                async with opened(kind.trial(backing.url)) as trial:
                    assert await load_all(trial) == []
                    await trial.commit(inserting(*(make_row(seq, id="trial") for seq in range(2))))
                    await store.commit(Batch([], [], []))
                    await trial.commit(marking(make_mark(make_row(0, id="trial"))))
                    await trial.commit(deleting(make_row(1, id="trial")))
                    assert list(await trial.read([key_of(make_row(0, id="trial"))])) == [key_of(make_row(0, id="trial"))]
            await store.commit(inserting(rows[1]))
        async with opened(kind.trial(backing.url)) as trial:
            await trial.commit(inserting(make_row(9)))
            async with opened(backing.store()) as store:
                assert await load_all(store) == rows[:2]
                await store.commit(inserting(rows[2]))
        async with opened(backing.store()) as store:
            assert await load_all(store) == rows

    @in_asyncio
    async def test_a_place_knows_for_how_many_shards_it_is_prepared(self, backing: Backing) -> None:
        """Asking takes no epoch: an owner goes on."""
        kind = kind_of(backing)
        for shards in (3, 2):
            await backing.prepare(shards)
            async with opened(backing.store(0, shards)) as store:
                assert await kind.prepared_shards(backing.url) == shards
                await store.commit(Batch([], [], []))
            assert await kind.prepared_shards(backing.url) == shards

    @in_asyncio
    async def test_an_examination_finds_no_fault_and_takes_no_epoch(self, backing: Backing) -> None:
        """Neither of a place at rest nor of one in use."""
        kind = kind_of(backing)
        at_rest = [finding async for finding in kind.examine(backing.url)]
        async with opened(backing.store()) as store:
            await store.commit(inserting(make_row(1)))
            in_use = [finding async for finding in kind.examine(backing.url)]
            await store.commit(inserting(make_row(2)))
            assert set(await store.read([key_of(make_row(1)), key_of(make_row(2))])) == {key_of(make_row(1)), key_of(make_row(2))}

        assert at_rest
        assert [finding for finding in [*at_rest, *in_use] if finding.level == "fault"] == []


async def refused(store: Store) -> bool:
    """Open a store, and say whether another holds its rows."""
    try:
        await store.open()
    except StoreLocked:
        return True
    return False
