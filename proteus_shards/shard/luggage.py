"""Luggage as a file: frames of the pieces that `core.luggage` packs, one after the other.

It is written beside its name and gets that name once it is whole, so that nobody finds half of it. It needs no fsync: what it holds was in memory only, and a
machine that fails loses it as it would have before. Only this user may read it: payloads are in it.

Writing and reading let the event loop turn between two pieces: a shard of gigabytes still shows signs of life.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from proteus_shards.config import luggage_path
from proteus_shards.core.luggage import Label, read_pieces
from proteus_shards.errors import LuggageError, ProtocolError
from proteus_shards.ipc.frames import FrameReader, pack_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proteus_shards.config import ShardBoot
    from proteus_shards.core.luggage import Piece
    from proteus_shards.core.shard import Shard

READ_BYTES = 1024 * 1024
FAULTS_LOGGED = 20

log = logging.getLogger("proteus_shards.shard")


def label_of(boot: ShardBoot) -> Label | None:
    """Return how luggage of a process is labelled. None: it has no claim, and so none."""
    return Label(boot.shard, boot.settings.shards, boot.claim.turn) if boot.claim is not None else None


async def leave_luggage(shard: Shard, boot: ShardBoot) -> None:
    """Write what a shard has in memory only, for whoever runs it next. What fails is logged: nobody here could do better."""
    label = label_of(boot)
    if label is None:
        return
    path = luggage_path(boot.run_dir, boot.shard, label.turn)
    try:
        size = await _write(path, shard.pack_luggage(label))
    except (OSError, ProtocolError) as error:
        log.error("luggage could not be written", extra={"path": path, "error": str(error)})  # noqa: TRY400  # told in one line
        return
    log.info("luggage written", extra={"bytes": size})


async def take_luggage(shard: Shard, boot: ShardBoot) -> bool:
    """Take in what the process before has left, once its rows are loaded, and say whether there was any. Luggage that is of no use is logged and left where it is.

    What was taken in is removed, before anything of it can change: it must not come back. So is what this very turn has left earlier.
    """
    label = label_of(boot)
    if label is None:
        return False
    taken = await _take(shard, boot.luggage, label) if boot.luggage else False
    own = luggage_path(boot.run_dir, boot.shard, label.turn)
    if own != boot.luggage:
        _discard(own)
    return taken


async def _take(shard: Shard, path: str, own: Label) -> bool:
    try:
        pieces = await read_luggage(path, own)
        _discard(path)
    except FileNotFoundError:
        log.warning("there is no luggage any more: what was in memory only is lost", extra={"path": path})
        return False
    except (OSError, LuggageError, ProtocolError) as error:
        log.error("luggage is left aside: what was in memory only is lost", extra={"path": path, "error": str(error)})  # noqa: TRY400
        return False
    faults: list[str] = []
    for piece in pieces:
        faults += shard.load_luggage([piece])
        await asyncio.sleep(0)
    for fault in faults[:FAULTS_LOGGED]:
        log.error("an item of the luggage is left out", extra={"fault": fault})
    log.info("luggage taken in", extra={"pieces": len(pieces), "left_out": len(faults)})
    return True


async def read_luggage(path: str, own: Label) -> list[Piece]:
    """Return the pieces of a file. Raises `LuggageError`, `ProtocolError` or `OSError`."""
    bodies: list[bytes] = []
    for some in _read(path):
        bodies += some
        await asyncio.sleep(0)
    return read_pieces(bodies, own)


def _read(path: str) -> Iterator[list[bytes]]:
    reader = FrameReader()
    with open(path, "rb") as file:  # noqa: PTH123
        while data := file.read(READ_BYTES):
            yield reader.feed(data)
    if reader.pending_bytes:
        raise LuggageError("the luggage is cut off")


async def _write(path: str, bodies: Iterator[bytes]) -> int:
    size = 0
    part = f"{path}.part"
    _discard(part)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        for body in bodies:
            size += file.write(pack_frame(body))
            await asyncio.sleep(0)
    os.replace(part, path)  # noqa: PTH105  # a local folder, at the end: nobody waits
    return size


def _discard(path: str) -> None:
    Path(path).unlink(missing_ok=True)
