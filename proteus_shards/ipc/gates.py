"""Reading what comes to the gate of a host, and what it answers; the messages themselves stand in `hosts` and `messages`."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from proteus_shards.errors import ProtocolError
from proteus_shards.ipc.hosts import Fetch, Luggage, Nudge
from proteus_shards.ipc.messages import Hello

GateMessage: TypeAlias = Hello | Fetch | Nudge

_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_at_gate: msgspec.msgpack.Decoder[GateMessage] = msgspec.msgpack.Decoder(GateMessage)
_luggage = msgspec.msgpack.Decoder(Luggage)


def decode_at_gate(body: bytes | memoryview) -> GateMessage:
    """Read the first frame that a gate is sent. Raises `ProtocolError`."""
    try:
        return _at_gate.decode(body)
    except _GARBAGE as error:
        raise ProtocolError(f"not a message to a gate: {error}") from error


def decode_luggage(body: bytes | memoryview) -> Luggage:
    """Read the answer to a `Fetch`. Raises `ProtocolError`."""
    try:
        return _luggage.decode(body)
    except _GARBAGE as error:
        raise ProtocolError(f"not an answer about luggage: {error}") from error
