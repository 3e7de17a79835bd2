"""One shard's rows and records in Redis, by one connection.

**Commit.** One script (redis_commit.lua) compares the token and the number of the last batch with what this process knows, looks at everything that it
is about to touch, and then writes; the server runs it alone and logs it as one transaction. With `appendfsync always` the answer comes after the sync.

**Fence.** `open` and `reopen` write a new token, a random name of this process and the epoch, into the shard's lease. Tokens are compared for being equal,
not for being newer: a failover may bring back an older lease, and then nobody may write. No lock expires, no clock counts. With a claim, the same script
looks at host and turn in the lease; what a failover does to these stands in redis_register.py.

**A tail that was lost** (a restart without a sync, a failover to a replica that was behind) is seen by the number of the last batch: it is not the one that was
acknowledged. The process then ends, and starts over from what the store has.

**Settings** of the server (appendfsync, the policy of a full memory) are read at each connection, and again by the first commit after a minute, ahead of the batch.

**A full memory** refuses a batch that adds bytes, as a whole and before its first write. One that frees at least as much passes, and so does one that only
marks: jobs are still delivered, completed and returned, and heartbeats without a state still count.

**Too few replicas** within the time (`wait_replicas`) is an unknown outcome: the batch is written, but perhaps only here.

**One load** reads everything before it yields the first chunk, since the hashes have no order (redis_rows.py says why). The rows then go out as they are taken
in, so that the peak is what the jobs need anyway.

Measured on 2 cores, Redis 6.2 with appendfsync always, jobs of 110 bytes, rows per second in batches of 1, 100 and 1,000: 2,600, 119,000 and 416,000
inserted, 3,000, 169,000 and 552,000 deleted. Of that this process spends 85 µs a batch and 0.6 µs a row (marks 0.45, deletes 0.2). A million rows
take 250 bytes each in Redis, and load with 8 s of processor time, or 12.5 without hiredis; the process that holds them peaks where it ends.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from proteus_shards.cluster.model import Claim
from proteus_shards.core.model import Batch, Record, RecordKey, Row, RowKey
from proteus_shards.core.placement import slots_of
from proteus_shards.errors import StoreError, StoreFailed, StoreFenced, StoreRefused, StoreUnknown
from proteus_shards.store.contract import LOOK_SECONDS, Damaged, Durability
from proteus_shards.store.redis_errors import WireError, fault_of
from proteus_shards.store.redis_place import LAYOUT, Scan, ShardKeys, common_key, read_manifest, shard_keys, tagged
from proteus_shards.store.redis_prepare import prepare
from proteus_shards.store.redis_rows import (
    RecordReader,
    RowReader,
    chunks,
    field_of,
    in_order,
    packed,
    record_bytes,
    record_field_of,
    row_bytes,
)
from proteus_shards.store.redis_survey import check, look
from proteus_shards.store.redis_url import RedisUrl
from proteus_shards.store.redis_wire import Argument, Command, Script, Wire, waiting_for_replicas, within

log = logging.getLogger("proteus_shards.store")

# a script holds up whoever else uses the server: 15 ms for so many small rows, some 100 ms for so many bytes
BATCH_ROWS_MAX = 5000
BATCH_BYTES_MAX = 16 * 1024 * 1024
LOAD_ROWS = 5000  # in a chunk
LOAD_BYTES = 8 * 1024 * 1024  # of payloads, states and extras, or of records, in a chunk, about
READ_ROWS = 500  # asked for at once
READ_RECORDS = 100

_LOST = "the store has lost acknowledged commits: it came back older than it was"

_COMMIT = Script("commit")
_TAKE = Script("take")
_CREATE = Script("create")


class RedisStore:
    """Implements `contract.Store`. `shards` None: a trial, which has keys of its own and removes them when it is closed."""

    kind = "redis"
    keeps = True
    row_bytes_max: int | None = BATCH_BYTES_MAX
    batch_rows_max: int | None = BATCH_ROWS_MAX
    batch_bytes_max: int | None = BATCH_BYTES_MAX

    def __init__(self, url: RedisUrl, shard: int, shards: int | None, claim: Claim | None = None) -> None:
        self.durability = Durability.WEAK
        self.terms = "not yet asked"
        self._url = url
        self._shard = shard
        self._shards = shards
        self._claimed: tuple[Argument, Argument] = ("", "") if claim is None else (claim.host, claim.turn)
        self._slots = slots_of(shard, shards or 1)
        self._owner = uuid.uuid4().hex
        self._where = f"redis {url.where}, shard {shard}"
        self._wire = Wire(url)
        self._keys: ShardKeys | None = None
        self._trial_keys: ShardKeys | None = None
        self._reader: RowReader | None = None
        self._epoch = 0
        self._batch = 0  # the last one that was acknowledged
        self._doubtful = False  # the one after it may have been written
        self._look_due = 0.0  # of the monotonic clock
        self._fault: StoreError | None = None
        self._closed = False

    async def open(self) -> int:
        """Connect, see how the server is set, and take over this shard's rows."""
        assert self._keys is None, "opened twice"
        if self._closed:
            raise StoreError("the store is closed")
        try:
            async with self._talking():
                keys = await self._find()
                epoch = await self._take(keys, "")
        except BaseException:
            await self._wire.close()
            raise
        self._keys = keys
        self._reader = RowReader(self._slots, keys.rows)
        return epoch

    async def load(self) -> AsyncIterator[Sequence[Row | Damaged]]:
        """Yield all rows in order."""
        keys, reader = self._usable()
        marks, states, extras = [await self._all(key) for key in (keys.marks, keys.states, keys.extras)]
        rows: dict[bytes, Row | Damaged] = {}
        scan = Scan(self._wire, keys.rows)
        while not scan.done:
            found = await self._part(scan)
            for field, value in zip(found[::2], found[1::2], strict=True):
                rows[field] = reader.row(field, value, marks.get(field), states.get(field), extras.get(field))
        found_there = {keys.rows: len(rows), keys.marks: len(marks), keys.states: len(states), keys.extras: len(extras)}
        await self._check_whole("rows, marks, states and extras", found_there)
        for field in (marks.keys() | states.keys() | extras.keys()) - rows.keys():
            rows[field] = reader.damaged(field, "there is a mark, a state or extras, but no row")
        ordered = in_order(rows.values())
        rows.clear()
        for chunk in chunks(ordered, row_bytes, LOAD_ROWS, LOAD_BYTES):
            yield chunk

    async def load_records(self) -> AsyncIterator[Sequence[Record | Damaged]]:
        """Yield all records."""
        keys, _ = self._usable()
        reader = RecordReader(self._slots, keys.records)
        found = await self._all(keys.records)
        await self._check_whole("records", {keys.records: len(found)})
        records = [reader.record(field, value) for field, value in found.items()]
        found.clear()
        for chunk in chunks(records, record_bytes, LOAD_ROWS, LOAD_BYTES):
            yield chunk

    async def commit(self, batch: Batch) -> None:
        """Write a batch."""
        keys, _ = self._usable()
        parts = packed(batch)
        replicas = self._url.wait_replicas
        after = waiting_for_replicas(self._url)
        try:
            async with within(self._url.timeout_seconds):
                if not self._wire.usable:
                    await self._reach(keys)
                elif time.monotonic() > self._look_due:
                    await self._look_again()
                self._doubtful = True
                verdict, *acknowledged = await self._wire.run(
                    _COMMIT, keys.all, self._token, self._batch, self._batch + 1, *parts, after=after
                )
        except (WireError, StoreError) as error:
            raise self._failed(error) from error
        if verdict != b"OK":
            raise self._refused(verdict)
        if acknowledged and acknowledged[0] < replicas:
            raise StoreUnknown(f"{self._where}: {acknowledged[0]} of {replicas} replicas have the commit")
        self._batch += 1
        self._doubtful = False

    async def reopen(self) -> int:
        """Connect again, and take a new epoch, unless another owner came meanwhile."""
        if self._keys is None and self._fault is None:
            return await self.open()
        keys, _ = self._usable()
        try:
            async with self._talking():
                return await self._take(keys, self._owner)
        except (StoreRefused, StoreUnknown, StoreFailed, StoreFenced):
            raise
        except (
            StoreError
        ) as error:  # settings of the server that someone may change back: a password, a permission, what it does when it is full
            raise StoreRefused(str(error)) from error

    async def read(self, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        """Return the rows that exist among `keys`."""
        names, reader = self._usable()
        rows: dict[RowKey, Row] = {}
        for start in range(0, len(keys), READ_ROWS):
            part = keys[start : start + READ_ROWS]
            fields = [field_of(key.slot, key.seq) for key in part]
            commands: list[Command] = [("HMGET", name, *fields) for name in (names.rows, names.marks, names.states, names.extras)]
            async with self._talking():
                found = await self._wire.call_all(commands)
            for key, field, value, *changes in zip(part, fields, *found, strict=True):
                if value is None:
                    continue
                row = reader.row(field, value, *changes)
                if isinstance(row, Damaged):
                    raise self._ended(StoreFailed(f"{self._where}: {row.where} is no row: {row.fault}"))
                if (row.queue, row.id) == (key.queue, key.id):
                    rows[key] = row
        return rows

    async def read_records(self, keys: Sequence[RecordKey]) -> dict[RecordKey, bytes]:
        """Return the values of the records that exist among `keys`."""
        names, _ = self._usable()
        values: dict[RecordKey, bytes] = {}
        for start in range(0, len(keys), READ_RECORDS):
            part = keys[start : start + READ_RECORDS]
            async with self._talking():
                found = await self._wire.call("HMGET", names.records, *(record_field_of(key.slot, key.kind, key.name) for key in part))
            values |= {key: value for key, value in zip(part, found, strict=True) if value is not None}
        return values

    async def close(self) -> None:
        """End the connection, and remove what a trial wrote."""
        self._closed = True
        try:
            await self.remove_trial()
        except StoreError as error:
            log.warning("keys of a trial not removed", extra={"error": str(error)})
        finally:
            await self._wire.close()

    async def remove_trial(self) -> None:
        """Remove what a trial wrote; of any other store nothing."""
        keys, self._trial_keys = self._trial_keys, None
        if keys is not None:
            async with self._talking():
                await self._wire.call("UNLINK", *keys.all)

    @asynccontextmanager
    async def _talking(self) -> AsyncIterator[None]:
        """Bound what is asked inside, and say what its failure means."""
        try:
            async with within(self._url.timeout_seconds):
                yield
        except WireError as error:
            raise fault_of(error, self._where) from error

    # --- how things stand ----------------------------------------------------------------------------------------

    @property
    def _token(self) -> str:
        return f"{self._owner}:{self._epoch}"

    def _usable(self) -> tuple[ShardKeys, RowReader]:
        if self._closed:
            raise StoreError("the store is closed")
        if self._fault is not None:
            raise type(self._fault)(str(self._fault)) from self._fault
        if self._keys is None or self._reader is None:
            raise StoreError("the store is not open")
        return self._keys, self._reader

    def _ended(self, fault: StoreError) -> StoreError:
        """Keep what this store has ended with: every later call raises the same."""
        self._fault = fault
        return fault

    def _failed(self, error: WireError | StoreError) -> StoreError:
        """Return what a commit without a verdict means. Before it was sent, all that went wrong is for `reopen` to find out again."""
        if not self._doubtful:
            return StoreRefused(str(error) if isinstance(error, StoreError) else f"{self._where}: {error}")
        assert isinstance(error, WireError)
        fault = fault_of(error, self._where, committing=True)
        self._doubtful = isinstance(fault, StoreUnknown)
        return self._ended(fault) if isinstance(fault, StoreFailed) else fault

    def _refused(self, verdict: bytes) -> StoreError:
        """Return what a verdict of the script other than OK means: this process ends."""
        word = verdict.decode(errors="replace").partition(" ")[0]
        if word == "FENCED":
            return self._ended(StoreFenced(f"{self._where}: another has taken over the rows of epoch {self._epoch}"))
        told = {
            "LOST": _LOST,
            "ABSENT": "a row to change is not in the store: memory and store do not agree",
            "PRESENT": "a new row is in the store already: memory and store do not agree",
            "TORN": "a commit was half written, which must not be",
        }
        return self._ended(StoreFailed(f"{self._where}: {told.get(word, 'the commit script answered what it cannot')}"))

    # --- taking over ---------------------------------------------------------------------------------------------

    async def _reach(self, keys: ShardKeys) -> None:
        """Connect to the node that has these keys, and look whether it may be trusted with rows. Raises `WireError`s and `StoreError`s."""
        await self._wire.connect()
        await self._wire.learn_nodes()
        await self._wire.call("EXISTS", keys.lease)  # in a cluster this leads to the node
        if self._url.wait_replicas:
            await self._wire.call("WAIT", 0, 1)  # whether it may be called at all
        await self._look()

    async def _look(self) -> None:
        """Ask how the server is set. Raises as `_reach` does."""
        survey = await look(self._wire)
        check(survey, self._url)
        self.durability = survey.durability
        self.terms = survey.terms
        self._look_due = time.monotonic() + LOOK_SECONDS

    async def _look_again(self) -> None:
        """Ask as `_look` does, and raise `StoreRefused` where the server promises less than it did."""
        before = self.durability
        await self._look()
        if not self.durability.covers(before):
            raise StoreRefused(f"{self._where}: its durability is {self.durability} now, and was {before} ({self.terms})")

    async def _find(self) -> ShardKeys:
        """Return the keys of this shard in the generation that is in force."""
        url, shards = self._url, self._shards
        if shards is None:
            return await self._make_trial()
        await self._wire.connect()
        manifest, _ = await read_manifest(self._wire, url)
        if manifest is not None and manifest.older and manifest.shards == shards:
            await prepare(url, shards)  # by a command that starts no server, and so has not done it
            manifest, _ = await read_manifest(self._wire, url)
        if manifest is None:
            raise StoreError(f"{url.where}: nothing is prepared under the prefix {url.prefix}")
        if manifest.shards != shards:
            raise StoreError(
                f"{url.where}: the rows under {url.prefix} are split among {manifest.shards} shards, not {shards}: start again to move them"
            )
        return shard_keys(url, manifest.generation, self._shard)

    async def _make_trial(self) -> ShardKeys:
        """Return keys that no other has."""
        keys = tagged(f"{self._url.prefix}:trial:{self._owner}")
        await self._reach(keys)
        self._trial_keys = keys
        await self._wire.run(_CREATE, keys.all, "", 0, LAYOUT, 0)
        return keys

    async def _take(self, keys: ShardKeys, expected: str) -> int:
        """Become the owner. `expected`: who must be it now, or nobody in particular."""
        await self._reach(keys)
        verdict, *rest = await self._run_take(keys, expected, "")
        if verdict == b"MOVING" and not expected and not await self._move_lives(rest[0]):
            verdict, *rest = await self._run_take(keys, expected, rest[0])
        if verdict == b"CLAIMED":
            raise self._ended(StoreFenced(f"{self._where}: it belongs to another host by now, or to this one in another turn"))
        if verdict == b"GONE" and not expected:
            raise StoreRefused(f"{self._where}: its keys are gone or just being moved")
        if verdict == b"MOVING" and not expected:
            raise StoreRefused(f"{self._where}: the rows are being moved to another number of shards")
        if verdict != b"OK":
            raise self._ended(StoreFenced(f"{self._where}: another has taken over, or the rows were moved or removed"))
        epoch, batch = int(rest[0]), int(rest[1])
        if expected and batch not in ((self._batch, self._batch + 1) if self._doubtful else (self._batch,)):
            raise self._ended(StoreFailed(f"{self._where}: {_LOST}"))
        self._epoch, self._batch, self._doubtful = epoch, batch, False
        return epoch

    async def _run_take(self, keys: ShardKeys, expected: str, pardoned: bytes | str) -> list[bytes]:
        (answer,) = await self._wire.run(_TAKE, [keys.lease], self._owner, expected, self._epoch, pardoned, LAYOUT, *self._claimed)
        taken: list[bytes] = answer
        return taken

    async def _move_lives(self, number: bytes) -> bool:
        """Say whether a move that has sealed this shard may still be completed."""
        wire = Wire(self._url)  # in a cluster that is known on another node
        try:
            await wire.connect()
            entry = await wire.call("HGET", common_key(self._url, "moves"), number)
        finally:
            await wire.close()
        return isinstance(entry, bytes) and entry.startswith(b"filling")

    # --- reading -------------------------------------------------------------------------------------------------

    async def _check_whole(self, what: str, found: dict[str, int]) -> None:
        """Raise `StoreRefused` unless that is all there is: a scan that is continued on another node (a failover, a slot that moves) may pass over fields."""
        async with self._talking():
            there = await self._wire.call_all([("HLEN", key) for key in found])
        if list(found.values()) != there:
            raise StoreRefused(f"{self._where}: {tuple(found.values())} {what} were read of {tuple(there)}: the keys moved meanwhile")

    async def _part(self, scan: Scan) -> list[bytes]:
        async with self._talking():
            return await scan.next()

    async def _all(self, key: str) -> dict[bytes, bytes]:
        scan = Scan(self._wire, key)
        pairs: dict[bytes, bytes] = {}
        while not scan.done:
            found = await self._part(scan)
            pairs.update(zip(found[::2], found[1::2], strict=True))
        return pairs
