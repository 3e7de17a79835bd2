"""Luggage on its way: a file that a shard's process has left, given to the host that has the shard now, and fetched from the one that had it.

What is fetched lies where the new process would look for its own (`luggage_path` of its own turn), so that it is found there whatever happens meanwhile. Whoever takes it in
removes it. What was given stays until it is surely of no use, since an answer can be lost: the next turn has begun, and `handover_seconds_max` are over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from proteus_shards.cluster.address import split_address
from proteus_shards.cluster.model import Holding
from proteus_shards.config import luggage_path
from proteus_shards.errors import ProtocolError
from proteus_shards.ipc.frames import HEADER_BYTES, pack_frame
from proteus_shards.ipc.gates import decode_luggage
from proteus_shards.ipc.hosts import Fetch, Luggage, Nudge, encode
from proteus_shards.peering import Peering

log = logging.getLogger("proteus_shards.node")

ANSWER_SECONDS_MAX = 2.0  # for a host to say whether it has luggage
ANSWER_BYTES_MAX = 1024
PIECE_BYTES = 1024 * 1024

_LUGGAGE = re.compile(r"luggage-(\d+)-(\d+)")


async def give(writer: asyncio.StreamWriter, run_dir: str, fetch: Fetch) -> None:
    """Answer a host that asks for luggage."""
    path = luggage_path(run_dir, fetch.shard, fetch.turn - 1)
    try:
        with open(path, "rb") as file:  # noqa: ASYNC230, PTH123  # a local folder
            size = os.fstat(file.fileno()).st_size
            writer.write(pack_frame(encode(Luggage(size))))
            while piece := file.read(PIECE_BYTES):
                writer.write(piece)
                await writer.drain()
    except FileNotFoundError:
        writer.write(pack_frame(encode(Luggage(None))))
        size = None
    await writer.drain()
    log.info("luggage given" if size is not None else "no luggage to give", extra={"shard": fetch.shard, "turn": fetch.turn, "bytes": size})


async def fetch(peering: Peering, sources: Sequence[str], run_dir: str, shard: int, turn: int, seconds_max: float) -> str:
    """Fetch the luggage of a shard from the first host that has it, and return its path; empty: there is none, or it cannot be had."""
    path = luggage_path(run_dir, shard, turn)
    for source in sources:
        try:
            async with asyncio.timeout(seconds_max):
                size = await _fetch(peering, source, path, Fetch(shard, turn))
        except (OSError, TimeoutError, ProtocolError, asyncio.IncompleteReadError) as error:
            _discard(f"{path}.fetched")
            log.warning(
                "luggage cannot be fetched: what was in memory only is lost, if there was anything",
                extra={"shard": shard, "turn": turn, "from": source, "error": str(error) or type(error).__name__},
            )
            continue
        if size is not None:
            log.info("luggage fetched", extra={"shard": shard, "turn": turn, "from": source, "bytes": size})
            return path
    if len(sources) == 1:  # who has handed it over is known
        log.warning(
            "a shard came without luggage: what it had in memory only is lost, if there was anything", extra={"shard": shard, "turn": turn}
        )
    return ""


def _discard(path: str) -> None:
    Path(path).unlink(missing_ok=True)


async def _fetch(peering: Peering, source: str, path: str, wanted: Fetch) -> int | None:
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        reader, writer = await dial(peering, source)
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            writer.write(pack_frame(encode(wanted)))
            await writer.drain()
            luggage = decode_luggage(await read_frame(reader, ANSWER_BYTES_MAX))
        if luggage.size is None:
            return None
        part = f"{path}.fetched"
        left = luggage.size
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            while left and (data := await reader.read(min(left, PIECE_BYTES))):
                file.write(data)
                left -= len(data)
        if left:
            raise ProtocolError(f"it was cut off: {left} bytes of {luggage.size} are missing")
        os.replace(part, path)  # noqa: PTH105  # a local folder
        return luggage.size
    finally:
        writer.transport.abort()


async def nudge(peering: Peering, address: str, message: Nudge) -> None:
    """Tell a host that a shard was handed over to it. What fails is of no weight: its next look says the same."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            _, writer = await dial(peering, address)
            writer.write(pack_frame(encode(message)))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
    except (OSError, TimeoutError) as error:
        log.debug("a host cannot be told of its shard", extra={"host": address, "shard": message.shard, "error": str(error)})


async def dial(peering: Peering, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the gate of a host. The caller sets a deadline. Raises `OSError`, of which errors of TLS are some."""
    host, port = split_address(address)
    context = peering.client()
    return await asyncio.open_connection(host, port, ssl=context, server_hostname="" if context is not None else None)


async def read_frame(reader: asyncio.StreamReader, bytes_max: int) -> bytes:
    """Read one frame, and not a byte more. Raises `ProtocolError`, or `IncompleteReadError` where the stream ends before."""
    size = int.from_bytes(await reader.readexactly(HEADER_BYTES))
    if not 0 < size <= bytes_max:
        raise ProtocolError(f"a first frame has 1…{bytes_max} bytes, this one claims {size}")
    return await reader.readexactly(size)


def discard_old(run_dir: str, holdings: Sequence[Holding], seconds_max: float) -> None:
    """Remove luggage that nobody can fetch any more: a later turn has begun, and the time for it is over."""
    for path in Path(run_dir).iterdir():
        found = _LUGGAGE.fullmatch(path.name)
        if found is None or not int(found[1]) < len(holdings) or holdings[int(found[1])].turn <= int(found[2]):
            continue
        try:
            if time.time() - path.stat().st_mtime > seconds_max:
                path.unlink()
                log.info("luggage that nobody has fetched is gone", extra={"shard": int(found[1]), "turn": int(found[2])})
        except FileNotFoundError:
            continue
