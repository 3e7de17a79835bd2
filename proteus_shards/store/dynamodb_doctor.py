"""What `proteus-shards doctor` looks at in DynamoDB."""

from __future__ import annotations

from collections.abc import AsyncIterator

from proteus_shards.store.dynamodb_url import DynamodbUrl
from proteus_shards.store.findings import Finding


async def examine(url: DynamodbUrl) -> AsyncIterator[Finding]:
    """Yield what is found."""
    yield Finding("note", f"table {url.table}")
