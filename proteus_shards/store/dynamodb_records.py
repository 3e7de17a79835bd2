"""Records to and from items of a DynamoDB table.

**Keys.** A record's name may have nine times as many bytes as a sort key. So the sort key is slot, kind and the SHA-256 of the name, and the name is in the
item beside the value: what is read is checked to have the name that it was asked for by, and an item whose name is not that of its key is `Damaged`. The partition
key is `records#NN`, NN being drawn from the digest. As with rows, a shard's records are one range in each partition, and nothing moves when
the number of shards changes. There are 8 partitions, fewer than of rows, since a start asks each of them: they take 4,000 records of up to a kilobyte a second.

**No condition** stands at these writes, since a record may be new or not: the check of the epoch, in the same transaction, is all that is needed.

AWS does not say whether what a transaction overwrites or removes counts for its limit of 4 MB. DynamoDB Local does not count it. If AWS
did, a batch that removes more than a dozen of the largest records at once would be refused as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256

import msgspec

from proteus_shards.core.model import Record, RecordKey
from proteus_shards.store.contract import Damaged
from proteus_shards.store.dynamodb_rows import Binary, Item, Keys, Text, bytes_of, partition, read_keys, read_raws

RECORD_PARTITIONS = 8

_SORT_KEY = re.compile(r"(\d{4})#(\d{1,5})#([0-9a-f]{64})")


class _RecordItem(Keys):
    name: Text
    value: Binary


_read_item = msgspec.json.Decoder(_RecordItem).decode
_read_items = msgspec.json.Decoder(list[_RecordItem]).decode


def place_of_records(place: str) -> str:
    """Return how the partition keys of records begin where those of rows begin with `place`."""
    return "records" if place == "rows" else f"{place}#records"


def record_key_of(slot: int, kind: int, name: str, place: str) -> Item:
    """Return the key of a record. Raises `UnicodeEncodeError`."""
    digest = sha256(name.encode()).hexdigest()
    return {"pk": {"S": _partition_of(digest, place)}, "sk": {"S": f"{slot:04d}#{kind}#{digest}"}}


def record_writes_of(records: Sequence[Record], table: str, place: str) -> list[Item]:
    """Return the actions of a transaction that write or remove records. Raises `StorePermanent` where a name can never be stored."""
    writes: list[Item] = []
    for record in records:
        bytes_of(record.name)
        key = record_key_of(record.slot, record.kind, record.name, place)
        if record.value is None:
            writes.append({"Delete": {"TableName": table, "Key": key}})
        else:
            writes.append({"Put": {"TableName": table, "Item": {**key, "name": {"S": record.name}, "value": {"B": record.value}}}})
    return writes


def wanted_records_of(keys: Sequence[RecordKey], place: str) -> dict[tuple[str, str], RecordKey]:
    """Return the keys by what their items are called."""
    names = ((record_key_of(key.slot, key.kind, key.name, place), key) for key in keys)
    return {(name["pk"]["S"], name["sk"]["S"]): key for name, key in names}


def records_of(items: msgspec.Raw, table: str, place: str) -> list[Record | Damaged]:
    """Return the records of the items of an answer, a JSON array; `Damaged` for an item that is none."""
    try:
        return [_record_of(item, table, place) for item in _read_items(items)]
    except msgspec.ValidationError:
        return [_record_or_damaged(item, table, place) for item in read_raws(items)]


def record_bytes(record: Record | Damaged) -> int:
    """Return about how many bytes a record is."""
    return len(record.name) + len(record.value or b"") if isinstance(record, Record) else 0


def _partition_of(digest: str, place: str) -> str:
    return partition(place, int(digest[:4], 16) % RECORD_PARTITIONS)


def _record_of(item: _RecordItem, table: str, place: str) -> Record | Damaged:
    found = _SORT_KEY.fullmatch(item.sk.S)
    if found is None:
        return Damaged(f"table {table}, {item.pk.S}", "its sort key is not that of a record")
    key = record_key_of(int(found[1]), int(found[2]), item.name.S, place)
    if key != {"pk": {"S": item.pk.S}, "sk": {"S": item.sk.S}}:
        return Damaged(f"table {table}, {item.pk.S}, {item.sk.S}", "its keys are not those of its name")
    return Record(int(found[1]), int(found[2]), item.name.S, item.value.B)


def _record_or_damaged(raw: msgspec.Raw, table: str, place: str) -> Record | Damaged:
    try:
        return _record_of(_read_item(raw), table, place)
    except msgspec.ValidationError as error:
        fault = str(error)  # names types and a place, no values
    keys = read_keys(raw)
    where = f", {keys.sk.S}" if _SORT_KEY.fullmatch(keys.sk.S) else ""
    return Damaged(f"table {table}, {keys.pk.S}{where}", fault)
