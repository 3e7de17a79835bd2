"""Rows and records as Postgres takes and gives them.

A batch becomes an array a column, which the driver encodes in compiled code: per row that costs a few microseconds, most of them
there. What comes back has the types of its columns, unless somebody changed the table: so they are checked, a chunk at a time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, get_type_hints

import msgspec

from proteus_shards.core.model import Batch, Mark, Record, RecordKey, Row
from proteus_shards.store.contract import Damaged

_astuple = msgspec.structs.astuple
_COLUMNS = Row.__struct_fields__
_MARK_COLUMNS = len(Mark.__struct_fields__)
_ROW_TYPE: Any = tuple.__class_getitem__(tuple(get_type_hints(Row).values()))
_ROWS_TYPE: Any = list.__class_getitem__(_ROW_TYPE)
_RECORD_COLUMNS = ("slot", "kind", "digest", "name", "value")
_RECORD_TYPE: Any = tuple[int, int, bytes, str, bytes]
_INDEX = re.compile(r"`\$\[(\d+)\]`")  # how msgspec names an item of a tuple


def statement_of(batch: Batch) -> tuple[str, list[Sequence[Any]]]:
    """Return the name of the statement that commits a batch, and what it takes behind its fence.

    That is two arrays of the deletes, nine of the marks, sixteen of the inserts; or only the last. Where there are extras or records, the marks
    have eleven and the inserts seventeen, and there are three more of the records to remove and five of those to write.
    """
    deletes, marks = batch.deletes, batch.marks
    inserts = _columns(map(_astuple, batch.inserts), len(_COLUMNS))
    plain = not batch.records and inserts[-1].count(None) == len(batch.inserts)
    if plain and not deletes and not marks:
        return "commit_inserts", inserts[:-1]
    slots, seqs, _, _, *changes, state_set, states, extras_set, extras = _columns(map(_astuple, marks), _MARK_COLUMNS)
    arguments = [[key.slot for key in deletes], [key.seq for key in deletes], slots, seqs, *changes, state_set, _kept(states, state_set)]
    if plain and True not in extras_set:
        return "commit", [*arguments, *inserts[:-1]]
    removed = _columns([keys_of(record) for record in batch.records if record.value is None], 3)
    written = _columns([(*keys_of(record), record.name, record.value) for record in batch.records if record.value is not None], 5)
    return "commit_all", [*arguments, extras_set, _kept(extras, extras_set), *inserts, *removed, *written]


def _kept(values: Sequence[Any], are_set: Sequence[bool]) -> list[Any]:
    """Return values, without those that are not set: they need not travel."""
    return [value if is_set else None for value, is_set in zip(values, are_set, strict=True)]


def keys_of(record: Record | RecordKey) -> tuple[int, int, bytes]:
    """Return what a record is found by."""
    return record.slot, record.kind, _digest(record.name)


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()  # the driver refuses such a name


def rows_of(found: Sequence[Any]) -> list[Row | Damaged]:
    """Return the rows of what was found, whose columns are in the order of `Row`."""
    values = [*map(tuple, found)]
    try:
        msgspec.convert(values, _ROWS_TYPE)
    except msgspec.ValidationError:
        return [_row(row) for row in values]
    return [Row(*row) for row in values]


def records_of(found: Sequence[Any]) -> list[Record | Damaged]:
    """Return the records of what was found, whose columns are slot, kind, digest, name and value."""
    return [_record(tuple(values)) for values in found]


def _record(values: tuple[Any, ...]) -> Record | Damaged:
    slot, kind, digest, name, value = values
    try:
        msgspec.convert(values, _RECORD_TYPE)
    except msgspec.ValidationError as error:
        return damaged_record((slot, kind, digest), _INDEX.sub(lambda found: _RECORD_COLUMNS[int(found[1])], str(error)))
    if _digest(name) != digest:
        return damaged_record((slot, kind, digest), "digest is not that of its name")
    return Record(slot, kind, name, value)


def damaged_record(place: tuple[Any, ...], fault: str) -> Damaged:
    """Return what stands for a record that cannot be read."""
    slot, kind, digest = place
    return Damaged(f"slot {slot}, kind {kind}, digest {digest.hex() if isinstance(digest, bytes) else 'none'}", fault)


def damaged_row(place: tuple[Any, ...], fault: str) -> Damaged:
    """Return what stands for a row that cannot be read."""
    slot, seq = place
    return Damaged(f"slot {slot}, seq {seq}", fault, seq if isinstance(seq, int) else None)


def _row(values: tuple[Any, ...]) -> Row | Damaged:
    try:
        return Row(*msgspec.convert(values, _ROW_TYPE))
    except msgspec.ValidationError as error:
        return damaged_row(values[:2], _INDEX.sub(lambda found: _COLUMNS[int(found[1])], str(error)))


def _columns(items: Iterable[Any], width: int) -> list[Sequence[Any]]:
    return list(zip(*items, strict=True)) or [()] * width
