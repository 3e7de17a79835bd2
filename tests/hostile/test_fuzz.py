"""Any bytes as a body, a query or a frame: they are understood or refused, and nothing else is raised.

`PROTEUS_TEST_HYPOTHESIS=deep` looks at many more.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proteus_shards.config import Settings
from proteus_shards.errors import ProtocolError
from proteus_shards.front.answers import Problem
from proteus_shards.front.operations import OPERATIONS
from proteus_shards.ipc.frames import FrameReader, pack_frame
from proteus_shards.ipc.messages import decode_greeting, decode_replies, decode_requests
from tests.hostile.test_framing import fuzzed

SETTINGS = Settings(shards=1, batch_jobs_max=50)
JOB = b'{"id":"a","queue":"q","timeout":1,"payload":%s}'
VALUES = [
    b"1e400", b"-1e400", b"1e-400", b"NaN", b"-Infinity", b"0123", b"9" * 5000, b"-0", b"1.", b".5", b"0x10", b"[" * 5000, b"[" * 5000 + b"]" * 5000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000, b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\u0000"', b'"\x00"', b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b"\xef\xbb\xbf1",
    b'{"a":1,"a":2}', b"nul", b"true false", b"'a'", b"//", b"", b"\x00", b'"' + b"a" * 5000, b'"\\x41"', b"[1,]", b"1" + b"\n" * 50,
]  # fmt: skip
MEMBERS = [
    b'"id":"b"',
    b'"queue":"\\u0000"',
    b'"timeout":1e400',
    b'"timeout":1e2',
    b'"max_retries":-1',
    b'"run_at":"9999-12-31T23:59:60Z"',
    b'"op":"next"',
    b'"job":{}',
]

values = st.sampled_from(VALUES) | st.binary(max_size=30) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
).map(lambda value: json.dumps(value).encode())  # fmt: skip
objects = st.lists(st.sampled_from(MEMBERS) | values.map(lambda value: b'"payload":' + value), max_size=6).map(
    lambda parts: b"{" + b",".join(parts) + b"}"
)
bodies = (
    values
    | objects
    | values.map(lambda value: JOB % value)
    | st.lists(objects | values, max_size=5).map(lambda parts: b"[" + b",".join(parts) + b"]")
)
bodies |= st.lists(objects | values, max_size=5).map(b"\n".join)
PIECES = [
    b"queue=",
    b"job_id=",
    b"run_id=",
    b"num_jobs=",
    b"wait=",
    b"&",
    b"=",
    b"%",
    b"%00",
    b"%ff",
    b"%c0%80",
    b"%ed%a0%80",
    b"+",
    b";",
    b"1e400",
    b"nan",
    b"-1",
    b"9" * 400,
    b"\xff",
]
queries = st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=12).map(b"".join)


@pytest.mark.parametrize("route", OPERATIONS, ids=" ".join)
def test_every_route_understands_or_refuses_any_body_and_query(route: tuple[str, str]) -> None:
    """With a status of the client's fault."""

    @settings(fuzzed)
    @given(bodies, queries)
    @example(b"[" * 100_000, b"queue=q&job_id=a")
    @example(b'{"a":' * 100_000, b"queue=q&job_id=a")
    @example(b'[{"a":' + b"[" * 100_000, b"queue=q&job_id=a")
    def check(body: bytes, query: bytes) -> None:
        found = OPERATIONS[route](body, query, SETTINGS)
        if isinstance(found, Problem):
            assert 400 <= found.status < 500
            found.answer()

    check()


@settings(fuzzed)
@given(st.lists(st.binary(max_size=40) | st.binary(max_size=40).filter(bool).map(pack_frame), max_size=6))
@example([b"\xff" * 8])
@example([b"\x00" * 8])
def test_any_bytes_on_a_link_are_frames_or_a_protocol_error(pieces: list[bytes]) -> None:
    """And what they hold is messages, or one as well."""
    reader = FrameReader()
    try:
        for piece in pieces:
            for body in reader.feed(piece):
                for decode in (decode_greeting, decode_requests, decode_replies):
                    try:
                        decode(body)
                    except ProtocolError:
                        continue
    except ProtocolError:
        return
