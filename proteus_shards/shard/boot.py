"""How a process of the shard side begins and reports: boot line in, one control line out."""

from __future__ import annotations

import os
import sys

import msgspec

from proteus_shards.config import Failed, Ready, ShardBoot

STDIN, STDOUT = 0, 1


def read_boot() -> ShardBoot:
    """Read the boot line from standard input, byte by byte: what follows on it is the lifeline's."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(STDIN, 1)
        if not byte:
            sys.exit("this program is started by proteus-shards serve, which tells it what to do on its standard input")
        line += byte
    return msgspec.json.decode(line, type=ShardBoot)


def report(message: Ready | Failed) -> None:
    """Write a control line to the supervisor. A supervisor that is gone is not told."""
    try:
        os.write(STDOUT, msgspec.json.encode(message) + b"\n")
    except BrokenPipeError:
        return
