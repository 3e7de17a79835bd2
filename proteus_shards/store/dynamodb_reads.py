"""Reading many items of a table, strongly consistent: a range of one partition, or items by their keys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeAlias

import msgspec

from proteus_shards.errors import StoreRefused
from proteus_shards.store.dynamodb_client import Backoff, Client, answered, run_all
from proteus_shards.store.dynamodb_rows import READ_KEYS_MAX, Item

NOTHING = msgspec.Raw(b"[]")

Take: TypeAlias = Callable[[msgspec.Raw], None]  # is given items as they came, a JSON array


class _Page(msgspec.Struct):
    items: msgspec.Raw = msgspec.field(name="Items", default=NOTHING)
    next_key: Item | None = msgspec.field(name="LastEvaluatedKey", default=None)


class _Part(msgspec.Struct):
    keys: list[Item] = msgspec.field(name="Keys")


class _Found(msgspec.Struct):
    tables: dict[str, msgspec.Raw] = msgspec.field(name="Responses", default_factory=dict)
    unprocessed: dict[str, _Part] = msgspec.field(name="UnprocessedKeys", default_factory=dict)


_read_page = msgspec.json.Decoder(_Page).decode
_read_found = msgspec.json.Decoder(_Found).decode


async def query_range(client: Client, pk: str, low: str, high: str, take: Take) -> None:
    """Read what one partition has from one sort key to another, in order."""
    request = {
        "TableName": client.url.table,
        "ConsistentRead": True,
        "KeyConditionExpression": "pk = :pk AND sk BETWEEN :low AND :high",
        "ExpressionAttributeValues": {":pk": {"S": pk}, ":low": {"S": low}, ":high": {"S": high}},
    }
    while True:
        page = _read_page(answered(await client.call("query", request)))
        take(page.items)
        if page.next_key is None:
            return
        request["ExclusiveStartKey"] = page.next_key


async def get_all(client: Client, wanted: Iterable[tuple[str, str]], take: Take) -> None:
    """Read items by partition and sort key, in any order."""
    names = [{"pk": {"S": pk}, "sk": {"S": sk}} for pk, sk in wanted]
    parts = (names[start : start + READ_KEYS_MAX] for start in range(0, len(names), READ_KEYS_MAX))
    await run_all(_get(client, part, take) for part in parts)


async def _get(client: Client, names: list[Item], take: Take) -> None:
    """Read up to 100 items. What the service leaves out, for its size or for lack of throughput, is asked for again."""
    table = client.url.table
    backoff = Backoff(client.url.timeout_seconds)
    while names:
        request = {"RequestItems": {table: {"Keys": names, "ConsistentRead": True}}}
        answer = _read_found(answered(await client.call("batch_get_item", request)))
        take(answer.tables.get(table, NOTHING))
        left = answer.unprocessed[table].keys if table in answer.unprocessed else []
        if len(left) < len(names):
            backoff = Backoff(client.url.timeout_seconds)
        if left:
            pause = backoff.draw()
            if pause is None:
                raise StoreRefused("DynamoDB asks to go slower: it leaves what is to be read unprocessed")
            await asyncio.sleep(pause)
        names = left
