"""How a child process of the supervisor begins and reports: one boot line in, one control line out.

Standard input brings a line of JSON and then stays open as the lifeline: its end means that the supervisor is gone. Standard output
takes one line, `Ready` or `Failed`, and a `Beat` every second from the event loop. Logs go to standard error.
"""

from __future__ import annotations

import os
import sys
from typing import TypeVar

import msgspec

from proteus_shards.cluster.model import Claim
from proteus_shards.config import Beat, Failed, FrontBoot, Ready, Settings, ShardBoot
from proteus_shards.ipc.orders import Depart, NodeOrder

STDIN, STDOUT = 0, 1

Boot = TypeVar("Boot", ShardBoot, FrontBoot, "NodeBoot")


class NodeBoot(msgspec.Struct, frozen=True):
    """What the supervisor tells the node process of a host in a cluster. Its lifeline then brings orders (`ipc.orders`)."""

    settings: Settings
    run_dir: str
    listen_fd: int  # of the gate: an inherited socket that listens already
    boot: str  # of this server: drawn at its start, and the same for all node processes of it
    running: tuple[Claim, ...] = ()  # processes of shards that there are
    serving: tuple[Claim, ...] = ()  # of these, those that serve
    depart: Depart | None = None  # the server ends


def read_boot(kind: type[Boot]) -> Boot:
    """Read the boot line, byte by byte: what follows on standard input is the lifeline's. Exits where there is none, or a wrong one."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(STDIN, 1)
        if not byte:
            sys.exit("this program is started by proteus-shards serve, which tells it what to do on its standard input")
        line += byte
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.DecodeError as error:
        report(Failed(f"the boot line is wrong: {error}", final=True))
        sys.exit(1)


def report(message: Ready | Failed | NodeOrder) -> None:
    """Write a control line to the supervisor. One that is gone is not told: the lifeline says the rest."""
    try:
        os.write(STDOUT, msgspec.json.encode(message) + b"\n")
    except BrokenPipeError:
        return


def beat() -> None:
    """Write a sign of life. Where the supervisor has read none for an hour, the pipe is full, and this one is left out."""
    os.set_blocking(STDOUT, False)
    try:
        os.write(STDOUT, _BEAT)
    except (BlockingIOError, BrokenPipeError):
        return
    finally:
        os.set_blocking(STDOUT, True)


_BEAT = msgspec.json.encode(Beat()) + b"\n"
