"""What `store copy` makes of stores that do not do as they must."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from proteus_shards.core.model import Batch, Record, Row
from proteus_shards.errors import SettingError, StoreError, StoreRefused, StoreUnknown
from proteus_shards.store import copy as copying
from proteus_shards.store.contract import Damaged, Store
from proteus_shards.store.registry import make_store, prepared_shards
from proteus_shards.store.sqlite import SqliteStore
from proteus_shards.store.urls import SqliteUrl, read_url
from tests.store.copying import RECORDS, ROWS, SHARDS, at, copied, fill, records_at, rows_at
from tests.store.rows import in_asyncio, make_record
from tests.store.test_sqlite import execute
from tests.store.test_sqlite_damage import alter


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Return the URL of a place with rows and records."""
    url = at(tmp_path, "from")
    asyncio.run(fill(url, SHARDS, ROWS, RECORDS))
    return url


@pytest.fixture
def target(tmp_path: Path) -> str:
    """Return the URL of a place that is not there yet."""
    return at(tmp_path, "to")


class Odd(SqliteStore):
    """A target with limits, and with a fault at some commit or at every load."""

    batch_rows_max: int | None = 7
    batch_bytes_max: int | None = 20_000
    row_bytes_max: int | None = 10_000
    faults: list[tuple[str, bool]]  # of the coming commits: "refused" or "unknown", and whether the batch is written all the same
    spoil: Callable[[list[Row]], list[Row]]  # what becomes of a batch
    spoil_records: Callable[[list[Record]], list[Record]]
    sizes: list[int]
    reopened: int

    async def commit(self, batch: Batch) -> None:
        if len(batch):
            type(self).sizes.append(sum(map(copying.size_of, batch.inserts)) + sum(map(copying.size_of, batch.records)))
            assert len(batch) <= 7
            batch = Batch([], type(self).spoil(batch.inserts) if batch.inserts else [], [], type(self).spoil_records(batch.records))
        fault, written = type(self).faults.pop(0) if len(batch) and type(self).faults else ("", True)
        if written:
            await super().commit(batch)
        if fault:
            raise StoreRefused if fault == "refused" else StoreUnknown

    async def reopen(self) -> int:
        type(self).reopened += 1
        if type(self).reopened == 1:
            raise StoreRefused
        return await super().reopen()


@pytest.fixture
def odd(target: str, monkeypatch: pytest.MonkeyPatch) -> type[Odd]:
    """Let the target be of this kind, and return its class, on which faults may be set."""

    class Mine(Odd):
        faults: list[tuple[str, bool]] = []  # noqa: RUF012
        spoil = staticmethod(lambda rows: rows)
        spoil_records = staticmethod(lambda records: records)
        sizes: list[int] = []  # noqa: RUF012
        reopened = 0

    def make(url: str, shard: int, shards: int) -> Store:
        if url != target:
            return make_store(url, shard, shards)
        meant = read_url(url)
        assert isinstance(meant, SqliteUrl)
        return Mine(meant, shard, shards)

    monkeypatch.setattr(copying, "make_store", make)
    monkeypatch.setattr(copying, "BACKOFF_SECONDS", 0.001)
    return Mine


@in_asyncio
async def test_batches_keep_within_the_limits_of_the_target(source: str, target: str, odd: type[Odd]) -> None:
    """In rows and in bytes."""
    await copied(source, target)

    assert max(odd.sizes) <= 20_000
    assert len(odd.sizes) >= (len(ROWS) + len(RECORDS)) // 7
    assert await rows_at(target) == await rows_at(source)
    assert await records_at(target) == await records_at(source)


@in_asyncio
async def test_rows_that_are_too_large_for_the_target_are_told_before_anything_is_written(source: str, target: str, odd: type[Odd]) -> None:
    """Which, how large, and how large they may be."""
    large = [row for row in ROWS if copying.size_of(row) > 4900]
    odd.row_bytes_max = 4900
    told: list[str] = []
    with pytest.raises(StoreError, match=rf"{len(large)} jobs are larger than TO can take \(4,900 bytes each\); nothing was written"):
        await copied(source, target, tell=told.append)

    assert sorted(told) == sorted(f"too large: slot {row.slot}, seq {row.seq}: {copying.size_of(row):,} bytes" for row in large)
    assert len(large) > 1
    assert await prepared_shards(target) is None


@in_asyncio
async def test_a_target_that_is_away_for_a_moment_is_waited_for(source: str, target: str, odd: type[Odd]) -> None:
    """A batch in doubt is written once, whether it was written already or not."""
    odd.faults = [("refused", False), ("", True), ("unknown", True), ("unknown", False), ("", True), ("unknown", True)]
    await copied(source, target)

    assert odd.reopened == 5
    assert await rows_at(target) == await rows_at(source)
    assert await records_at(target) == await records_at(source)


@in_asyncio
async def test_a_target_that_stays_away_ends_the_copy(source: str, target: str, odd: type[Odd], monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while."""
    monkeypatch.setattr(copying, "PATIENCE_SECONDS", 0.01)
    odd.faults = [("refused", False)] * 10_000
    with pytest.raises(StoreRefused):
        await copied(source, target)


SPOILT: dict[str, Callable[[list[Row]], list[Row]]] = {
    "drops": lambda rows: rows[:-1] if len(rows) == 7 else rows,
    "reorders": lambda rows: [
        *(msgspec.structs.replace(row, ready_at=other.ready_at) for row, other in zip(rows, reversed(rows), strict=True)),
    ],
    "changes": lambda rows: [msgspec.structs.replace(rows[0], state=b"other"), *rows[1:]],
    "empties": lambda rows: [msgspec.structs.replace(row, state=row.state or None) for row in rows],
}


@pytest.mark.parametrize("fault", list(SPOILT))
@in_asyncio
async def test_what_a_target_spoils_is_found(source: str, target: str, odd: type[Odd], fault: str) -> None:
    """A row less, another order, another byte, nothing instead of something empty."""
    odd.spoil = staticmethod(SPOILT[fault])
    with pytest.raises(
        StoreError, match=r"shard 0: \d+ jobs.* were read \(SHA-256 \w+\) and \d+ jobs.* are there now .*do not use TO; remove its folder"
    ):
        await copied(source, target)


SPOILT_RECORDS: dict[str, Callable[[list[Record]], list[Record]]] = {
    "drops": lambda records: records[1:],
    "changes": lambda records: [msgspec.structs.replace(record, value=b"other") for record in records],
    "renames": lambda records: [msgspec.structs.replace(record, name=record.name.upper()) for record in records],
}


@pytest.mark.parametrize("fault", list(SPOILT_RECORDS))
@in_asyncio
async def test_what_a_target_spoils_of_records_is_found(source: str, target: str, odd: type[Odd], fault: str) -> None:
    """One less, another value, another name."""
    odd.spoil_records = staticmethod(SPOILT_RECORDS[fault])
    with pytest.raises(
        StoreError, match=r"shard 0: \d+ jobs and \d+ records were read .* are there now .*do not use TO; remove its folder"
    ):
        await copied(source, target)


@in_asyncio
async def test_damaged_records_are_left_behind_only_if_asked(source: str, target: str, tmp_path: Path) -> None:
    """They are told one by one, like rows."""
    file = tmp_path / "from/generation-000001/shard-0.sqlite3"
    alter(file, "UPDATE record SET name = CAST(x'ff' AS TEXT) WHERE number = 2")
    told: list[str] = []
    with pytest.raises(StoreError, match=r"1 stored rows are no jobs; nothing was written.*--skip-damaged"):
        await copied(source, target, tell=told.append)
    assert told == [f"damaged: {file}, record 2: name is not UTF-8"]
    done = await copied(source, target, skip_damaged=True)

    assert (done.jobs, done.records, done.damaged) == (len(ROWS), len(RECORDS) - 1, 1)


@in_asyncio
async def test_a_target_with_a_single_record_is_refused(source: str, target: str) -> None:
    """A server has been there, and left the settings of a queue."""
    await fill(target, 2, [], [make_record("q")])
    with pytest.raises(StoreError, match="TO holds records already"):
        await copied(source, target)


@in_asyncio
async def test_a_target_that_writes_half_a_batch_is_found(source: str, target: str, odd: type[Odd]) -> None:
    """Though it said that it did not know."""
    odd.spoil = staticmethod(SPOILT["drops"])
    odd.faults = [("unknown", True)] * 100
    with pytest.raises(StoreError, match="TO has written 6 of 7 rows of one batch"):
        await copied(source, target)


@in_asyncio
async def test_a_target_that_gives_back_what_is_no_row_is_found(
    source: str, target: str, odd: type[Odd], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names where, not what."""

    async def load(_self: Odd) -> AsyncIterator[Sequence[Row | Damaged]]:
        if odd.sizes:
            yield [Damaged("row 7", "its payload is missing")]

    monkeypatch.setattr(odd, "load", load)
    with pytest.raises(StoreError, match=r"TO gave back a row that is no job \(row 7: its payload is missing\)"):
        await copied(source, target)


@in_asyncio
async def test_a_server_that_opens_the_source_meanwhile_is_found(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy may hold what is no longer there, and says so."""
    made: list[SqliteStore] = []

    def make(url: str, shard: int, shards: int) -> Store:
        store = make_store(url, shard, shards)
        if url == source:
            assert isinstance(store, SqliteStore)
            made.append(store)
        return store

    async def usurp(_target: str, shard: int, _shards: int) -> copying.Digest:
        if shard == SHARDS - 1:
            await execute(made[-2], "UPDATE meta SET epoch = epoch + 1")
        return await real(_target, shard, _shards)

    real = copying._read_back
    monkeypatch.setattr(copying, "make_store", make)
    monkeypatch.setattr(copying, "_read_back", usurp)
    with pytest.raises(StoreError, match="a server has opened shard 1 of FROM while it was copied: do not use TO"):
        await copied(source, target)


@in_asyncio
async def test_a_source_that_changes_between_the_two_readings_is_found(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a row was whole before."""
    verdicts = [None] * (len(ROWS) + len(RECORDS))
    monkeypatch.setattr(copying, "fault_of", lambda _: verdicts.pop() if verdicts else "gone bad")
    with pytest.raises(StoreError, match="FROM has changed while it was copied"):
        await copied(source, target)


@in_asyncio
async def test_progress_is_told_now_and_then(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many jobs there are, and how many of them are written."""
    monkeypatch.setattr(copying, "PROGRESS_SECONDS", 0)
    monkeypatch.setattr(copying, "BATCH_ROWS_MAX", 100)
    told: list[str] = []
    await copied(source, target, tell=told.append)

    size = sum(map(copying.size_of, ROWS)) + sum(map(copying.size_of, RECORDS))
    assert told[0] == f"{len(ROWS)} jobs and {len(RECORDS)} records in {SHARDS} shards, {size / 1e6:.1f} MB"
    assert told[-1] == f"{len(ROWS)} of {len(ROWS)} jobs written"
    assert len(told) >= 5


@in_asyncio
async def test_nothing_is_left_open(source: str, target: str) -> None:
    """Neither after a copy nor after one that failed: all may be opened at once."""
    await copied(source, target)
    assert await rows_at(source) == await rows_at(target)
    with pytest.raises(StoreError, match="TO holds records already"):
        await copied(source, target)
    with pytest.raises(SettingError):
        await copied(source, source)
    assert await rows_at(source) == await rows_at(target)
