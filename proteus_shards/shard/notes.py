"""What happens in a shard without a request, as its log tells it. Of what is in the ordinary course of things only those who debug are told."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proteus_shards.core.ledger import Note

NOTES = {
    "timeout": "run timed out",
    "failed": "run failed",
    "died": "job is dead",
    "dropped": "dead letter dropped",
    "purged": "jobs purged",
    "redriven": "dead letters redriven",
    "fired": "schedule fired",
    "missed": "schedule missed its time",
}
LEVELS = {"timeout": logging.DEBUG, "failed": logging.DEBUG, "fired": logging.DEBUG, "purged": logging.INFO, "redriven": logging.INFO}

log = logging.getLogger("proteus_shards.shard")


def log_notes(notes: Iterable[Note]) -> None:
    """Log what a shard has noted."""
    for note in notes:
        level = LEVELS.get(note.kind, logging.WARNING)
        extra: dict[str, object] = {"queue": note.queue, "jobs": note.count}
        if note.id:
            extra = {"queue": note.queue, "job_id": note.id, "attempt": note.attempt, "persist_data": note.persist}
        if note.reason is not None:
            extra["reason"] = note.reason
        log.log(level, NOTES[note.kind], extra=extra)
