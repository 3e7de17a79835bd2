"""How much a front works on at once outside the fast lane: what has a place, what waits without one, and what the others are told."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import msgspec
import pytest
import trio
import trio.testing

from proteus_shards.core.commands import Delivered, Next
from proteus_shards.front.admission import WAIT_SECONDS, Admission
from proteus_shards.front.counts import limit_samples
from tests.front.fake_shard import PATIENCE_SECONDS, delivery
from tests.front.sites import JOB, SETTINGS, ClientStream, Site, serving, trusting, with_tls

ONE = msgspec.structs.replace(SETTINGS, fast_lane=False, quart_requests_max=1)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A server without the lane that works on one request at a time."""
    async with serving(tmp_path, ONE) as site:
        yield site


async def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for something in this process."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not holds():
            await trio.lowlevel.checkpoint()


def hits() -> int:
    """Return how often the limit was hit."""
    return next(int(str(value)) for _, labels, value in limit_samples() if labels == ["quart_requests_max"])


def is_free(site: Site) -> bool:
    """Say whether there is a place."""
    place = site.router.admission.place()
    if place is not None:
        place.leave()
    return place is not None


async def test_a_place_is_left_by_what_waits_long_and_once_for_all(mock_clock: trio.testing.MockClock) -> None:
    """Waits may overlap, short ones count as work, and who has waited takes the place up again whatever others hold."""
    admission = Admission(1)
    first = admission.place()
    assert first is not None
    mock_clock.jump(10)
    seen: list[object] = [admission.place()]
    with first.waiting():
        seen.append(admission.place())
        with first.waiting():
            mock_clock.jump(2 * WAIT_SECONDS)
        second = admission.place()
        seen += [second is None, admission.held]
    seen += [admission.held, admission.place()]
    first.leave()
    first.leave()
    seen.append(admission.held)
    assert second is not None
    with second.waiting(long=True):
        seen.append(admission.held)
        second.leave()
    seen.append(admission.held)

    assert seen == [None, None, False, 1, 2, None, 1, 0, 0]


async def test_what_has_no_place_is_refused_and_its_connection_goes_on(site: Site) -> None:
    """429, when to come again and the name of the limit; bodies that are there are read, so the next request is served."""
    client = await site.client()
    before = hits()
    place = site.router.admission.place()
    assert place is not None
    refused = [await client.ask("POST", "/enqueue", JOB), await client.ask("GET", "/next?queue=q")]
    place.leave()
    served = await client.ask("POST", "/enqueue", JOB)

    assert [(each.status, each.headers["retry-after"], b"(quart_requests_max)" in each.body) for each in refused] == [(429, "1", True)] * 2
    await wait_until(lambda: not site.router.admission.held)
    assert (served.status, hits(), len(site.shard.commands)) == (202, before + 2, 1)


async def test_pipelined_requests_without_a_place_are_told_in_order_before_what_has_one(site: Site) -> None:
    """Those that come together are turned away together, and a probe behind them is answered after them."""
    client = await site.client()
    place = site.router.admission.place()
    job = b"POST /enqueue HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(JOB) + JOB
    await client.send(job * 3 + b"GET /ready HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + job)
    statuses = [(await client.receive()).status for _ in range(5)]

    assert (place is not None, statuses) == (True, [429, 429, 429, 200, 429])


async def test_a_body_that_is_not_there_yet_is_refused_by_the_app(site: Site) -> None:
    """It is read first, so that the connection can go on."""
    client = await site.client()
    place = site.router.admission.place()
    assert place is not None
    await client.send(b"POST /enqueue HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(JOB) + JOB[:-1])
    await wait_until(lambda: site.router.bodies.held == len(JOB) - 1)
    await client.send(JOB[-1:])
    refused = await client.receive("POST")
    place.leave()

    assert (refused.status, (await client.ask("POST", "/enqueue", JOB)).status) == (429, 202)


async def test_probes_are_never_refused(site: Site) -> None:
    """A server with much to do is not dead."""
    client = await site.client()
    place = site.router.admission.place()
    statuses = [(await client.ask("GET", path)).status for path in ("/health", "/ready", "/v1/health", "/v1/ready", "/queues")]

    assert (place is not None, statuses) == (True, [200, 200, 200, 200, 429])


async def test_clients_of_relay_are_told_in_their_words(site: Site) -> None:
    """Each generation has its own status and sentence, and a next or a HEAD no body."""
    client = await site.client()
    place = site.router.admission.place()
    first = await client.ask("POST", "/v1/queues/jobs", b"[]")
    second = await client.ask("POST", "/v2/queues/jobs", b"[]")
    silent = [await client.ask("GET", "/v1/queues/q/jobs"), await client.ask("HEAD", "/v2/queues/q/jobs/j")]

    assert place is not None
    assert (first.status, first.body[:15], second.status, second.body[-19:]) == (429, b"Backend error: ", 503, b"Is retryable: true.")
    assert [(each.status, each.body) for each in silent] == [(429, b""), (503, b"")]
    assert {each.headers["retry-after"] for each in (first, second, *silent)} == {"1"}


async def test_polls_and_slow_bodies_keep_nobody_out(site: Site) -> None:
    """While one waits for a job and another for its body, others are served; then both are."""
    poll, slow, other = [await site.client() for _ in range(3)]
    await poll.send(b"GET /next?queue=q&wait=60 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    await site.shard.wait_command(Next)
    await slow.send(b"POST /enqueue HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(JOB) + JOB[:-1])
    await wait_until(lambda: site.router.bodies.held == len(JOB) - 1)
    statuses: list[int] = []
    for _ in range(3):
        await wait_until(lambda: is_free(site))
        statuses.append((await other.ask("POST", "/enqueue", JOB)).status)
    number = next(number for number, command in site.shard.received if isinstance(command, Next))
    await site.shard.reply((number, Delivered([delivery()])))
    await slow.send(JOB[-1:])

    assert statuses == [202] * 3
    assert ((await poll.receive()).status, (await slow.receive("POST")).status) == (200, 202)
    await wait_until(lambda: not site.router.admission.held)


async def test_a_client_that_reads_slowly_keeps_nobody_out(tmp_path: Path) -> None:
    """An answer that it lets wait is no work."""
    large = Delivered([delivery(payload=b'"' + b"x" * 8_000_000 + b'"')])
    async with serving(tmp_path, ONE, lambda command: large if isinstance(command, Next) else None) as site:
        deaf, other = [await site.client() for _ in range(2)]
        await deaf.send(b"GET /next?queue=q HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await wait_until(lambda: site.router.answers.held > 8_000_000 and is_free(site))

        assert (await other.ask("GET", "/openapi.json")).status == 200


async def test_streams_of_one_http_2_connection_are_counted_one_by_one(tmp_path: Path) -> None:
    """Those without a place get 429, and the connection goes on."""
    async with serving(tmp_path, with_tls(ONE, tmp_path)) as site:
        context = trusting(tmp_path)
        context.set_alpn_protocols(["h2"])
        place = site.router.admission.place()
        assert place is not None
        refused = await ask_http_2(site, context, 3)
        place.leave()
        served = await ask_http_2(site, context, 1)

    assert (refused, served) == (["429"] * 3, ["202"])


async def ask_http_2(site: Site, context: ssl.SSLContext, count: int) -> list[str]:
    """Enqueue a job in each of so many streams at once, and return the statuses."""
    stream = ClientStream(await trio.open_tcp_stream("127.0.0.1", site.port), context)
    http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    http.initiate_connection()
    for number in range(1, 2 * count, 2):
        http.send_headers(number, [(":method", "POST"), (":path", "/enqueue"), (":scheme", "https"), (":authority", "127.0.0.1")])
        http.send_data(number, JOB, end_stream=True)
    await stream.send_all(http.data_to_send())
    found: list[str] = []
    with trio.fail_after(PATIENCE_SECONDS):
        while len(found) < count:
            for event in http.receive_data(await stream.receive_some(65536)):
                match event:
                    case h2.events.ResponseReceived(headers=headers):
                        found.append(str(dict(headers)[":status"]))  # type: ignore[index]  # the configuration above makes them text
    await stream.aclose()
    return found
