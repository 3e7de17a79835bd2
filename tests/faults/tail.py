"""A log while it grows: what is new in it, whole lines only."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any


class Tail:
    """The end of one log, whose lines are JSON objects. Other lines are passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0  # bytes

    def take(self) -> list[dict[str, Any]]:
        """Return what the log has grown by since the last time."""
        with self.path.open("rb") as log:
            log.seek(self._read)
            data = log.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        found = []
        for line in whole.splitlines():
            with suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict):
                    found.append(said)
        return found
