"""Links to shards of other hosts: connections that are cut at every stage, and shards that move under load."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
import trustme
from trio.testing import MockClock

from proteus_shards.config import Settings
from proteus_shards.core.commands import Complete, Delivered, Done, Enqueue, Next, Outcome, Reason, Refused
from proteus_shards.front.link import Link
from proteus_shards.ipc.hosts import Elsewhere
from tests.front.cable import ENQUEUE, POLL, Cable, never, reason_of
from tests.front.fake_shard import PATIENCE_SECONDS, obliging
from tests.front.hosted import Gate, HostedShard, now_and_then, until
from tests.shard.scripted import ScriptedStore

SETTINGS = Settings(shards=1, cluster=True, node_address="127.0.0.1:1")
HELD = msgspec.structs.replace(SETTINGS, link_requests_max=5)


def job(name: str, *, persist: bool = False, size: int = 10) -> Enqueue:
    """Return a job to enqueue."""
    return Enqueue("q", name, 600, persist, 5, b"1" * size)


@asynccontextmanager
async def patient() -> AsyncIterator[trio.Nursery]:
    """Open a nursery that is cancelled at the end, and fails where the end does not come."""
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()


class Stand:
    """A shard of another host, the gate before it, and a link that leads there."""

    def __init__(self, folder: Path, nursery: trio.Nursery, settings: Settings = SETTINGS) -> None:
        self.folder = folder
        self.nursery = nursery
        self.settings = settings
        self.store = ScriptedStore()
        self.shard = HostedShard(folder / "one", settings, self.store)
        self.gate = Gate(self.shard.path)
        self.link = Link("", 0, settings)
        self.turn = 1

    async def up(self) -> Stand:
        """Start all, and wait until the link is up."""
        await self.shard.start()
        await self.nursery.start(self.gate.run)
        self.nursery.start_soon(self.link.run)
        self.link.redirect(self.gate.target, self.turn)
        await self.link.wait_connected()
        return self

    async def move(self, name: str) -> None:
        """Let the shard go to another host in order, and the link after it."""
        before = self.shard
        await before.end()
        self.turn += 1
        self.shard = HostedShard(self.folder / name, self.settings, self.store, self.turn, before.luggage)
        await self.shard.start()
        self.gate = Gate(self.shard.path)
        await self.nursery.start(self.gate.run)
        self.link.redirect(self.gate.target, self.turn)


class Tally:
    """What became of many requests."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.taken: Counter[str] = Counter()

    async def enqueue(self, link: Link, names: list[str], *, persist: bool, in_groups: bool = False) -> None:
        """Enqueue jobs, one after the other, or all in one frame."""
        if in_groups:
            done = trio.Event()

            def note(outcomes: list[Outcome]) -> None:
                self.outcomes.update(zip(names, outcomes, strict=True))
                done.set()

            assert link.submit_all([job(name, persist=persist) for name in names], note) is None
            await done.wait()
            return
        for name in names:
            self.outcomes[name] = await link.call(job(name, persist=persist))

    async def take(self, link: Link, count: int, wait_us: int = 300_000_000) -> None:
        """Take and complete jobs by polls, until so many are taken by all who do."""
        while self.taken.total() < count:
            answer = await link.call(Next("q", 3, wait_us))
            assert isinstance(answer, Delivered), answer
            for each in answer.jobs:
                self.taken[each.id] += 1
                assert each.attempt == 1
                assert await link.call(Complete("q", each.id, each.run_id)) == Done()


@pytest.mark.parametrize("seed", range(4))
async def test_every_request_has_its_effect_once_however_often_the_connection_is_cut(seed: int, tmp_path: Path) -> None:
    """In the greeting, in the middle of a frame, before an answer: each is answered, and none twice, deliveries included."""
    producers, each = 8, 30
    async with patient() as nursery:
        stand = await Stand(tmp_path, nursery).up()
        stand.gate.cut_after = now_and_then(seed, 4000)
        stand.gate.cut()
        tally = Tally()
        async with trio.open_nursery() as working:
            for producer in range(producers):
                names = [f"{producer}-{number}" for number in range(each)]
                working.start_soon(partial(tally.enqueue, stand.link, names, persist=producer % 2 == 0, in_groups=producer % 3 == 0))
            for _ in range(5):
                working.start_soon(take_until_done, tally, stand.link, producers * each)

        assert set(tally.outcomes.values()) == {Done()}
        assert len(tally.outcomes) == len(tally.taken) == tally.taken.total() == producers * each
        assert stand.gate.cuts > 10
        assert await stand.shard.look(lambda core: [queue.jobs for queue in core.queues.values() if queue.jobs]) == []
        await stand.shard.end(orderly=False)


async def take_until_done(tally: Tally, link: Link, count: int) -> None:
    """Take jobs by short polls: the last ones find nothing."""
    await tally.take(link, count, 200_000)


async def test_a_poll_is_given_what_comes_while_its_connection_is_cut(tmp_path: Path) -> None:
    """It waits at the shard all the same, and its answer waits for it."""
    async with patient() as nursery:
        stand = await Stand(tmp_path, nursery).up()
        answers: list[Outcome] = []

        async def ask() -> None:
            answers.append(await stand.link.call(Next("q", 1, 300_000_000)))

        nursery.start_soon(ask)
        await until(partial(stand.shard.look, lambda core: core.polls))
        path, stand.gate.path = stand.gate.path, None
        stand.gate.cut()
        other = Link(stand.shard.path, 0, SETTINGS)
        nursery.start_soon(other.run)
        await other.wait_connected()
        assert await other.call(job("a")) == Done()
        stand.gate.path = path

        await until(lambda: answers)

        assert isinstance(answers[0], Delivered)
        assert [each.id for each in answers[0].jobs] == ["a"]
        await stand.shard.end(orderly=False)


async def test_a_run_that_was_kept_for_a_front_that_never_comes_back_is_given_to_another(tmp_path: Path) -> None:
    """It was never sent, so its job is not tried in vain."""
    settings = msgspec.structs.replace(SETTINGS, resume_seconds_max=0.3)
    async with patient() as nursery:
        stand = await Stand(tmp_path, nursery, settings).up()
        stand.link.submit(Next("q", 1, 300_000_000), lambda _outcome: None)
        await until(partial(stand.shard.look, lambda core: core.polls))
        stand.gate.path = None
        stand.gate.cut()
        other = Link(stand.shard.path, 0, settings)
        nursery.start_soon(other.run)
        await other.wait_connected()
        assert await other.call(job("a")) == Done()

        answer = await other.call(Next("q", 1, 60_000_000))

        assert isinstance(answer, Delivered)
        assert [(each.id, each.attempt) for each in answer.jobs] == [("a", 1)]
        await stand.shard.end(orderly=False)


async def test_what_was_sent_to_a_shard_that_forgets_is_unknown(tmp_path: Path) -> None:
    """A process that begins anew has no memory of it; what was not sent waits, and is served."""
    async with patient() as nursery:
        stand = await Stand(tmp_path, nursery).up()
        stand.store.gate.clear()
        outcomes: dict[str, Outcome] = {}
        stand.link.submit(job("sent", persist=True), lambda outcome: outcomes.update(sent=outcome))
        await until(partial(stand.shard.look, lambda core: core.pending))
        await stand.shard.end(orderly=False)
        stand.link.submit(job("late"), lambda outcome: outcomes.update(late=outcome))
        store = ScriptedStore()
        again = await HostedShard(tmp_path / "one", SETTINGS, store).start()

        await until(lambda: len(outcomes) == 2)

        assert reason_of(outcomes["sent"]) is Reason.UNKNOWN
        assert outcomes["late"] == Done()
        await again.end(orderly=False)


async def test_what_waits_for_a_host_that_stays_away_is_refused_in_time(tmp_path: Path) -> None:
    """What was sent is unknown; what was not is surely without effect."""
    settings = msgspec.structs.replace(SETTINGS, resume_seconds_max=0.6, hold_seconds_max=0.3)
    async with patient() as nursery:
        stand = await Stand(tmp_path, nursery, settings).up()
        stand.store.gate.clear()
        outcomes: dict[str, Outcome] = {}
        stand.link.submit(job("sent", persist=True), lambda outcome: outcomes.update(sent=outcome))
        await until(partial(stand.shard.look, lambda core: core.pending))
        stand.gate.path = None
        stand.gate.cut()
        await until(lambda: not stand.link.connected)
        stand.link.submit(job("late"), lambda outcome: outcomes.update(late=outcome))

        await until(lambda: len(outcomes) == 2)

        assert list(outcomes) == ["late", "sent"]
        assert reason_of(outcomes["sent"]) is Reason.UNKNOWN
        assert outcomes["late"] == Refused(Reason.BUSY, "shard 0 is on its way to another host, or out of reach (hold_seconds_max)")
        assert reason_of(await stand.link.call(job("later"))) is Reason.BUSY
        await stand.shard.end(orderly=False)


async def test_a_shard_that_moves_under_load_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Not one request fails, and polls move along: memory-only jobs go with the luggage."""
    producers, each, moves = 6, 40, 3
    async with patient() as nursery:
        stand = await Stand(tmp_path, nursery, msgspec.structs.replace(SETTINGS, hold_seconds_max=30.0)).up()
        tally = Tally()
        async with trio.open_nursery() as working:
            for producer in range(producers):
                names = [f"{producer}-{number}" for number in range(each)]
                working.start_soon(partial(slowly, tally, stand.link, names, persist=producer % 2 == 0))
            for _ in range(4):
                working.start_soon(take_until_done, tally, stand.link, producers * each)
            for number in range(moves):
                await until(lambda: len(tally.outcomes) >= (number + 1) * producers * each // (moves + 1))  # noqa: B023
                await stand.move(f"host-{number}")

        assert set(tally.outcomes.values()) == {Done()}
        assert len(tally.outcomes) == len(tally.taken) == tally.taken.total() == producers * each
        assert await stand.shard.look(lambda core: [queue.jobs for queue in core.queues.values() if queue.jobs]) == []
        await stand.shard.end(orderly=False)


async def slowly(tally: Tally, link: Link, names: list[str], *, persist: bool) -> None:
    """Enqueue jobs, with a breath between them."""
    for name in names:
        await tally.enqueue(link, [name], persist=persist)
        await trio.sleep(0.002)


async def test_a_poll_moves_along_with_its_shard(tmp_path: Path) -> None:
    """With what is left of its wait, from a process here to a gate elsewhere."""
    async with patient() as nursery:
        stand = await Stand(tmp_path, nursery).up()
        stand.link.redirect(stand.shard.path, 1)
        await stand.link.wait_connected()
        answers: list[Outcome] = []

        async def ask() -> None:
            answers.append(await stand.link.call(Next("q", 1, 300_000_000)))

        nursery.start_soon(ask)
        await until(partial(stand.shard.look, lambda core: core.polls))
        await stand.move("two")
        await until(partial(stand.shard.look, lambda core: core.polls))
        assert await stand.shard.look(lambda core: (core.due_in(core._now, core._wall) or 0) < 300_000_000)

        assert await stand.link.call(job("a")) == Done()
        await until(lambda: answers)

        assert isinstance(answers[0], Delivered)
        assert [each.id for each in answers[0].jobs] == ["a"]
        await stand.shard.end(orderly=False)


async def test_a_link_that_is_led_to_and_fro_loses_nothing(tmp_path: Path) -> None:
    """What was sent one way is answered before the other is gone."""
    async with patient() as nursery:
        stand = await Stand(tmp_path, nursery).up()
        tally = Tally()
        async with trio.open_nursery() as working:
            for producer in range(4):
                names = [f"{producer}-{number}" for number in range(50)]
                working.start_soon(partial(slowly, tally, stand.link, names, persist=producer % 2 == 0))
            for turn, target in enumerate([stand.shard.path, stand.gate.target] * 8):
                await until(lambda: len(tally.outcomes) >= min(turn * 10, 190))  # noqa: B023
                stand.link.redirect("", turn)
                if turn % 3:
                    await trio.lowlevel.checkpoint()
                stand.link.redirect(target, turn)
            stand.link.redirect(stand.gate.target, 100)

        assert set(tally.outcomes.values()) == {Done()}
        await stand.shard.end(orderly=False)


def hosts_of(folder: Path, authority: trustme.CA) -> Settings:
    """Write a host's files, and return its settings."""
    folder.mkdir()
    certificate = authority.issue_cert("host.example")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "host.pem"))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return msgspec.structs.replace(SETTINGS, cluster_cert=str(folder / "host.pem"), cluster_ca=str(folder / "ca.pem"))


def gate_context(settings: Settings) -> ssl.SSLContext:
    """Return how a gate serves."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings.cluster_cert)
    context.load_verify_locations(settings.cluster_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.fixture
async def secured(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[tuple[Settings, Gate]]:
    """A shard behind a gate that speaks TLS, and the settings of another host of its cluster."""
    settings = hosts_of(tmp_path / "host", trustme.CA())
    shard = await HostedShard(tmp_path / "one", SETTINGS, ScriptedStore()).start()
    gate = Gate(shard.path, tls=gate_context(settings))
    await nursery.start(gate.run)
    yield settings, gate
    await shard.end(orderly=False)


async def test_a_host_with_a_certificate_of_the_cluster_is_let_in(secured: tuple[Settings, Gate], nursery: trio.Nursery) -> None:
    """Whatever name its gate's has; and a session goes on over the next connection."""
    settings, gate = secured
    link = Link(gate.target, 0, settings)
    nursery.start_soon(link.run)
    with trio.fail_after(PATIENCE_SECONDS):
        await link.wait_connected()
        assert await link.call(job("a")) == Done()
        gate.cut()
        assert await link.call(job("b", size=1_000_000)) == Done()

    assert gate.joined >= 1


@pytest.mark.parametrize(
    ("case", "said"),
    [("stranger", "CERTIFICATE_VERIFY_FAILED"), ("plain", "closed the link"), ("no_files", "cluster_cert:"), ("no_ca", "cluster_ca:")],
)
async def test_a_host_without_a_right_certificate_stays_out(
    secured: tuple[Settings, Gate], nursery: trio.Nursery, tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str, said: str
) -> None:
    """It is told why, and nothing of the shard."""
    settings, gate = secured
    stranger = hosts_of(tmp_path / "stranger", trustme.CA())
    cases = {
        "stranger": stranger,
        "plain": SETTINGS,
        "no_files": msgspec.structs.replace(settings, cluster_cert=str(tmp_path / "none.pem")),
        "no_ca": msgspec.structs.replace(settings, cluster_ca=str(tmp_path / "none.pem")),
    }
    link = Link(gate.target, 0, cases[case])

    nursery.start_soon(link.run)

    with trio.fail_after(PATIENCE_SECONDS):
        await until(lambda: any(said in str(record.__dict__.get("reason")) for record in caplog.records))
    assert not link.connected
    assert gate.joined == 0


async def test_a_gate_lets_nobody_in_whose_certificate_another_authority_has_signed(
    secured: tuple[Settings, Gate], nursery: trio.Nursery, tmp_path: Path
) -> None:
    """Though this one would trust the gate."""
    settings, gate = secured
    stranger = hosts_of(tmp_path / "stranger", trustme.CA())
    link = Link(gate.target, 0, msgspec.structs.replace(settings, cluster_cert=stranger.cluster_cert))

    nursery.start_soon(link.run)

    with trio.fail_after(PATIENCE_SECONDS):
        await until(lambda: gate.refused >= 2)
    assert not link.connected
    assert gate.joined == 0


async def test_a_gate_that_has_not_got_the_shard_says_who_has(tmp_path: Path) -> None:
    """Whoever keeps the map is told, may lead the link there, and the request that waited is served."""
    async with patient() as nursery:
        stand = await Stand(tmp_path, nursery).up()
        wrong = Gate(None, elsewhere=Elsewhere(0, stand.gate.target, 7))
        await nursery.start(wrong.run)
        told: list[Elsewhere] = []

        def follow(elsewhere: Elsewhere) -> None:
            told.append(elsewhere)
            stand.link.redirect(elsewhere.host, elsewhere.turn)

        stand.link.on_elsewhere = follow
        stand.link.redirect(wrong.target, 6)

        assert await stand.link.call(job("a")) == Done()
        assert told == [Elsewhere(0, stand.gate.target, 7)]
        await stand.shard.end(orderly=False)


# --- what is held ----------------------------------------------------------------------------------------------


@pytest.fixture
async def cable(tmp_path: Path, nursery: trio.Nursery) -> Cable:
    """A link of a cluster that is up, to a shard of this host."""
    return await Cable(tmp_path, nursery, HELD).up()


async def test_what_a_shard_refuses_because_it_moves_is_sent_again_under_its_number(cable: Cable) -> None:
    """In order, before what is queued behind it."""
    cable.shard.answer = lambda _command: Refused(Reason.MOVED, "")
    first = [cable.submit(name, Complete("q", name)) for name in ("a", "b")]
    await cable.shard.wait_for(lambda: not cable.link.connected)
    cable.shard.answer = obliging
    cable.submit("c", Complete("q", "c"))

    assert [await cable.wait_outcome(name) for name in ("a", "b", "c")] == [Done()] * 3

    sent = [(number, command.id) for number, command in cable.shard.received if isinstance(command, Complete)]
    assert sent[-3:-1] == list(zip(first, ("a", "b"), strict=True))
    assert sent[-1][1] == "c"


async def test_a_group_that_a_shard_refuses_because_it_moves_is_answered_as_one(cable: Cable) -> None:
    """Its commands are sent again one by one, and it is still one answer."""
    cable.shard.answer = lambda _command: Refused(Reason.MOVED, "")
    found: list[list[Outcome]] = []
    assert cable.link.submit_all([Complete("q", "a"), Complete("q", "b")], found.append) is None
    await cable.shard.wait_for(lambda: not cable.link.connected)
    cable.shard.answer = obliging

    with trio.fail_after(PATIENCE_SECONDS):
        await until(lambda: found)

    assert found == [[Done(), Done()]]


async def test_what_waits_for_a_shard_is_bounded_as_ever(cable: Cable) -> None:
    """By link_requests_max, and with the same words."""
    cable.link.redirect("", 1)
    await cable.shard.wait_for(lambda: not cable.link.connected)
    for number in range(HELD.link_requests_max):
        cable.submit(str(number), ENQUEUE)

    refused = cable.link.submit(ENQUEUE, never)

    assert refused == Refused(Reason.BUSY, "too many requests are under way at shard 0 (link_requests_max)")
    cable.link.redirect(cable.shard.path, 2)
    assert [await cable.wait_outcome(str(number)) for number in range(HELD.link_requests_max)] == [Done()] * HELD.link_requests_max


async def test_what_nobody_waits_for_any_more_is_not_sent_to_the_new_owner(cable: Cable) -> None:
    """Nor is a poll that was ended while it was held."""
    cable.link.redirect("", 1)
    await cable.shard.wait_for(lambda: not cable.link.connected)
    number = cable.link.submit(ENQUEUE, never)
    assert isinstance(number, int)
    cable.submit("poll", POLL)

    cable.link.abandon(number)
    cable.link.end_polls()
    cable.link.redirect(cable.shard.path, 2)
    await cable.wait_quiet()

    assert await cable.wait_outcome("poll") == Delivered([])
    assert cable.shard.commands == []


async def test_a_link_that_leads_nowhere_refuses_after_a_while(cable: Cable, autojump_clock: MockClock) -> None:  # noqa: ARG001
    """What it held is surely without effect, and so is what comes."""
    cable.link.redirect("", 1)
    cable.submit("held", ENQUEUE)

    assert reason_of(await cable.wait_outcome("held")) is Reason.BUSY
    assert reason_of(await cable.link.call(ENQUEUE)) is Reason.BUSY
    assert cable.shard.commands == []
