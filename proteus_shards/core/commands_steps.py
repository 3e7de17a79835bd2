"""Steps over several shards, and requests that are answered once: what is asked of each shard, and what it answers.

How such a step goes, and why it is whole after any crash, stands in `spans`; what an idempotency key does in `once`. Like all commands (see
`commands`) plain values that the IPC carries as they are. A step is named by 16 random bytes, which are never used twice.
"""

from __future__ import annotations

import msgspec

from proteus_shards.core.commands_jobs import Enqueue, Mode


class Begin(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=33):
    """Open a step at its home, the shard that will decide it. Answers `Done`, FULL, or NOT_FOUND where the run that it is to end is over already."""

    queue: str
    step: bytes
    id: str = ""
    run_id: bytes | None = None


class Prepare(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=34):
    """Promise to add these jobs, all of one shard, once the step is decided so. `home`: a queue of the shard that decides. Answers `Done` or `Refused`, as `EnqueueAll` does.

    With `free_only` the jobs whose ids are live, or promised to another step, are left out. It answers `Outcomes` then, which name them.
    """

    queue: str
    step: bytes
    home: str
    jobs: list[Enqueue]
    mode: Mode = Mode.UNIQUE
    free_only: bool = False


class Decide(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=35):
    """Complete a run (if `run_id` is set) and add the home's own jobs, and by that decide that the step is done. Answers as `EnqueueAll` or `Requeue`.

    With `dead` it is dead letters of `queue` (their seqs) that leave, and nothing else; BUSY where one of them has left already.
    A step that is not open any more is BUSY: it was given up. `others`: a queue of each intent elsewhere, one a slot.
    """

    queue: str
    step: bytes
    jobs: list[Enqueue]
    mode: Mode
    others: list[str]
    id: str = ""
    run_id: bytes | None = None
    dead: list[int] = []


class AskDecision(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=36):
    """Ask the home how a step was decided. One that was not is given up from now on. Answers `Decided`."""

    queue: str
    step: bytes


class Conclude(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=37):
    """Do what was promised, or forget it. Answers `Done`, also where there is nothing left to do."""

    queue: str
    step: bytes
    done: bool


class Forget(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=38):
    """Tell the home that all others have concluded, or that an open step is given up. Answers `Done`."""

    queue: str
    step: bytes


class ListSteps(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=39):
    """Ask a shard for steps that have been under way for longer than `older_us`. Answers `OpenSteps`."""

    older_us: int
    count: int = 100


class EnqueueOnce(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=40):
    """Add jobs of one queue, each for itself, unless that was done before under this name; then answer the same. Answers `Outcomes`.

    `digest` tells requests apart: INVALID where another one had the name.
    """

    queue: str
    name: str
    digest: bytes
    jobs: list[Enqueue]


class Decided(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=110):
    """Whether a step is done."""

    done: bool


class OpenStep(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A step that waits for somebody to go on with it: an intent (`home` is set), or a decision of which `others` may not know yet."""

    step: bytes
    queue: str
    home: str | None
    others: list[str]


class OpenSteps(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=111):
    """Some steps, longest under way first."""

    steps: list[OpenStep]


class JobRefusal(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Why one job among several was refused."""

    reason: int  # a `commands.Reason`
    detail: str
    field: str | None = None


class Outcomes(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=112):
    """What became of several jobs, in order; None: it was accepted."""

    refusals: list[JobRefusal | None]
