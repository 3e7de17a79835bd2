"""The pump: group commit, what a failed commit tells whom, and what a stall or a lost link does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from proteus_shards.core.commands import (
    Cancel,
    Complete,
    Delivered,
    Done,
    Enqueue,
    Heartbeat,
    Inspect,
    ListDead,
    Next,
    Outcome,
    Reason,
    Refused,
    Statistics,
)
from proteus_shards.errors import StoreFailed, StoreFenced, StorePermanent, StoreRefused, StoreUnknown
from proteus_shards.shard.pump import UNSENT_BYTES_MAX, Pump
from proteus_shards.store.contract import Damaged
from tests.shard.scripted import DEADLINE_SECONDS, Clock, RecordingLink, ScriptedStore, make_pump


def job(name: str, *, queue: str = "q", persist: bool = True, timeout: int = 30, max_retries: int = 3) -> Enqueue:
    """Return an enqueue command."""
    return Enqueue(queue, name, timeout, persist, max_retries, b"1")


class Stand:
    """A pump at work on a scripted store, with one link."""

    def __init__(self) -> None:
        self.store = ScriptedStore()
        self.clock = Clock()
        self.pump = make_pump(self.store, self.clock)
        self.link = RecordingLink(self.pump)
        self.running: asyncio.Task[None] | None = None

    async def delivered(self, queue: str = "q") -> list[str]:
        """Take jobs until none is left, and return their ids in order."""
        names = []
        while jobs := _jobs(await self.link.ask(Next(queue, 100))):
            names += jobs
        return names


def _jobs(outcome: Outcome) -> list[str]:
    assert isinstance(outcome, Delivered), outcome
    return [each.id for each in outcome.jobs]


@asynccontextmanager
async def stand() -> AsyncIterator[Stand]:
    """Run a pump for the length of a test."""
    made = Stand()
    await made.pump.recover()
    made.running = asyncio.create_task(made.pump.run())
    try:
        yield made
    finally:
        made.running.cancel()
        await asyncio.wait({made.running})


def run(test: Callable[[Stand], Awaitable[None]]) -> None:
    """Run an asyncio test."""

    async def main() -> None:
        async with asyncio.timeout(DEADLINE_SECONDS), stand() as made:
            await test(made)

    asyncio.run(main())


def reason(outcome: Outcome) -> Reason:
    """Return why a command was refused."""
    assert isinstance(outcome, Refused), outcome
    return outcome.reason


def test_a_persisted_enqueue_is_answered_after_its_commit_and_a_memory_only_one_at_once() -> None:
    """A persisted enqueue waits for the store, and one in another queue that needs no store does not."""

    async def test(made: Stand) -> None:
        made.store.gate.clear()
        (kept,) = made.link.send(job("a"))
        await made.store.began.wait()
        (light,) = made.link.send(job("b", queue="other", persist=False))

        assert Done() == made.link.answers[light]
        assert kept not in made.link.answers
        made.store.gate.set()
        assert Done() == await made.link.answer(kept)

    run(test)


def test_a_batch_is_what_arrived_during_the_last_commit() -> None:
    """While one commit is under way, all that arrives collects into exactly one more."""

    async def test(made: Stand) -> None:
        made.store.gate.clear()
        made.link.send(job("first"))
        await made.store.began.wait()
        numbers = [made.link.send(job(str(count)))[0] for count in range(50)]
        made.store.gate.set()
        for number in numbers:
            await made.link.answer(number)

        assert [1, 50] == [len(batch) for batch in made.store.batches]

    run(test)


def test_a_refused_commit_is_busy_for_all_and_leaves_nothing() -> None:
    """A refused batch and what collected behind it are answered BUSY, and a later delivery finds none of it."""

    async def test(made: Stand) -> None:
        made.store.script = [(StoreRefused(), False)]
        made.store.gate.clear()
        (submitted,) = made.link.send(job("a"))
        await made.store.began.wait()
        (waiting,) = made.link.send(job("b"))
        made.store.gate.set()

        assert Reason.BUSY == reason(await made.link.answer(submitted))
        assert Reason.BUSY == reason(await made.link.answer(waiting))
        while made.pump.shard.away:
            await asyncio.sleep(0)
        assert Done() == await made.link.ask(job("a"))
        assert ["a"] == await made.delivered()

    run(test)


def test_while_the_store_is_away_memory_only_jobs_go_on_and_persisted_ones_are_refused() -> None:
    """An outage refuses persisted jobs at once, serves the others, and ends by itself."""

    async def test(made: Stand) -> None:
        made.store.script = [(StoreRefused(), False)]
        made.store.away = [StoreRefused(), StoreUnknown()]
        assert Reason.BUSY == reason(await made.link.ask(job("a")))

        assert Reason.BUSY == reason(await made.link.ask(job("b")))
        assert Done() == await made.link.ask(job("light", queue="other", persist=False))
        assert ["light"] == await made.delivered("other")
        while made.pump.shard.away:
            await asyncio.sleep(0.001)
        assert Done() == await made.link.ask(job("b"))

    run(test)


@pytest.mark.parametrize("written", [True, False])
def test_an_unknown_commit_is_told_as_unknown_and_the_store_says_what_is_true(written: bool) -> None:
    """After an unknown outcome the job exists exactly if its row does."""

    async def test(made: Stand) -> None:
        made.store.script = [(StoreUnknown(), written)]
        assert Reason.UNKNOWN == reason(await made.link.ask(job("a")))
        while made.pump.shard.away:
            await asyncio.sleep(0)

        assert (["a"] if written else []) == await made.delivered()

    run(test)


@pytest.mark.parametrize("written", [True, False])
def test_an_unknown_completion_ends_the_job_exactly_if_its_row_is_gone(written: bool) -> None:
    """A completion in doubt is decided by the store."""

    async def test(made: Stand) -> None:
        await made.link.ask(job("a"))
        made.store.script = [(StoreUnknown(), written)]
        assert Reason.UNKNOWN == reason(await made.link.ask(Complete("q", "a")))
        while made.pump.shard.away:
            await asyncio.sleep(0)

        assert ([] if written else ["a"]) == await made.delivered()

    run(test)


def test_a_job_that_the_store_refuses_for_good_gets_its_own_answer() -> None:
    """In company everybody is BUSY; alone, the job at fault is INVALID and its neighbours pass."""

    async def test(made: Stand) -> None:
        made.store.gate.clear()
        made.link.send(job("first"))
        await made.store.began.wait()
        good, bad = made.link.send(job("good"), job("bad"))
        made.store.script = [None, (StorePermanent("too large"), False)]
        made.store.gate.set()
        assert Reason.BUSY == reason(await made.link.answer(good))
        assert Reason.BUSY == reason(await made.link.answer(bad))

        assert Done() == await made.link.ask(job("good"))
        made.store.script = [(StorePermanent("too large"), False)]
        refused = await made.link.ask(job("bad"))
        assert Reason.INVALID == reason(refused)
        assert Done() == await made.link.ask(job("next"))
        assert ["first", "good", "next"] == await made.delivered()

    run(test)


def test_after_a_batch_was_refused_for_good_the_requests_of_one_frame_do_not_go_together_either() -> None:
    """The first is committed alone, the others are BUSY: else the one at fault would take its neighbours down with it for ever."""

    async def test(made: Stand) -> None:
        made.store.script = [(StorePermanent("too large"), False)] * 2
        for number in made.link.send(job("bad"), job("good")):
            assert Reason.BUSY == reason(await made.link.answer(number))

        bad, good = made.link.send(job("bad"), job("good"))
        assert Reason.INVALID == reason(await made.link.answer(bad))
        assert Reason.BUSY == reason(await made.link.answer(good))
        assert Done() == await made.link.ask(job("good"))

    run(test)


def test_a_job_that_the_store_refuses_for_good_is_told_so_though_polls_wait_for_it() -> None:
    """The polls that it wakes are no operations of their own: they are BUSY, and the next job goes to whoever asks."""

    async def test(made: Stand) -> None:
        polls = made.link.send(Next("q", 1, 60_000_000), Next("q", 1, 60_000_000))
        made.store.script = [(StorePermanent("too large"), False)]

        assert Reason.INVALID == reason(await made.link.ask(job("bad")))
        assert Reason.BUSY == reason(await made.link.answer(polls[0]))
        assert Done() == await made.link.ask(job("good"))
        delivered = await made.link.answer(polls[1])
        assert isinstance(delivered, Delivered)
        assert ["good"] == [each.id for each in delivered.jobs]

    run(test)


@pytest.mark.parametrize("error", [StoreFenced(), StoreFailed()])
def test_a_fenced_or_failed_store_ends_the_shard(error: StoreFenced | StoreFailed) -> None:
    """The batch is answered UNKNOWN, and the pump ends with the store's error."""

    async def test(made: Stand) -> None:
        made.store.script = [(error, False)]
        assert Reason.UNKNOWN == reason(await made.link.ask(job("a")))
        assert made.running is not None
        await asyncio.wait({made.running})

        assert error is made.running.exception()

    run(test)


def test_a_delivery_to_a_link_that_is_gone_goes_back_at_once_without_a_retry_spent() -> None:
    """A job whose delivery waits for its commit when its front dies is delivered to the next one as attempt 1."""

    async def test(made: Stand) -> None:
        await made.link.ask(job("a", max_retries=0))
        made.store.gate.clear()
        made.store.began.clear()
        dying = RecordingLink(made.pump)
        dying.send(Next("q"))
        await made.store.began.wait()
        dying.closed = True
        made.pump.lose(dying)
        (number,) = made.link.send(Next("q", 1, 5_000_000))
        made.store.gate.set()
        answer = await made.link.answer(number)

        assert isinstance(answer, Delivered)
        assert [("a", 1)] == [(each.id, each.attempt) for each in answer.jobs]
        assert not dying.answers

    run(test)


def test_a_poll_of_a_lost_link_is_given_no_job() -> None:
    """A waiting poll whose front has died is forgotten."""

    async def test(made: Stand) -> None:
        dying = RecordingLink(made.pump)
        dying.send(Next("q", 1, 60_000_000))
        dying.closed = True
        made.pump.lose(dying)
        await made.link.ask(job("a"))

        assert ["a"] == await made.delivered()

    run(test)


def test_a_poll_that_its_front_ends_brings_the_job_that_it_was_given() -> None:
    """Though its delivery is still being written: what the same client asks next gets the job after it."""

    async def test(made: Stand) -> None:
        (waits,) = made.link.send(Next("other", 1, 60_000_000))
        (poll,) = made.link.send(Next("q", 1, 60_000_000))
        made.store.gate.clear()
        made.link.send(job("a"), job("b"))
        await made.store.began.wait()
        made.link.send(Cancel(poll, answered=True), Cancel(waits, answered=True))
        (following,) = made.link.send(Next("q"))

        assert Delivered([]) == await made.link.answer(waits)
        made.store.gate.set()
        assert ["a"] == _jobs(await made.link.answer(poll))
        assert ["b"] == _jobs(await made.link.answer(following))

    run(test)


def test_a_heartbeat_that_waited_out_a_stall_in_the_socket_comes_before_the_timeout() -> None:
    """After the process was stopped for longer than a timeout, a heartbeat that lies in the socket keeps its run."""

    async def test(made: Stand) -> None:
        await made.link.ask(job("a", timeout=5))
        delivered = await made.link.ask(Next("q"))
        assert isinstance(delivered, Delivered)
        made.clock.step(60)

        assert Done() == await made.link.ask(Heartbeat("q", "a", delivered.jobs[0].run_id))
        assert Delivered([]) == await made.link.ask(Next("q"))

    run(test)


def test_a_front_that_does_not_take_its_answers_gets_no_more_jobs() -> None:
    """Nor dead letters: with too much unsent, what brings jobs is refused without effect. All else goes on."""

    async def test(made: Stand) -> None:
        await made.link.ask(job("a"))
        made.link.unsent_bytes = UNSENT_BYTES_MAX + 1

        for command in (Next("q"), ListDead("q")):
            assert Reason.FULL == reason(await made.link.ask(command))
        assert Done() == await made.link.ask(job("b"))
        made.link.unsent_bytes = 0
        assert ["a", "b"] == await made.delivered()

    run(test)


def test_drain_answers_polls_commits_what_is_open_and_refuses_the_rest() -> None:
    """A shard that ends keeps what it accepted."""

    async def test(made: Stand) -> None:
        (poll,) = made.link.send(Next("other", 1, 60_000_000))
        made.store.gate.clear()
        (kept,) = made.link.send(job("a"))
        draining = asyncio.create_task(made.pump.drain())
        await made.store.began.wait()
        (late,) = made.link.send(job("b"))

        assert Delivered([]) == await made.link.answer(poll)
        assert Reason.BUSY == reason(await made.link.answer(late))
        assert not draining.done()
        made.store.gate.set()
        await draining
        assert Done() == await made.link.answer(kept)
        assert ["a"] == [row.id for row in made.store.rows.values()]

    run(test)


def test_a_run_times_out_by_the_timer_and_goes_to_a_waiting_poll() -> None:
    """Nobody has to ask for a timeout to happen."""

    async def test(made: Stand) -> None:
        await made.link.ask(job("a", timeout=0, max_retries=1))
        await made.link.ask(Next("q"))
        (poll,) = made.link.send(Next("q", 1, 60_000_000))
        while poll not in made.link.answers:
            made.clock.step(0.02)
            await asyncio.sleep(0.001)
        answer = made.link.answers[poll]

        assert isinstance(answer, Delivered)
        assert [2] == [each.attempt for each in answer.jobs]

    run(test)


def test_statistics_count_what_the_shard_holds_and_has_done() -> None:
    """Inspect answers with counts by status and commits since the start."""

    async def test(made: Stand) -> None:
        await made.link.ask(job("a"))
        await made.link.ask(job("b", persist=False))
        await made.link.ask(Next("q"))
        told = await made.link.ask(Inspect())

        assert isinstance(told, Statistics)
        assert (1, 1, 0, 2) == (told.ready, told.in_flight, told.dead, told.commits)
        assert ("scripted", "machine", 1) == (told.store, told.durability, told.queues)

    run(test)


def test_recovery_reads_jobs_back_in_order_and_counts_them() -> None:
    """A new pump over the same rows delivers in the same order."""

    async def test(made: Stand) -> None:
        for count in range(20):
            await made.link.ask(job(str(count)))
        again = Pump(make_pump(made.store, made.clock).shard, made.store, made.clock)
        await again.recover()
        running = asyncio.create_task(again.run())
        link = RecordingLink(again)
        answer = await link.ask(Next("q", 100))
        running.cancel()

        assert 20 == again.recovered
        assert [str(count) for count in range(20)] == _jobs(answer)

    run(test)


def test_a_damaged_row_is_counted_and_its_number_is_not_given_again() -> None:
    """A row that is no job is kept aside, and no new job clashes with it."""

    async def test(made: Stand) -> None:
        made.store.damaged = [Damaged("row 41", "its payload is missing", 41)]
        again = Pump(make_pump(made.store, made.clock).shard, made.store, made.clock)
        await again.recover()
        running = asyncio.create_task(again.run())
        link = RecordingLink(again)
        await link.ask(job("a"))
        running.cancel()

        assert 1 == again.damaged
        assert [42] == [row.seq for row in made.store.rows.values()]

    run(test)


def test_a_timer_that_fires_early_is_set_again() -> None:
    """Some event loops call up to a millisecond too soon; the timeout that the timer was for is not lost."""

    async def test(made: Stand) -> None:
        await made.link.ask(job("a", timeout=1, max_retries=1, persist=False))
        await made.link.ask(Next("q"))
        before = made.pump._timer
        made.clock.step(0.9995)
        made.pump._tick()

        assert made.pump._timer is not None
        assert made.pump._timer is not before

    run(test)


def test_a_run_that_was_in_flight_gets_its_full_timeout_after_a_long_recovery() -> None:
    """The timeout of a recovered run begins when the shard serves again, not when it began to read."""

    async def test(made: Stand) -> None:
        await made.link.ask(job("a", timeout=5, max_retries=3))
        await made.link.ask(Next("q"))
        made.store.during_load = lambda: made.clock.step(60)
        again = Pump(make_pump(made.store, made.clock).shard, made.store, made.clock)
        await again.recover()
        running = asyncio.create_task(again.run())
        link = RecordingLink(again)
        made.clock.step(4)
        again._timer_us = made.clock.now  # its timer has come in time
        early = await link.ask(Next("q"))
        made.clock.step(2)
        again._timer_us = made.clock.now
        late = await link.ask(Next("q"))
        running.cancel()

        assert [] == _jobs(early)
        assert ["a"] == _jobs(late)

    run(test)


def test_a_stall_takes_nothing_off_a_run() -> None:
    """Handed out just before a pause of half a minute, it has its five seconds after it."""

    async def test(made: Stand) -> None:
        pump = made.pump

        async def take_after(seconds: float) -> list[str]:
            made.clock.step(seconds)
            pump._timer_us = made.clock.now - pump._stalled_us  # its timer has come in time
            return _jobs(await made.link.ask(Next("q")))

        await made.link.ask(job("a", timeout=5, max_retries=3))
        assert ["a"] == _jobs(await made.link.ask(Next("q")))
        before = pump._timer_us
        made.clock.step(30)
        assert [] == _jobs(await made.link.ask(Next("q")))
        assert pump._stalled_us == made.clock.now - before
        assert [await take_after(3.0), await take_after(2.1)] == [[], ["a"]]

    run(test)
