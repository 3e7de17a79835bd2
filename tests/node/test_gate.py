"""The gate of a host: who is let in, and where to."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

import msgspec
import pytest
import trustme

from proteus_shards.errors import SettingError
from proteus_shards.ipc.hosts import Elsewhere, Nudge
from proteus_shards.ipc.messages import Goodbye, decode_greeting, hello
from proteus_shards.node import gate as gate_module
from proteus_shards.node.gate import FIRST_FRAME_BYTES_MAX
from proteus_shards.node.luggage import nudge, read_frame
from proteus_shards.peering import Peering
from tests.node.gates import Papers, frame, issue, papers, settings_of, standing
from tests.store.rows import in_asyncio

__all__ = ["papers"]


@in_asyncio
async def test_a_link_reaches_the_shard_that_it_means(tmp_path: Path) -> None:
    """Its greeting goes there as it came, and so does all that follows, both ways."""
    async with standing(tmp_path, settings_of(tmp_path)) as stand:
        reader, writer = await stand.dial()
        greeting = frame(hello(1, 4))
        rest = bytes(range(256)) * 8192
        writer.write(greeting + rest)
        await writer.drain()

        assert await reader.readexactly(len(greeting) + len(rest)) == greeting + rest
        assert stand.gate.connections == 1
        writer.close()


@in_asyncio
async def test_a_link_to_a_shard_that_is_not_here_is_told_who_has_it(tmp_path: Path) -> None:
    """And then closed."""
    async with standing(tmp_path, settings_of(tmp_path)) as stand:
        reader, writer = await stand.dial()
        writer.write(frame(hello(3, 4)))

        assert decode_greeting(await read_frame(reader, 1000)) == Elsewhere(3, "other.example:7", 12)
        assert await reader.read() == b""
        writer.close()


@in_asyncio
async def test_a_shard_whose_process_is_gone_is_elsewhere(tmp_path: Path) -> None:
    """Though the node has not heard yet."""
    async with standing(tmp_path, settings_of(tmp_path)) as stand:
        stand.known.here.add(2)
        reader, writer = await stand.dial()
        writer.write(frame(hello(2, 4)))

        assert decode_greeting(await read_frame(reader, 1000)) == Elsewhere(2, "other.example:7", 12)
        writer.close()


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", (FIRST_FRAME_BYTES_MAX + 1).to_bytes(4), b"\0\0\0\1\xc1", b"\0\0\0\0"])
def test_whoever_says_anything_else_is_refused(tmp_path: Path, first: bytes) -> None:
    """With a word that says why."""

    @in_asyncio
    async def scenario() -> None:
        async with standing(tmp_path, settings_of(tmp_path)) as stand:
            reader, writer = await stand.dial()
            writer.write(first)

            assert isinstance(decode_greeting(await read_frame(reader, 1000)), Goodbye)
            assert await reader.read() == b""
            writer.close()

    scenario()


@pytest.mark.parametrize("tls", [False, True])
def test_whoever_says_nothing_is_cut_off(tmp_path: Path, papers: Papers, monkeypatch: pytest.MonkeyPatch, tls: bool) -> None:
    """Before the handshake or after it."""
    monkeypatch.setattr(gate_module, "GREETING_SECONDS_MAX", 0.2)

    @in_asyncio
    async def scenario() -> None:
        async with standing(tmp_path / "run", papers.settings if tls else settings_of(tmp_path)) as stand:
            reader, writer = await stand.dial()
            writer.write(b"\0")

            assert await reader.read() == b""
            writer.close()

    scenario()


@in_asyncio
async def test_beyond_node_connections_max_nobody_is_let_in(tmp_path: Path) -> None:
    """The next one is told the setting, and there is room again when one has gone."""
    async with standing(tmp_path, settings_of(tmp_path, node_connections_max=1)) as stand:
        reader, writer = await stand.dial()
        writer.write(frame(hello(1, 4)))
        await read_frame(reader, 1000)
        late_reader, late_writer = await stand.dial()
        late_writer.write(frame(hello(1, 4)))
        refusal = decode_greeting(await read_frame(late_reader, 1000))
        assert isinstance(refusal, Goodbye)
        assert "node_connections_max" in refusal.detail
        for each in (writer, late_writer):
            each.close()
        while stand.gate.connections:
            await asyncio.sleep(0)
        reader, writer = await stand.dial()
        writer.write(frame(hello(1, 4)))

        assert await read_frame(reader, 1000)
        writer.close()


def test_many_that_are_refused_make_few_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One of each event in LOG_SECONDS, and the next says how many were left out."""
    monkeypatch.setattr(gate_module, "LOG_SECONDS", 3600.0)
    caplog.set_level(logging.INFO, "proteus_shards.node")

    @in_asyncio
    async def scenario() -> None:
        async with standing(tmp_path, settings_of(tmp_path)) as stand:

            async def knock(said: bytes) -> None:
                reader, writer = await stand.dial()
                writer.write(said)
                writer.write_eof()
                await reader.read()
                writer.close()

            for _ in range(4):
                await knock(b"\0\0\0\1\xc1")
                await knock(b"")
            monkeypatch.setattr(gate_module, "LOG_SECONDS", 0.0)
            await knock(b"\0\0\0\1\xc1")

    scenario()
    refused, ended = "a connection of another host is refused", "a connection of another host has ended"
    lines = [(record.getMessage(), getattr(record, "left_out", 0)) for record in caplog.records if record.name == "proteus_shards.node"]
    assert lines == [(refused, 0), (ended, 0), (refused, 3)]


@in_asyncio
async def test_a_nudge_is_passed_on(tmp_path: Path) -> None:
    """The node looks at once."""
    async with standing(tmp_path, settings_of(tmp_path)) as stand:
        await nudge(stand.peering, stand.address, Nudge(2, 7, "a:1"))
        while not stand.known.nudged:
            await asyncio.sleep(0)

        assert stand.known.nudged == [Nudge(2, 7, "a:1")]


def test_hosts_show_each_other_certificates(tmp_path: Path, papers: Papers) -> None:
    """Of the cluster's authority, on both sides, whatever names stand in them."""

    @in_asyncio
    async def scenario() -> None:
        async with standing(tmp_path / "run", papers.settings) as stand:
            reader, writer = await stand.dial(stand.peering.client())
            writer.write(frame(hello(1, 4)))

            assert await read_frame(reader, 1000)
            assert writer.get_extra_info("ssl_object").version() in {"TLSv1.2", "TLSv1.3"}
            writer.close()

    scenario()


@pytest.mark.parametrize("who", ["stranger", "nobody", "plain"])
def test_whoever_is_no_host_of_the_cluster_gets_nothing(tmp_path: Path, papers: Papers, who: str) -> None:
    """Nor does a nudge of theirs count."""

    @in_asyncio
    async def scenario() -> None:
        async with standing(tmp_path / "run", papers.settings) as stand:
            got = b""
            try:
                reader, writer = await stand.dial(None if who == "plain" else getattr(papers, who))
                writer.write(frame(Nudge(1, 1, "x:1")))
                await writer.drain()
                got = await reader.read()
                writer.close()
            except OSError:
                pass

            assert not got.startswith(frame(hello(1, 4))[:4])
            assert not stand.known.nudged

    scenario()


def test_a_host_does_not_speak_to_a_gate_of_another_authority(tmp_path: Path, papers: Papers) -> None:
    """It shows its certificate to no stranger's server."""

    @in_asyncio
    async def scenario() -> None:
        (tmp_path / "other").mkdir()
        issue(tmp_path / "other", trustme.CA(), "host.example")
        other = settings_of(
            tmp_path, cluster_cert=str(tmp_path / "other" / "host.pem"), cluster_ca=str(tmp_path / "other" / "authority.pem")
        )
        async with standing(tmp_path / "run", other) as stand:
            with pytest.raises(ssl.SSLCertVerificationError):
                await stand.dial(Peering(papers.settings).client())

    scenario()


def test_renewed_files_count_from_the_next_connection(tmp_path: Path, papers: Papers) -> None:
    """Files that do not go together leave those before in use."""

    @in_asyncio
    async def scenario() -> None:
        async with standing(tmp_path / "run", papers.settings) as stand:
            before = stand.peering.client()
            (tmp_path / "host.pem").write_text("half")
            assert stand.peering.client() is before
            issue(tmp_path, trustme.CA(), "host.example")
            assert stand.peering.client() is not before
            with pytest.raises(ssl.SSLCertVerificationError):
                await stand.dial(before)
            reader, writer = await stand.dial(stand.peering.client())
            writer.write(frame(hello(1, 4)))

            assert await read_frame(reader, 1000)
            writer.close()

    scenario()


@pytest.mark.parametrize(
    ("name", "text"),
    [("cluster_cert", "is no PEM certificate chain"), ("cluster_ca", "holds no PEM certificate"), ("cluster_key", "cannot be read")],
)
def test_files_that_cannot_be_used_name_their_setting(tmp_path: Path, papers: Papers, name: str, text: str) -> None:
    """At the start, where somebody looks."""
    wrong = tmp_path / "wrong.pem"
    if name != "cluster_key":
        wrong.write_text("nothing")
    settings = msgspec.structs.replace(papers.settings, **{name: str(wrong)})

    with pytest.raises(SettingError, match=f"{name}: .*{text}"):
        Peering(settings)


def test_a_cluster_without_certificates_speaks_plainly() -> None:
    """Settings have seen to it that nobody else can."""
    peering = Peering(settings_of(Path()))

    assert peering.server() is None
    assert peering.client() is None
