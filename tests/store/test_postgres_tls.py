"""TLS to a Postgres server. The server of the wheel has none, and so something in front of it speaks TLS, as Postgres would: it says S, then shakes hands."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import msgspec
import pytest
import trustme

from proteus_shards.errors import StoreError
from proteus_shards.store.postgres import store_of_shard
from proteus_shards.store.postgres_prepare import prepare
from proteus_shards.store.postgres_url import PostgresUrl
from tests.servers.postgres import PostgresPlace
from tests.store.postgres_backing import postgres_url
from tests.store.rows import in_asyncio, inserting, load_all, make_row, opened

REQUEST_BYTES = 8  # of the question whether there is TLS


class Papers(NamedTuple):
    """Files of an authority, and of another one, and what a server needs."""

    authority: Path
    stranger: Path
    client: Path
    client_key: Path
    server: ssl.SSLContext


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    """Return papers for a server at 127.0.0.1 that asks for the client's, too."""
    folder = tmp_path_factory.mktemp("papers")
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    client = authority.issue_cert("client.example")
    found = Papers(folder / "authority", folder / "stranger", folder / "client", folder / "client_key", context)
    authority.cert_pem.write_to_path(str(found.authority))
    stranger.cert_pem.write_to_path(str(found.stranger))
    client.cert_chain_pems[0].write_to_path(str(found.client))
    client.private_key_pem.write_to_path(str(found.client_key))
    return found


@asynccontextmanager
async def tls_way_to(url: PostgresUrl, papers: Papers, seen: list[bool]) -> AsyncIterator[PostgresUrl]:
    """Give the URL of a way with TLS. `seen` is told, a connection each, whether the client showed papers."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(REQUEST_BYTES)
            writer.write(b"S")
            await writer.start_tls(papers.server)
            seen.append(bool(writer.get_extra_info("ssl_object").getpeercert()))
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", url.hosts[0][1])
            both = {asyncio.ensure_future(copy(reader, back_writer)), asyncio.ensure_future(copy(back_reader, writer))}
            tasks.update(both)
            await asyncio.wait(both)
        writer.transport.abort()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield msgspec.structs.replace(url, hosts=(("127.0.0.1", server.sockets[0].getsockname()[1]),))
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@in_asyncio
async def test_a_server_is_verified_by_its_authority_and_name_and_told_who_asks(postgres_server: PostgresPlace, papers: Papers) -> None:
    """What is committed arrives; the client's certificate is shown where the URL names one."""
    plain = postgres_url(postgres_server.url(f"test {uuid4()}"))
    await prepare(plain, 1)
    seen: list[bool] = []
    async with tls_way_to(plain, papers, seen) as url:
        tls = {"sslmode": "verify-full", "sslrootcert": str(papers.authority), "ssl_min_protocol_version": "TLSv1.2"}
        client = {"sslcert": str(papers.client), "sslkey": str(papers.client_key)}
        for given, number in ((tls, 1), (tls | client, 2)):
            async with opened(store_of_shard(msgspec.structs.replace(url, tls=tuple(given.items())), 0, 1)) as store:
                await store.commit(inserting(make_row(number)))
                assert len(await load_all(store)) == number

    assert seen == [False, True]


@pytest.mark.parametrize(("mode", "authority", "host"), [("verify-ca", "stranger", "127.0.0.1"), ("verify-full", "authority", "localhost")])
@in_asyncio
async def test_a_server_that_cannot_be_verified_is_refused_for_good(
    postgres_server: PostgresPlace, papers: Papers, mode: str, authority: str, host: str
) -> None:
    """Another authority, or another name; no password is sent."""
    plain = postgres_url(postgres_server.url(f"test {uuid4()}"))
    async with tls_way_to(plain, papers, []) as url:
        tls = (("sslmode", mode), ("sslrootcert", str(getattr(papers, authority))))
        wrong = msgspec.structs.replace(url, tls=tls, password="geheim-17", hosts=((host, url.hosts[0][1]),))
        with pytest.raises(StoreError, match="certificate is not trusted") as raised:
            await prepare(wrong, 1)

    assert type(raised.value) is StoreError
    assert "geheim" not in str(raised.value)
