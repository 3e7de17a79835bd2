"""One process a host of a cluster: it asks the store who has which shard, says which shards run here, and keeps the gate for the other hosts. asyncio."""
