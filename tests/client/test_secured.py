"""A server that asks who is there, over HTTPS."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
import trustme

from proteus_shards.client import AsyncClient, Client, Forbidden, NotReached, Retries, Unauthorized
from proteus_shards.errors import SettingError
from proteus_shards.tokens import new_token
from tests.conftest import StartServer


def token_of(file: Path, scope: str) -> str:
    """Return a new token, and add its line to a tokens file."""
    token, line = new_token("tester", [scope], ["*"], None)
    with file.open("a") as lines:
        lines.write(f"{line}\n")
    return token


def test_a_client_shows_its_token_and_trusts_who_it_is_told_to(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without either it is told so; the environment may hold the token."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    producer = token_of(tmp_path / "tokens", "produce")
    (tmp_path / "tokens").chmod(0o600)
    server = start_server("--store", "memory:", "--tls-cert", str(tmp_path / "server.pem"), "--tokens-file", str(tmp_path / "tokens"))
    ca = str(tmp_path / "authority.pem")

    with Client(server.url, token=producer, ca=ca) as client:
        client.enqueue("mail", timeout=30)
        with pytest.raises(Forbidden):
            client.next("mail")
    with Client(server.url, ca=ca) as client, pytest.raises(Unauthorized):
        client.enqueue("mail", timeout=30)
    with Client(server.url, token=producer, retries=Retries(tries_max=1)) as client, pytest.raises(NotReached):
        client.enqueue("mail", timeout=30)

    async def produce() -> str:
        async with AsyncClient(server.url, ca=ca) as client:
            return await client.enqueue("mail", id="1", timeout=30)

    monkeypatch.setenv("PROTEUS_TOKEN", producer)
    assert "1" == anyio.run(produce)


def test_a_file_of_authorities_that_is_none_is_refused(tmp_path: Path) -> None:
    """Before anything is sent."""
    with pytest.raises(SettingError):
        Client("https://127.0.0.1", ca=str(tmp_path / "none"))
