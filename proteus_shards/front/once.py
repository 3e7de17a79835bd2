"""`POST /enqueue` with an Idempotency-Key: what the header may be, and how such a request is asked of the shards.

A request is the bytes of its body, after decompression: the same key with another body is refused. The key counts within a queue (`core.once` says why), so an array
for several queues is asked queue by queue, and its answer put together from theirs. Jobs of the array that are wrong in themselves are refused here, each time
alike. What an answer says is kept, not its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

from proteus_shards.config import Settings
from proteus_shards.core.commands import Done, Enqueue, EnqueueOnce, JobRefusal, Outcome, Outcomes, Reason, Refused
from proteus_shards.front.answers import ACCEPTED, Answer, Problem, fault, refusal
from proteus_shards.front.errands import Batch, Errand, Item, OnAnswer, ShowItems
from proteus_shards.front.operations import Ask, enqueue
from proteus_shards.front.router import Router

HEADER = "idempotency-key"
LENGTH_MAX = 255

_KEY = re.compile(b"[!-~]{1,%d}" % LENGTH_MAX)


def enqueue_once(key: bytes, body: bytes, query: bytes, settings: Settings) -> Ask | Errand | Problem:
    """`POST /enqueue` with this key; of lines there is none."""
    if _KEY.fullmatch(key) is None:
        return fault(HEADER, f"must be 1 to {LENGTH_MAX} visible ASCII characters, given once")
    asked = enqueue(body, query, settings)
    if isinstance(asked, Problem):
        return asked
    digest = blake2b(body, digest_size=16).digest()
    if isinstance(asked, Ask):
        job = asked.command
        assert isinstance(job, Enqueue)
        return Ask(EnqueueOnce(job.queue, key.decode(), digest, [job]), partial(_show, job))
    assert isinstance(asked, Batch)
    if body.lstrip()[:1] != b"[":
        return not_for_lines()
    return OnceEach(key.decode(), digest, asked)


def not_for_lines() -> Problem:
    """Return the problem of a key that comes with lines."""
    return fault(HEADER, "is for one job or an array of jobs, not for lines")


def not_for_batches() -> Problem:
    """Return the problem of a key that comes with a batch of operations: silently not counting it would be worse."""
    return fault(HEADER, "is for POST /enqueue, and would not count for a batch")


def _show(job: Enqueue, outcome: Outcome) -> Answer:
    assert isinstance(outcome, Outcomes)
    [refused] = outcome.refusals
    return ACCEPTED if refused is None else refusal(_outcome_of(refused), job.queue, job.id).answer()


def _outcome_of(refused: JobRefusal) -> Refused:
    return Refused(Reason(refused.reason), refused.detail, refused.field)


class OnceEach:
    """An array of jobs, asked queue by queue. `items` are as those of a `Batch`."""

    delivers = False

    def __init__(self, name: str, digest: bytes, batch: Batch) -> None:
        self.items: Sequence[Item] = batch.items
        self._name = name
        self._digest = digest
        self._show: ShowItems = batch.show

    def begin(self, router: Router, on_answer: OnAnswer) -> None:
        """See `errands.Errand`."""
        self._on_answer = on_answer
        jobs: list[Any] = [item for item in self.items if not isinstance(item, Problem)]
        places: dict[str, list[int]] = {}
        for place, job in enumerate(jobs):
            places.setdefault(job.queue, []).append(place)
        commands = [EnqueueOnce(queue, self._name, self._digest, [jobs[place] for place in own]) for queue, own in places.items()]
        router.submit_all(commands, partial(self._take, list(places.values())))

    def abandon(self, number: int = 0) -> None:
        """See `errands.Errand`. It has its effect all the same."""

    def _take(self, places: Sequence[Sequence[int]], found: list[Outcome]) -> None:
        outcomes: dict[int, Outcome] = {}
        for own, outcome in zip(places, found, strict=True):
            if isinstance(outcome, Outcomes):
                outcomes.update(zip(own, (Done() if each is None else _outcome_of(each) for each in outcome.refusals), strict=True))
            else:
                outcomes.update(dict.fromkeys(own, outcome))
        self._on_answer(self._show(self.items, [outcomes[place] for place in sorted(outcomes)]), ())
