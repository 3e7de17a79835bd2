"""Before any shard starts: make a SQLite store's files, or move the rows to another number of them.

**Moving** reads each old file in order and merges them by `(ready_at, seq, old shard)`; a new file numbers its rows in the order in which they
come. A queue's rows all lie in one old file, so their order among themselves is kept, dead letters included. Records go where their slot does, as
they are, in no order. Both stream: in memory
are one chunk of each old file and a buffer of each new one, and no more than 64 new files are written at a time (the shards of both
counts are ranges of slots, so that each such group only reads the old files that it overlaps).

Nothing is moved unless all of it can be: first every old file is locked, then every row and record is read. A damaged one stops the move, as it can
be said neither where it belongs nor that it may be lost; with the old number of shards the server runs on without it.

A new file is written without a sync, synced as a whole, and only counts once the manifest names it (`sqlite_folder.py`). Its epoch is
above that of every old file.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import TypeAlias

import msgspec

from proteus_shards.core.model import Record, Row
from proteus_shards.core.placement import shard_of, slot_of, slots_of
from proteus_shards.errors import StoreError, StoreRefused
from proteus_shards.store.contract import Damaged
from proteus_shards.store.open_files import allow_open_files
from proteus_shards.store.sqlite_file import Meta, abandon, check_meta, checkpoint, create_file, open_file, query, translated
from proteus_shards.store.sqlite_folder import (
    LAYOUT,
    MANIFEST,
    Manifest,
    Step,
    database_path,
    generation_path,
    generations,
    locked,
    make_folder,
    read_manifest,
    sweep,
    switch_manifest,
    sync,
    write_manifest,
)
from proteus_shards.store.sqlite_rows import RecordReader, RowReader, Values, count_stored, insert_rows, write_records
from proteus_shards.store.urls import SqliteUrl

# Where a process may be stopped and leave things as no other moment does.
STEPS = ("locked", "examined", "created", "copied", "verified", "synced", "written", "switched", "settled", "swept")

FILES_AT_ONCE = 64
CHUNK_ROWS = 64  # read from an old file at a time
BUFFER_ROWS = 256  # written to a new file at a time
BUFFER_BYTES = 1024 * 1024
CACHE_KIB = 1024
DAMAGED_NAMED = 10

Counts: TypeAlias = Counter[tuple[int, str]]


class Source(msgspec.Struct, frozen=True):
    """An old file, held."""

    shard: int
    slots: range
    path: Path
    db: sqlite3.Connection
    epoch: int


def prepare(url: SqliteUrl, shards: int, step: Step = lambda _: None) -> str | None:
    """Make the folder ready for `shards` shards, and say what was moved, if anything was.

    Raises `StoreLocked` where any file is in use, `StoreRefused` where space is missing, another `StoreError` where someone must see to
    it first. Whatever it raises, the rows are where they were. `step` is called with one of `STEPS` as each is reached.
    """
    folder = url.folder
    with translated(folder):
        if read_manifest(folder) is None:
            make_folder(folder.absolute())
        with ExitStack() as held:
            held.enter_context(locked(folder))
            old = _begin(folder, shards, step)
            sweep(folder, old, step)
            if old.generation > 0 and old.shards == shards:
                return None
            new = Manifest(LAYOUT, shards, 1 + max([old.generation, *generations(folder)]))
            try:
                moved = _fill(url, old, new, step, held)
                write_manifest(folder, new, step)
            except BaseException:
                with suppress(OSError):
                    sweep(folder, old, step)
                raise
            switch_manifest(folder, step)
            sweep(folder, new, step)
            return moved


def _begin(folder: Path, shards: int, step: Step) -> Manifest:
    """Return what is in force; in a new folder that is generation 0."""
    manifest = read_manifest(folder)
    if manifest is None:
        if lost := generations(folder):
            raise StoreError(f"{folder} holds {min(lost.values()).name} but no {MANIFEST}: restore it from a backup")
        manifest = Manifest(LAYOUT, shards, 0)
        write_manifest(folder, manifest, step)
        switch_manifest(folder, step)
    return manifest


def _fill(url: SqliteUrl, old: Manifest, new: Manifest, step: Step, held: ExitStack) -> str | None:
    """Write a new generation, durably. `held` gets the locks on the old one."""
    folder = url.folder
    allow_open_files(2 * old.shards + 3 * FILES_AT_ONCE + 64)
    sources = _open_sources(url, old, held) if old.generation else []
    step("locked")
    before = _examine(sources)
    step("examined")
    generation_path(folder, new).mkdir(mode=0o700)
    step("created")
    epoch = max((source.epoch + 1 for source in sources), default=0)
    try:
        after = _copy(sources, folder, new, epoch, step)
    except StoreRefused as error:
        raise StoreRefused(f"{folder}: moving to {new.shards} shards needs about as much space again; nothing was changed") from error
    if after != before:
        raise StoreError(f"{folder}: what was copied is not what was there ({dict(after)}, not {dict(before)}); nothing was changed")
    step("verified")
    for shard in range(new.shards):
        sync(database_path(folder, new, shard))
    sync(generation_path(folder, new))
    sync(folder)
    step("synced")
    if not sources:
        return None
    jobs = sum(count for (_, what), count in after.items() if what == "jobs")
    records = sum(count for (_, what), count in after.items() if what == "records")
    beside = f" and {records:,} records" if records else ""
    return f"moved {jobs:,} stored jobs{beside} from {old.shards} to {new.shards} shards"


def _open_sources(url: SqliteUrl, old: Manifest, held: ExitStack) -> list[Source]:
    """Take the locks of all old files."""
    sources = []
    for shard in range(old.shards):
        path = database_path(url.folder, old, shard)
        db = open_file(path, url.check, CACHE_KIB)
        held.callback(abandon, db)  # whatever comes, they are left as they are
        epoch = check_meta(db, path, Meta(0, shard, old.shards, old.generation))
        sources.append(Source(shard, slots_of(shard, old.shards), path, db, epoch))
    return sources


def _examine(sources: list[Source]) -> Counts:
    """Read every row and record. Returns the counts; raises `StoreError` where one is damaged."""
    counts: Counts = Counter()
    found = 0
    named: list[str] = []
    for source in sources:
        for item in chain(_records(source), _rows(source)):
            fault = _fault(item, source)
            if fault is not None:
                found += 1
                if found <= DAMAGED_NAMED:
                    named.append(fault)
        with translated(source.path):
            counts += count_stored(source.db)
    if found:
        raise StoreError(
            f"{found} stored rows are damaged and cannot be moved: {'; '.join(named)}{' …' if found > DAMAGED_NAMED else ''}. "
            f"Start with {len(sources)} shards as before, or take these rows out of their files first"
        )
    return counts


def _fault(item: Row | Record | Damaged, source: Source) -> str | None:
    if isinstance(item, Damaged):
        return f"{item.where}: {item.fault}"
    if isinstance(item, Record) or slot_of(item.queue) == item.slot:
        return None
    return f"{source.path}, seq {item.seq}: slot is not that of its queue"


def _rows(source: Source, only: range | None = None) -> Iterator[Row | Damaged]:
    with translated(source.path):
        reader = RowReader(source.db, source.path, source.slots, only)
        while chunk := reader.next(CHUNK_ROWS):
            yield from chunk


def _records(source: Source, only: range | None = None) -> Iterator[Record | Damaged]:
    with translated(source.path):
        reader = RecordReader(source.db, source.path, source.slots, only)
        while chunk := reader.next(CHUNK_ROWS):
            yield from chunk


def _copy(sources: list[Source], folder: Path, new: Manifest, epoch: int, step: Step) -> Counts:
    """Write all rows and records to the new files. Returns the counts of what they then hold."""
    counts: Counts = Counter()
    shards = iter(range(new.shards))
    while group := list(islice(shards, FILES_AT_ONCE)):
        slots = range(slots_of(group[0], new.shards).start, slots_of(group[-1], new.shards).stop)
        writers = {}
        with ExitStack() as opened:
            for shard in group:
                path = database_path(folder, new, shard)
                create_file(path, Meta(epoch, shard, new.shards, new.generation))
                writers[shard] = Writer(path)
                opened.callback(writers[shard].close)
            overlapping = [source for source in sources if source.slots.start < slots.stop and slots.start < source.slots.stop]
            for record in chain.from_iterable(_records(source, slots) for source in overlapping):
                if isinstance(record, Record):
                    writers[shard_of(record.slot, new.shards)].add_record(record)
            streams = [
                ((row.ready_at, row.seq, source.shard, row) for row in _rows(source, slots) if isinstance(row, Row))
                for source in overlapping
            ]
            for _, _, _, row in heapq.merge(*streams, key=itemgetter(0, 1, 2)):
                writers[shard_of(row.slot, new.shards)].add(row)
            step("copied")
            for writer in writers.values():
                counts += writer.finish()
    return counts


class Writer:
    """Fills one new file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = open_file(path, "none", CACHE_KIB)
        self._db.execute(query("sync_never"))
        self._db.execute(query("checkpoint_by_itself")).fetchall()
        self._seq = 0
        self._rows: list[Values] = []
        self._records: list[Record] = []
        self._bytes = 0

    def add(self, row: Row) -> None:
        """Take the next row of this file."""
        self._seq += 1
        self._rows.append(msgspec.structs.astuple(msgspec.structs.replace(row, seq=self._seq)))
        self._take(len(row.payload) + len(row.state or b"") + len(row.extras or b""))

    def add_record(self, record: Record) -> None:
        """Take a record of this file."""
        self._records.append(record)
        self._take(len(record.name) + len(record.value or b""))

    def finish(self) -> Counts:
        """Write what is left and return the counts of all that the file holds."""
        self._flush()
        with translated(self._path):
            checkpoint(self._db)
            return count_stored(self._db)

    def close(self) -> None:
        """Close the file."""
        with translated(self._path):
            self._db.close()

    def _take(self, size: int) -> None:
        self._bytes += size
        if len(self._rows) + len(self._records) >= BUFFER_ROWS or self._bytes >= BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        with translated(self._path):
            self._db.execute(query("begin"))
            insert_rows(self._db, self._rows)
            write_records(self._db, self._records)
            self._db.execute(query("commit"))
        self._rows.clear()
        self._records.clear()
        self._bytes = 0
