"""What tests of `store copy` share: a place with rows and records, and what is in a place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from proteus_shards.core.extras import Extras, pack_extras
from proteus_shards.core.model import Batch, Record, RecordKey, Row
from proteus_shards.core.placement import shard_of
from proteus_shards.store import copy as copying
from proteus_shards.store.contract import Damaged
from proteus_shards.store.copy import Copied
from proteus_shards.store.registry import make_store, prepared_shards
from proteus_shards.store.sqlite_prepare import prepare
from proteus_shards.store.urls import SqliteUrl, read_url
from tests.store.rows import load_all, load_records, make_record, make_row, opened

SHARDS = 3
ROWS = [
    make_row(
        seq,
        queue=f"q{seq % 17}",
        ready_at=make_row(0).ready_at + seq * 7919 % 31,
        status=(2, 3, 4)[seq % 3],
        run_id=seq.to_bytes(16, "big") if seq % 3 == 1 else None,
        reason="timeout" if seq % 3 == 2 else None,
        attempt=seq,
        run_at=seq if seq % 5 == 0 else None,
        state=[None, b"", b"{}"][seq % 3],
        payload=b"x" * (seq * 37 % 5000),
        extras=pack_extras(Extras(key="k" * seq, priority=-seq)) if seq % 4 == 0 else None,
    )
    for seq in range(1, 400)
]
RECORDS = [make_record(f"record {number}", bytes(number * 97 % 5000)) for number in range(60)]


def at(tmp_path: Path, name: str) -> str:
    """Return the URL of a folder."""
    return f"sqlite:///{tmp_path}/{name}?synchronous=normal"


async def fill(url: str, shards: int, rows: Sequence[Row], records: Sequence[Record] = ()) -> None:
    """Prepare a place and put rows and records there."""
    meant = read_url(url)
    assert isinstance(meant, SqliteUrl)
    prepare(meant, shards)
    for shard in range(shards):
        async with opened(make_store(url, shard, shards)) as store:
            own = [row for row in rows if shard_of(row.slot, shards) == shard]
            await store.commit(Batch([], own, [], [record for record in records if shard_of(record.slot, shards) == shard]))


async def records_at(url: str) -> list[dict[RecordKey, bytes]]:
    """Return the records of each shard of a place."""
    shards = await prepared_shards(url)
    loaded = []
    for shard in range(shards or 0):
        async with opened(make_store(url, shard, shards or 0)) as store:
            loaded.append(await load_records(store))
    return loaded


async def rows_at(url: str) -> list[list[Row | Damaged]]:
    """Return the rows of each shard of a place."""
    shards = await prepared_shards(url)
    loaded = []
    for shard in range(shards or 0):
        async with opened(make_store(url, shard, shards or 0)) as store:
            loaded.append(await load_all(store))
    return loaded


async def copied(source: str, target: str, *, skip_damaged: bool = False, tell: Callable[[str], None] = lambda _: None) -> Copied:
    """Copy."""
    return await copying.copy(source, target, skip_damaged=skip_damaged, tell=tell)
