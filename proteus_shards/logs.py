"""What the processes say while they work: one line a record, on standard error.

Every process of a server writes to the same standard error. A record is therefore formatted whole and goes out in one write, so
that lines of several processes do not mix. (A pipe keeps writes of up to 4 KiB together; a longer line, such as one
with a long traceback, may be cut into by another process.)

An event is a short constant text; what varies goes into `extra`, where a program can find it again. Payloads, states and secrets are
never passed to a logger. Libraries are heard from "warning" on, whatever the level, as their chatter is not ours to promise.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType

from proteus_shards.config import Settings

STDERR = 2

_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}
_COLOURS = {logging.DEBUG: "2", logging.INFO: "32", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "1;31"}
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def setup(settings: Settings, process: str, fd: int = STDERR) -> None:
    """Send this process's log records to a file descriptor, in the format and from the level that the settings name."""
    terminal = os.isatty(fd)
    if settings.log_format == "console" or (settings.log_format == "auto" and terminal):
        formatter: logging.Formatter = ConsoleFormatter(process, coloured=terminal)
    else:
        formatter = JsonFormatter(process)
    handler = OneWriteHandler(fd)
    handler.setFormatter(formatter)
    level = _LEVELS[settings.log_level]
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("proteus_shards").setLevel(level)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_unhandled


class OneWriteHandler(logging.Handler):
    """Writes each record with one system call."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. A record that nobody can read any more is dropped: a log never stops the server."""
        try:
            # A lone surrogate becomes its \u escape, which is what JSON wants.
            rest = memoryview((self.format(record) + "\n").encode("utf-8", "backslashreplace"))
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            return  # standard error is closed or full, and it was the last place to say so
        except Exception:  # noqa: BLE001 a record that cannot be formatted is a bug of its caller, reported by logging itself
            self.handleError(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, process, logger, event, then the extra fields."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, without its end."""
        fields: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "event": record.getMessage(),
        }
        for name, value in _extra(record).items():
            fields.setdefault(name, value)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str, ensure_ascii=False)


class ConsoleFormatter(logging.Formatter):
    """For a person at a terminal: time, level, process, event, name=value. A traceback follows on lines of its own."""

    def __init__(self, process: str, *, coloured: bool) -> None:
        super().__init__()
        self._process = process
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record, without its end."""
        level = f"{record.levelname.lower():<8}"
        if self._coloured:
            level = f"\x1b[{_COLOURS.get(record.levelno, '0')}m{level}\x1b[0m"
        parts = [_time(record), level, f"{self._process:<10}", _printable(record.getMessage())]
        parts += [f"{name}={_shown(value)}" for name, value in _extra(record).items()]
        text = " ".join(parts)
        if record.exc_info:
            lines = self.formatException(record.exc_info).splitlines()
            text += "".join(f"\n    {_printable(line)}" for line in lines)
        return text


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _extra(record: logging.LogRecord) -> Mapping[str, object]:
    return {name: value for name, value in record.__dict__.items() if name not in _OWN}


def _printable(text: str) -> str:
    """Escape what could move the cursor or start a line that nobody logged."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _shown(value: object) -> str:
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text, ensure_ascii=not text.isprintable())


def _log_unhandled(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    logging.getLogger("proteus_shards").critical("unhandled exception", exc_info=(kind, error, traceback))
