"""Where commands write: JSON or tables to standard output, progress and words to standard error.

Nothing of it needs a terminal, and what only a terminal can show is left out elsewhere. Names and payloads of others are shown so that they can't move the cursor.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

TICK_SECONDS = 0.1  # between two pictures of a progress
CELL_LENGTH_MAX = 60


class Console:
    """The output of one command."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.live = sys.stderr.isatty() and not as_json
        self.fancy = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def json(self, value: Any) -> None:
        """Print a value as a line of JSON."""
        self._write(msgspec.json.encode(value) + b"\n")

    def line(self, text: str = "") -> None:
        """Print a line for people."""
        self._write(f"{text}\n".encode(errors="backslashreplace"))

    def tell(self, text: str) -> None:
        """Write a line to standard error."""
        sys.stderr.write(f"{text}\n")

    def confirms(self, question: str) -> bool:
        """Ask whoever sits at the terminal; where nobody does, the answer is yes."""
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return True
        sys.stderr.write(question)
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a table: numbers to the right, the rest to the left."""
        cells = [[shown(cell) for cell in row] for row in rows]
        numbers = (
            [all(isinstance(cell, int | float) for cell in column) for column in zip(*rows, strict=True)] if isinstance(rows, list) else []
        )
        widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
        for number, row in enumerate([list(headings), *cells]):
            padded = [
                cell.rjust(width) if place < len(numbers) and numbers[place] else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            text = "  ".join(padded).rstrip()
            self.line(f"\x1b[1m{text}\x1b[0m" if number == 0 and self.fancy else text)

    def clear(self) -> None:
        """Begin a new picture, on a terminal."""
        if self.fancy:
            self._write(b"\x1b[H\x1b[2J")

    def height(self) -> int:
        """Return how many lines a picture may have."""
        return shutil.get_terminal_size().lines if self.fancy else sys.maxsize

    def watched(self, items: Iterable[T], what: str, whole: int | None = None) -> Iterator[T]:
        """Yield items, and show on a terminal how many have passed."""
        if not self.live:
            yield from items
            return
        began = due = time.monotonic()
        count = 0
        for item in items:
            yield item
            count += 1
            now = time.monotonic()
            if now >= due:
                due = now + TICK_SECONDS
                self._show(count, what, whole, now - began)
        self._show(count, what, whole, time.monotonic() - began)
        sys.stderr.write("\n")

    def _show(self, count: int, what: str, whole: int | None, seconds: float) -> None:
        bar = ""
        if whole:
            done = min(30, 30 * count // whole)
            bar = f" [{'#' * done}{'.' * (30 - done)}]"
        sys.stderr.write(f"\r\x1b[K{count:,} {what}{bar} {count / max(seconds, 1e-9):,.0f}/s")
        sys.stderr.flush()

    def give_up_output(self) -> None:
        """Take note that nobody reads any more: what is still buffered goes nowhere."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _write(self, data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def shown(value: object) -> str:
    """Return a value fit for a cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, int):
        return f"{value:,}"
    text = str(value)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= CELL_LENGTH_MAX else f"{text[: CELL_LENGTH_MAX - 1]}…"
