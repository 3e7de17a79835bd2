"""Rows to and from one SQLite file: a batch in few statements, and a load that steps over what is no row.

**Few statements.** Python lets other threads run at every step of a statement, and the thread that commits must then win the
interpreter back from a busy event loop. So a batch does not go row by row: up to 512 rows are one statement and one step. Widths are
powers of two, so that few statements are ever prepared. (Measured against `executemany`, batches of 1,000: beside a busy event loop a
tenth more rows, and half the time for the slowest commit in a hundred; beside a thread that never waits four times the rows.)

**Large payloads** live in a table of their own, see the schema.

**What is no row** is given as `Damaged`. The types of each value are checked, all of a chunk at once, although STRICT tables have
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
from typing import Annotated, Any, TypeAlias, TypeVar, get_type_hints

import msgspec

from proteus_shards.core.model import Batch, Mark, Row, RowKey
from proteus_shards.errors import StoreFailed
from proteus_shards.store.contract import Damaged
from proteus_shards.store.sqlite_file import WIDTH_MAX, query

INLINE_BYTES_MAX = 2048  # a payload beyond it is large; a page has 4096 bytes
CHUNK_BYTES = 4 * 1024 * 1024  # of payloads and states: a chunk ends with the row that reaches it

Values: TypeAlias = tuple[Any, ...]  # of a row, in the order of its fields

_COLUMNS = Row.__struct_fields__
_SEQ, _PAYLOAD = _COLUMNS.index("seq"), _COLUMNS.index("payload")
_TEXTS = tuple(_COLUMNS.index(name) for name in ("queue", "id", "reason"))
_SLOT_MIN, _SLOT_MAX = -(2**63), 2**63 - 1  # of all rows, those with a wrong slot too
_INDEX = re.compile(r"`\$\[(\d+)\]`")  # how msgspec names an item of a tuple
_Item = TypeVar("_Item")
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


def insert_rows(db: sqlite3.Connection, rows: Sequence[Values]) -> None:
    """Insert rows inside the transaction that is open."""
    small = [row for row in rows if len(row[_PAYLOAD]) + len(row[-1] or b"") <= INLINE_BYTES_MAX]
    for part in _widths(small):
        db.execute(query("insert_jobs", len(part)), list(chain.from_iterable(part)))
    if len(small) == len(rows):
        return
    for row in rows:
        if len(row[_PAYLOAD]) > INLINE_BYTES_MAX:
            db.execute(query("insert_large_payload"), (row[_SEQ], row[_PAYLOAD]))
            db.execute(query("insert_jobs"), (*row[:_PAYLOAD], None, *row[_PAYLOAD + 1 :]))
        elif len(row[_PAYLOAD]) + len(row[-1] or b"") > INLINE_BYTES_MAX:
            db.execute(query("insert_jobs"), row)


def _delete(db: sqlite3.Connection, seqs: list[int]) -> int:
    found = 0
    for part in _widths(seqs):
        found += db.execute(query("delete_jobs", len(part)), part).rowcount
        db.execute(query("delete_large_payloads", len(part)), part)
    return found


def _mark(db: sqlite3.Connection, marks: list[Mark]) -> int:
    found = 0
    small = [mark for mark in marks if len(mark.state or b"") <= INLINE_BYTES_MAX]
    large = [mark for mark in marks if len(mark.state or b"") > INLINE_BYTES_MAX] if len(small) < len(marks) else []
    for part in chain(_widths(small), ([mark] for mark in large)):
        values = chain.from_iterable(
            (mark.seq, mark.status, mark.attempt, mark.run_id, mark.reason, mark.updated_at, mark.state_set, mark.state) for mark in part
        )
        found += db.execute(query("mark_jobs", len(part)), list(values)).rowcount
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


def count_jobs(db: sqlite3.Connection) -> Counter[tuple[int, str]]:
    """Return how many jobs of each status a file has, and how many bytes and characters they hold."""
    counts: Counter[tuple[int, str]] = Counter()
    for status, jobs, size in db.execute(query("count_jobs")):
        counts[status, "jobs"] += jobs
        counts[status, "size"] += size
    return counts


class RowReader:
    """The rows of a file in the order `(ready_at, seq)`, a chunk at a time.

    `own`: the slots that the file is for; a row of another is `Damaged`. `only`: which slots are read, by default all, even impossible ones.
    """

    def __init__(self, db: sqlite3.Connection, path: Path, own: range, only: range | None = None) -> None:
        self._db = db
        self._path = path
        self._slots = (only.start, only.stop - 1) if only is not None else (_SLOT_MIN, _SLOT_MAX)
        self._row_type = _row_type(own)
        self._chunk_type = list[self._row_type]  # type: ignore[name-defined]  # made at run time
        self._given = 0
        self._as_bytes = False
        self._cursor = self._begin()

    def next(self, count: int) -> list[Row | Damaged]:
        """Return up to `count` more rows, fewer where they are large; none once all are read. Raises SQLite's errors."""
        values = self._fetch(count)
        self._given += len(values)
        if not self._as_bytes:
            try:
                msgspec.convert(values, self._chunk_type)
            except msgspec.ValidationError:
                return [self._row(row) for row in values]
            return [Row(*row) for row in values]
        return [self._row(row) for row in values]

    def close(self) -> None:
        """Stop reading."""
        self._cursor.close()

    def _begin(self) -> sqlite3.Cursor:
        return self._db.execute(query("load_jobs"), (*self._slots, self._given))

    def _fetch(self, count: int) -> list[Values]:
        if not self._as_bytes:
            try:
                return _some(self._cursor, count)
            except sqlite3.OperationalError as error:
                if hasattr(error, "sqlite_errorcode"):
                    raise
            self._as_bytes = True  # that was the driver: some text is no UTF-8
            self._cursor = self._begin()
        self._db.text_factory = bytes
        try:
            return _some(self._cursor, count)
        finally:
            self._db.text_factory = str

    def _row(self, values: Values) -> Row | Damaged:
        texts = {column: values[column] for column in _TEXTS if isinstance(values[column], bytes)} if self._as_bytes else {}
        whole = list(values)
        for column, text in texts.items():
            try:
                whole[column] = text.decode()
            except UnicodeDecodeError:
                return self._damaged(values, f"{_COLUMNS[column]} is not UTF-8")
        try:
            return Row(*msgspec.convert(whole, self._row_type))
        except msgspec.ValidationError as error:
            return self._damaged(values, _INDEX.sub(lambda found: _COLUMNS[int(found[1])], str(error)))

    def _damaged(self, values: Values, fault: str) -> Damaged:
        return Damaged(f"{self._path}, seq {values[_SEQ]}", fault, values[_SEQ])


def _some(cursor: sqlite3.Cursor, count: int) -> list[Values]:
    """Fetch rows until there are enough, of whatever size: SQLite makes each only when it is asked for."""
    values: list[Values] = []
    size = 0
    for row in islice(cursor, count):
        values.append(row)
        payload, state = row[_PAYLOAD], row[-1]
        size += len(payload) if type(payload) is bytes else 0
        if state is not None:
            size += len(state) if type(state) is bytes else 0
        if size >= CHUNK_BYTES:
            break
    return values


def _row_type(own: range) -> Any:
    """Return the type of a row's values: what `Row` says, its slot one of `own`."""
    types = get_type_hints(Row)
    types["slot"] = Annotated[int, msgspec.Meta(ge=own.start, le=own.stop - 1)]
    types["seq"] = Annotated[int, msgspec.Meta(ge=0)]
    return tuple.__class_getitem__(tuple(types.values()))
