"""Rows and records to and from one SQLite file: a batch in few statements, and a load that steps over what is neither.

**Few statements.** Python lets other threads run at every step of a statement, and the thread that commits must then win the
interpreter back from a busy event loop. So a batch does not go row by row: up to 512 rows are one statement and one step. Widths are
powers of two, so that few statements are ever prepared. (Measured against `executemany`, batches of 1,000: beside a busy event loop a
tenth more rows, and half the time for the slowest commit in a hundred; beside a thread that never waits four times the rows.)

**Extras** most jobs have not: their rows and marks go by statements without that column (with it, inserts were 10% slower).

**Large payloads** live in a table of their own, see the schema.

**What is no row, or no record,** is given as `Damaged`. The types of each value are checked, all of a chunk at once, although STRICT tables have
them right: with check=none a file may be read whose bits are not. Text that is no UTF-8 makes the driver raise in mid-chunk; the load then
begins again behind the last chunk given, reading text as bytes.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Generic, TypeAlias, TypeVar, get_type_hints

import msgspec

from proteus_shards.core.model import Batch, Mark, Record, RecordKey, Row, RowKey
from proteus_shards.errors import StoreFailed
from proteus_shards.store.contract import Damaged
from proteus_shards.store.sqlite_file import WIDTH_MAX, query

INLINE_BYTES_MAX = 2048  # a payload beyond it is large; a page has 4096 bytes
CHUNK_BYTES = 4 * 1024 * 1024  # of payloads, states and extras, or of records: a chunk ends with the one that reaches it

Values: TypeAlias = tuple[Any, ...]  # of a row or record, in the order of its fields

_COLUMNS = Row.__struct_fields__
_SEQ, _PAYLOAD, _STATE, _EXTRAS = (_COLUMNS.index(name) for name in ("seq", "payload", "state", "extras"))
_MARK_SEQ, _MARK_CHANGES = (Mark.__struct_fields__.index(name) for name in ("seq", "status"))
_SLOT_MIN, _SLOT_MAX = -(2**63), 2**63 - 1  # of all rows, those with a wrong slot too
_INDEX = re.compile(r"`\$\[(\d+)\]`")  # how msgspec names an item of a tuple
_SIZED = (bytes, str)
_Item = TypeVar("_Item")
_Made = TypeVar("_Made", Row, Record)
_astuple = msgspec.structs.astuple


# --- writing -----------------------------------------------------------------------------------------------------


def write_batch(db: sqlite3.Connection, batch: Batch) -> None:
    """Write a batch inside the transaction that is open. Raises `StoreFailed` where memory and store do not agree on which rows exist."""
    deletes, marks = batch.deletes, batch.marks
    found = _delete(db, [key.seq for key in deletes])
    if found != len(deletes):
        raise StoreFailed(f"{len(deletes) - found} of {len(deletes)} rows to delete are not in the store: memory and store do not agree")
    found = _mark(db, marks)
    if found != len(marks):
        raise StoreFailed(f"{len(marks) - found} of {len(marks)} rows to change are not in the store: memory and store do not agree")
    insert_rows(db, [_astuple(row) for row in batch.inserts])
    if batch.records:
        write_records(db, batch.records)


def insert_rows(db: sqlite3.Connection, rows: Sequence[Values]) -> None:
    """Insert rows inside the transaction that is open."""
    small = [row for row in rows if row[_EXTRAS] is None and len(row[_PAYLOAD]) + len(row[_STATE] or b"") <= INLINE_BYTES_MAX]
    for part in _widths(small):
        values = list(chain.from_iterable(part))
        del values[_EXTRAS :: len(_COLUMNS)]
        db.execute(query("insert_jobs", len(part)), values)
    if len(small) == len(rows):
        return
    small = []
    for row in rows:
        size = len(row[_STATE] or b"") + len(row[_EXTRAS] or b"")
        if len(row[_PAYLOAD]) > INLINE_BYTES_MAX:
            db.execute(query("insert_large_payload"), (row[_SEQ], row[_PAYLOAD]))
            db.execute(query("insert_jobs_and_extras"), (*row[:_PAYLOAD], None, *row[_PAYLOAD + 1 :]))
        elif len(row[_PAYLOAD]) + size > INLINE_BYTES_MAX:
            db.execute(query("insert_jobs_and_extras"), row)
        elif row[_EXTRAS] is not None:
            small.append(row)
    for part in _widths(small):
        db.execute(query("insert_jobs_and_extras", len(part)), list(chain.from_iterable(part)))


def write_records(db: sqlite3.Connection, records: Sequence[Record]) -> None:
    """Write and remove records inside the transaction that is open."""
    small: list[Values] = []
    large: list[Values] = []
    gone: list[Values] = []
    for record in records:
        if record.value is None:
            gone.append((record.slot, record.kind, record.name))
        else:
            (small if len(record.name) + len(record.value) <= INLINE_BYTES_MAX else large).append(_astuple(record))
    for part in chain(_widths(small), ([values] for values in large)):
        db.execute(query("write_records", len(part)), list(chain.from_iterable(part)))
    for keys in _widths(gone):
        db.execute(query("remove_records", len(keys)), list(chain.from_iterable(keys)))


def _delete(db: sqlite3.Connection, seqs: list[int]) -> int:
    found = 0
    for part in _widths(seqs):
        found += db.execute(query("delete_jobs", len(part)), part).rowcount
        db.execute(query("delete_large_payloads", len(part)), part)
    return found


def _mark(db: sqlite3.Connection, marks: list[Mark]) -> int:
    found = 0
    plain = [mark for mark in marks if not mark.extras_set]
    small = [mark for mark in plain if len(mark.state or b"") <= INLINE_BYTES_MAX]
    large = [mark for mark in plain if len(mark.state or b"") > INLINE_BYTES_MAX] if len(small) < len(plain) else []
    for part in chain(_widths(small), ([mark] for mark in large)):
        values = chain.from_iterable(
            (mark.seq, mark.status, mark.attempt, mark.run_id, mark.reason, mark.updated_at, mark.state_set, mark.state) for mark in part
        )
        found += db.execute(query("mark_jobs", len(part)), list(values)).rowcount
    return found + _mark_with_extras(db, [mark for mark in marks if mark.extras_set]) if len(plain) < len(marks) else found


def _mark_with_extras(db: sqlite3.Connection, marks: list[Mark]) -> int:
    found = 0
    small: list[Values] = []
    large: list[Values] = []
    for mark in marks:
        (small if len(mark.state or b"") + len(mark.extras or b"") <= INLINE_BYTES_MAX else large).append(_astuple(mark))
    for part in chain(_widths(small), ([values] for values in large)):
        values = chain.from_iterable((values[_MARK_SEQ], *values[_MARK_CHANGES:]) for values in part)
        found += db.execute(query("mark_jobs_and_extras", len(part)), list(values)).rowcount
    return found


def _widths(items: list[_Item]) -> Iterator[list[_Item]]:
    """Cut a list into parts of 512, then 256, 128, … as its length asks for."""
    start, width = 0, WIDTH_MAX
    while start < len(items):
        while width > len(items) - start:
            width //= 2
        yield items[start : start + width]
        start += width


# --- reading -----------------------------------------------------------------------------------------------------


def read_rows(db: sqlite3.Connection, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
    """Return the rows that exist among `keys`. Raises SQLite's errors."""
    wanted = {key.seq: key for key in keys}
    found: dict[RowKey, Row] = {}
    for part in _widths(list(wanted)):
        for values in db.execute(query("read_jobs", len(part)), part):
            row = Row(*values)
            key = wanted[row.seq]
            if (row.slot, row.queue, row.id) == (key.slot, key.queue, key.id):
                found[key] = row
    return found


def read_records(db: sqlite3.Connection, keys: Sequence[RecordKey]) -> dict[RecordKey, bytes]:
    """Return the values of the records that exist among `keys`. Raises SQLite's errors."""
    found: dict[RecordKey, bytes] = {}
    for part in _widths([_astuple(key) for key in keys]):
        for *key, value in db.execute(query("read_records", len(part)), list(chain.from_iterable(part))):
            found[RecordKey(*key)] = value
    return found


def count_stored(db: sqlite3.Connection) -> Counter[tuple[int, str]]:
    """Return how many jobs of each status and records of each kind a file has, and how many bytes and characters they hold."""
    counts: Counter[tuple[int, str]] = Counter()
    for what, statement in (("jobs", "count_jobs"), ("records", "count_records")):
        for group, count, size in db.execute(query(statement)):
            counts[group, what] += count
            counts[group, f"size of {what}"] += size
    return counts


class _Reader(Generic[_Made]):
    """What a file holds of one sort in a fixed order, a chunk at a time.

    `own`: the slots that the file is for; what is of another is `Damaged`. `only`: which slots are read, by default all, even impossible ones.
    """

    statement: str
    columns: tuple[str, ...]
    texts: tuple[int, ...]  # columns that hold text
    bulk: tuple[int, ...]  # columns that may be large

    def __init__(self, db: sqlite3.Connection, path: Path, own: range, only: range | None = None) -> None:
        self._db = db
        self._path = path
        self._slots = (only.start, only.stop - 1) if only is not None else (_SLOT_MIN, _SLOT_MAX)
        self._values_type = self._type_of(own)
        self._chunk_type = list[self._values_type]  # type: ignore[name-defined]  # made at run time
        self._given = 0
        self._as_bytes = False
        self._cursor = self._begin()

    def next(self, count: int) -> list[_Made | Damaged]:
        """Return up to `count` more, fewer where they are large; none once all are read. Raises SQLite's errors."""
        values = self._fetch(count)
        self._given += len(values)
        if not self._as_bytes:
            try:
                msgspec.convert(values, self._chunk_type)
            except msgspec.ValidationError:
                return [self._checked(row) for row in values]
            return self._made(values)
        return [self._checked(row) for row in values]

    def close(self) -> None:
        """Stop reading."""
        self._cursor.close()

    def _type_of(self, own: range) -> Any:
        """Return the type of what one fetched tuple must be."""
        raise NotImplementedError

    def _made(self, values: list[Values]) -> list[_Made | Damaged]:
        """Return what fetched tuples stand for, which have been checked."""
        raise NotImplementedError

    def _damaged(self, values: Values, fault: str) -> Damaged:
        """Return what stands for a tuple that has a fault."""
        raise NotImplementedError

    def _begin(self) -> sqlite3.Cursor:
        return self._db.execute(query(self.statement), (*self._slots, self._given))

    def _fetch(self, count: int) -> list[Values]:
        if not self._as_bytes:
            try:
                return self._some(count)
            except sqlite3.OperationalError as error:
                if hasattr(error, "sqlite_errorcode"):
                    raise
            self._as_bytes = True  # that was the driver: some text is no UTF-8
            self._cursor = self._begin()
        self._db.text_factory = bytes
        try:
            return self._some(count)
        finally:
            self._db.text_factory = str

    def _some(self, count: int) -> list[Values]:
        """Fetch tuples until there are enough, of whatever size: SQLite makes each only when it is asked for."""
        values: list[Values] = []
        size = 0
        for row in islice(self._cursor, count):
            values.append(row)
            for column in self.bulk:
                value = row[column]
                if value is not None and type(value) in _SIZED:
                    size += len(value)
            if size >= CHUNK_BYTES:
                break
        return values

    def _checked(self, values: Values) -> _Made | Damaged:
        texts = {column: values[column] for column in self.texts if isinstance(values[column], bytes)} if self._as_bytes else {}
        whole = list(values)
        for column, text in texts.items():
            try:
                whole[column] = text.decode()
            except UnicodeDecodeError:
                return self._damaged(values, f"{self.columns[column]} is not UTF-8")
        try:
            (made,) = self._made([msgspec.convert(whole, self._values_type)])
        except msgspec.ValidationError as error:
            return self._damaged(values, _INDEX.sub(lambda found: self.columns[int(found[1])], str(error)))
        return made


class RowReader(_Reader[Row]):
    """The rows of a file in the order `(ready_at, seq)`."""

    statement = "load_jobs"
    columns = _COLUMNS
    texts = tuple(_COLUMNS.index(name) for name in ("queue", "id", "reason"))
    bulk = (_PAYLOAD, _STATE, _EXTRAS)

    def _type_of(self, own: range) -> Any:
        """Return what `Row` says, the slot one of `own`."""
        types = get_type_hints(Row) | {"slot": _slot_type(own), "seq": Annotated[int, msgspec.Meta(ge=0)]}
        return tuple.__class_getitem__(tuple(types.values()))

    def _made(self, values: list[Values]) -> list[Row | Damaged]:
        return [Row(*row) for row in values]

    def _damaged(self, values: Values, fault: str) -> Damaged:
        return Damaged(f"{self._path}, seq {values[_SEQ]}", fault, values[_SEQ])


class RecordReader(_Reader[Record]):
    """The records of a file in the order of their first writing."""

    statement = "load_records"
    columns = (*Record.__struct_fields__, "number")
    texts = (columns.index("name"),)
    bulk = (columns.index("name"), columns.index("value"))

    def _type_of(self, own: range) -> Any:
        return tuple[_slot_type(own), int, str, bytes, int]  # type: ignore[misc]  # made at run time

    def _made(self, values: list[Values]) -> list[Record | Damaged]:
        return [Record(slot, kind, name, value) for slot, kind, name, value, _ in values]

    def _damaged(self, values: Values, fault: str) -> Damaged:
        return Damaged(f"{self._path}, record {values[-1]}", fault)


def _slot_type(own: range) -> Any:
    return Annotated[int, msgspec.Meta(ge=own.start, le=own.stop - 1)]
