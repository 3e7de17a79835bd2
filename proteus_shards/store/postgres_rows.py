"""Rows as Postgres takes and gives them.

A batch becomes an array a column, which the driver encodes in compiled code: per row that costs a few microseconds, most of them
there. What comes back has the types of its columns, unless somebody changed the table: so they are checked, a chunk at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, get_type_hints

import msgspec

from proteus_shards.core.model import Batch, Mark, Row
from proteus_shards.store.contract import Damaged

_astuple = msgspec.structs.astuple
_COLUMNS = Row.__struct_fields__
_MARK_COLUMNS = len(Mark.__struct_fields__)
_ROW_TYPE: Any = tuple.__class_getitem__(tuple(get_type_hints(Row).values()))
_ROWS_TYPE: Any = list.__class_getitem__(_ROW_TYPE)
_INDEX = re.compile(r"`\$\[(\d+)\]`")  # how msgspec names an item of a tuple


def statement_of(batch: Batch) -> tuple[str, list[Sequence[Any]]]:
    """Return the name of the statement that commits a batch, and what it takes behind its fence.

    That is two arrays of the deletes, nine of the marks, sixteen of the inserts; or only the last.
    """
    deletes, marks = batch.deletes, batch.marks
    inserts = _columns(batch.inserts, len(_COLUMNS))
    if not deletes and not marks:
        return "commit_inserts", inserts
    slots, seqs, _, _, *changes, state_set, states = _columns(marks, _MARK_COLUMNS)
    kept = [state if is_set else None for state, is_set in zip(states, state_set, strict=True)]  # a state that is not set need not travel
    return "commit", [[key.slot for key in deletes], [key.seq for key in deletes], slots, seqs, *changes, state_set, kept, *inserts]


def rows_of(records: Sequence[Any]) -> list[Row | Damaged]:
    """Return the rows of records whose columns are in the order of `Row`."""
    values = [*map(tuple, records)]
    try:
        msgspec.convert(values, _ROWS_TYPE)
    except msgspec.ValidationError:
        return [_row(row) for row in values]
    return [Row(*row) for row in values]


def _row(values: tuple[Any, ...]) -> Row | Damaged:
    try:
        return Row(*msgspec.convert(values, _ROW_TYPE))
    except msgspec.ValidationError as error:
        slot, seq = values[:2]
        fault = _INDEX.sub(lambda found: _COLUMNS[int(found[1])], str(error))
        return Damaged(f"slot {slot}, seq {seq}", fault, seq if isinstance(seq, int) else None)


def _columns(items: Iterable[Any], width: int) -> list[Sequence[Any]]:
    return list(zip(*map(_astuple, items), strict=True)) or [()] * width
