"""TLS on the main port: HTTP/2 by ALPN, client certificates, renewal without a restart, and files that can't be used."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import msgspec
import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, load_pem_private_key

from proteus_shards.config import Settings
from proteus_shards.core.commands import Enqueue
from proteus_shards.errors import SettingError
from proteus_shards.front.tls import Certificates
from tests.front.fake_shard import PATIENCE_SECONDS
from tests.front.sites import JOB, SETTINGS, Site, serving, trusting, with_tls


async def connect(site: Site, context: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream]:
    """Connect, and agree on keys."""
    stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", site.port), context, server_hostname="127.0.0.1", https_compatible=True)
    await stream.do_handshake()
    return stream


async def serial_of(site: Site, context: ssl.SSLContext) -> int:
    """Return the serial number of the certificate that the server shows."""
    stream = await connect(site, context)
    certificate = stream.getpeercert(binary_form=True)
    await stream.aclose()
    return x509.load_der_x509_certificate(certificate).serial_number


async def enqueue_by_http_2(stream: trio.SSLStream[trio.SocketStream]) -> str:
    """Enqueue a job on an HTTP/2 connection, and return the status."""
    http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    http.initiate_connection()
    http.send_headers(1, [(":method", "POST"), (":path", "/enqueue"), (":scheme", "https"), (":authority", "127.0.0.1")])
    http.send_data(1, JOB, end_stream=True)
    await stream.send_all(http.data_to_send())
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            for event in http.receive_data(bytes(await stream.receive_some(65536))):
                if isinstance(event, h2.events.ResponseReceived):
                    return str(dict(event.headers)[":status"])  # type: ignore[index]  # the configuration above makes them text


async def test_a_client_that_speaks_http_2_gets_it(tmp_path: Path) -> None:
    """ALPN chooses it, and its requests reach the shard."""
    async with serving(tmp_path, with_tls(SETTINGS, tmp_path)) as site:
        context = trusting(tmp_path)
        context.set_alpn_protocols(["h2", "http/1.1"])
        stream = await connect(site, context)

        assert stream.selected_alpn_protocol() == "h2"
        assert await enqueue_by_http_2(stream) == "202"
        assert [type(command) for command in site.shard.commands] == [Enqueue]
        await stream.aclose()


@pytest.mark.parametrize("path", ["/enqueue", "/nowhere"])
async def test_a_body_that_goes_on_after_its_answer_ends_no_connection(path: str, tmp_path: Path) -> None:
    """One too large, or sent to nowhere, over HTTP/2: it is refused, and the other requests of the connection go on."""
    async with serving(tmp_path, with_tls(SETTINGS, tmp_path)) as site:
        context = trusting(tmp_path)
        context.set_alpn_protocols(["h2"])
        stream = await connect(site, context)
        http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        http.initiate_connection()
        names = [(":method", "POST"), (":scheme", "https"), (":authority", "127.0.0.1")]
        http.send_headers(1, [*names, (":path", path), ("content-length", "2000000")])
        sent = 0
        statuses: dict[int, str] = {}
        with trio.fail_after(PATIENCE_SECONDS):
            while 3 not in statuses:
                await stream.send_all(http.data_to_send())
                for event in http.receive_data(bytes(await stream.receive_some(65536))):
                    assert not isinstance(event, h2.events.ConnectionTerminated)
                    if isinstance(event, h2.events.ResponseReceived):
                        statuses[event.stream_id] = str(dict(event.headers)[":status"])  # type: ignore[index]
                while 1 in statuses and sent < 2_000_000 and http.local_flow_control_window(1) > 0:  # all of it after the answer
                    size = min(http.local_flow_control_window(1), http.max_outbound_frame_size, 2_000_000 - sent)
                    http.send_data(1, b" " * size, end_stream=sent + size == 2_000_000)
                    sent += size
                    if sent == 2_000_000:
                        http.send_headers(3, [*names, (":path", "/enqueue")])
                        http.send_data(3, JOB, end_stream=True)

        assert statuses == {1: "413" if path == "/enqueue" else "404", 3: "202"}
        await stream.aclose()


async def test_plain_http_on_the_port_ends_its_own_connection_only(tmp_path: Path) -> None:
    """It is no TLS, and no shard hears of it."""
    async with serving(tmp_path, with_tls(SETTINGS, tmp_path)) as site:
        plain = await trio.open_tcp_stream("127.0.0.1", site.port)
        await plain.send_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        with trio.fail_after(PATIENCE_SECONDS):
            try:
                while answer := await plain.receive_some():
                    assert not answer.startswith(b"HTTP")
            except trio.BrokenResourceError:
                pass  # a reset is an end as well
        await plain.aclose()

        assert (await (await site.client()).ask("POST", "/enqueue", JOB)).status == 202


async def test_a_handshake_that_does_not_come_to_its_end_is_cut_off(tmp_path: Path) -> None:
    """After header_seconds_max."""
    settings = msgspec.structs.replace(with_tls(SETTINGS, tmp_path), header_seconds_max=0.2)
    async with serving(tmp_path, settings) as site:
        silent = await trio.open_tcp_stream("127.0.0.1", site.port)

        with trio.fail_after(PATIENCE_SECONDS):
            assert await silent.receive_some() == b""
        await silent.aclose()


async def test_with_an_authority_for_clients_each_must_show_a_certificate(tmp_path: Path) -> None:
    """One of that authority: not none, and not another's."""
    clients, others = trustme.CA(), trustme.CA()
    clients.cert_pem.write_to_path(str(tmp_path / "clients.pem"))
    settings = msgspec.structs.replace(with_tls(SETTINGS, tmp_path), tls_client_ca=str(tmp_path / "clients.pem"))
    async with serving(tmp_path, settings) as site:
        for authority in (None, others):
            context = trusting(tmp_path)
            if authority is not None:
                authority.issue_cert("runner@example.org").configure_cert(context)
            stream = await connect(site, context)  # in TLS 1.3 a client learns of it later
            with pytest.raises((trio.BrokenResourceError, ssl.SSLError)):  # noqa: PT012
                await stream.send_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert not await stream.receive_some()
                raise trio.BrokenResourceError
            await trio.aclose_forcefully(stream)
        clients.issue_cert("runner@example.org").configure_cert(context := trusting(tmp_path))
        site.trusting = context

        assert (await (await site.client()).ask("GET", "/health")).status == 200


async def test_a_renewed_certificate_is_used_from_the_next_connection_on(tmp_path: Path) -> None:
    """Without a restart, and the connections that are open go on."""
    settings = with_tls(SETTINGS, tmp_path)
    async with serving(tmp_path, settings) as site:
        client = await site.client()
        assert (await client.ask("GET", "/health")).status == 200
        first = await serial_of(site, trusting(tmp_path))
        with_tls(SETTINGS, tmp_path)
        second = await serial_of(site, trusting(tmp_path))

        assert first != second
        assert (await client.ask("GET", "/health")).status == 200


def test_a_renewal_that_cannot_be_used_leaves_the_certificate_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, and the next good one is taken."""
    certificates = Certificates(with_tls(SETTINGS, tmp_path))
    before = certificates.context()
    for broken in (b"no certificate", b""):
        (tmp_path / "server.pem").write_bytes(broken)
        assert certificates.context() is before
        assert certificates.context() is before
    (tmp_path / "server.pem").unlink()
    assert certificates.context() is before
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 3

    with_tls(SETTINGS, tmp_path)

    assert certificates.context() is not before


def without_key(path: Path) -> None:
    """Leave the certificates of a file, and not its key."""
    text = path.read_text()
    path.write_text(text[text.index("-----BEGIN CERTIFICATE") :])


def with_a_password(path: Path) -> None:
    """Encrypt the key of a file."""
    text = path.read_bytes()
    at = text.index(b"-----BEGIN CERTIFICATE")
    key = load_pem_private_key(text[:at], None)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")) + text[at:])


@pytest.mark.parametrize("spoil", [without_key, with_a_password, lambda path: path.write_text("no PEM"), os.unlink])
def test_files_that_cannot_be_used_stop_the_start(spoil: object, tmp_path: Path) -> None:
    """With a message that names the setting and the file, and nobody is asked for a password."""
    settings = with_tls(SETTINGS, tmp_path)
    assert callable(spoil)
    spoil(tmp_path / "server.pem")

    with pytest.raises(SettingError, match=r"^tls_cert: .*server\.pem"):
        Certificates(settings)


@pytest.mark.parametrize("name", ["tls_key", "tls_client_ca"])
def test_each_file_has_its_own_message(name: str, tmp_path: Path) -> None:
    """One that is not there is named by its setting."""
    settings: Settings = msgspec.structs.replace(with_tls(SETTINGS, tmp_path), **{name: str(tmp_path / "missing.pem")})

    with pytest.raises(SettingError, match=rf"^{name}: .*missing\.pem cannot be read"):
        Certificates(settings)
