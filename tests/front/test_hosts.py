"""The names that a server answers to where nobody is asked who they are."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from proteus_shards.front.hosts import misdirected, names_of
from tests.front.sites import SETTINGS, serving

KNOWN = [
    "127.0.0.1",
    "127.0.0.1:8080",
    "[::1]:8080",
    "[::1]",
    "192.0.2.7:80",
    "localhost",
    "LocalHost:8080",
    "localhost.",
    "a.localhost:1",
    "jobs.test",
    "Jobs.Test:9",
]
FOREIGN = [
    "evil.example",
    "evil.example:8080",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evillocalhost",
    "[evil]",
    "127.1",
    "xjobs.test",
]


def test_a_host_is_an_address_localhost_or_a_name_that_was_given() -> None:
    """Whatever its case and port."""
    names = names_of(msgspec.structs.replace(SETTINGS, hosts="jobs.test, other.test"))

    assert [host for host in (*KNOWN, "") if misdirected(host.encode(), names) is not None] == []
    assert [host for host in FOREIGN if misdirected(host.encode(), names) is None] == []


@pytest.mark.parametrize("given", [{"tokens_file": "file"}, {"tls_client_ca": "file"}, {"insecure": True}])
def test_where_clients_are_asked_any_host_will_do(given: dict[str, object]) -> None:
    """Then a page of another name has no token to show."""
    assert names_of(msgspec.structs.replace(SETTINGS, **given)) is None


@pytest.mark.parametrize("fast_lane", [True, False])
@pytest.mark.parametrize("target", ["/next?queue=q", "/queues", "/v2/queues/q/jobs", "/", "/health"])
async def test_a_page_whose_name_points_here_is_refused(target: str, fast_lane: bool, tmp_path: Path) -> None:
    """Whatever it asks for: 421, and the answer names the setting."""
    async with serving(tmp_path, msgspec.structs.replace(SETTINGS, fast_lane=fast_lane)) as site:
        client = await site.client()
        await client.send(f"GET {target} HTTP/1.1\r\nHost: evil.example:8080\r\nSec-Fetch-Site: same-origin\r\n\r\n".encode())
        refused = await client.receive()
        old = await site.client()
        await old.send(b"GET /next?queue=q HTTP/1.0\r\n\r\n")
        without = await old.receive()

    assert refused.headers["x-content-type-options"] == "nosniff"
    assert (refused.status, b"hosts names more" in refused.body) == (421, True)
    assert without.status == 204
