"""The jobs that the stores of schema version 1 hold which the tests keep, as they read from version 2 on."""

from __future__ import annotations

from proteus_shards.core.model import Status
from tests.store.rows import NOW_US, make_mark, make_row, marked

ROWS = [
    make_row(1, state=b'{"s": 1}'),
    make_row(2, queue="ü📬", id="a b", run_at=NOW_US + 5),
    make_row(3, status=Status.IN_FLIGHT, run_id=bytes(range(16)), attempt=1),
    make_row(4, status=Status.DEAD, attempt=4, reason="timeout"),
    make_row(5, payload=b'"' + b"x" * 3000 + b'"'),
    marked(make_row(6, queue="other"), make_mark(make_row(6), state_set=True, state=b"l" * 20)),
]
