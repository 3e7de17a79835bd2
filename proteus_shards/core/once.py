"""Requests that name themselves are done once: whoever asks again, because an answer was lost, is answered the same.

How to think about it
=====================

A name counts within its queue, since the answer must be written by the batch that writes the job: two that were written apart could be
parted by a crash, and the client would be told of a job that is not there, or be refused the job that it has made itself. So an array of jobs for several
queues is done, and answered, queue by queue.

Each job stands for itself. What was refused for now (BUSY, FULL) is tried again when the request comes again; every other outcome is final, refusals included.

Where a job of the request is persisted, its answer is a record; else it is kept in memory, as long as the jobs. Answers go after idempotency_seconds, oldest
first, some at a time: with each new one, and whenever the shard does something. With idempotency_keys_max of them, new names are FULL: one that was
dropped early would break the promise in silence.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import msgspec

from proteus_shards.core.commands import (
    AskDecision,
    Begin,
    Conclude,
    Decide,
    Enqueue,
    EnqueueAll,
    EnqueueOnce,
    Forget,
    JobRefusal,
    ListSteps,
    Outcomes,
    Prepare,
    Reason,
    Refused,
    Replace,
    Requeue,
)
from proteus_shards.core.holdings import answer_bytes
from proteus_shards.core.measures import ENQUEUED
from proteus_shards.core.model import RECORD_BYTES_MAX, SECOND_US, Kind, RecordKey
from proteus_shards.core.placement import slot_of
from proteus_shards.core.records import check_place, check_times
from proteus_shards.core.spans import Spans
from proteus_shards.core.steps import AWAY, Change
from proteus_shards.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable

    from proteus_shards.core.holdings import Key, Limits
    from proteus_shards.core.ledger import Undo

SWEEP_MAX = 64  # answers that go at once
PUT_OFF_US = SECOND_US  # until the next try, while the store is away

_FOR_NOW = frozenset({Reason.BUSY, Reason.FULL})
_REASONS = frozenset(Reason)


class _Kept(msgspec.Struct, array_like=True, frozen=True):
    """The value of an ANSWER record, and what is kept in memory of one."""

    digest: bytes
    at: int
    refusals: list[JobRefusal | None]
    stored: bool = True


pack_kept: Callable[[_Kept], bytes] = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Kept).decode


class Once(Spans):
    """The queues of one shard, and the answers that it keeps."""

    def __init__(self, limits: Limits, new_run_id: Callable[[], bytes], draw: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__(limits, new_run_id, draw)
        self._kept: OrderedDict[RecordKey, _Kept] = OrderedDict()  # oldest first, once `_in_order`
        self._in_order = True
        self._kept_until = sys.maxsize  # the clock at which the oldest may go
        self._record_takers[Kind.ANSWER] = self._take_answer
        self._record_takers[Kind.IMPORT] = lambda _key, _value: None

    def _step_handlers(self) -> dict[type, Callable[[Key | None, Any], None]]:
        return {
            EnqueueAll: self._enqueue_all,
            Replace: self._replace,
            Requeue: self._requeue,
            Begin: self._begin,
            Prepare: self._prepare,
            Decide: self._decide,
            AskDecision: self._ask_decision,
            Conclude: self._conclude,
            Forget: self._forget,
            ListSteps: self._list_steps,
            EnqueueOnce: self._enqueue_once,
        }

    def _enqueue_once(self, key: Key | None, command: EnqueueOnce) -> None:
        self._sweep_kept()
        record = RecordKey(slot_of(command.queue), Kind.ANSWER, f"{command.name} {command.queue}")
        known = self._kept.get(record)
        if known is not None and (known.digest != command.digest or len(known.refusals) != len(command.jobs)):
            detail = "idempotency-key: was used for another request of this queue"
            self._answer(self.queues.get(command.queue), key, Refused(Reason.INVALID, detail, "idempotency-key"))
            return
        refusals: list[JobRefusal | None] = [JobRefusal(Reason.BUSY, "")] * len(command.jobs)
        if known is not None:
            refusals = list(known.refusals)
        todo = [place for place, refusal in enumerate(refusals) if refusal is not None and refusal.reason in _FOR_NOW]
        if not todo:
            self._answer(self.queues.get(command.queue), key, Outcomes(refusals))
            return
        if (refused := self._unkeepable(command, [command.jobs[place] for place in todo], known)) is not None:
            self._answer(self.queues.get(command.queue), key, refused)
            return
        changes: list[Change] = []
        for place in todo:
            refusals[place] = self._try_once(command.jobs[place], changes)
        self._keep_answer(key, command, record, known, refusals, changes)

    def _unkeepable(self, command: EnqueueOnce, jobs: list[Enqueue], known: _Kept | None) -> Refused | None:
        """Say why an answer cannot be kept, and make room for all that may be written."""
        if known is None and len(self._kept) >= self.limits.idempotency_keys_max:
            limit = self.limits.idempotency_keys_max
            return Refused(Reason.FULL, f"the shard keeps {limit} answers, its limit (idempotency_keys_max)")
        written = [job for job in jobs if job.persist]
        stored = known is not None and known.stored
        if not (written or stored) or self.away:
            return AWAY if stored else None
        size = sum(map(answer_bytes, written)) + 16 * len(command.jobs) + 256
        refused = self._too_much(len(written) + 1, size)
        if refused is None:
            self._ledger.make_room(len(written) + 1, size)
        return refused

    def _try_once(self, job: Enqueue, changes: list[Change]) -> JobRefusal | None:
        queue = self.queues.get(job.queue)
        if queue is not None and job.id in queue.jobs:
            return JobRefusal(Reason.EXISTS, "a job with this id is already in the queue")
        refused = self._refusal(queue, job)
        if refused is not None:
            return JobRefusal(refused.reason, refused.detail, refused.field)
        queue = queue if queue is not None else self._make_queue(job.queue)
        changes.append((queue, self._admit(queue, job), None, ENQUEUED, 0))
        return None

    def _keep_answer(
        self,
        key: Key | None,
        command: EnqueueOnce,
        record: RecordKey,
        known: _Kept | None,
        refusals: list[JobRefusal | None],
        changes: list[Change],
    ) -> None:
        answer = Outcomes(refusals)
        final = any(refusal is None or refusal.reason not in _FOR_NOW for refusal in refusals)
        stored = any(job.persist for _, job, *_ in changes) or (known is not None and known.stored)
        kept = _Kept(command.digest, known.at if known is not None else self._clock, refusals, stored)
        value = pack_kept(kept) if stored else b""
        if len(value) > RECORD_BYTES_MAX:
            self._take_back(changes)
            detail = f"the answer would have {len(value)} bytes, more than can be kept ({RECORD_BYTES_MAX}): send fewer jobs at once"
            self._answer(self.queues.get(command.queue), key, Refused(Reason.INVALID, detail, "idempotency-key"))
            return
        if not final:
            self._answer(self.queues.get(command.queue), key, answer)
            return
        self._kept[record] = kept
        self._plan_sweep()
        undo = self._undo_of_answer(record, known)
        queue = self.queues.get(command.queue)
        if stored:
            self._log_all(key, command.queue, changes, [(record, value, undo)], answer)
            return
        if queue is not None and queue.pending:
            self._ledger.log(queue, None, None, None, undo)
        if changes:
            self._log_all(key, command.queue, changes, (), answer)
        else:
            self._answer(queue, key, answer)

    def _undo_of_answer(self, record: RecordKey, known: _Kept | None) -> Undo:
        return lambda: self._put_back(record, known)

    def _put_back(self, record: RecordKey, known: _Kept | None) -> None:
        if known is None:
            self._kept.pop(record, None)
        else:
            self._in_order = self._in_order and record in self._kept
            self._kept[record] = known
            self._plan_sweep()

    def _take_answer(self, key: RecordKey, value: bytes | None) -> None:
        if value is None:
            self._kept.pop(key, None)
            return
        try:
            kept = _decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RecordError("a kept answer cannot be read") from error
        check_place(key, key.name.partition(" ")[2])
        check_times(kept.at)
        if any(refusal is not None and refusal.reason not in _REASONS for refusal in kept.refusals):
            raise RecordError("a kept answer must have reasons that are known")
        self._put_back(key, kept)

    # --- age ---------------------------------------------------------------------------------------------------

    def _plan_sweep(self) -> None:
        """Note when the oldest answer may go."""
        if not self._kept:
            self._kept_until = sys.maxsize
        elif self._in_order:
            self._kept_until = next(iter(self._kept.values())).at + self._wall_stepped + self.limits.idempotency_us_max
        else:
            self._kept_until = 0

    def _sweep_kept(self) -> None:
        """Let some of the answers go whose time is over."""
        if self._kept_until > self._clock:
            return
        if not self._in_order:
            self._kept = OrderedDict(sorted(self._kept.items(), key=lambda item: item[1].at))
            self._in_order = True
        oldest = self._clock - self._wall_stepped - self.limits.idempotency_us_max
        for _ in range(min(SWEEP_MAX, self._rows_max)):
            record, kept = next(iter(self._kept.items()), (None, None))
            if record is None or kept is None or kept.at > oldest:
                break
            if kept.stored and self.away:
                self._kept_until = self._clock + PUT_OFF_US
                return
            del self._kept[record]
            if kept.stored:
                queue_name = record.name.partition(" ")[2]
                self._write_records(queue_name, None, [(record, None, self._undo_of_answer(record, kept))])
        self._plan_sweep()
