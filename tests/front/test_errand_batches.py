"""Batches against fake shards: one frame to each, an answer to every operation, and no job lost."""

from __future__ import annotations

from pathlib import Path

import msgspec
import trio

from proteus_shards.core.commands import (
    Command,
    Complete,
    Delivered,
    Done,
    Enqueue,
    Next,
    Outcome,
    Reason,
    Refused,
    Undeliver,
)
from tests.front.errand_stand import stand
from tests.front.fake_shard import PATIENCE_SECONDS, delivery, obliging


async def test_a_batch_travels_in_one_frame_to_each_shard_and_keeps_the_order_of_the_request(tmp_path: Path) -> None:
    """Its answers come back into the places of their operations, whichever shard gave them."""
    async with stand(tmp_path, shards=2) as made:
        names = list(map(str, range(99)))
        queues = [name for shard in (0, 1) for name in [name for name in names if made.router.link_of(name).shard == shard][:4]]
        before = [len(shard.frames) for shard in made.shards]
        body = msgspec.json.encode([{"id": f"{place}", "queue": queue, "timeout": 1} for place, queue in enumerate(queues * 3)])
        for shard in made.shards:
            shard.answer = lambda command: (
                Refused(Reason.EXISTS, command.id) if isinstance(command, Enqueue) and int(command.id) % 5 == 0 else obliging(command)
            )
        status, parts, _ = await made.ask("POST /enqueue", body=body)

        assert 207 == status
        assert [409 if place % 5 == 0 else 202 for place in range(24)] == [part["status"] for part in parts]
        assert all(part["detail"] == str(place) for place, part in enumerate(parts) if place % 5 == 0)
        for shard, frames in zip(made.shards, before, strict=True):
            ids = [int(command.id) for command in shard.commands if isinstance(command, Enqueue)]
            assert sorted(ids) == ids
            assert [len(ids)] == shard.frames[frames:]
        assert 24 == sum(len(shard.commands) for shard in made.shards)


async def test_a_batch_that_one_shard_does_not_take_is_done_at_the_others(tmp_path: Path) -> None:
    """Each operation has its own answer: 429 where the link is full."""
    async with stand(tmp_path, shards=2, link_operations_max=3) as made:
        here, there = (next(name for name in map(str, range(99)) if made.router.link_of(name).shard == shard) for shard in (0, 1))
        made.shards[0].answer = lambda _: None
        made.begin("POST /enqueue", body=msgspec.json.encode([{"id": "0", "queue": here, "timeout": 1}]))
        body = msgspec.json.encode([{"id": f"{place}", "queue": here if place else there, "timeout": 1} for place in range(4)])
        status, parts, _ = await made.ask("POST /enqueue", body=body)

        assert (207, [202, 429, 429, 429]) == (status, [part["status"] for part in parts])
        assert "link_operations_max" in parts[1]["detail"]
        assert 3 == made.router.statistics()[0].refused


async def test_a_batch_larger_than_the_link_allows_passes_where_nothing_else_is_under_way(tmp_path: Path) -> None:
    """Else it never would."""
    async with stand(tmp_path, link_operations_max=3) as made:
        body = msgspec.json.encode([{"id": f"{place}", "queue": "q", "timeout": 1} for place in range(9)])

        assert 202 == (await made.ask("POST /enqueue", body=body))[0]


async def test_a_batch_whose_client_leaves_gives_back_its_jobs_and_keeps_its_effects(tmp_path: Path) -> None:
    """Whether the jobs come before or after."""
    body = b'[{"op":"complete","queue":"q","job_id":"j"},{"op":"next","queue":"q"},{"op":"next","queue":"r"}]'
    async with stand(tmp_path, lambda command: None if isinstance(command, Next) else obliging(command)) as made:
        errand = made.begin("POST /batch", body=body)
        (first, _), (second, _) = await made.shard.wait_command(Next, 2)
        await made.shard.reply((first, Delivered([delivery("q")])))
        errand.abandon()
        await made.shard.reply((second, Delivered([delivery("r")])))

        assert {"q", "r"} == {command.queue for _, command in await made.shard.wait_command(Undeliver, 2)}  # type: ignore[union-attr]
        assert [Complete("q", "j")] == made.heard(Complete)
        assert [] == made.answers


async def test_a_batch_answers_with_so_many_bytes_of_jobs_and_the_others_go_back(tmp_path: Path) -> None:
    """A next that found no room is told to come again, and was without effect."""
    payload = b'"' + b"x" * 3_000_000 + b'"'

    def answer(command: Command) -> Outcome | None:
        return Delivered([delivery(command.queue, payload=payload)]) if isinstance(command, Next) else obliging(command)

    async with stand(tmp_path, answer) as made:
        status, parts, held = await made.ask("POST /batch", body=msgspec.json.encode([{"op": "next", "queue": name} for name in "abcd"]))

        assert (207, [200, 200, 429, 429]) == (status, [part["status"] for part in parts])
        assert ["a", "b"] == [job.queue for job in held]
        assert {"c", "d"} == {command.queue for _, command in await made.shard.wait_command(Undeliver, 2)}  # type: ignore[union-attr]


async def test_a_link_that_is_lost_answers_every_operation_of_a_batch(tmp_path: Path) -> None:
    """503: each may have had its effect."""
    async with stand(tmp_path, lambda _: None) as made:
        made.begin("POST /enqueue", body=msgspec.json.encode([{"id": f"{place}", "queue": "q", "timeout": 1} for place in range(3)]))
        await made.shard.wait_command(Enqueue, 3)
        await made.shard.hang_up()

        status, shown, _ = await made.answered()
        assert (207, [503] * 3) == (status, [part["status"] for part in msgspec.json.decode(shown)])


async def test_a_batch_that_is_not_answered_in_time_is_told_so_and_its_late_jobs_go_back(tmp_path: Path) -> None:
    """As for a single request."""
    async with stand(tmp_path, lambda _: None, request_seconds_max=0.3) as made:
        made.begin("POST /batch", body=b'[{"op":"next","queue":"q"},{"op":"complete","queue":"q","job_id":"j"}]')
        ((number, _),) = await made.shard.wait_command(Next)

        status, shown, _ = await made.answered()
        assert (207, [503] * 2) == (status, [part["status"] for part in msgspec.json.decode(shown)])
        await made.shard.reply((number, Delivered([delivery("q")])))
        assert 1 == len(await made.shard.wait_command(Undeliver))


async def test_a_batch_that_could_not_be_sent_in_time_is_surely_without_effect(tmp_path: Path) -> None:
    """It is told 429, and is not sent later."""
    async with stand(tmp_path, request_seconds_max=0.3) as made:
        made.shard.reading = trio.Event()
        large = Enqueue("q", "large", 1, False, 0, b'"' + b"x" * 16_000_000 + b'"')
        made.router.submit(large, lambda _: None)
        made.router.submit(large, lambda _: None)
        body = msgspec.json.encode([{"id": f"{place}", "queue": "q", "timeout": 1} for place in range(3)])
        status, parts, _ = await made.ask("POST /enqueue", body=body)
        assert (207, [429] * 3) == (status, [part["status"] for part in parts])
        made.shard.reading.set()
        await made.settled()

        assert {"large"} == {command.id for command in made.shard.commands if isinstance(command, Enqueue)}


async def test_a_command_that_cannot_be_encoded_leaves_the_others_of_its_group_whole(tmp_path: Path) -> None:
    """It alone is a fault."""
    async with stand(tmp_path) as made:
        found: list[Outcome] = []
        settled = trio.Event()

        def take(outcomes: list[Outcome]) -> None:
            found.extend(outcomes)
            settled.set()

        made.router.submit_all([Complete("q", "1"), Complete("q", "\ud800"), Complete("q", "2")], take)
        with trio.fail_after(PATIENCE_SECONDS):
            await settled.wait()

        assert [True, False, True] == [isinstance(outcome, Done) for outcome in found]
        assert [Complete("q", "1"), Complete("q", "2")] == made.shard.commands
