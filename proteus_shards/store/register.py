"""What the hosts of a cluster ask of their shared store: who is there, and who holds which shard.

Beside the rows and epochs of the shards (`contract.py`), in the same place: the same schema, prefix or table. Four rules:

1. `look` reads what every change before it has written: on the primary, strongly consistent.
2. `hand` is a compare-and-set on the turn, on the same item as the shard's epoch. A store that was made for a `Claim` takes an epoch, at `open` and at each
   `reopen`, only while the holding has the claim's host and turn, atomically; else `StoreFenced`. A store made without a claim
   takes it as ever.
3. Beats are written elsewhere than epochs: no beat ever waits for a batch, or makes one wait.
4. What raises says which of two things happened: `StoreRefused` (surely nothing written) or `StoreUnknown` (perhaps written: look before deciding).

Every call ends within the time that the store's URL sets. Messages hold no secret.
"""

from __future__ import annotations

from typing import Protocol

from proteus_shards.cluster.model import Host, View


class Register(Protocol):
    """The hosts and holdings of one cluster. One call at a time. Raises the `StoreError`s of `errors.py`, and nothing else of a driver's."""

    async def open(self) -> None:
        """Connect. The store was prepared for a cluster."""
        ...

    async def look(self) -> View:
        """Return all hosts and holdings."""
        ...

    async def join(self, host: Host) -> None:
        """Write a host, whatever stood at its address."""
        ...

    async def beat(self, host: Host) -> bool:
        """Write a host's own beat, unless it is not there, or with another boot: then False, and nothing is written. `draining` is left as it is in the store."""
        ...

    async def drain(self, address: str, draining: bool) -> bool:
        """Say that a host is to give its shards away, or take that back. False where it is not there."""
        ...

    async def leave(self, address: str, boot: str | None = None) -> bool:
        """Remove a host; with `boot`, only while it has that. Its holdings stay as they are. False where it is not there."""
        ...

    async def hand(self, shard: int, turn: int, host: str) -> bool:
        """Give a shard to a host, or to `NOBODY`: the turn goes up by one. `wanted` stays where it is that host, which pins the shard there, and is emptied else. False, and nothing is written, where the turn is another by now."""
        ...

    async def want(self, shard: int, host: str) -> bool:
        """Write down which host an operator wants a shard on; `NOBODY`: none. False where there is no such shard."""
        ...

    async def close(self) -> None:
        """Let go of everything. Safe to call twice, and after any error."""
        ...
