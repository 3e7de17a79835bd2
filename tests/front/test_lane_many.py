"""The fast lane with requests of several commands: they keep their place in line, and give back what nobody takes."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import trio

from proteus_shards.core.commands import Cancel, Command, Complete, Delivered, Done, Enqueue, Next, Outcome, Undeliver
from tests.front.fake_shard import PATIENCE_SECONDS, delivery, obliging
from tests.front.test_lane import HOST, get, post, stand

BATCH = b'[{"op":"complete","queue":"q","job_id":"j"},{"op":"next","queue":"q"}]'


def post_to(path: bytes, body: bytes = b"") -> bytes:
    """Return a POST."""
    return b"POST %s HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s" % (path, HOST, len(body), body)


def with_jobs(command: Command) -> Outcome | None:
    """Answer as a shard whose every queue has a job."""
    return Delivered([delivery(command.queue)]) if isinstance(command, Next) else obliging(command)


async def test_each_of_the_calls_is_answered_in_line(tmp_path: Path) -> None:
    """Pipelined among single calls, on one connection."""
    async with stand(tmp_path, with_jobs) as made:
        caller = await made.connect()
        array = b'[{"id":"1","queue":"q","timeout":1},{"id":"2","queue":"q","timeout":1}]'
        await caller.send(
            post(array)
            + post()
            + post_to(b"/v1/batch", BATCH)
            + get(b"/next?queue=a&queue=b")
            + post_to(b"/v1/complete-and-next?queue=q&job_id=j")
            + get()
        )
        answers = [await caller.answer() for _ in range(6)]

        assert [202, 202, 200, 200, 200, 200] == [status for status, _, _ in answers]
        assert [{"status": 202}] * 2 == json.loads(answers[0][2])
        assert [200, 200] == [part["status"] for part in json.loads(answers[2][2])]
        assert ["a", "q", "q"] == [json.loads(body)["queue"] for _, _, body in answers[3:]]


async def test_an_array_whose_shard_does_not_answer_holds_its_place(tmp_path: Path) -> None:
    """The answers behind it wait."""
    async with stand(tmp_path, lambda command: None if isinstance(command, Enqueue) else obliging(command)) as made:
        caller = await made.connect()
        await caller.send(post(b'[{"id":"1","queue":"q","timeout":1}]') + get())
        ((number, _),) = await made.shard.wait_command(Enqueue)
        await made.shard.wait_command(Next)
        await made.shard.reply((number, Done()))

        assert 202 == (await caller.answer())[0]
        assert 204 == (await caller.answer())[0]


async def test_a_client_that_leaves_in_the_midst_of_a_batch_gives_back_its_jobs(tmp_path: Path) -> None:
    """Its completion stands; the job that was on its way returns."""
    async with stand(tmp_path, lambda command: None if isinstance(command, Next) else obliging(command)) as made:
        for request in (post_to(b"/batch", BATCH), post_to(b"/complete-and-next?queue=q&job_id=j"), get(b"/next?queue=q&queue=r&wait=9")):
            made.shard.received.clear()
            caller = await made.connect()
            await caller.send(request)
            ((number, _),) = await made.shard.wait_command(Next)
            caller.reset()
            with trio.fail_after(PATIENCE_SECONDS):
                while made.lane.statistics().connections:
                    await trio.lowlevel.checkpoint()
            await made.shard.reply((number, Delivered([delivery()])))

            assert 1 == len(await made.shard.wait_command(Undeliver))


async def test_a_client_that_shuts_down_its_sending_side_takes_no_job(tmp_path: Path) -> None:
    """It counts as gone for what brings jobs, and is answered for anything else."""
    async with stand(tmp_path, lambda command: None if isinstance(command, Complete) else obliging(command)) as made:
        caller = await made.connect()
        await caller.send(post_to(b"/complete-and-next?queue=q&job_id=j&wait=9"))
        await made.shard.wait_command(Next)
        await caller.stream.send_eof()
        assert await caller.ended()
        await made.shard.wait_command(Cancel)
        caller = await made.connect()
        await caller.send(post_to(b"/batch", b'[{"op":"complete","queue":"q","job_id":"k"}]'))
        await caller.stream.send_eof()
        number, _ = (await made.shard.wait_command(Complete, 2))[1]
        await made.shard.reply((number, Done()))
        assert 200 == (await caller.answer())[0]


async def test_jobs_of_a_batch_that_the_client_does_not_read_go_back_when_its_time_is_up(tmp_path: Path) -> None:
    """As those of a single next, though the answer is a 207."""
    payload = b'"' + b"x" * 3_000_000 + b'"'

    def answer(command: Command) -> Outcome | None:
        return Delivered([delivery(payload=payload)] * 5) if isinstance(command, Next) else obliging(command)

    async with stand(tmp_path, answer, request_seconds_max=0.5) as made:
        caller = await made.connect()
        caller.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await caller.send(post_to(b"/batch", b'[{"op":"next","queue":"q","num_jobs":5},{"op":"nonsense"}]'))

        assert 5 == len(await made.shard.wait_command(Undeliver, 5))


async def test_lines_with_their_content_type_are_handed_over_and_others_are_not(tmp_path: Path) -> None:
    """What is read as it comes is not for the lane."""
    lines = b'{"id":"1","queue":"q","timeout":1}\n{"id":"2","queue":"q","timeout":1}'
    async with stand(tmp_path) as made:
        caller = await made.connect()
        status, _, body = await caller.ask(post(lines))
        assert (202, 2) == (status, json.loads(body)["accepted"])
        request = post(lines, b"Content-Type: application/x-ndjson\r\n")
        await caller.send(request)
        with trio.fail_after(PATIENCE_SECONDS):
            await made.handed_over.wait()

        assert request == made.handed[0][1]
