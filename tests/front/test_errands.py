"""Requests that take several commands, against fake shards: what is asked, in which order, and that no job is lost to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from proteus_shards.core.commands import (
    Cancel,
    Command,
    Complete,
    Delivered,
    Done,
    Next,
    Outcome,
    Reason,
    Refused,
    Undeliver,
)
from tests.front.errand_stand import stand
from tests.front.fake_shard import PATIENCE_SECONDS, delivery, obliging

RUN = b"queue=q&job_id=j"


def stocked(**queues: int) -> Callable[[Command], Outcome | None]:
    """Answer as a shard does that has so many jobs in each queue; polls stay unanswered."""

    def answer(command: Command) -> Outcome | None:
        if isinstance(command, Next) and (left := queues.get(command.queue, 0)):
            given = min(left, command.count)
            queues[command.queue] -= given
            return Delivered([delivery(command.queue, f"{command.queue}{left - place}") for place in range(given)])
        return obliging(command)

    return answer


def silent_polls_but(*queues: str) -> Callable[[Command], Outcome | None]:
    """Answer polls of some queues with a job, and no others."""

    def answer(command: Command) -> Outcome | None:
        if isinstance(command, Next) and command.wait_us and command.queue in queues:
            return Delivered([delivery(command.queue, f"{command.queue}1")])
        return obliging(command)

    return answer


# --- several queues --------------------------------------------------------------------------------------------


async def test_queues_are_asked_in_order_until_enough_is_found(tmp_path: Path) -> None:
    """What is left over is asked of the next, and nothing of those behind."""
    async with stand(tmp_path, stocked(b=2, c=9, d=9)) as made:
        status, jobs, held = await made.ask("GET /next", b"queue=a&queue=b&queue=c&queue=d&num_jobs=4")

        assert (200, ["b2", "b1", "c9", "c8"]) == (status, [job["id"] for job in jobs])
        assert ["b2", "b1", "c9", "c8"] == [job.id for job in held]
        assert [Next("a", 4), Next("b", 4), Next("c", 2)] == made.shard.commands


async def test_one_job_of_several_queues_is_an_object(tmp_path: Path) -> None:
    """As for one queue."""
    async with stand(tmp_path, stocked(b=1)) as made:
        assert "b1" == (await made.ask("GET /next", b"queue=a&queue=b"))[1]["id"]
        assert (204, None, []) == await made.ask("GET /next", b"queue=a&queue=b")


async def test_enough_bytes_end_the_walk_too(tmp_path: Path) -> None:
    """An answer does not grow with the number of queues."""

    def answer(command: Command) -> Outcome | None:
        if isinstance(command, Next):
            return Delivered([delivery(command.queue, payload=b'"' + b"x" * 5_000_000 + b'"')])
        return obliging(command)

    async with stand(tmp_path, answer) as made:
        assert 2 == len((await made.ask("GET /next", b"queue=a&queue=b&queue=c&num_jobs=100"))[2])


async def test_with_none_in_any_all_are_waited_for_and_the_first_ends_the_wait(tmp_path: Path) -> None:
    """The polls of the others are cancelled."""
    async with stand(tmp_path) as made:
        made.begin("GET /next", b"queue=a&queue=b&queue=c&wait=30")
        polls = [(number, command) for number, command in await made.shard.wait_command(Next, 6) if command.wait_us]  # type: ignore[union-attr]
        assert [Next(queue, 1, 30_000_000) for queue in "abc"] == [command for _, command in polls]
        await made.shard.reply((polls[1][0], Delivered([delivery("b")])))

        status, _, jobs = await made.answered()
        assert (200, ["b"]) == (status, [job.queue for job in jobs])
        cancelled = [command for _, command in await made.shard.wait_command(Cancel, 2)]
        assert [Cancel(polls[0][0]), Cancel(polls[2][0])] == cancelled


async def test_what_two_queues_bring_at_once_is_given_once_and_the_other_goes_back(tmp_path: Path) -> None:
    """No job is lost, and none is delivered twice."""
    async with stand(tmp_path, silent_polls_but("a", "c")) as made:
        status, job, held = await made.ask("GET /next", b"queue=a&queue=b&queue=c&wait=30")

        assert (200, "a1", ["a1"]) == (status, job["id"], [each.id for each in held])
        ((_, back),) = await made.shard.wait_command(Undeliver)
        assert isinstance(back, Undeliver)
        assert ("c", "c1") == (back.queue, back.id)


async def test_a_wait_without_a_job_ends_with_204(tmp_path: Path) -> None:
    """When the first poll has had its time, all have."""
    async with stand(tmp_path) as made:
        made.begin("GET /next", b"queue=a&queue=b&wait=30")
        number, _ = (await made.shard.wait_command(Next, 4))[2]
        await made.shard.reply((number, Delivered([])))

        assert (204, b"", []) == await made.answered()


async def test_a_drain_ends_the_wait(tmp_path: Path) -> None:
    """As it does for one queue; and from then on nothing waits."""
    async with stand(tmp_path) as made:
        made.begin("GET /next", b"queue=a&queue=b&wait=30")
        await made.shard.wait_command(Next, 4)
        made.router.drain()

        assert 204 == (await made.answered())[0]
        made.shard.answer = lambda command: Delivered([]) if isinstance(command, Next) else obliging(command)
        assert 204 == (await made.ask("GET /next", b"queue=a&queue=b&wait=30"))[0]
        assert 0 == made.heard(Next)[-1].wait_us  # type: ignore[union-attr]


async def test_a_queue_that_cannot_be_asked_hides_no_job_of_another(tmp_path: Path) -> None:
    """But with no job anywhere the client is told to come again soon, and does not wait."""
    jobs = [delivery("b")]

    def answer(command: Command) -> Outcome | None:
        if isinstance(command, Next):
            return Refused(Reason.BUSY, "away") if command.queue == "a" else Delivered([jobs.pop()] if jobs else [])
        return obliging(command)

    async with stand(tmp_path, answer) as made:
        assert 200 == (await made.ask("GET /next", b"queue=a&queue=b&wait=30"))[0]
        status, problem, _ = await made.ask("GET /next", b"queue=a&queue=b&wait=30")
        assert (429, "a", "away") == (status, problem["queue"], problem["detail"])


async def test_a_poll_that_is_refused_ends_the_wait_of_all(tmp_path: Path) -> None:
    """A shard that is away would otherwise keep its jobs from a client that waits elsewhere."""

    def answer(command: Command) -> Outcome | None:
        if isinstance(command, Next) and command.wait_us and command.queue == "b":
            return Refused(Reason.FULL, "full")
        return obliging(command)

    async with stand(tmp_path, answer) as made:
        status, problem, _ = await made.ask("GET /next", b"queue=a&queue=b&wait=30")

        assert (429, "b") == (status, problem["queue"])
        assert 1 == len(await made.shard.wait_command(Cancel))


async def test_a_client_that_leaves_gives_back_what_was_found_so_far(tmp_path: Path) -> None:
    """In the midst of the walk, and while all are waited for."""

    def answer(command: Command) -> Outcome | None:
        if isinstance(command, Next) and command.queue == "a" and command.count == 2:
            return Delivered([delivery("a")])
        return None if isinstance(command, Next) else obliging(command)

    async with stand(tmp_path, answer) as made:
        errand = made.begin("GET /next", b"queue=a&queue=b&num_jobs=2")
        number, _ = (await made.shard.wait_command(Next, 2))[1]
        errand.abandon()
        await made.shard.reply((number, Delivered([delivery("b")])))

        assert {"a", "b"} == {command.queue for _, command in await made.shard.wait_command(Undeliver, 2)}  # type: ignore[union-attr]
        assert [] == made.answers


async def test_a_cancelled_wait_ends_its_polls(tmp_path: Path) -> None:
    """This is how Quart tells that its client has gone."""
    async with stand(tmp_path) as made:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.ask, "GET /next", b"queue=a&queue=b&wait=30")
                await made.shard.wait_command(Next, 4)
                scope.cancel()
        assert 2 == len(await made.shard.wait_command(Cancel, 2))


# --- complete and next -----------------------------------------------------------------------------------------


async def test_a_completion_and_its_next_travel_together(tmp_path: Path) -> None:
    """One frame there, one answer back."""
    async with stand(tmp_path, stocked(q=1)) as made:
        before = len(made.shard.frames)
        status, job, held = await made.ask("POST /complete-and-next", RUN)

        assert (200, "q1", 1) == (status, job["id"], len(held))
        assert [Complete("q", "j"), Next("q", 1)] == made.shard.commands
        assert [2] == made.shard.frames[before:]
        assert (204, None, []) == await made.ask("POST /complete-and-next", RUN)
        assert 204 == (await made.ask("POST /complete-and-next", RUN + b"&next_queue=r&num_jobs=2"))[0]
        assert Next("r", 2) == made.shard.commands[-1]


async def test_a_completion_that_is_refused_takes_no_job(tmp_path: Path) -> None:
    """What it had been given goes back, and the answer says that nothing was completed."""

    def answer(command: Command) -> Outcome | None:
        match command:
            case Complete():
                return Refused(Reason.NOT_FOUND, "gone")
            case Next():
                return Delivered([delivery("q")])
        return obliging(command)

    async with stand(tmp_path, answer) as made:
        status, problem, held = await made.ask("POST /complete-and-next", RUN)

        assert (404, "gone", False, "j", 0) == (status, problem["detail"], problem["completed"], problem["job_id"], len(held))
        assert 1 == len(await made.shard.wait_command(Undeliver))


async def test_a_next_that_comes_before_its_completion_waits_for_it(tmp_path: Path) -> None:
    """Nobody is told of a job before the completion is durable."""
    async with stand(tmp_path, lambda command: None if isinstance(command, Complete | Next) else obliging(command)) as made:
        for outcome, status in ((Done(), 200), (Refused(Reason.BUSY, "away"), 429), (Refused(Reason.UNKNOWN, "lost"), 503)):
            made.shard.received.clear()
            made.answers.clear()
            made.begin("POST /complete-and-next", RUN)
            ((completion, _),) = await made.shard.wait_command(Complete)
            ((number, _),) = await made.shard.wait_command(Next)
            await made.shard.reply((number, Delivered([delivery("q")])))
            with trio.fail_after(PATIENCE_SECONDS):
                while made.router.statistics()[0].in_flight > 1:
                    await trio.lowlevel.checkpoint()
            assert [] == made.answers
            await made.shard.reply((completion, outcome))
            with trio.fail_after(PATIENCE_SECONDS):
                while not made.answers:
                    await trio.lowlevel.checkpoint()
            assert status == made.answers[0][0]
            if status != 200:
                await made.shard.wait_command(Undeliver)
                assert (status == 429) == (b'"completed":false' in made.answers[0][1])


async def test_a_next_that_is_refused_after_its_completion_is_no_429(tmp_path: Path) -> None:
    """The completion had its effect, and the answer says so."""

    def answer(command: Command) -> Outcome | None:
        return Refused(Reason.FULL, "full") if isinstance(command, Next) else obliging(command)

    async with stand(tmp_path, answer) as made:
        for query in (RUN, RUN + b"&next_queue=a&next_queue=b"):
            status, problem, _ = await made.ask("POST /complete-and-next", query)
            assert (503, True, True) == (status, problem["completed"], problem["retryable"])


async def test_a_completion_with_several_queues_asks_them_once_it_is_done(tmp_path: Path) -> None:
    """In order, and not at all where it is refused."""
    async with stand(tmp_path, stocked(b=1)) as made:
        status, job, _ = await made.ask("POST /complete-and-next", RUN + b"&next_queue=a&next_queue=b")

        assert (200, "b1") == (status, job["id"])
        assert [Complete("q", "j"), Next("a", 1), Next("b", 1)] == made.shard.commands
        made.shard.received.clear()
        made.shard.answer = lambda command: Refused(Reason.NOT_FOUND, "gone") if isinstance(command, Complete) else obliging(command)
        assert 404 == (await made.ask("POST /complete-and-next", RUN + b"&next_queue=a&next_queue=b"))[0]
        assert [Complete("q", "j")] == made.shard.commands


async def test_a_runner_that_leaves_while_it_waits_has_completed_and_takes_no_job(tmp_path: Path) -> None:
    """Its poll is cancelled, on one queue and on several."""
    async with stand(tmp_path) as made:
        for count, query in ((1, RUN + b"&wait=30"), (2, RUN + b"&wait=30&next_queue=a&next_queue=b")):
            made.shard.received.clear()
            errand = made.begin("POST /complete-and-next", query)
            await made.shard.wait_command(Next, 2 * count - (count == 1))
            with trio.fail_after(PATIENCE_SECONDS):
                while made.router.statistics()[0].in_flight > count:
                    await trio.lowlevel.checkpoint()
            errand.abandon()
            assert count == len(await made.shard.wait_command(Cancel, count))
            assert [] == made.answers


async def test_an_answer_that_cannot_be_made_is_a_500_and_its_jobs_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours costs no job a timeout."""

    def fail(_run_id: bytes) -> str:
        raise OverflowError

    monkeypatch.setattr("proteus_shards.front.answers.write_run_id", fail)

    async with stand(tmp_path, lambda command: Delivered([delivery("q")]) if isinstance(command, Next) else obliging(command)) as made:
        for call, query, body in (
            ("POST /batch", b"", b'[{"op":"next","queue":"q"}]'),
            ("POST /complete-and-next", RUN, b""),
            ("GET /next", b"queue=q&queue=r", b""),
        ):
            made.shard.received.clear()
            status, problem, held = await made.ask(call, query, body)
            assert (500, 16, 0) == (status, len(problem["request_id"]), len(held))
            assert 1 == len(await made.shard.wait_command(Undeliver))
