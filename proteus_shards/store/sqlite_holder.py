"""Which process holds a SQLite file, asked without touching its lock.

A process that merely opens and closes a file drops every lock that it has on it itself (POSIX), and to try a lock is to hold it for a moment,
in which a server that starts would be refused. So a child process asks the kernel who would be in the way (F_GETLK). This file is that
child's program too, and imports nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LOCK_BYTES = (0x40000000, 512)  # where in a file SQLite puts its locks: a part of its file format
ANSWER_SECONDS_MAX = 10.0


def holder_of(paths: Sequence[Path]) -> int | None:
    """Return the id of a process that holds any of these files; 0 where the kernel cannot tell which (it runs on another machine), None where nobody does.

    Raises `OSError` and `subprocess.SubprocessError` where the question cannot be asked.
    """
    asked = [sys.executable, "-I", "-S", __file__, *map(str, paths)]
    ran = subprocess.run(asked, capture_output=True, check=True, timeout=ANSWER_SECONDS_MAX, stdin=subprocess.DEVNULL)  # noqa: S603  # ourselves
    said = ran.stdout
    return int(said) if said.strip() else None


def ask(path: str) -> int | None:
    """Return who holds one file. Not for a process that has the file open."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        start, length = LOCK_BYTES
        if sys.platform == "darwin":
            answer = struct.unpack("@qqihh", fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("@qqihh", start, length, 0, fcntl.F_WRLCK, 0)))
            kind, holder = answer[3], answer[2]
        else:
            answer = struct.unpack("@hhqqi", fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("@hhqqi", fcntl.F_WRLCK, 0, start, length, 0)))
            kind, holder = answer[0], answer[4]
    finally:
        os.close(fd)
    return None if kind == fcntl.F_UNLCK else max(0, holder)


def main() -> None:
    """Write the holder of the first file that is held, or nothing."""
    for path in sys.argv[1:]:
        holder = ask(path)
        if holder is not None:
            sys.stdout.write(f"{holder}\n")
            return


if __name__ == "__main__":
    main()
