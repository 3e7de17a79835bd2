"""What holds of every register, and of the stores that open under a claim, as tests. A shared kind's test file gives a `SharedBacking` and inherits the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec
import pytest

from proteus_shards.cluster.model import NOBODY, Claim, Holding, Host
from proteus_shards.core.model import Batch
from proteus_shards.core.placement import shard_of, slot_of
from proteus_shards.errors import StoreError, StoreFenced, StoreRefused
from proteus_shards.store.contract import Store
from proteus_shards.store.register import Register
from tests.store.rows import in_asyncio, inserting, load_all, make_row, opened

SHARDS = 3
CONTENDERS = 8
TURNS = 6
A = Host("10.0.0.1:7000", "boot-a", 1, "1.0")
B = Host("10.0.0.2:7000", "boot-b", 1, "1.0")

_replace = msgspec.structs.replace


class SharedBacking(Protocol):
    """A place that hosts share, empty at first, and prepared for a cluster of `SHARDS` shards."""

    def register(self) -> Register:
        """Return a register over this place, not yet open."""
        ...

    def claimed(self, shard: int, claim: Claim | None) -> Store:
        """Return a store over this place, not yet open."""
        ...

    def lost(self) -> Register:
        """Return a register whose store cannot be reached."""
        ...

    async def damage(self, address: str) -> None:
        """Make what is stored of a host unreadable."""
        ...


@asynccontextmanager
async def opened_register(backing: SharedBacking) -> AsyncIterator[Register]:
    """Open a register, and close it at the end."""
    register = backing.register()
    try:
        await register.open()
        yield register
    finally:
        await register.close()


async def hand_to(register: Register, shard: int, host: str) -> Claim:
    """Give a shard to a host, whoever has it, and return what its process is started for."""
    holding = (await register.look()).holdings[shard]
    assert await register.hand(shard, holding.turn, host)
    return Claim(shard, host, holding.turn + 1)


class RegisterExercise:
    """Hosts, holdings and claims."""

    @pytest.fixture
    def new_shared(self) -> Callable[[], SharedBacking]:
        """Return a function that makes backings."""
        raise NotImplementedError

    @pytest.fixture
    def shared(self, new_shared: Callable[[], SharedBacking]) -> SharedBacking:
        """Return one backing."""
        return new_shared()

    @in_asyncio
    async def test_a_new_cluster_has_no_host_and_free_shards(self, shared: SharedBacking) -> None:
        """All of them, in order; and a register may be closed twice, and before it is open."""
        async with opened_register(shared) as register:
            view = await register.look()
            await register.close()
        await shared.register().close()

        assert view.hosts == ()
        assert [_replace(holding, turn=0, epoch=0) for holding in view.holdings] == [Holding(shard) for shard in range(SHARDS)]

    @in_asyncio
    async def test_a_host_beats_and_leaves(self, shared: SharedBacking) -> None:
        """What one register has written another sees; a beat of another boot, or of a host that is not there, writes nothing."""
        async with opened_register(shared) as one, opened_register(shared) as two:
            assert await one.beat(A) is False
            await one.join(A)
            await two.join(B)
            assert await one.beat(_replace(A, beat=2, version="1.1")) is True
            assert set((await two.look()).hosts) == {_replace(A, beat=2, version="1.1"), B}
            assert await two.beat(_replace(A, boot="old", beat=9)) is False
            assert await two.leave(A.address, "old") is False
            assert set((await one.look()).hosts) == {_replace(A, beat=2, version="1.1"), B}
            assert await two.leave(A.address, A.boot) is True
            assert await two.leave(A.address) is False
            assert await one.beat(_replace(A, beat=3)) is False
            assert await one.leave(B.address) is True
            assert (await one.look()).hosts == ()

    @in_asyncio
    async def test_a_host_that_starts_again_takes_the_place_of_the_one_before(self, shared: SharedBacking) -> None:
        """It joins, whatever stood at its address; the beats of the one before count no more."""
        again = _replace(A, boot="boot-2", beat=1)
        async with opened_register(shared) as register:
            await register.join(_replace(A, beat=40))
            await register.drain(A.address, True)
            await register.join(again)
            assert await register.beat(_replace(A, beat=41)) is False
            assert (await register.look()).hosts == (again,)

    @in_asyncio
    async def test_draining_is_not_for_a_beat_to_change(self, shared: SharedBacking) -> None:
        """It is written by whoever asks for it, and taken back in the same way."""
        async with opened_register(shared) as register:
            assert await register.drain(A.address, True) is False
            await register.join(A)
            assert await register.drain(A.address, True) is True
            assert await register.beat(_replace(A, beat=2)) is True
            assert (await register.look()).hosts == (_replace(A, beat=2, draining=True),)
            assert await register.drain(A.address, False) is True
            assert await register.beat(_replace(A, beat=3, draining=True)) is True
            assert (await register.look()).hosts == (_replace(A, beat=3),)

    @in_asyncio
    async def test_a_shard_is_handed_over_by_turns(self, shared: SharedBacking) -> None:
        """An older turn, a later one and a shard that is none write nothing; the epoch stays."""
        async with opened_register(shared) as register:
            before = (await register.look()).holdings
            turn = before[1].turn
            assert await register.hand(1, turn, A.address) is True
            assert await register.hand(1, turn, B.address) is False
            assert await register.hand(1, turn + 2, B.address) is False
            assert await register.hand(SHARDS, turn, B.address) is False
            assert await register.hand(SHARDS, 0, B.address) is False
            assert (await register.look()).holdings == (before[0], _replace(before[1], host=A.address, turn=turn + 1), before[2])
            assert await register.hand(1, turn + 1, NOBODY) is True
            after = (await register.look()).holdings

        assert after == (before[0], _replace(before[1], turn=turn + 2), before[2])

    @in_asyncio
    async def test_a_wish_lasts_until_the_shard_is_handed_over(self, shared: SharedBacking) -> None:
        """To whomever."""
        async with opened_register(shared) as register:
            turn = (await register.look()).holdings[2].turn
            assert await register.want(SHARDS, A.address) is False
            assert await register.want(2, A.address) is True
            holding = (await register.look()).holdings[2]
            assert (holding.wanted, holding.host, holding.turn) == (A.address, NOBODY, turn)
            assert await register.hand(2, turn, B.address) is True
            holding = (await register.look()).holdings[2]
            assert (holding.wanted, holding.host, holding.turn) == (NOBODY, B.address, turn + 1)
            assert await register.want(2, A.address) is True
            assert await register.want(2, NOBODY) is True
            assert (await register.look()).holdings[2] == holding

    @in_asyncio
    async def test_a_wish_that_is_fulfilled_stays_as_a_pin(self, shared: SharedBacking) -> None:
        """In the same write as the hand-over, so that nobody sees the shard there without it; the next host has none."""
        async with opened_register(shared) as register:
            turn = (await register.look()).holdings[2].turn
            assert await register.want(2, A.address) is True
            assert await register.hand(2, turn, A.address) is True
            assert await register.hand(2, turn, A.address) is False
            holding = (await register.look()).holdings[2]
            assert (holding.wanted, holding.host, holding.turn) == (A.address, A.address, turn + 1)
            assert await register.hand(2, turn + 1, B.address) is True
            holding = (await register.look()).holdings[2]
            assert (holding.wanted, holding.host, holding.turn) == (NOBODY, B.address, turn + 2)

    @in_asyncio
    async def test_of_many_that_want_a_shard_one_gets_it(self, shared: SharedBacking) -> None:
        """At every turn anew."""
        registers = [shared.register() for _ in range(CONTENDERS)]
        try:
            for register in registers:
                await register.open()
            first = (await registers[0].look()).holdings[0].turn
            for turn in range(first, first + TURNS):
                won = await asyncio.gather(*(register.hand(0, turn, f"host-{n}:1") for n, register in enumerate(registers)))
                holding = (await registers[turn % CONTENDERS].look()).holdings[0]
                assert sum(won) == 1
                assert (holding.host, holding.turn) == (f"host-{won.index(True)}:1", turn + 1)
        finally:
            for register in registers:
                await register.close()

    # --- claims ------------------------------------------------------------------------------------------------

    @in_asyncio
    async def test_a_store_opens_under_the_claim_that_the_holding_says(self, shared: SharedBacking) -> None:
        """As often as its process is started; the register tells the epoch."""
        async with opened_register(shared) as register:
            claim = await hand_to(register, 0, A.address)
            epochs = []
            for seq in range(2):
                async with opened(shared.claimed(0, claim)) as store:
                    epochs += [await store.reopen()]
                    await store.commit(inserting(make_row(seq, queue=queue_of_shard(0))))
                    assert (await register.look()).holdings[0].epoch == epochs[-1]

        assert epochs == sorted(set(epochs))

    @pytest.mark.parametrize("wrong", ["an older turn", "a later turn", "another host", "nobody holds it"])
    @in_asyncio
    async def test_a_store_does_not_open_under_another_claim(self, shared: SharedBacking, wrong: str) -> None:
        """It is fenced at once, takes no epoch, and whoever owns the rows goes on."""
        async with opened_register(shared) as register:
            claim = await hand_to(register, 0, A.address)
            async with opened(shared.claimed(0, claim)) as owner:
                if wrong == "nobody holds it":
                    await register.hand(0, claim.turn, NOBODY)
                wrongly = {
                    "an older turn": _replace(claim, turn=claim.turn - 1),
                    "a later turn": _replace(claim, turn=claim.turn + 1),
                    "another host": _replace(claim, host=B.address),
                }.get(wrong, claim)
                before = (await register.look()).holdings
                store = shared.claimed(0, wrongly)
                with pytest.raises(StoreFenced):
                    await store.open()
                await store.close()
                assert (await register.look()).holdings == before
                await owner.commit(inserting(make_row(1, queue=queue_of_shard(0))))

    @in_asyncio
    async def test_the_owner_before_is_fenced_when_the_next_one_opens(self, shared: SharedBacking) -> None:
        """Not before: what it commits until then is what the next one loads. It cannot come back."""
        rows = [make_row(seq, queue=queue_of_shard(1)) for seq in range(3)]
        async with opened_register(shared) as register:
            async with opened(shared.claimed(1, await hand_to(register, 1, A.address))) as old:
                await old.commit(inserting(rows[0]))
                claim = await hand_to(register, 1, B.address)
                await old.commit(inserting(rows[1]))
                async with opened(shared.claimed(1, claim)) as new:
                    assert await load_all(new) == rows[:2]
                    for batch in (inserting(rows[2]), Batch([], [], [])):
                        with pytest.raises(StoreFenced):
                            await old.commit(batch)
                    with pytest.raises(StoreFenced):
                        await old.reopen()
                    await new.commit(inserting(rows[2]))
            async with opened(shared.claimed(1, claim)) as new:
                assert await load_all(new) == rows

    @in_asyncio
    async def test_a_store_that_reopens_must_still_hold_its_shard(self, shared: SharedBacking) -> None:
        """Nobody has opened the rows since, and yet it may not: the shard was handed over."""
        async with opened_register(shared) as register:
            claim = await hand_to(register, 1, A.address)
            async with opened(shared.claimed(1, claim)) as store:
                await store.reopen()
                await hand_to(register, 1, B.address)
                before = (await register.look()).holdings
                with pytest.raises(StoreFenced):
                    await store.reopen()
                assert (await register.look()).holdings == before

    @in_asyncio
    async def test_a_store_without_a_claim_takes_an_epoch_as_ever(self, shared: SharedBacking) -> None:
        """Whoever holds the shard: the tools of an operator do."""
        async with opened_register(shared) as register:
            claim = await hand_to(register, 0, A.address)
            async with opened(shared.claimed(0, claim)) as owner, opened(shared.claimed(0, None)):
                with pytest.raises(StoreFenced):
                    await owner.commit(Batch([], [], []))
                async with opened(shared.claimed(0, claim)) as again:
                    await again.commit(Batch([], [], []))

    # --- trouble -----------------------------------------------------------------------------------------------

    @in_asyncio
    async def test_a_store_that_is_away_is_told_as_such(self, shared: SharedBacking) -> None:
        """Surely nothing was written: nothing could be sent."""
        register = shared.lost()
        calls = (register.open, register.look, lambda: register.join(A), lambda: register.hand(0, 0, A.address))
        try:
            for call in calls:
                with pytest.raises(StoreRefused):
                    await call()
        finally:
            await register.close()

    @in_asyncio
    async def test_a_closed_register_says_so(self, shared: SharedBacking) -> None:
        """It does not connect anew."""
        async with opened_register(shared) as register:
            await register.close()
            with pytest.raises(StoreError, match="closed"):
                await register.look()

    @in_asyncio
    async def test_a_host_that_cannot_be_read_is_left_out_until_it_joins_anew(self, shared: SharedBacking) -> None:
        """Its own next beat tells it so; the others are seen meanwhile."""
        async with opened_register(shared) as register:
            await register.join(A)
            await register.join(B)
            await shared.damage(A.address)
            assert (await register.look()).hosts == (B,)
            assert await register.beat(_replace(A, beat=2)) is False
            await register.join(_replace(A, beat=3))
            assert set((await register.look()).hosts) == {_replace(A, beat=3), B}
            await shared.damage(B.address)
            assert await register.leave(B.address) is True


def queue_of_shard(shard: int, shards: int = SHARDS) -> str:
    """Return the name of a queue of a shard."""
    return next(name for name in map("q{}".format, range(1000)) if shard_of(slot_of(name), shards) == shard)
