"""What is asked of any bytes, for a fuzzer that looks at the paths that they take. A target raises where something is wrong, and nothing else does.

The first byte of an input chooses the target. `SEEDS` are inputs to begin with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from proteus_shards.config import Settings
from proteus_shards.errors import ProtocolError
from proteus_shards.front import relay
from proteus_shards.front.answers import Problem
from proteus_shards.front.bodies import Unpacker, unpack_body
from proteus_shards.front.heads import origin_form
from proteus_shards.front.hosts import misdirected
from proteus_shards.front.ndjson import LineReader
from proteus_shards.front.once import enqueue_once
from proteus_shards.front.routes import ROUTES
from proteus_shards.front.tracing import traced
from proteus_shards.ipc.frames import FrameReader, pack_frame
from proteus_shards.ipc.gates import decode_at_gate, decode_luggage
from proteus_shards.ipc.hosts import decode_from_front, decode_from_node
from proteus_shards.ipc.messages import decode_greeting, decode_replies, decode_requests, encode, hello
from tests.hostile.table import LEGAL, REFUSED
from tests.hostile.test_framing import check_agreement

SETTINGS = Settings(shards=1, batch_jobs_max=50, body_size_max=100_000)
CUT = b"\x00\xff"  # between the parts of an input
NATIVE = list(ROUTES.values())
RELAY = [(method, path) for path, calls in relay.ROUTES.items() for method in calls]
DECODERS: tuple[Callable[[bytes], Any], ...] = (
    decode_greeting,
    decode_requests,
    decode_replies,
    decode_at_gate,
    decode_luggage,
    decode_from_front,
    decode_from_node,
)
TRACE = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"


def heads(data: bytes) -> None:
    """The lane's reader, the guard and the parser behind it agree, wherever the bytes are cut."""
    places, _, sent = data.partition(CUT)
    check_agreement(sent, [4 * place for place in places[:8]])


def frames(data: bytes) -> None:
    """Bytes between processes and hosts are frames of messages, or a `ProtocolError`, wherever they are cut."""
    found: list[list[bytes]] = []
    for step in (len(data) or 1, 3):
        bodies: list[bytes] = []
        reader = FrameReader(1 << 16)
        try:
            for start in range(0, len(data), step):
                bodies += reader.feed(data[start : start + step])
        except ProtocolError:
            bodies = []  # in one piece, those before the fault are lost with it
        found.append(bodies)
    assert found[0] == found[1]
    for body in (*found[0], data):
        for decode in DECODERS:
            try:
                decode(body)
            except ProtocolError:
                continue


def calls(data: bytes) -> None:
    """Every call of the native API understands a body and a query, or refuses them for the client's fault."""
    query, _, body = data[1:].partition(CUT)
    _judge(NATIVE[data[0] % len(NATIVE)](body, query, SETTINGS) if data else None)


def keyed(data: bytes) -> None:
    """So does one with an idempotency key."""
    key, _, body = data.partition(CUT)
    _judge(enqueue_once(key, body, b"", SETTINGS))


def paths(data: bytes) -> None:
    """So does every call of relay's API, whatever its path and query are."""
    if not data:
        return
    method, pattern = RELAY[data[0] % len(RELAY)]
    names, _, rest = data[1:].partition(CUT)
    query, _, body = rest.partition(CUT)
    first, _, second = names.partition(b"\x00")
    path = pattern.encode().replace(b"<queue>", first).replace(b"<job_id>", second).replace(b"<run_id>", second)
    for sent in (path, relay.PREFIXES[data[0] % 2] + names, names):
        call = relay.route_of(method, sent)
        if call is not None:
            assert call.sample.startswith("/")
            _judge(call.fault)
            _judge(call(body, query, SETTINGS))
    _judge(misdirected(names, frozenset({"localhost"})))
    target = origin_form(names, rest)
    assert target is None or target.startswith((b"/", b"*")), target


def lines(data: bytes) -> None:
    """Lines are the same jobs wherever they are cut."""
    cut = data[0] + 1 if data else 1
    whole, pieces = LineReader(SETTINGS), LineReader(SETTINGS)
    found = [*whole.feed(data[1:]), *whole.end()]
    again = [line for start in range(1, len(data), cut) for line in pieces.feed(data[start : start + cut])]
    assert repr([*again, *pieces.end()]) == repr(found)  # what is not a number equals nothing


def packed(data: bytes) -> None:
    """Gzip unpacks to the same as a whole and piece by piece, or is refused."""
    whole = unpack_body(data, "gzip", SETTINGS.body_size_max)
    if isinstance(whole, Problem):
        _judge(whole)
        return
    unpacker = Unpacker(gzip=True)
    pieces = [piece for start in range(0, len(data), 7) for piece in unpacker.feed(data[start : start + 7])]
    assert b"".join(piece for piece in pieces if isinstance(piece, bytes)) == whole
    assert unpacker.fault_at_end() is None


TARGETS = (heads, frames, calls, keyed, paths, lines, packed)


def check(data: bytes) -> None:
    """Give an input to its target."""
    if data:
        TARGETS[data[0] % len(TARGETS)](data[1:])


def _judge(found: Any) -> None:
    if isinstance(found, Problem):
        assert 400 <= found.status < 500, found
        found.answer()
    elif found is not None:
        traced(found, TRACE)


def _seeds() -> dict[str, list[bytes]]:
    job = b'{"id":"a","queue":"q","timeout":1,"payload":{"a":[1e3,"\\ud83d\\ude00"]},"run_at":"2030-01-01T00:00:00Z","max_retries":-1}'
    batch = json.dumps([{"op": "enqueue", "job": json.loads(job)}, {"op": "next", "queue": "q"}]).encode()
    query = b"queue=q&job_id=a&num_jobs=2&wait=0.5&run_id=11111111-2222-4333-8444-555555555555"
    return {
        "heads": [
            b"\x05\x09" + CUT + data[:4000] for data in (*(case.data for case in REFUSED.values()), *(case[0] for case in LEGAL.values()))
        ],
        "frames": [pack_frame(encode(hello(0, 1))), pack_frame(b"\x90")],
        "calls": [bytes([number]) + query + CUT + body for number in range(len(NATIVE)) for body in (b"", job, batch)],
        "keyed": [b"key" + CUT + job, b"key" + CUT + b"[" + job + b"]"],
        "paths": [
            bytes([number]) + b"q%20q\x00a%2Fb" + CUT + b"num_jobs=2&mode=unique" + CUT + b"[" + job + b"]" for number in range(len(RELAY))
        ],
        "lines": [b"\x07" + job + b"\n\n" + job + b"\r\n", b"\x01{}\n[\n"],
        "packed": [bytes.fromhex("1f8b08000000000000034b4c4c04000049875c03000000")],
    }


SEEDS = [bytes([number]) + seed for number, target in enumerate(TARGETS) for seed in _seeds()[target.__name__]]
