"""What clients may make a front hold together: bodies that never end, and answers that nobody reads."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import trio

from proteus_shards.config import KIB, Settings
from proteus_shards.core.commands import Command, Delivered, Next, Outcome, Undeliver
from proteus_shards.front.budget import Budget
from tests.front.fake_shard import PATIENCE_SECONDS, delivery, obliging
from tests.front.sites import JOB, SETTINGS, Client, Site, serving, with_tls

WAYS = ["fast lane", "Quart", "TLS"]


def settings_of(way: str, folder: Path, **changes: int) -> Settings:
    """Return the settings of a server that is spoken to in one of the ways."""
    settings = msgspec.structs.replace(SETTINGS, fast_lane=way == "fast lane", **changes)
    return with_tls(settings, folder) if way == "TLS" else settings


def test_a_budget_refuses_what_is_over_it_and_lets_one_alone_pass() -> None:
    """Whatever one may hold, it can hold while nobody else does."""
    budget = Budget("x_max", 100)

    assert [budget.take(150), budget.take(1), budget.take(10, 150)] == [True, False, True]
    budget.give(160)
    assert [budget.take(60), budget.take(60), budget.take(40), budget.held] == [True, False, True, 100]


async def begin(site: Site, size: int) -> Client:
    """Begin a body of which one byte does not come."""
    client = await site.client()
    await client.send(b"POST /enqueue HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % size + b" " * (size - 1))
    return client


async def wait_held(budget: Budget, size: int) -> None:
    """Wait until so many bytes are held at least."""
    with trio.fail_after(PATIENCE_SECONDS):
        while budget.held < size:
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("way", WAYS)
async def test_bodies_that_do_not_end_have_a_limit_together(way: str, tmp_path: Path) -> None:
    """Beyond it a body is refused with 429 and its connection ends; small requests pass; what ends makes room."""
    async with serving(tmp_path, settings_of(way, tmp_path, bodies_bytes_max=64 * KIB)) as site:
        slow = [await begin(site, 25_000) for _ in range(2)]
        await wait_held(site.router.bodies, 49_998)
        refused = await begin(site, 25_000)
        told = await refused.receive("POST")
        await refused.wait_closed()
        small = await (await site.client()).ask("POST", "/enqueue", JOB)
        held = site.router.bodies.held

        assert (told.status, told.headers["retry-after"], b"(bodies_bytes_max)" in told.body) == (429, "1", True)
        assert (small.status, held <= 64 * KIB) == (202, True)
        for client in slow:
            await client.send(b" ")
            assert (await client.receive("POST")).status == 422
        with trio.fail_after(PATIENCE_SECONDS):
            while site.router.bodies.held:
                await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("way", WAYS)
async def test_answers_that_nobody_reads_have_a_limit_together(way: str, tmp_path: Path) -> None:
    """Beyond it jobs go back and their request is told 429; all else is answered, and what is read makes room."""

    def answer(command: Command) -> Outcome | None:
        return Delivered([delivery(payload=b'"' + b"x" * 8_000_000 + b'"')]) if isinstance(command, Next) else obliging(command)

    async with serving(tmp_path, settings_of(way, tmp_path, answers_bytes_max=10_000_000), answer) as site:
        deaf = await site.client()
        await deaf.send(b"GET /next?queue=q HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await wait_held(site.router.answers, 1_000_000)
        client = await site.client()
        refused = await client.ask("GET", "/next?queue=q")
        other = await client.ask("POST", "/enqueue", JOB)
        await site.shard.wait_command(Undeliver)

        assert (refused.status, b"(answers_bytes_max)" in refused.body, other.status) == (429, True, 202)
        assert len((await deaf.receive()).body) > 8_000_000
        with trio.fail_after(PATIENCE_SECONDS):
            while site.router.answers.held:
                await trio.lowlevel.checkpoint()
        assert (await client.ask("GET", "/next?queue=q")).status == 200


async def test_pipelined_answers_of_one_connection_count_each(tmp_path: Path) -> None:
    """Sixty-four large answers to one client that reads none are not kept; those after the limit go back."""

    def answer(command: Command) -> Outcome | None:
        return Delivered([delivery(payload=b'"' + b"x" * 1_000_000 + b'"')]) if isinstance(command, Next) else obliging(command)

    async with serving(tmp_path, settings_of("fast lane", tmp_path, answers_bytes_max=5_000_000), answer) as site:
        client = await site.client()
        await client.send(b"GET /next?queue=q HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 64)
        await site.shard.wait_command(Next, 64)
        returned = await site.shard.wait_command(Undeliver, 40)
        statuses = [(await client.receive()).status for _ in range(64)]

    assert len(returned) >= 40
    assert {200, 429} == set(statuses)


async def test_after_a_completion_an_answer_that_is_not_kept_is_no_429(tmp_path: Path) -> None:
    """It was not without effect."""

    def answer(command: Command) -> Outcome | None:
        return Delivered([delivery(payload=b'"' + b"x" * 1_000_000 + b'"')]) if isinstance(command, Next) else obliging(command)

    async with serving(tmp_path, settings_of("fast lane", tmp_path, answers_bytes_max=100_000), answer) as site:
        site.router.answers.hold(1)
        client = await site.client()
        both = await client.ask("POST", "/complete-and-next?queue=q&job_id=a")
        several = await client.ask("GET", "/next?queue=q&queue=r")
        site.router.answers.give(1)

    assert (both.status, several.status) == (503, 429)
