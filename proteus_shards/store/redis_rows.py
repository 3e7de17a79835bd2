"""What a row is in Redis: fields of three hashes, all under the same ten bytes.

    rows      the row as it was inserted, in MessagePack
    marks     what its last mark said, in MessagePack; missing while it has none
    states    the state of the last mark that set one, in MessagePack; missing while none did

So a mark writes some 50 bytes, whatever the payload weighs, and a row that is inserted, delivered and completed was written once. The ten bytes are
slot and seq, big-endian: they say where a row belongs without it being decoded, which is how rows move between shards.

**No order is kept.** A sorted set of order keys would be written at each insert and delete only for the next start, which needs every row anyway: a load
reads the hashes in whatever order they come, and sorts. (Measured with 200-byte rows: with the set an insert costs the server 7.7 µs instead of 3.4, a delete 4.6
instead of 1.9, and each row 140 bytes more; without it a load costs the shard 2 µs a row more, of 8.)

Numbers cross Lua as bytes inside a value, never as numbers: those are doubles there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct, error
from typing import Annotated, Any, get_type_hints

import msgspec

from proteus_shards.core.model import Batch, Row
from proteus_shards.errors import StorePermanent
from proteus_shards.store.contract import Damaged

_FIELD = Struct(">HQ")
_MARKED = tuple(Row.__struct_fields__.index(name) for name in ("status", "attempt", "run_id", "reason", "updated_at"))
_SLOT, _SEQ, _READY_AT, _STATE = (Row.__struct_fields__.index(name) for name in ("slot", "seq", "ready_at", "state"))

_encode = msgspec.msgpack.encode
_field = _FIELD.pack
_values = msgspec.structs.astuple

# MessagePack as Lua's decoder of Redis knows it: it has no type for bytes, but takes any in a text
_FIELD_FOLLOWS, _VALUE_FOLLOWS, _ARRAY_FOLLOWS = 0xA0 + _FIELD.size, 0xDB, 0xDD
_item = Struct(">BHQ").pack
_pair = Struct(">BHQBI").pack
_raw = _head = Struct(">BI").pack


def field_of(slot: int, seq: int) -> bytes:
    """Return the name of a row's fields."""
    return _field(slot, seq)


def slot_of_field(field: bytes) -> int | None:
    """Return the slot of a field; None: this is no row's."""
    return _FIELD.unpack(field)[0] if len(field) == _FIELD.size else None


def packed(batch: Batch) -> tuple[bytes, bytes, bytes, bytes]:
    """Return what the script is given of a batch: deletes, marks, states, inserts. Raises `StorePermanent`."""
    inserts: list[bytes] = []
    marks: list[bytes] = []
    states: list[bytes] = []
    try:
        for row in batch.inserts:
            value = _encode(_values(row))
            inserts += (_pair(_FIELD_FOLLOWS, row.slot, row.seq, _VALUE_FOLLOWS, len(value)), value)
        for mark in batch.marks:
            value = _encode((mark.status, mark.attempt, mark.run_id, mark.reason, mark.updated_at))
            marks += (_pair(_FIELD_FOLLOWS, mark.slot, mark.seq, _VALUE_FOLLOWS, len(value)), value)
            if mark.state_set:
                value = _encode(mark.state)
                states += (_pair(_FIELD_FOLLOWS, mark.slot, mark.seq, _VALUE_FOLLOWS, len(value)), value)
        deletes = [_item(_FIELD_FOLLOWS, key.slot, key.seq) for key in batch.deletes]
    except (UnicodeEncodeError, OverflowError, error) as fault:
        # from None: the error itself quotes the name
        raise StorePermanent(
            f"a row holds what Redis cannot keep ({type(fault).__name__}): text that is not unicode, or a number out of range"
        ) from None
    return _array(len(deletes), deletes), _array(len(marks), marks), _array(len(states), states), _array(len(inserts), inserts)


def pairs_packed(pairs: Sequence[bytes]) -> bytes:
    """Return field, value, field, value, … as a script takes them."""
    return _array(len(pairs), [piece for item in pairs for piece in (_raw(_VALUE_FOLLOWS, len(item)), item)])


def _array(count: int, pieces: list[bytes]) -> bytes:
    return b"".join((_head(_ARRAY_FOLLOWS, count), *pieces))


class RowReader:
    """Makes rows of fields and values. `own`: the slots of this shard; a row of another is `Damaged`. `where`: the hash of the rows."""

    def __init__(self, own: range, where: str) -> None:
        types = get_type_hints(Row)
        types["slot"] = Annotated[int, msgspec.Meta(ge=own.start, le=own.stop - 1)]
        types["seq"] = Annotated[int, msgspec.Meta(ge=0)]
        marked = [types[Row.__struct_fields__[index]] for index in _MARKED]
        self._row: Any = msgspec.msgpack.Decoder(tuple.__class_getitem__(tuple(types.values())))
        self._mark: Any = msgspec.msgpack.Decoder(tuple.__class_getitem__(tuple(marked)))
        self._state: Any = msgspec.msgpack.Decoder(bytes | None)
        self._where = where

    def row(self, field: bytes, value: bytes, mark: bytes | None, state: bytes | None) -> Row | Damaged:
        """Return the row of one field."""
        try:
            values = self._row.decode(value)
            if mark is not None or state is not None:
                values = self._changed(list(values), mark, state)
        except (msgspec.MsgspecError, UnicodeDecodeError) as fault:
            return self.damaged(field, _told(fault))
        if _field(values[_SLOT], values[_SEQ]) != field:
            return self.damaged(field, "slot and seq of the row are not those that it is kept under")
        return Row(*values)

    def damaged(self, field: bytes, fault: str) -> Damaged:
        """Return what stands for a field that is no row."""
        seq = _FIELD.unpack(field)[1] if len(field) == _FIELD.size else None
        return Damaged(f"{self._where} field {field[:32].hex()}", fault, seq)

    def _changed(self, values: list[Any], mark: bytes | None, state: bytes | None) -> list[Any]:
        if mark is not None:
            for index, value in zip(_MARKED, self._mark.decode(mark), strict=True):
                values[index] = value
        if state is not None:
            values[_STATE] = self._state.decode(state)
        return values


def in_order(rows: Iterable[Row | Damaged]) -> list[Row | Damaged]:
    """Return rows by `(ready_at, seq)`, and behind them what is none."""
    good: list[Row] = []
    damaged: list[Damaged] = []
    for row in rows:
        (good if isinstance(row, Row) else damaged).append(row)  # type: ignore[arg-type]
    good.sort(key=lambda row: (row.ready_at, row.seq))
    return [*good, *damaged]


def chunks(rows: list[Row | Damaged], rows_max: int, bytes_max: int) -> Iterator[list[Row | Damaged]]:
    """Yield a list in parts, and let go of what was yielded."""
    rows.reverse()
    while rows:
        chunk: list[Row | Damaged] = []
        size = 0
        while rows and len(chunk) < rows_max and size < bytes_max:
            row = rows.pop()
            chunk.append(row)
            if isinstance(row, Row):
                size += len(row.payload) + len(row.state or b"")
        yield chunk


def _told(fault: Exception) -> str:
    """Say what is wrong without a word of what is stored."""
    if isinstance(fault, msgspec.ValidationError):
        text, at, path = str(fault).partition(" - at ")
        index = path.strip("`$[]")
        return f"{text}{at}{Row.__struct_fields__[int(index)] if index.isdigit() and int(index) < len(Row.__struct_fields__) else path}"
    return "it is not MessagePack" if isinstance(fault, msgspec.DecodeError) else "a text is not UTF-8"
