"""What a link keeps of a request until it is settled, and what the request weighs meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from proteus_shards.core.commands import Command, Enqueue, Heartbeat, Outcome, Reason, Refused

REQUEST_BYTES = 64  # what a request weighs beside its payload, state and names
UNSETTLED = Refused(Reason.FAULT, "not settled")  # holds the place of an outcome in a group

OnReply: TypeAlias = Callable[[Outcome], None]
OnOutcomes: TypeAlias = Callable[[list[Outcome]], None]


class Group(msgspec.Struct, eq=False):
    """Requests that were submitted together: numbers `first`…, and what has come back so far."""

    first: int
    outcomes: list[Outcome]
    left: int
    on_outcomes: OnOutcomes


class Pending(msgspec.Struct, eq=False):
    """A request that is not settled yet; those of a group share one."""

    on_reply: OnReply
    deadline: float
    next: bool
    poll: bool
    sent: bool = False
    group: Group | None = None


def ignore(_outcome: Outcome) -> None:
    """Take what a group tells its own callback."""


def weigh(command: Command) -> int:
    """Return roughly how many bytes a command is."""
    if isinstance(command, Enqueue):
        return REQUEST_BYTES + len(command.queue) + len(command.id) + len(command.payload) + len(command.state or b"")
    if isinstance(command, Heartbeat):
        return REQUEST_BYTES + len(command.queue) + len(command.id) + len(command.state or b"")
    return REQUEST_BYTES + len(getattr(command, "queue", ""))
