"""`proteus-shards store copy`: all jobs and records of a stopped server, from one store to another of any kind.

**Nothing is written before all of it can be.** The target must be empty; every row and record of the source is read once, and a damaged one, or a row
that is too large for the target, ends the copy there and then (every store takes every record). (Reading twice costs 3 s a million rows with SQLite; taking back what was
written to a store that has refused one row may fail itself.)

**Then shard by shard**: the target is prepared for the source's number of shards, so that each shard's rows go to one shard, with every
number they have. They are read in order, committed in batches within the target's limits, and read back through a store that is opened anew. Count
and a SHA-256 over all fields of all rows in order must be the same on both sides. Records go before the rows, in no order: of them each hash is added up.

**The source stays as it is**, but for its epochs and its version: to open a shard's rows takes an epoch, and brings a SQLite file up to date. A SQLite file that a server holds cannot be opened, and the copy is
refused. Elsewhere it fences the running server, whose next commit ends that shard, and which then takes a new epoch. So the source's shards stay open
to the end, for five seconds at least, and then commit nothing once more: whoever has opened them meanwhile has fenced the copy, which is
told as a failure. A running server that commits nothing in that time is not seen; nothing of it is lost either. Where hosts of a cluster are registered, on either side,
nothing is done at all.

**A copy that was interrupted** leaves a target that is not empty, and the next one is refused until it is. It does not go on where the
first one stopped: the source may have changed since.

In memory are a chunk of rows and a batch of them, whatever there is to copy, and what the stores themselves keep of the source's shards. (Measured on 2
cores from SQLite to SQLite, two shards, jobs of 110 bytes, an fsync of 4 ms: 31,000 jobs a second with all that is said above, and 100 MB.)
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import msgspec

from proteus_shards.core.model import Batch, Record, RecordKey, Row, RowKey, job_of
from proteus_shards.core.placement import slot_of
from proteus_shards.errors import RowError, SettingError, StoreError, StoreFenced, StoreRefused, StoreUnknown
from proteus_shards.store.contract import Damaged, Store
from proteus_shards.store.open_files import allow_open_files
from proteus_shards.store.registry import check_alone, make_store, prepare_store, prepared_shards
from proteus_shards.store.urls import read_url

BATCH_ROWS_MAX = 1000
BATCH_BYTES_MAX = 4 * 1024 * 1024
PROGRESS_SECONDS = 5.0
PATIENCE_SECONDS = 60.0  # for a target that is away for a while
BACKOFF_SECONDS = 0.2
SETTLE_SECONDS = 5.0  # in which a server that was fenced is back, if it has anything to do
LOCKING = {"sqlite"}  # kinds whose shards cannot be opened while another process has them
TOO_LARGE_NAMED = 20
FILES_PER_STORE = 5  # that one open shard may take

_ANEW = {
    "sqlite": "remove its folder",
    "postgres": "drop its tables",
    "redis": "delete its keys",
    "dynamodb": "delete its table",
}
_encode = msgspec.msgpack.Encoder().encode
_astuple = msgspec.structs.astuple


class Copied(msgspec.Struct, frozen=True):
    """What was copied."""

    jobs: int
    records: int
    shards: int
    damaged: int  # rows and records that were left behind
    seconds: float
    digest: str  # SHA-256 over the digests of all shards, in hexadecimal

    @property
    def summary(self) -> str:
        """One line."""
        left = f", {self.damaged:,} damaged rows left behind" if self.damaged else ""
        what = _told(self.jobs, self.records)
        return f"copied {what} of {self.shards} shards in {self.seconds:.1f} s, read back and compared{left}; SHA-256 {self.digest}"


def run(source: str, target: str, *, skip_damaged: bool, tell: Callable[[str], None]) -> Copied:
    """Copy all rows, in an event loop of its own. Raises `SettingError` and `StoreError`; `tell` gets lines about the progress."""
    return asyncio.run(copy(source, target, skip_damaged=skip_damaged, tell=tell))


async def copy(source: str, target: str, *, skip_damaged: bool, tell: Callable[[str], None]) -> Copied:
    """Copy all rows of the store at one URL to that at another. Raises `SettingError` and `StoreError`."""
    _check(source, "FROM")
    _check(target, "TO")
    if read_url(source) == read_url(target):
        raise SettingError("FROM and TO are the same store")
    began = time.monotonic()
    shards = await prepared_shards(source)
    if shards is None:
        raise StoreError("FROM holds no jobs: no server has ever prepared it")
    for url in (source, target):
        await check_alone(url)
    await _check_empty(target)
    allow_open_files(FILES_PER_STORE * (shards + 1) + 64)
    survey = await _survey(source, make_store(target, 0, shards), shards, skip_damaged=skip_damaged, tell=tell)
    tell(f"{_told(survey.jobs, survey.records)} in {shards} shards, {survey.size / 1e6:,.1f} MB")
    await prepare_store(target, shards)
    progress = _Progress(tell, survey.jobs)
    digests = []
    settled = 0.0
    async with AsyncExitStack() as held:
        opened = []
        for shard in range(shards):
            store = make_store(source, shard, shards)
            held.push_async_callback(store.close)
            await store.open()
            opened.append(store)
            settled = time.monotonic() + (0.0 if store.kind in LOCKING else SETTLE_SECONDS)
            read = await _move(store, target, shard, shards, progress, skip_damaged=skip_damaged)
            found = await _read_back(target, shard, shards)
            if found != read:
                raise StoreError(
                    f"shard {shard}: {_told(read.rows, read.records)} were read (SHA-256 {read.hex}) and {_told(found.rows, found.records)} are "
                    f"there now (SHA-256 {found.hex}): do not use TO; {_how_to_begin_anew(target)}"
                )
            digests.append(read)
        await asyncio.sleep(max(0.0, settled - time.monotonic()))
        await _check_unfenced(opened)
    whole = hashlib.sha256(b"".join(digest.value for digest in digests)).hexdigest()
    jobs, records = sum(digest.rows for digest in digests), sum(digest.records for digest in digests)
    return Copied(jobs, records, shards, progress.damaged, round(time.monotonic() - began, 3), whole)


def _told(jobs: int, records: int) -> str:
    """Say how many there are."""
    return f"{jobs:,} jobs and {records:,} records" if records else f"{jobs:,} jobs"


# --- before anything is written ----------------------------------------------------------------------------------


class _Survey(msgspec.Struct):
    jobs: int = 0
    records: int = 0
    size: int = 0
    damaged: int = 0
    too_large: int = 0


def _check(url: str, name: str) -> None:
    """Refuse what is no store, or keeps nothing. Raises `SettingError`."""
    try:
        keeps = make_store(url, 0, 1).keeps
    except SettingError as error:
        raise SettingError(str(error).replace("store", name, 1)) from error
    if not keeps:
        raise SettingError(f"{name}: this store keeps no jobs")


async def _check_empty(target: str) -> None:
    shards = await prepared_shards(target)
    for shard in range(shards or 0):
        store = make_store(target, shard, shards or 0)
        try:
            await store.open()
            await _expect_nothing(store, target)
        finally:
            await store.close()


async def _expect_nothing(store: Store, target: str) -> None:
    for what, load in (("records", store.load_records), ("jobs", store.load)):
        async for chunk in load():
            if chunk:
                raise StoreError(
                    f"TO holds {what} already, of a server or of a copy that was interrupted; nothing was written. To copy into this place, "
                    f"{_how_to_begin_anew(target)}"
                )


async def _survey(source: str, sample: Store, shards: int, *, skip_damaged: bool, tell: Callable[[str], None]) -> _Survey:
    """Read all rows and records, and raise where they cannot all be copied. `sample`: a store of the target, never opened."""
    survey = _Survey()
    for shard in range(shards):
        store = make_store(source, shard, shards)
        try:
            await store.open()
            async for found in store.load_records():
                for record in found:
                    _look_at(record, survey, sample.row_bytes_max, tell)
            async for chunk in store.load():
                for item in chunk:
                    _look_at(item, survey, sample.row_bytes_max, tell)
        finally:
            await store.close()
    if survey.too_large:
        raise StoreError(
            f"{survey.too_large:,} jobs are larger than TO can take ({sample.row_bytes_max:,} bytes each); nothing was written"
        )
    if survey.damaged and not skip_damaged:
        raise StoreError(f"{survey.damaged:,} stored rows are no jobs; nothing was written. To leave them behind, add --skip-damaged")
    return survey


def _look_at(item: Row | Record | Damaged, survey: _Survey, row_bytes_max: int | None, tell: Callable[[str], None]) -> None:
    fault = fault_of(item)
    if fault is not None:
        survey.damaged += 1
        tell(f"damaged: {fault}")
        return
    assert not isinstance(item, Damaged)
    size = size_of(item)
    survey.size += size
    if isinstance(item, Record):
        survey.records += 1
        return
    survey.jobs += 1
    if row_bytes_max is not None and size > row_bytes_max:
        survey.too_large += 1
        if survey.too_large <= TOO_LARGE_NAMED:
            tell(f"too large: slot {item.slot}, seq {item.seq}: {size:,} bytes")


def fault_of(item: Row | Record | Damaged) -> str | None:
    """Say where a row or record lies that no shard would take for one, and why; None for any other. What a record says is not looked at."""
    if isinstance(item, Damaged):
        return f"{item.where}: {item.fault}"
    if isinstance(item, Record):
        return None
    try:
        job_of(item)
    except RowError as error:
        return f"slot {item.slot}, seq {item.seq}: {error}"
    return None if slot_of(item.queue) == item.slot else f"slot {item.slot}, seq {item.seq}: the slot is not that of its queue"


def size_of(item: Row | Record) -> int:
    """Return the bytes that count against a store's limits: names, payload, state and extras, or a record's name and value."""
    if isinstance(item, Record):
        return len(item.name.encode()) + len(item.value or b"")
    return len(item.queue.encode()) + len(item.id.encode()) + len(item.payload) + len(item.state or b"") + len(item.extras or b"")


def _how_to_begin_anew(target: str) -> str:
    scheme = target.partition(":")[0].lower()
    anew = next((way for kind, way in _ANEW.items() if scheme.startswith(kind)), "empty it")
    return f"{anew} and begin anew, or name another place"


# --- moving ------------------------------------------------------------------------------------------------------


class Digest(msgspec.Struct):
    """Rows in order and records in none, counted and hashed."""

    rows: int
    records: int
    value: bytes

    @property
    def hex(self) -> str:
        """The first half of the hash, for a reader."""
        return self.value.hex()[:32]


class Digester:
    """Takes rows in order, and records in any."""

    def __init__(self) -> None:
        self._rows = 0
        self._records = 0
        self._hash = hashlib.sha256()
        self._sum = 0

    def add(self, rows: Sequence[Row]) -> None:
        """Take all fields of some more rows: MessagePack says of each its type and length, so that no two sequences of rows are alike."""
        self._rows += len(rows)
        self._hash.update(b"".join([_encode(_astuple(row)) for row in rows]))

    def add_records(self, records: Sequence[Record]) -> None:
        """Take some more records."""
        self._records += len(records)
        self._sum += sum(int.from_bytes(hashlib.sha256(_encode(_astuple(record))).digest(), "big") for record in records)

    def digest(self) -> Digest:
        """Return what has been taken so far."""
        whole = self._hash.copy()
        whole.update((self._sum % 2**256).to_bytes(32, "big"))
        return Digest(self._rows, self._records, whole.digest())


class _Progress:
    """Tells how far it is, now and then."""

    def __init__(self, tell: Callable[[str], None], jobs: int) -> None:
        self.damaged = 0
        self._tell = tell
        self._jobs = jobs
        self._done = 0
        self._told = time.monotonic()

    def add(self, jobs: int) -> None:
        """Count some more jobs."""
        self._done += jobs
        now = time.monotonic()
        if now - self._told >= PROGRESS_SECONDS:
            self._told = now
            self._tell(f"{self._done:,} of {self._jobs:,} jobs written")


async def _move(source: Store, target_url: str, shard: int, shards: int, progress: _Progress, *, skip_damaged: bool) -> Digest:
    """Read a shard's rows and records from the open source, and commit them to the target."""
    digester = Digester()
    target = make_store(target_url, shard, shards)
    writer = _Writer(target, progress)
    try:
        await target.open()
        await _expect_nothing(target, target_url)
        async for found in source.load_records():
            records = [item for item in found if isinstance(item, Record)]
            _check_whole(found, records, progress, skip_damaged=skip_damaged)
            digester.add_records(records)
            for record in records:
                await writer.add(record)
        await writer.flush()
        async for chunk in source.load():
            rows = [item for item in chunk if isinstance(item, Row) and fault_of(item) is None]
            _check_whole(chunk, rows, progress, skip_damaged=skip_damaged)
            digester.add(rows)
            for row in rows:
                await writer.add(row)
        await writer.flush()
    finally:
        await target.close()
    return digester.digest()


def _check_whole(found: Sequence[object], good: Sequence[object], progress: _Progress, *, skip_damaged: bool) -> None:
    """Count what is left behind. Raises `StoreError` where nothing may be."""
    if len(good) < len(found):
        progress.damaged += len(found) - len(good)
        if not skip_damaged:
            raise StoreError("FROM has changed while it was copied: begin anew")


class _Writer:
    """Commits rows and records in batches within a target's limits."""

    def __init__(self, target: Store, progress: _Progress) -> None:
        self._target = target
        self._progress = progress
        self._rows_max = min(BATCH_ROWS_MAX, target.batch_rows_max or BATCH_ROWS_MAX)
        self._bytes_max = min(BATCH_BYTES_MAX, target.batch_bytes_max or BATCH_BYTES_MAX)
        self._batch, self._size = Batch([], [], []), 0

    async def add(self, item: Row | Record) -> None:
        """Take one more."""
        size = size_of(item)
        if len(self._batch) and (len(self._batch) == self._rows_max or self._size + size > self._bytes_max):
            await self.flush()
        if isinstance(item, Row):
            self._batch.inserts.append(item)
        else:
            self._batch.records.append(item)
        self._size += size

    async def flush(self) -> None:
        """Commit what there is."""
        if len(self._batch):
            await _commit(self._target, self._batch)
            self._progress.add(len(self._batch.inserts))
            self._batch, self._size = Batch([], [], []), 0


async def _commit(target: Store, batch: Batch) -> None:
    """Commit a batch, patiently: a target that is away for a moment must not cost hours."""
    patience_end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            await target.commit(batch)
        except (StoreRefused, StoreUnknown) as error:
            if time.monotonic() >= patience_end:
                raise
            if await _is_there(target, batch, patience_end, doubtful=isinstance(error, StoreUnknown)):
                return
        else:
            return


async def _is_there(target: Store, batch: Batch, patience_end: float, *, doubtful: bool) -> bool:
    """Reach the target again, and say whether a batch in doubt was written."""
    keys = [RowKey(row.slot, row.seq, row.queue, row.id) for row in batch.inserts]
    record_keys = [RecordKey(record.slot, record.kind, record.name) for record in batch.records]
    count = len(keys) + len(record_keys)
    while True:
        await asyncio.sleep(BACKOFF_SECONDS)
        try:
            await target.reopen()
            found = 0
            if doubtful:
                found = len(await target.read(keys)) + len(await target.read_records(record_keys))
        except (StoreRefused, StoreUnknown):
            if time.monotonic() >= patience_end:
                raise
        else:
            if found not in {0, count}:
                raise StoreError(f"TO has written {found} of {count} rows of one batch: it does not do as it must, do not use it")
            return found > 0


async def _read_back(target_url: str, shard: int, shards: int) -> Digest:
    """Open a shard of the target anew and read all of it."""
    digester = Digester()
    target = make_store(target_url, shard, shards)
    try:
        await target.open()
        async for found in target.load_records():
            _expect_good(found, "record that cannot be read")
            digester.add_records([item for item in found if isinstance(item, Record)])
        async for chunk in target.load():
            _expect_good(chunk, "row that is no job")
            digester.add([item for item in chunk if isinstance(item, Row)])
    finally:
        await target.close()
    return digester.digest()


def _expect_good(found: Sequence[object], what: str) -> None:
    damaged = next((item for item in found if isinstance(item, Damaged)), None)
    if damaged is not None:
        raise StoreError(f"TO gave back a {what} ({damaged.where}: {damaged.fault}): do not use it")


async def _check_unfenced(sources: Sequence[Store]) -> None:
    """Raise where anyone has opened the source since it was opened here."""
    for shard, store in enumerate(sources):
        try:
            await store.commit(Batch([], [], []))
        except StoreFenced as error:
            raise StoreError(
                f"a server has opened shard {shard} of FROM while it was copied: do not use TO; stop that server, empty TO and begin anew"
            ) from error
