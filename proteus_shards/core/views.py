"""What an operator sees of jobs and queues, and how many of them are looked through without holding anybody up.

A view is made from what is in memory at the moment of its answer. It is released, as every answer, after what is logged before it in its queue: so
it never shows what a failing commit takes back.

**Orders.** A page goes on behind the *place* of the last job of the page before it: three numbers, which the cursor spells out. They belong to the job
and not to the moment, so a job that comes or goes meanwhile shifts nothing. Waiting jobs are listed as they are delivered (priority, then order key),
dead ones by death, all others by their order key, which for scheduled ones is their time.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from proteus_shards.core.commands_control import JobView, QueueView, State
from proteus_shards.core.queue import DEAD, IN_FLIGHT, READY, SCHEDULED, Queue
from proteus_shards.core.queue_settings import DEFAULT_SETTINGS, kept

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from proteus_shards.core.model import Job

T = TypeVar("T")
Place: TypeAlias = "tuple[int, int, int]"

LOOK_MAX = 2000  # jobs or queues looked at in one go: less than a millisecond

CURSOR = re.compile(r"(-?[0-9]{1,20})\.(-?[0-9]{1,20})\.(-?[0-9]{1,20})")


def portions(items: Collection[T], size: int = LOOK_MAX) -> Iterator[Sequence[T]]:
    """Yield items in pieces of at most `size`. They may change after the second piece is asked for, which must be at once behind the first."""
    yield list(islice(items, size))
    rest = list(islice(items, size, None)) if len(items) > size else []
    for start in range(0, len(rest), size):
        yield rest[start : start + size]


def delivery_place(job: Job) -> Place:
    """Return where a job that is ready stands in the order of delivery."""
    return (-job.extras.priority if job.extras is not None else 0, job.ready_at, job.seq)


def acceptance_place(job: Job) -> Place:
    """Return where a live job stands in the order of acceptance, a scheduled one by its time."""
    return (job.ready_at, job.seq, 0)


def death_place(job: Job) -> Place:
    """Return where a dead letter stands in the order of deaths."""
    return (job.updated_at, job.seq, 0)


def place_in(state_name: str | None) -> Callable[[Job], Place]:
    """Return the order in which jobs of a state are listed; None is all that live."""
    if state_name == State.DEAD:
        return death_place
    return delivery_place if state_name in {State.READY, State.BLOCKED} else acceptance_place


def write_cursor(place: Place) -> str:
    """Return a place as a cursor."""
    return "{}.{}.{}".format(*place)


def read_cursor(text: str) -> Place | None:
    """Return the place that a cursor means, or None where it is none."""
    match = CURSOR.fullmatch(text)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def job_view(
    job: Job, state: State, now: int, why: tuple[list[str], str | None, int | None] = ([], None, None), *, bodies: bool = True
) -> JobView:
    """Return a job as an operator sees it. `why` is why it does not run; see `JobView`."""
    return JobView(
        queue=job.queue,
        id=job.id,
        seq=job.seq,
        state_name=state,
        timeout=job.timeout,
        persist=job.persist,
        max_retries=job.max_retries,
        payload=job.payload if bodies else b"",
        state=job.state if bodies else None,
        run_at=job.run_at,
        attempt=job.attempt,
        run_id=job.run_id,
        deadline_us=max(0, job.deadline - now) if job.status is IN_FLIGHT else None,
        reason=job.reason,
        created_at=job.created_at,
        updated_at=job.updated_at,
        extras=job.extras,
        waits_for=why[0],
        blocked_by=why[1],
        due_at=why[2],
    )


def queue_view(name: str, queue: Queue | None, waited_us: int, blocked: int) -> QueueView:
    """Return a queue as an operator sees it; None: one that is not used."""
    if queue is None:
        return QueueView(name, 0, 0, 0, 0, 0, 0, 0, 0, False)
    counts = queue.counts
    return QueueView(
        queue=queue.name,
        scheduled=counts[SCHEDULED],
        ready=counts[READY] - blocked,
        blocked=blocked,
        in_flight=counts[IN_FLIGHT],
        dead=counts[DEAD],
        pollers=len(queue.waiters),
        waited_us=waited_us,
        held_bytes=queue.bytes,
        paused=queue.settings.paused,
        settings=None if queue.settings == DEFAULT_SETTINGS else kept(queue.settings),
    )
