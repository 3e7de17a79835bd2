"""How a front reaches a shard: a Unix socket where it runs on this host, the gate of its host where it does not.

Between hosts goes TLS, with certificates on both sides (`peering.py` says what is checked of them), or plain TCP where the settings allow it.
"""

from __future__ import annotations

from functools import lru_cache

import trio

from proteus_shards.config import Settings
from proteus_shards.errors import ProtocolError
from proteus_shards.ipc.frames import FrameReader, pack_frame
from proteus_shards.ipc.hosts import Elsewhere
from proteus_shards.ipc.messages import Goodbye, Hello, check_hello, decode_greeting, encode
from proteus_shards.peering import Peering, watch

RECEIVE_BYTES = 256 * 1024


def is_local(target: str) -> bool:
    """Say whether a target is the socket of a process of this host."""
    return target.startswith("/")


async def dial(target: str, settings: Settings) -> trio.abc.Stream:
    """Connect to a target. Raises `OSError`, `trio.BrokenResourceError` or `SettingError`."""
    if is_local(target):
        return await trio.open_unix_socket(target)
    context = peering_of(settings).client()
    host, _, port = target.rpartition(":")
    stream = await trio.open_tcp_stream(host.strip("[]"), int(port))
    try:
        watch(stream)
        if context is None:
            return stream
        secured = trio.SSLStream(stream, context, https_compatible=True)
        await secured.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secured


@lru_cache(maxsize=1)
def peering_of(settings: Settings) -> Peering:
    """Return the certificates of this host, the same for all links. Raises `SettingError`, which names the setting, where the files can't be used."""
    return Peering(settings)


async def greet(stream: trio.abc.Stream, frames: FrameReader, own: Hello) -> tuple[Hello | Elsewhere, list[bytes]]:
    """Greet, and return the peer's answer and what of the conversation has come with it. Raises `ProtocolError` or `VersionError`."""
    await stream.send_all(pack_frame(encode(own)))
    bodies: list[bytes] = []
    while not bodies:
        data = await stream.receive_some(RECEIVE_BYTES)
        if not data:
            raise ProtocolError("the shard closed the link before its greeting")
        bodies = frames.feed(data)
    peer = decode_greeting(bodies[0])
    if isinstance(peer, Goodbye):
        raise ProtocolError(f"the shard refused the link: {peer.detail}")
    if isinstance(peer, Hello):
        check_hello(own, peer)
    if len(bodies) > 1 and not own.session:
        raise ProtocolError("the shard spoke before it was asked")
    return peer, bodies[1:]
