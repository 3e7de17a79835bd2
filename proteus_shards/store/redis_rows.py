"""What a row is in Redis: fields of four hashes, all under the same ten bytes. And what a record is: a field of a fifth.

    rows      the row as it was inserted, in MessagePack. Version 1 wrote it without the last value, the extras: then there are none
    marks     what its last mark said, in MessagePack; missing while it has none
    states    the state of the last mark that set one, in MessagePack; missing while none did
    extras    likewise the extras
    records   the value of a record as it is, under slot, kind (two bytes each, big-endian) and name

So a mark writes some 50 bytes, whatever the payload weighs, and a row that is inserted, delivered and completed was written once. The ten bytes of a row are
slot and seq, big-endian: they say where a row belongs without it being decoded, which is how rows move between shards.

**No order is kept.** A sorted set of order keys would be written at each insert and delete only for the next start, which needs every row anyway: a load
reads the hashes in whatever order they come, and sorts. (Measured with 200-byte rows: with the set an insert costs the server 7.7 µs instead of 3.4, a delete 4.6
instead of 1.9, and each row 140 bytes more; without it a load costs the shard 2 µs a row more, of 8.)

Numbers cross Lua as bytes inside a value, never as numbers: those are doubles there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from struct import Struct, error
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec

from proteus_shards.core.model import Batch, Record, Row
from proteus_shards.errors import StorePermanent
from proteus_shards.store.contract import Damaged

_FIELD = Struct(">HQ")
_RECORD = Struct(">HH")
_MARKED = tuple(Row.__struct_fields__.index(name) for name in ("status", "attempt", "run_id", "reason", "updated_at"))
_SLOT, _SEQ, _STATE, _EXTRAS = (Row.__struct_fields__.index(name) for name in ("slot", "seq", "state", "extras"))
_VERSION_1_VALUES = _EXTRAS  # of a row: all before the extras
_VERSION_1_HEAD = b"\xdc" + _VERSION_1_VALUES.to_bytes(2, "big")

_encode = msgspec.msgpack.encode
_field = _FIELD.pack
_values = msgspec.structs.astuple
_Item = TypeVar("_Item")

# MessagePack as Lua's decoder of Redis knows it: it has no type for bytes, but takes any in a text
_FIELD_FOLLOWS, _VALUE_FOLLOWS, _ARRAY_FOLLOWS = 0xA0 + _FIELD.size, 0xDB, 0xDD
_item = Struct(">BHQ").pack
_pair = Struct(">BHQBI").pack
_raw = _head = Struct(">BI").pack
_NONE = b""  # in place of an array that most batches have no use for


def field_of(slot: int, seq: int) -> bytes:
    """Return the name of a row's fields."""
    return _field(slot, seq)


def slot_of_field(field: bytes) -> int | None:
    """Return the slot of a field; None: this is no row's."""
    return _FIELD.unpack(field)[0] if len(field) == _FIELD.size else None


def record_field_of(slot: int, kind: int, name: str) -> bytes:
    """Return the name of a record's field. Raises `UnicodeEncodeError` and `struct.error`."""
    return _RECORD.pack(slot, kind) + name.encode()


def slot_of_record_field(field: bytes) -> int | None:
    """Return the slot of a field of a record; None: this is none's."""
    return _RECORD.unpack_from(field)[0] if len(field) > _RECORD.size else None


def packed(batch: Batch) -> tuple[bytes, ...]:
    """Return what the script is given of a batch: deletes, marks, states, inserts. Raises `StorePermanent`.

    Where there are any of these: extras, records, and the fields of records to remove, too.
    """
    inserts: list[bytes] = []
    marks: list[bytes] = []
    states: list[bytes] = []
    extras: list[bytes] = []
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
            if mark.extras_set:
                value = _encode(mark.extras)
                extras += (_pair(_FIELD_FOLLOWS, mark.slot, mark.seq, _VALUE_FOLLOWS, len(value)), value)
        records, removed = _records_packed(batch.records) if batch.records else (_NONE, _NONE)
        deletes = [_item(_FIELD_FOLLOWS, key.slot, key.seq) for key in batch.deletes]
    except (UnicodeEncodeError, OverflowError, error) as fault:
        # from None: the error itself quotes the name
        raise StorePermanent(
            f"a row or record holds what Redis cannot keep ({type(fault).__name__}): text that is not unicode, or a number out of range"
        ) from None
    rows = (_array(len(deletes), deletes), _array(len(marks), marks), _array(len(states), states), _array(len(inserts), inserts))
    if not extras and not batch.records:  # three arguments more cost a batch of one row 3 %
        return rows
    return (*rows, _array(len(extras), extras) if extras else _NONE, records, removed)


def pairs_packed(pairs: Sequence[bytes]) -> bytes:
    """Return field, value, field, value, … as a script takes them."""
    return _array(len(pairs), [piece for item in pairs for piece in (_raw(_VALUE_FOLLOWS, len(item)), item)])


def _records_packed(records: Sequence[Record]) -> tuple[bytes, bytes]:
    pairs: list[bytes] = []
    removed: list[bytes] = []
    for record in records:
        field = record_field_of(record.slot, record.kind, record.name)
        if record.value is None:
            removed.append(field)
        else:
            pairs += (field, record.value)
    return pairs_packed(pairs) if pairs else _NONE, pairs_packed(removed) if removed else _NONE


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
        self._row_of_version_1: Any = msgspec.msgpack.Decoder(tuple.__class_getitem__(tuple(types.values())[:_VERSION_1_VALUES]))
        self._mark: Any = msgspec.msgpack.Decoder(tuple.__class_getitem__(tuple(marked)))
        self._bytes: Any = msgspec.msgpack.Decoder(bytes | None)
        self._where = where

    def row(self, field: bytes, value: bytes, mark: bytes | None, state: bytes | None, extras: bytes | None) -> Row | Damaged:
        """Return the row of one field."""
        try:
            values = (self._row_of_version_1 if value.startswith(_VERSION_1_HEAD) else self._row).decode(value)
            if mark is not None or state is not None or extras is not None:
                values = self._changed(list(values), mark, state, extras)
        except (msgspec.MsgspecError, UnicodeDecodeError) as fault:
            return self.damaged(field, _told(fault))
        if _field(values[_SLOT], values[_SEQ]) != field:
            return self.damaged(field, "slot and seq of the row are not those that it is kept under")
        return Row(*values)

    def damaged(self, field: bytes, fault: str) -> Damaged:
        """Return what stands for a field that is no row."""
        seq = _FIELD.unpack(field)[1] if len(field) == _FIELD.size else None
        return Damaged(f"{self._where} field {field[:32].hex()}", fault, seq)

    def _changed(self, values: list[Any], mark: bytes | None, state: bytes | None, extras: bytes | None) -> list[Any]:
        if mark is not None:
            for index, value in zip(_MARKED, self._mark.decode(mark), strict=True):
                values[index] = value
        if state is not None:
            values[_STATE] = self._bytes.decode(state)
        if extras is not None:
            values[_EXTRAS:] = (self._bytes.decode(extras),)  # one of version 1 has no place for it yet
        return values


class RecordReader:
    """Makes records of fields and values. `own`: the slots of this shard; a record of another is `Damaged`. `where`: the hash of the records."""

    def __init__(self, own: range, where: str) -> None:
        self._own = own
        self._where = where

    def record(self, field: bytes, value: bytes) -> Record | Damaged:
        """Return the record of one field."""
        slot = slot_of_record_field(field)
        if slot is None:
            return self._damaged(field, "its field is not that of a record")
        if slot not in self._own:
            return self._damaged(field, "its slot is not one of this shard's")
        try:
            name = field[_RECORD.size :].decode()
        except UnicodeDecodeError:
            return self._damaged(field, "its name is not UTF-8")
        return Record(slot, _RECORD.unpack_from(field)[1], name, value)

    def _damaged(self, field: bytes, fault: str) -> Damaged:
        return Damaged(f"{self._where} field {field[:32].hex()}", fault)


def in_order(rows: Iterable[Row | Damaged]) -> list[Row | Damaged]:
    """Return rows by `(ready_at, seq)`, and behind them what is none."""
    good: list[Row] = []
    damaged: list[Damaged] = []
    for row in rows:
        (good if isinstance(row, Row) else damaged).append(row)  # type: ignore[arg-type]
    good.sort(key=lambda row: (row.ready_at, row.seq))
    return [*good, *damaged]


def chunks(items: list[_Item], size_of: Callable[[_Item], int], items_max: int, bytes_max: int) -> Iterator[list[_Item]]:
    """Yield a list in parts, and let go of what was yielded."""
    items.reverse()
    while items:
        chunk: list[_Item] = []
        size = 0
        while items and len(chunk) < items_max and size < bytes_max:
            item = items.pop()
            chunk.append(item)
            size += size_of(item)
        yield chunk


def row_bytes(row: Row | Damaged) -> int:
    """Return about how many bytes a row is, without its names."""
    return len(row.payload) + len(row.state or b"") + len(row.extras or b"") if isinstance(row, Row) else 0


def record_bytes(record: Record | Damaged) -> int:
    """Return how many bytes a record is."""
    return len(record.name) + len(record.value or b"") if isinstance(record, Record) else 0


def _told(fault: Exception) -> str:
    """Say what is wrong without a word of what is stored."""
    if isinstance(fault, msgspec.ValidationError):
        text, at, path = str(fault).partition(" - at ")
        index = path.strip("`$[]")
        return f"{text}{at}{Row.__struct_fields__[int(index)] if index.isdigit() and int(index) < len(Row.__struct_fields__) else path}"
    return "it is not MessagePack" if isinstance(fault, msgspec.DecodeError) else "a text is not UTF-8"
