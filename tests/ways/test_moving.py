"""The doctor and the copy on each store, as a user runs them: beside a server, and from one kind of store to the next."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest

from proteus_shards.core.model import Row
from proteus_shards.core.placement import shard_of
from proteus_shards.store import copy as copying
from proteus_shards.store.registry import make_store, prepare_store, prepared_shards
from tests.conftest import StartServer
from tests.servers.places import KINDS, Places, places
from tests.store.exercise_rows import NAMES
from tests.store.rows import commit_all, inserting, load_all, make_row, opened
from tests.store.test_doctor import Load
from tests.test_cli import answered, run

__all__ = ["places"]

WORKING = [
    kind for kind in KINDS if kind != "dynamodb"
]  # its double copies all of its data for each transaction, and is busy with one server
SHARDS = 2
ROWS = [
    make_row(
        seq,
        queue=name if seq % 2 else f"q{seq % 7}",
        id=name,
        ready_at=make_row(0).ready_at + seq * 7919 % 13,
        status=(2, 3, 4)[seq % 3],
        run_id=seq.to_bytes(16, "big") if seq % 3 == 1 else None,
        reason="timeout" if seq % 3 == 2 else None,
        run_at=-seq if seq % 5 == 0 else None,
        state=[None, b"", b'{"a": "\xff\x00"}'][seq % 3],
        payload=b"\x00\xff" * (seq * 37 % 2000),
    )
    for seq, name in enumerate([*NAMES, *NAMES], 1)
]


async def fill(url: str) -> None:
    """Prepare a place and put the rows there."""
    await prepare_store(url, SHARDS)
    for shard in range(SHARDS):
        async with opened(make_store(url, shard, SHARDS)) as store:
            await commit_all(store, inserting(*(row for row in ROWS if shard_of(row.slot, SHARDS) == shard)))


async def rows_at(url: str) -> list[Row]:
    """Return all rows of a place."""
    found: list[Row] = []
    for shard in range(SHARDS):
        async with opened(make_store(url, shard, SHARDS)) as store:
            found += [row for row in await load_all(store) if isinstance(row, Row)]
    return sorted(found, key=lambda row: row.seq)


def test_jobs_go_round_all_stores_and_come_back_as_they_were(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every field of every job, in order: the same digest at each station."""
    monkeypatch.setattr(copying, "SETTLE_SECONDS", 0.0)  # no server runs
    stations = [places.of(kind)(f"round-{uuid4().hex[:12]}") for kind in (*KINDS, "sqlite")]
    asyncio.run(fill(stations[0]))

    done = [copying.run(one, other, skip_damaged=False, tell=lambda _: None) for one, other in pairwise(stations)]

    assert [(copied.jobs, copied.damaged) for copied in done] == [(len(ROWS), 0)] * len(KINDS)
    assert len({copied.digest for copied in done}) == 1
    for url in (stations[0], stations[-1]):
        assert asyncio.run(rows_at(url)) == ROWS


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_no_server_has_used_is_not_at_fault(places: Places, tmp_path: Path, kind: str) -> None:
    """Where a trial needs what the first start makes, there is none."""
    place = places.of(kind)(f"new-{uuid4().hex[:12]}")

    code, out, err = run("doctor", "--store", place, cwd=tmp_path)

    assert (code, err) == (0, ""), out
    assert out.splitlines()[-1].startswith(f"{kind}: fit for a server")
    assert ("at a time" in out) != ("no trial before the store is prepared: " in out)
    assert asyncio.run(prepared_shards(place)) is None


@pytest.mark.parametrize("kind", WORKING)
def test_a_doctor_does_not_disturb_a_server_at_work(start_server: StartServer, places: Places, kind: str) -> None:
    """It answers every request, logs no complaint, and its shards are opened once."""
    place = places.of(kind)(f"work-{uuid4().hex[:12]}")
    server = start_server("--store", place, "--connections-max", "100")
    with Load(server) as load:
        code, out, err = run("doctor", "--json", cwd=server.log_path.parent, environ={"PROTEUS_STORE": place})

    told = json.loads(out)
    assert (code, err, told["sound"]) == (0, "", True), out
    assert [rate["batch_rows"] for rate in told["rates"]] == [1, 100]
    assert load.statuses == {200, 202}
    assert server.stop() == 0
    log = [json.loads(line) for line in server.log().splitlines()]
    assert [line for line in log if line["level"] == "error"] == []
    assert len([line for line in log if line["event"] == "recovered"]) == SHARDS


@pytest.mark.parametrize("kind", WORKING)
def test_a_copy_from_under_a_server_at_work_fails(start_server: StartServer, places: Places, kind: str) -> None:
    """Whether its rows are locked or it is thrown out and comes back; and it goes on."""
    place = places.of(kind)(f"under-{uuid4().hex[:12]}")
    server = start_server("--store", place)
    other = places.of("sqlite")(f"from-{uuid4().hex[:12]}")
    with Load(server, orderly=False):
        code, out, err = run("store", "copy", place, other, cwd=server.log_path.parent)

    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("proteus-shards: ")
    assert "Traceback" not in err
    assert answered(server, "POST", "/enqueue", {"id": "last", "queue": "last", "timeout": 30, "persist_data": True}).status == 202
