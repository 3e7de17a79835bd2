"""Rows to and from items of a DynamoDB table.

**Keys.** A row's partition key is `rows#NN`, NN being `seq % 32`, and its sort key is slot and seq with leading zeros. So:

* `(slot, seq)` is the key, not queue and id, which a dead letter and a living job may share;
* a shard's rows are, in each of the 32 partitions, one range of sort keys, whatever the number of shards: they are found by 32 queries, and nothing
  moves when the number changes;
* the rows of one queue are spread over all partitions. With a partition for each slot, a busy queue would end at what DynamoDB gives to one
  partition key, 1,000 write units a second, which is less than 200 persisted jobs (each is written three times, at two units each).

**Items.** One attribute for each field of a row, named as it is, so that the table can be read in the console. An absent attribute is None.
Payload, state and extras are binary: as text they would have to be UTF-8 twice over. What may change in a job's life (`Mark`) are attributes of their own
anyway, so that a mark neither reads nor sends the payload.

**Sizes**, as AWS counts them: of a text and a binary its bytes, of a number at most a byte per two digits and one more, and of each attribute its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from proteus_shards.core.model import NAME_LENGTH_MAX, Batch, Mark, Row, RowKey
from proteus_shards.core.placement import SLOTS
from proteus_shards.errors import StorePermanent
from proteus_shards.store.contract import Damaged

PARTITIONS = 32
ITEM_BYTES_MAX = 400 * 1024
TRANSACTION_BYTES_MAX = 4 * 1024 * 1024
TRANSACTION_ACTIONS_MAX = 100
READ_KEYS_MAX = 100  # of one BatchGetItem

Item: TypeAlias = dict[str, Any]

_SEQ_DIGITS = 19
_SORT_KEY = re.compile(r"(\d{4})#(\d{19})")
_FIELDS = tuple(name for name in Row.__struct_fields__ if name not in {"slot", "seq"})
_NUMBER_BYTES = 12  # of one of up to 19 digits, with its sign
FIXED_BYTES = (
    sum(map(len, _FIELDS)) + _NUMBER_BYTES * len(_FIELDS) + 16 + len("pk") + len("rows#00") + len("sk") + 5 + _SEQ_DIGITS
)  # of an item, but for its texts, payload, state and extras
_REASON_BYTES_MAX = 4 * NAME_LENGTH_MAX

ROW_BYTES_MAX = ITEM_BYTES_MAX - FIXED_BYTES - _REASON_BYTES_MAX
BATCH_ROWS_MAX = TRANSACTION_ACTIONS_MAX - 1  # the last one is the check of the epoch
BATCH_BYTES_MAX = TRANSACTION_BYTES_MAX - BATCH_ROWS_MAX * (FIXED_BYTES + 256) - 1024  # a reason is short where it is not drawn by a test

_MARK_NAMES = {"#st": "status", "#at": "attempt", "#up": "updated_at", "#ru": "run_id", "#re": "reason"}
_STATE_NAME = {"#sta": "state"}
_EXTRAS_NAME = {"#ex": "extras"}
_NAMES_OF_MARK = {  # by whether it sets the state, and the extras
    (False, False): _MARK_NAMES,
    (True, False): _MARK_NAMES | _STATE_NAME,
    (False, True): _MARK_NAMES | _EXTRAS_NAME,
    (True, True): _MARK_NAMES | _STATE_NAME | _EXTRAS_NAME,
}
_EXISTS = "attribute_exists(pk)"
_ABSENT = "attribute_not_exists(pk)"


# --- what the wire carries: an attribute is an object with one member, named after its type ---


class Text(msgspec.Struct):
    """A text."""

    S: str


class Number(msgspec.Struct):
    """A number, in decimal digits."""

    N: str


class Binary(msgspec.Struct):
    """Bytes."""

    B: bytes  # base64 on the wire


class Keys(msgspec.Struct):
    """What every item has."""

    pk: Text
    sk: Text


class _RowItem(msgspec.Struct):
    pk: Text
    sk: Text
    queue: Text
    id: Text
    status: Number
    ready_at: Number
    timeout: Number
    max_retries: Number
    attempt: Number
    created_at: Number
    updated_at: Number
    payload: Binary
    run_at: Number | None = None
    run_id: Binary | None = None
    reason: Text | None = None
    state: Binary | None = None
    extras: Binary | None = None  # version 1 wrote none


_read_item = msgspec.json.Decoder(_RowItem).decode
_read_items = msgspec.json.Decoder(list[_RowItem]).decode
read_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode
read_keys = msgspec.json.Decoder(Keys).decode


# --- keys ------------------------------------------------------------------------------------------------------------


def key_of(slot: int, seq: int, place: str) -> Item:
    """Return the key of a row. `place` is the beginning of the partition keys: "rows", or that of a trial."""
    return {"pk": {"S": partition(place, seq % PARTITIONS)}, "sk": {"S": f"{slot:04d}#{seq:0{_SEQ_DIGITS}d}"}}


def partition(place: str, number: int) -> str:
    """Return one of the 32 partition keys."""
    return f"{place}#{number:02d}"


def range_of(slots: range) -> tuple[str, str]:
    """Return the first and the last sort key that rows of these slots may have. What sorts before or after all slots is in the outermost ranges."""
    low = f"{slots.start:04d}#" if slots.start > 0 else "\x01"
    high = f"{slots.stop - 1:04d}#\x7f" if slots.stop < SLOTS else "\U0010ffff"
    return low, high


# --- writing ---------------------------------------------------------------------------------------------------------


def writes_of(batch: Batch, table: str, place: str) -> list[Item]:
    """Return the actions of a transaction that write a batch. Raises `StorePermanent` where a row can never be an item."""
    writes = [
        {"Delete": {"TableName": table, "Key": key_of(key.slot, key.seq, place), "ConditionExpression": _EXISTS}} for key in batch.deletes
    ]
    writes += [{"Update": _update_of(mark, table, place)} for mark in batch.marks]
    writes += [{"Put": {"TableName": table, "Item": item_of(row, place), "ConditionExpression": _ABSENT}} for row in batch.inserts]
    return writes


def item_of(row: Row, place: str) -> Item:
    """Return the item of a row. Raises `StorePermanent`, which does not repeat what it holds."""
    item = key_of(row.slot, row.seq, place)
    item["queue"] = {"S": row.queue}
    item["id"] = {"S": row.id}
    for name in ("status", "ready_at", "timeout", "max_retries", "attempt", "created_at", "updated_at"):
        item[name] = {"N": str(int(getattr(row, name)))}
    item["payload"] = {"B": row.payload}
    if row.run_at is not None:
        item["run_at"] = {"N": str(row.run_at)}
    if row.run_id is not None:
        item["run_id"] = {"B": row.run_id}
    if row.reason is not None:
        item["reason"] = {"S": row.reason}
    if row.state is not None:
        item["state"] = {"B": row.state}
    if row.extras is not None:
        item["extras"] = {"B": row.extras}
    size = size_of(row)
    if size > ITEM_BYTES_MAX:
        raise StorePermanent(f"a row of {size} bytes is larger than an item of DynamoDB may be, {ITEM_BYTES_MAX} bytes")
    return item


def size_of(row: Row) -> int:
    """Return how many bytes a row's item has at most. Raises `StorePermanent` where a text is no unicode."""
    texts = bytes_of(row.queue, row.id, row.reason or "")
    return FIXED_BYTES + texts + len(row.payload) + len(row.state or b"") + len(row.extras or b"")


def bytes_of(*texts: str) -> int:
    """Return how many bytes some texts are. Raises `StorePermanent` where one is no unicode."""
    try:
        return sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError:
        raise StorePermanent("a text with a lone surrogate cannot be stored") from None  # the error holds the text


def _update_of(mark: Mark, table: str, place: str) -> Item:
    bytes_of(mark.reason or "")
    values: Item = {
        ":st": {"N": str(int(mark.status))},
        ":at": {"N": str(mark.attempt)},
        ":up": {"N": str(mark.updated_at)},
    }
    sets = ["#st=:st", "#at=:at", "#up=:up"]
    removes = []
    changes: list[tuple[str, Item | None]] = [
        ("ru", None if mark.run_id is None else {"B": mark.run_id}),
        ("re", None if mark.reason is None else {"S": mark.reason}),
    ]
    if mark.state_set:
        changes.append(("sta", None if mark.state is None else {"B": mark.state}))
    if mark.extras_set:
        changes.append(("ex", None if mark.extras is None else {"B": mark.extras}))
    for name, value in changes:
        if value is None:
            removes.append(f"#{name}")
        else:
            sets.append(f"#{name}=:{name}")
            values[f":{name}"] = value
    return {
        "TableName": table,
        "Key": key_of(mark.slot, mark.seq, place),
        "UpdateExpression": f"SET {','.join(sets)}" + (f" REMOVE {','.join(removes)}" if removes else ""),
        "ConditionExpression": _EXISTS,
        "ExpressionAttributeNames": _NAMES_OF_MARK[mark.state_set, mark.extras_set],
        "ExpressionAttributeValues": values,
    }


# --- reading ---------------------------------------------------------------------------------------------------------


def rows_of(items: msgspec.Raw, table: str, place: str) -> list[Row | Damaged]:
    """Return the rows of the items of an answer, a JSON array; `Damaged` for an item that is none."""
    try:
        return [_row_of(item, table, place) for item in _read_items(items)]
    except (msgspec.ValidationError, ValueError):
        return [_row_or_damaged(item, table, place) for item in read_raws(items)]


def wanted_of(keys: Sequence[RowKey], place: str) -> dict[tuple[str, str], RowKey]:
    """Return the keys by what their items are called."""
    names = ((key_of(key.slot, key.seq, place), key) for key in keys)
    return {(name["pk"]["S"], name["sk"]["S"]): key for name, key in names}


def _row_of(item: _RowItem, table: str, place: str) -> Row | Damaged:
    """Return the row of an item of the right types. Raises `ValueError` where a number is none."""
    found = _SORT_KEY.fullmatch(item.sk.S)
    if found is None:
        return Damaged(f"table {table}, {item.pk.S}", "its sort key is not that of a row")
    slot, seq = int(found[1]), int(found[2])
    own = partition(place, seq % PARTITIONS)
    if own != item.pk.S:
        return Damaged(f"table {table}, {item.pk.S}, {item.sk.S}", "its partition is not that of its seq", seq)
    return Row(
        slot,
        seq,
        item.queue.S,
        item.id.S,
        int(item.status.N),
        int(item.ready_at.N),
        None if item.run_at is None else int(item.run_at.N),
        int(item.timeout.N),
        int(item.max_retries.N),
        int(item.attempt.N),
        None if item.run_id is None else item.run_id.B,
        None if item.reason is None else item.reason.S,
        int(item.created_at.N),
        int(item.updated_at.N),
        item.payload.B,
        None if item.state is None else item.state.B,
        None if item.extras is None else item.extras.B,
    )


def _row_or_damaged(raw: msgspec.Raw, table: str, place: str) -> Row | Damaged:
    try:
        return _row_of(_read_item(raw), table, place)
    except msgspec.ValidationError as error:
        fault = str(error)  # names types and a place, no values
    except ValueError:
        fault = "a number of it is not whole"
    keys = read_keys(raw)  # every item has both, by the table's schema
    found = _SORT_KEY.fullmatch(keys.sk.S)
    if found is None:
        return Damaged(f"table {table}, {keys.pk.S}", fault)
    return Damaged(f"table {table}, {keys.pk.S}, {keys.sk.S}", fault, int(found[2]))
