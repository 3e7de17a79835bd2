"""One shard's rows and records in one SQLite file.

All calls that may block run on one thread, which alone has the connection; a commit never holds up the event loop. A file is only ever
opened by `sqlite_file.py`, which holds its lock for life.

**Commit.** BEGIN, is the epoch still ours, deletes, marks, inserts, records, COMMIT. What raises has been rolled back, or the store has failed: from then on
every call raises the same again, and closing leaves the file exactly as it is. A delete or a mark without its row means that memory
and store no longer agree. Nothing is repaired then: the batch is rolled back and the store has failed, since after
a restart memory is what the store says.

**Upkeep** runs between commits on the same thread, after the caller has its answer, so that it delays only the next commit, and by one short
step at most. A *checkpoint* copies the log into the database once the log has 1,000 pages: SQLite would do it inside COMMIT, and would pass
over its errors. It is due when the frame at that place bears the salts of the log's header (the frames of earlier rounds bear others). The log is
reused from its start and keeps its blocks, which makes its fsync cheaper than that of a growing file. While a backup is made (`sqlite_backup.py`), checkpoints
are put off. A *vacuum* gives free pages back to the file system,
128 at a step, while more than a quarter of the file is free; below that they are kept for the jobs to come.

**A full disk** refuses a commit as a whole, deletes and marks too once the log has no room left, and the store heals by itself: nothing
need be reopened. (Tried on a tmpfs: SQLITE_FULL comes at COMMIT, and what it refused is never there later.)

Measured on 2 cores, SQLite 3.40, an fsync of 0.15 ms, jobs of 110 bytes, rows per second in batches of 1, 100 and 1,000: 3,600, 150,000
and 280,000 with synchronous=full, 20,000, 260,000 and 300,000 with normal. A million rows load in 2 to 3 s, of which the sort of their
keys takes 0.3 s; an index in that order would cost each insert 13%. quick_check reads 700 MB/s. A record of 200 bytes among 100,000 takes 1.5 to 5 µs to
write, to find or to remove, a hundred or more at a time.

Loads and commits take turns with the event loop instead of running beside it (the next chunk is not fetched ahead): both need
the interpreter at every row, and handing it over costs more than it saves.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple, Unpack

from proteus_shards.core.model import Batch, Record, RecordKey, Row, RowKey
from proteus_shards.core.placement import slots_of
from proteus_shards.errors import StoreError, StoreFailed, StoreFenced
from proteus_shards.store.contract import Damaged, Durability
from proteus_shards.store.sqlite_backup import CheckpointLock
from proteus_shards.store.sqlite_file import Meta, abandon, check_meta, checkpoint, fault_of, open_file, query, take_epoch, translated
from proteus_shards.store.sqlite_folder import database_path, manifest_for
from proteus_shards.store.sqlite_rows import RecordReader, RowReader, read_records, read_rows, write_batch
from proteus_shards.store.urls import SqliteUrl

log = logging.getLogger("proteus_shards.store")

LOAD_ROWS = 5000  # in a chunk
LOG_PAGES_MAX = 1000  # a checkpoint is due once the log has so many
FREE_PAGES_KEPT = 1024  # free pages that are not worth a vacuum
DELETES_UNCHECKED = 64  # rows deleted before upkeep looks at the free pages

_LOG_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_SALTS_BYTES = 8
_SALTS_IN_LOG_HEADER = 16
_SALTS_IN_FRAME_HEADER = 8

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class SqliteStore:
    """Implements `contract.Store`. Never raises `StoreUnknown`: where the outcome of a commit is unknown, the file has failed."""

    kind = "sqlite"
    keeps = True
    row_bytes_max: int | None = None
    batch_rows_max: int | None = None
    batch_bytes_max: int | None = None

    def __init__(self, url: SqliteUrl, shard: int, shards: int) -> None:
        self.durability = Durability.MACHINE if url.synchronous == "full" else Durability.PROCESS
        self.terms = f"SQLite {sqlite3.sqlite_version}, synchronous={url.synchronous}"
        self._sync = "sync_each_commit" if url.synchronous == "full" else "sync_at_checkpoints"
        self._url = url
        self._shard = shard
        self._shards = shards
        self._path = url.folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"sqlite-{shard}")
        self._closed = False
        # what follows belongs to the thread
        self._db: sqlite3.Connection | None = None
        self._fault: StoreError | None = None
        self._reader: RowReader | None = None
        self._record_reader: RecordReader | None = None
        self._epoch = 0
        self._log_fd = -1
        self._hold: CheckpointLock | None = None
        self._log_mark = 0  # where the frame starts whose being there makes a checkpoint due
        self._deleted = 0  # rows, and records written or removed, since upkeep last looked at the free pages
        self._shrinking = False
        self._put_off = False

    async def open(self) -> int:
        """Open this shard's file, check it, and take a new epoch."""
        return await self._call(self._open)

    async def load(self) -> AsyncIterator[Sequence[Row | Damaged]]:
        """Yield all rows in order."""
        try:
            while chunk := await self._call(self._next_chunk):
                yield chunk
        finally:
            if not self._closed:
                self._thread.submit(self._stop_reading)  # an unfinished read would hold up the checkpoints

    async def load_records(self) -> AsyncIterator[Sequence[Record | Damaged]]:
        """Yield all records in the order in which they were first written."""
        try:
            while chunk := await self._call(self._next_records):
                yield chunk
        finally:
            if not self._closed:
                self._thread.submit(self._stop_reading)

    async def commit(self, batch: Batch) -> None:
        """Write a batch."""
        await self._call(self._commit, batch)

    async def reopen(self) -> int:
        """Take a new epoch once there is space to write it. The connection stays: with it the lock would go."""
        return await self._call(self._reopen)

    async def read(self, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        """Return the rows that exist among `keys`."""
        return await self._call(self._read, keys)

    async def read_records(self, keys: Sequence[RecordKey]) -> dict[RecordKey, bytes]:
        """Return the values of the records that exist among `keys`."""
        return await self._call(self._read_records, keys)

    async def close(self) -> None:
        """Close the file."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown()

    async def _call(self, function: Callable[[Unpack[_Ts]], _T], *arguments: *_Ts) -> _T:
        if self._closed:
            raise StoreError("the store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    # --- on the thread -----------------------------------------------------------------------------------------

    def _open(self) -> int:
        assert self._db is None, "opened twice"
        manifest = manifest_for(self._url.folder, self._shards)
        self._path = path = database_path(self._url.folder, manifest, self._shard)
        db = open_file(path, self._url.check)
        try:
            if manifest_for(self._url.folder, self._shards) != manifest:  # from now on nobody else can move the rows
                raise StoreError(f"{self._url.folder} was moved to another number of shards just now: start again")  # noqa: TRY301
            check_meta(db, path, Meta(0, self._shard, self._shards, manifest.generation))
            with translated(path):
                epoch = self._take_epoch(db)
                self._watch_log(db)
                self._hold = CheckpointLock(path.parent)
        except BaseException:
            abandon(db)
            raise
        self._db = db
        return epoch

    def _reopen(self) -> int:
        if self._db is None and self._fault is None:
            return self._open()
        db = self._usable()
        try:
            return self._take_epoch(db)
        except Exception as error:
            raise self._failed(db, error, committing=False) from error

    def _take_epoch(self, db: sqlite3.Connection) -> int:
        """Take an epoch, which survives a loss of power whatever `synchronous` says."""
        db.execute(query("sync_each_commit"))
        self._epoch = take_epoch(db)
        db.execute(query(self._sync))
        return self._epoch

    def _next_chunk(self) -> list[Row | Damaged]:
        db = self._usable()
        with translated(self._path):
            if self._reader is None:
                self._reader = RowReader(db, self._path, slots_of(self._shard, self._shards))
            return self._reader.next(LOAD_ROWS)

    def _next_records(self) -> list[Record | Damaged]:
        db = self._usable()
        with translated(self._path):
            if self._record_reader is None:
                self._record_reader = RecordReader(db, self._path, slots_of(self._shard, self._shards))
            return self._record_reader.next(LOAD_ROWS)

    def _stop_reading(self) -> None:
        for reader in (self._reader, self._record_reader):
            if reader is not None:
                reader.close()
        self._reader = self._record_reader = None

    def _commit(self, batch: Batch) -> None:
        db = self._usable()
        try:
            db.execute(query("begin"))
            self._check_epoch(db)
            write_batch(db, batch)
        except Exception as error:
            raise self._failed(db, error, committing=False) from error
        try:
            db.execute(query("commit"))
        except Exception as error:
            raise self._failed(db, error, committing=True) from error
        self._deleted += len(batch.deletes) + len(batch.records)
        self._thread.submit(self._keep_up)

    def _check_epoch(self, db: sqlite3.Connection) -> None:
        ((epoch,),) = db.execute(query("read_epoch")).fetchall()
        if epoch != self._epoch:
            raise StoreFenced(f"{self._path} is at epoch {epoch}, this process has {self._epoch}: another has taken over")

    def _read(self, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        with translated(self._path):
            return read_rows(self._usable(), keys)

    def _read_records(self, keys: Sequence[RecordKey]) -> dict[RecordKey, bytes]:
        with translated(self._path):
            return read_records(self._usable(), keys)

    def _close(self) -> None:
        db, self._db = self._db, None
        self._stop_reading()
        if self._log_fd >= 0:
            os.close(self._log_fd)
        if db is None:
            return
        assert self._hold is not None
        try:
            if self._fault is not None or not self._hold.share():  # closing would make a checkpoint
                abandon(db)
            else:
                db.close()
        except (sqlite3.Error, OSError) as error:
            log.error("store not closed cleanly", extra={"where": str(self._path), "error": str(fault_of(error, self._path))})  # noqa: TRY400
        finally:
            self._hold.close()

    def _usable(self) -> sqlite3.Connection:
        if self._fault is not None:
            raise type(self._fault)(str(self._fault)) from self._fault
        if self._db is None:
            raise StoreError("the store is not open")
        return self._db

    def _failed(self, db: sqlite3.Connection, error: Exception, *, committing: bool) -> StoreError:
        """Roll back and return what the error means. Where that is no refusal, the store has failed for good."""
        fault = fault_of(error, self._path, committing=committing)
        if db.in_transaction:
            try:
                db.execute(query("rollback"))
            except sqlite3.Error as second:
                fault = fault_of(second, self._path, committing=True)
        if isinstance(fault, StoreFailed | StoreFenced):
            self._fault = fault
        return fault

    # --- upkeep ------------------------------------------------------------------------------------------------

    def _watch_log(self, db: sqlite3.Connection) -> None:
        ((page_bytes,),) = db.execute(query("page_size")).fetchall()
        self._log_mark = _LOG_HEADER_BYTES + (LOG_PAGES_MAX - 1) * (_FRAME_HEADER_BYTES + page_bytes)
        self._log_fd = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)

    def _log_is_long(self) -> bool:
        now = os.pread(self._log_fd, _SALTS_BYTES, _SALTS_IN_LOG_HEADER)
        return os.pread(self._log_fd, _SALTS_BYTES, self._log_mark + _SALTS_IN_FRAME_HEADER) == now

    def _free_pages(self, db: sqlite3.Connection) -> None:
        """Give some pages back, without a sync: the next commit's covers this too."""
        db.execute(query("sync_at_checkpoints"))
        try:
            db.executescript(query("free_pages"))  # execute would take one step, and free one page
        finally:
            db.execute(query(self._sync))

    def _checkpoint(self, db: sqlite3.Connection) -> bool:
        """Make a checkpoint, unless a backup is being made: then it is put off, and False."""
        assert self._hold is not None
        if not self._hold.share():
            return False
        try:
            checkpoint(db)
        finally:
            self._hold.release()
        return True

    def _keep_up(self) -> None:
        """Do one step of what is due. An error that is no lack of space makes the next call fail."""
        db = self._db
        if db is None or self._fault is not None:
            return
        try:
            if self._log_is_long():
                if not self._checkpoint(db):
                    return
            elif not self._shrinking and self._deleted < DELETES_UNCHECKED:
                return
            self._deleted = 0
            ((pages,),) = db.execute(query("count_pages")).fetchall()
            ((free,),) = db.execute(query("count_free_pages")).fetchall()
            if free > max(FREE_PAGES_KEPT, pages // 4):
                self._shrinking = True
                self._free_pages(db)
                self._thread.submit(self._keep_up)  # behind a commit that waits already
            elif self._shrinking:
                self._shrinking = not self._checkpoint(db)  # only this cuts the file off
            self._put_off = False
        except Exception as error:  # nobody awaits this: a bug, too, must be met by the next call
            fault = self._failed(db, error, committing=True)
            if self._fault is not None:
                log.exception("store upkeep failed", extra={"where": str(self._path), "error": str(fault)})
            elif not self._put_off:
                log.warning("store upkeep is put off", extra={"where": str(self._path), "error": str(fault)})
            self._put_off = True
