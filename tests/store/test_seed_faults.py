"""Faults that stores of a job runner have had before, each as a test that fails where it is made again.

Where they stand among the others: tests/core/test_seed_faults.py.
"""

from __future__ import annotations

import pytest

from proteus_shards.core.model import Status
from proteus_shards.errors import StoreRefused, StoreUnknown
from tests.servers.postgres import PostgresPlace
from tests.servers.strict_dynamodb import StrictServer
from tests.store.dynamodb_backing import DynamodbBacking
from tests.store.postgres_backing import PostgresBacking
from tests.store.rows import in_asyncio, inserting, load_all, make_mark, make_row, marked, marking, opened

pytest_plugins = ["tests.servers.dynamodb_fixtures"]

NUMBERS = (2, 9, 10, 80, 99, 100, 1000)  # as text they would be in another order
STATES = [b'{"at": 1.50}', b'"\\ud83d\\ude00"', b" [1,2] ", b"\x00\xff", b"null", None]


@in_asyncio
async def test_a_start_keeps_the_dynamodb_table_its_order_and_its_states(strict_dynamodb: StrictServer) -> None:
    """Each start deleted the table; times were written as numbers and read as text, and a delivery wrote over the state."""
    backing = DynamodbBacking(strict_dynamodb)
    rows = [make_row(number, ready_at=number, created_at=number, state=b'{"at":1}') for number in NUMBERS]
    mark = make_mark(rows[0])
    async with opened(backing.store()) as store:
        await store.commit(inserting(*reversed(rows)))
        await store.commit(marking(mark))
    for shards in (1, 3, 1):
        await backing.prepare(shards)
    async with opened(backing.store()) as store:
        found = await load_all(store)

    assert found == [marked(rows[0], mark), *rows[1:]]
    assert [Status.IN_FLIGHT, *[Status.READY] * (len(rows) - 1)] == [row.status for row in found if not hasattr(row, "fault")]


@pytest.mark.parametrize("state", ["08000", "08003", "08006", "57P01", "57P02", "40001", "40P01"])
@in_asyncio
async def test_an_error_of_postgres_that_passes_is_no_end(postgres_server: PostgresPlace, state: str) -> None:
    """Lost connections, an operator's command and clashes of transactions were taken for faults that no retry mends."""
    backing = PostgresBacking(postgres_server)
    await backing.before_each_insert(f"RAISE EXCEPTION 'planted' USING ERRCODE = '{state}'")
    row = make_row(1)
    async with opened(backing.store()) as store:
        with pytest.raises((StoreRefused, StoreUnknown)):
            await store.commit(inserting(row))
        await backing.before_each_insert("NULL")
        await store.reopen()
        await store.commit(inserting(row))

        assert await load_all(store) == [row]


@in_asyncio
async def test_states_come_back_from_postgres_as_the_bytes_that_they_were(postgres_server: PostgresPlace) -> None:
    """A state was bound as a list of numbers inside JSON, both when it was enqueued and when a heartbeat saved it."""
    backing = PostgresBacking(postgres_server)
    rows = [make_row(number, state=state) for number, state in enumerate(STATES)]
    marks = [make_mark(row, state_set=True, state=state) for row, state in zip(rows, reversed(STATES), strict=True)]
    async with opened(backing.store()) as store:
        await store.commit(inserting(*rows))
        before = await load_all(store)
        await store.commit(marking(*marks))
    stored = await backing.run("SELECT state FROM job ORDER BY seq")
    async with opened(backing.store()) as store:
        after = await load_all(store)

    assert before == rows
    assert after == [marked(row, mark) for row, mark in zip(rows, marks, strict=True)]
    assert [record["state"] for record in stored] == [mark.state for mark in marks]
