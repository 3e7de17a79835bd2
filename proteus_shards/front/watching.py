"""Who looks on while commands are carried out: each watch sees what is asked of shards, and what comes of it, whoever asks and in whatever way.

There is none but by option, and a router without watches pays one look at an empty tuple for it. A watch decides nothing. It may put more into a command, and into
an outcome, of what nobody but watches understands: the trace of a job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from proteus_shards.core.commands import Outcome
from proteus_shards.front.operations import QueueCommand

End: TypeAlias = Callable[[Sequence[Outcome]], list[Outcome]]
"""Takes the outcomes in the order of the commands, and returns them."""


class Watch(Protocol):
    """One who looks on."""

    def begin(self, commands: Sequence[QueueCommand]) -> tuple[Sequence[QueueCommand], End | None]:
        """See commands that are asked together, on their way. Returns them, and what is to see their outcomes; it may never be called, as for a poll that is given up."""
        ...


def watched(watches: Sequence[Watch], commands: Sequence[QueueCommand]) -> tuple[Sequence[QueueCommand], End]:
    """Show commands to all watches. Returns the commands as they left them, and what shows them the outcomes."""
    ends: list[End] = []
    for watch in watches:
        commands, end = watch.begin(commands)
        if end is not None:
            ends.append(end)

    def end_all(outcomes: Sequence[Outcome]) -> list[Outcome]:
        shown = list(outcomes)
        for end in ends:
            shown = end(shown)
        return shown

    return commands, end_all
