"""The log: one record a line, one line a write."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from proteus_shards import logs
from proteus_shards.config import Settings
from tests.conftest import server_environ

log = logging.getLogger("proteus_shards.test")

Setup = Callable[..., None]
Read = Callable[[], bytes]


@pytest.fixture
def logged() -> Iterator[tuple[Setup, Read]]:
    """A function that sets the log up to go into a pipe, and one that reads what is in there."""
    ours, root = logging.getLogger("proteus_shards"), logging.getLogger()
    before = (root.handlers[:], root.level, ours.level, sys.excepthook)
    readable, writable = os.pipe()
    os.set_blocking(readable, False)

    def setup(**settings: Any) -> None:
        logs.setup(Settings(**settings), "shard-7", writable)

    def read() -> bytes:
        try:
            return os.read(readable, 1_000_000)
        except BlockingIOError:
            return b""

    yield setup, read
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level, ours.level, sys.excepthook = before
    logging.getLogger("x").manager._clear_cache()  # type: ignore[attr-defined]  # levels were set behind its back
    os.close(readable)
    os.close(writable)


def test_a_record_is_one_json_object_with_its_fields(logged: tuple[Setup, Read]) -> None:
    """Away from a terminal, the log is for programs."""
    setup, read = logged
    setup()

    log.warning("it happened %d times", 2, extra={"queue": "mül\nl", "count": 3, "level": "not this"})

    line = read()
    fields = json.loads(line)
    assert line.count(b"\n") == 1
    assert list(fields) == ["time", "level", "process", "logger", "event", "queue", "count"]
    assert (fields["level"], fields["process"], fields["logger"]) == ("warning", "shard-7", "proteus_shards.test")
    assert (fields["event"], fields["queue"], fields["count"]) == ("it happened 2 times", "mül\nl", 3)
    assert fields["time"].endswith("Z")
    assert datetime.fromisoformat(fields["time"]).utcoffset() == timedelta(0)


def test_an_exception_is_one_field(logged: tuple[Setup, Read]) -> None:
    """A traceback does not break the line."""
    setup, read = logged
    setup()

    try:
        int("wrong")
    except ValueError:
        log.exception("it failed")

    line = read()
    assert line.count(b"\n") == 1
    assert json.loads(line)["exception"].endswith("'wrong'")


def test_what_cannot_be_utf8_is_escaped(logged: tuple[Setup, Read]) -> None:
    """A lone surrogate or an object of any kind does not lose the record."""
    setup, read = logged
    setup()

    log.error("odd", extra={"half": "\ud800", "thing": {1}, "raw": b"\xff"})

    fields = json.loads(read())
    assert (fields["half"], fields["thing"], fields["raw"]) == ("\ud800", "{1}", "b'\\xff'")


def test_a_person_gets_names_and_values_and_no_control_characters(logged: tuple[Setup, Read]) -> None:
    """Text from outside cannot forge a line or move the cursor, and without a terminal there is no colour."""
    setup, read = logged
    setup(log_format="console")

    log.error("red\x1b[31m", extra={"queue": "a\nb", "id": "two words", "count": 3})

    line = read().decode()
    assert line.count("\n") == 1
    assert 'error    shard-7    red\\x1b[31m queue="a\\nb" id="two words" count=3\n' in line
    assert "\x1b" not in line


def test_a_person_gets_a_traceback_on_lines_of_its_own(logged: tuple[Setup, Read]) -> None:
    """It still goes out in one write."""
    setup, read = logged
    setup(log_format="console")

    try:
        int("wrong")
    except ValueError:
        log.exception("it failed")

    lines = read().decode().splitlines()
    assert "it failed" in lines[0]
    assert lines[-1].startswith("    ValueError: ")


def test_a_terminal_gets_colours() -> None:
    """The only place where they are of use."""
    record = log.makeRecord(log.name, logging.ERROR, "", 0, "it happened", (), None)

    assert "\x1b[31merror   \x1b[0m" in logs.ConsoleFormatter("x", coloured=True).format(record)


def test_the_level_counts_for_the_server_and_libraries_are_heard_from_warning_on(logged: tuple[Setup, Read]) -> None:
    """Debugging the server does not mean debugging its libraries."""
    setup, read = logged
    setup(log_level="debug")

    for logger in (log, logging.getLogger("library")):
        logger.debug("debug")
        logger.warning("warning")

    assert [(fields["logger"], fields["event"]) for fields in map(json.loads, read().splitlines())] == [
        ("proteus_shards.test", "debug"),
        ("proteus_shards.test", "warning"),
        ("library", "warning"),
    ]


def test_less_than_the_level_is_not_logged(logged: tuple[Setup, Read]) -> None:
    """For libraries too."""
    setup, read = logged
    setup(log_level="error")

    log.warning("no")
    logging.getLogger("library").warning("no")

    assert read() == b""


def test_setting_up_twice_logs_once(logged: tuple[Setup, Read]) -> None:
    """The second set-up replaces the first."""
    setup, read = logged
    setup()
    setup()

    log.warning("once")

    assert read().count(b"once") == 1


def test_a_log_that_nobody_reads_stops_nothing(logged: tuple[Setup, Read]) -> None:
    """A closed standard error must not end a server."""
    setup, _ = logged
    readable, writable = os.pipe()
    os.close(readable)
    logs.setup(Settings(), "shard-7", writable)
    try:
        log.warning("lost")
    finally:
        setup()
        os.close(writable)


def test_an_unhandled_exception_is_a_record_too() -> None:
    """Even the end of a process leaves a line that a program can read."""
    code = "from proteus_shards import logs; from proteus_shards.config import Settings; logs.setup(Settings(), 'x'); raise ValueError('wrong')"

    ran = subprocess.run([sys.executable, "-c", code], env=server_environ({}), capture_output=True, check=False)

    fields = json.loads(ran.stderr)
    assert ran.returncode == 1
    assert (fields["level"], fields["event"]) == ("critical", "unhandled exception")
    assert fields["exception"].endswith("ValueError: wrong")


def test_a_warning_of_python_is_a_record_too() -> None:
    """Nothing else writes to standard error."""
    code = (
        "import warnings; from proteus_shards import logs; from proteus_shards.config import Settings;"
        "logs.setup(Settings(), 'x'); warnings.warn('careful')"
    )

    ran = subprocess.run([sys.executable, "-c", code], env=server_environ({}), capture_output=True, check=True)

    assert "careful" in json.loads(ran.stderr)["event"]
