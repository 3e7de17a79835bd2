"""A restart brings back what was stored, in order, and says how much that was."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from proteus_shards.core.model import Batch, Row, Status
from proteus_shards.core.placement import shard_of, slot_of
from proteus_shards.store.registry import make_store, prepare_store
from tests.conftest import StartServer

JOBS = 100_000
QUEUES = 5
SHARDS = 2
BATCH_ROWS = 5000
NEXT_JOBS = 1000


async def fill(folder: Path) -> None:
    """Store rows as a server would, every third of them with another ready_at than its seq suggests."""
    url = f"sqlite:///{folder}"
    await prepare_store(url, SHARDS)
    for shard in range(SHARDS):
        store = make_store(url, shard, SHARDS)
        await store.open()
        async for _ in store.load():
            pass
        rows: list[Row] = []
        for seq in range(1, JOBS + 1):
            queue = f"queue-{seq % QUEUES}"
            slot = slot_of(queue)
            if shard_of(slot, SHARDS) == shard:
                ready_at = 1_700_000_000_000_000 + seq // 3
                payload = json.dumps(seq).encode()
                rows.append(
                    Row(slot, seq, queue, str(seq), Status.READY, ready_at, None, 30, 0, 0, None, None, ready_at, ready_at, payload, None)
                )
        for start in range(0, len(rows), BATCH_ROWS):
            await store.commit(Batch([], rows[start : start + BATCH_ROWS], []))
        await store.close()


def test_a_hundred_thousand_jobs_recover_in_order_and_the_log_says_so(start_server: StartServer, tmp_path: Path) -> None:
    """Every stored job is there after a start, in its queue's order; each shard logs rows and seconds."""
    asyncio.run(fill(tmp_path / "filled"))

    server = start_server("--store", f"sqlite:///{tmp_path / 'filled'}", "--log-format", "json")
    recovered = [line for line in map(json.loads, server.log().splitlines()) if line["event"] == "recovered"]
    assert SHARDS == len(recovered)
    assert sum(line["rows"] for line in recovered) == JOBS
    assert all(line["seconds"] >= 0 for line in recovered)
    for count in range(QUEUES):
        numbers: list[int] = []
        while (answer := server.request("GET", f"/next?queue=queue-{count}&num_jobs={NEXT_JOBS}")).status == 200:
            numbers += [job["payload"] for job in answer.json()]
        assert [seq for seq in range(1, JOBS + 1) if seq % QUEUES == count] == numbers
