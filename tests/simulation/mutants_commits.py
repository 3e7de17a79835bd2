"""Mutants: what is told before it is durable, and what is not undone or not read back."""

from __future__ import annotations

from typing import Any

import msgspec

from proteus_shards.core.commands import Complete, Outcome, Reason
from proteus_shards.core.deliveries import Deliveries
from proteus_shards.core.holdings import Holdings
from proteus_shards.core.ledger import Ledger
from proteus_shards.core.model import Batch, Job, RowKey
from proteus_shards.core.queue import READY, Queue
from proteus_shards.core.shard import Shard
from proteus_shards.shard.pump import Pump
from tests.simulation.disk import SimulatedStore
from tests.simulation.planting import Patch, mutant, rewrite


@mutant
def reply_before_commit(patch: Patch) -> None:
    """Answers are released when the batch is handed to the store."""
    cut = Shard.cut

    def cut_and_release(self: Shard) -> Batch:
        batch = cut(self)
        self.committed()
        return batch

    patch(Shard, "cut", cut_and_release)
    committed = Shard.committed
    patch(Shard, "committed", lambda self: committed(self) if self._ledger.sealed else None)


@mutant
def delivery_before_commit(patch: Patch) -> None:
    """A delivery is told at once; only its row waits for the store."""
    hand_out = Deliveries._hand_out

    def eager(self: Deliveries, queue: Queue, key: Any, count: int) -> None:
        hand_out(self, queue, key, count)
        if self._ledger.open and self._ledger.open[-1][1] is key:
            entry = self._ledger.open[-1]
            self._ledger.open[-1] = (entry[0], None, None, entry[3], entry[4])
            self._emit(key, entry[2])  # type: ignore[arg-type]

    patch(Deliveries, "_hand_out", eager)


@mutant
def no_waiting_behind_a_commit(patch: Patch) -> None:
    """What needs no store is answered at once, also behind something in its queue that is not yet committed."""
    patch(Holdings, "_answer", lambda self, _queue, key, outcome: self._emit(key, outcome))


@mutant
def lost_undo(patch: Patch) -> None:
    """A failed commit is refused, but what it had changed in memory stays."""
    restore = Holdings._restore

    def forgetful(self: Holdings, queue: Queue, job: Job, image: Any) -> None:
        if image is None or image[0] is not READY:
            restore(self, queue, job, image)

    patch(Holdings, "_restore", forgetful)


@mutant
def undone_in_the_wrong_order(patch: Patch) -> None:
    """Images are restored oldest first, so that of two changes of a job the second image wins."""
    revert = Ledger.revert

    def turned(self: Ledger) -> Any:
        opened, sealed, keys = revert(self)
        return opened[::-1], sealed[::-1], keys

    patch(Ledger, "revert", turned)


@mutant
def only_the_sealed_log_is_undone(patch: Patch) -> None:
    """What collected behind a failed commit stays, and is written with the next."""

    def revert(self: Ledger) -> Any:
        opened = self.open
        found = original(self)
        self.open = []
        return [(queue, key, answer, None, None) for queue, key, answer, _, _ in opened], found[1], found[2]

    original = Ledger.revert
    patch(Ledger, "revert", revert)


@mutant
def unknown_told_as_busy(patch: Patch) -> None:
    """A batch whose outcome is unknown is answered BUSY, which says that it had no effect."""
    failed = Shard.failed

    def certain(self: Shard, reason: Reason, detail: str, retry_after: int = 1) -> list[RowKey]:
        keys = failed(self, reason, detail, retry_after)
        self._replies = [(key, _busy(outcome)) for key, outcome in self._replies]
        return keys

    patch(Shard, "failed", certain)


@mutant
def forgotten_doubt(patch: Patch) -> None:
    """After an unknown outcome the rows are not read back: memory is believed."""
    patch(Shard, "adopt", lambda self, _keys, _rows: setattr(self, "_doubt", {}))


@mutant
def heal_without_reopen(patch: Patch) -> None:
    """The rows are read back without a new epoch, and the doubtful batch may still be written afterwards."""

    async def reopen(self: SimulatedStore) -> int:
        await self._travel()
        if not self._doubt:
            self.known()
        return self.epoch

    patch(SimulatedStore, "reopen", reopen)


@mutant
def ids_in_doubt_are_free(patch: Patch) -> None:
    """A memory-only job may take an id whose row is in doubt."""
    failed = Shard.failed

    def carefree(self: Shard, reason: Reason, detail: str, retry_after: int = 1) -> list[RowKey]:
        keys = failed(self, reason, detail, retry_after)
        self._doubt = {}
        return keys

    patch(Shard, "failed", carefree)


@mutant
def away_is_not_refused(patch: Patch) -> None:
    """While the store is away, completions are taken all the same."""
    complete = Shard._complete

    def eager(self: Shard, key: Any, command: Complete) -> None:
        away, self.away = self.away, False
        complete(self, key, command)
        self.away = away

    patch(Shard, "_complete", eager)


@mutant
def never_healed(patch: Patch) -> None:
    """Once the store was away it stays so, until the process is started again."""
    patch(Shard, "heal", lambda _self: None)


@mutant
def polls_forgotten_at_healing(patch: Patch) -> None:
    """Polls that waited for the store are not served when it is back."""
    patch(Shard, "heal", lambda self: setattr(self, "away", False))


@mutant
def careless_mode(patch: Patch) -> None:
    """After a batch was refused for good everything is tried together again, and the one at fault may never meet its own answer."""
    rewrite(patch, Pump, "_refuse_for_good", "CAREFUL_COMMITS", "0")


@mutant
def careful_with_the_next_frame_only(patch: Patch) -> None:
    """After a batch was refused for good, the requests of one frame still go together."""
    rewrite(patch, Pump, "receive", "(self._committing or shard.has_open)", "self._committing")


@mutant
def batch_split_inside_an_operation(patch: Patch) -> None:
    """A delivery of several jobs is cut where the batch is full, between two of its jobs."""
    touch = Holdings._touch

    def cutting(self: Holdings, job: Job, **options: bool) -> None:
        if self._bounded:
            self._ledger.make_room(1, 0)
        touch(self, job, **options)

    patch(Holdings, "_touch", cutting)
    patch(Deliveries, "_bound_delivery", lambda _self, _queue, count: count)


@mutant
def too_large_a_batch(patch: Patch) -> None:
    """The bounds of a batch are not kept."""
    patch(Ledger, "make_room", lambda _self, _rows, _size: None)


def _busy(outcome: Outcome) -> Outcome:
    if getattr(outcome, "reason", None) is Reason.UNKNOWN:
        return msgspec.structs.replace(outcome, reason=Reason.BUSY)
    return outcome
