"""What a program did to one folder and what it told, read from strace's record of it.

A system call has two moments: when it begins, from which on it may have had its effect, and when it ends, from which on it surely has. strace
stops a thread at both and writes its line before the thread goes on, so what was told after a sync had returned stands behind it in
the record, whichever thread told it.

Only the calls that this file knows may change what is looked at; a record that holds any other (a shared mapping, `fallocate`, …) is refused
rather than misread. (What went through io_uring, which event loops set up, would be missing from the files at the end, and is looked for there.)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import server_environ

RECORD_SECONDS_MAX = 300.0
STRING_BYTES_MAX = 1 << 24  # of one write, in full

NAMING = ("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir")  # some machines have only the longer ones
KNOWN = ("openat", "open", "write", "pwrite64", "ftruncate", "fsync", "fdatasync", "lseek", *NAMING)
REFUSED = (
    "creat", "writev", "pwritev", "pwritev2", "fallocate", "copy_file_range", "sendfile", "splice", "link", "linkat", "symlink", "symlinkat",
    "truncate", "msync", "mmap",
)  # fmt: skip
OPTIONS = (
    "-f", "--seccomp-bpf", "-xx", "-y", "-s", str(STRING_BYTES_MAX), "-e", "signal=none",
    "-e", "trace=" + ",".join(f"?{name}" for name in (*KNOWN, *REFUSED)),  # not every machine has all
)  # fmt: skip

_LINE = re.compile(r"(\d+) +(?:<\.\.\. \w+ resumed>|)(.*)", re.DOTALL)
_CALL = re.compile(r"(\w+)\((.*?)\)\s+= (-?\d+)(?:<((?:\\x..)*)>)?.*", re.DOTALL)
_UNFINISHED = " <unfinished ...>"
_FD = re.compile(r"(-?\d+)<((?:\\x..)*)>(\(deleted\))?")
_TEXT = re.compile(r'"((?:\\x..)*)"')


class Call(NamedTuple):
    """One call that changed, synced or told something. `path` is relative to the folder; "" is the folder itself."""

    name: str
    path: str
    data: bytes = b""  # of a write; of a rename the new path
    offset: int = 0  # of a write; of a truncation the new size


class Moment(NamedTuple):
    """A call begins or ends. What was told has the name "tell"."""

    begins: bool
    call: Call


def why_not() -> str | None:
    """Say why nothing can be recorded here, or return None where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", *OPTIONS, "-o", os.devnull, "true"], check=False, capture_output=True, text=True)
    return None if tried.returncode == 0 else f"strace cannot trace: {tried.stderr.strip()}"


def need_strace() -> None:
    """Skip a test where nothing can be recorded."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)


def record(folder: Path, record_path: Path, arguments: Sequence[str], told_path: Path) -> list[Moment]:
    """Run a Python program under strace and return all that it did below `folder`, and what it wrote to `told_path`."""
    told_path.touch()
    reader = Reader(folder, told_path)
    ran = subprocess.run(
        ["strace", *OPTIONS, "-o", str(record_path), sys.executable, *arguments],
        env=server_environ({}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RECORD_SECONDS_MAX,
        check=False,
    )
    assert ran.returncode == 0, f"the recorded program failed: {ran.stderr[-2000:]}"
    with record_path.open(encoding="ascii") as lines:
        return list(reader.moments(lines))


class Reader:
    """Turns the lines of a record into moments. To be made before the program runs: it looks at what is there."""

    def __init__(self, folder: Path, told_path: Path) -> None:
        self._folder = os.fsencode(folder)
        self._told = os.fsencode(told_path)
        self._positions: dict[bytes, int] = {}  # where `write` goes: no file has two writers of this kind at once
        self._files: set[str] = {str(path.relative_to(folder)) for path in folder.rglob("*")} if folder.is_dir() else set()

    def moments(self, lines: Iterable[str]) -> Iterator[Moment]:
        """Yield what happened, in order. A call whose end was never seen raises."""
        whole = list(lines)
        begun: dict[str, Begun] = {}
        ends: dict[int, str] = {}  # the whole text of a call that was interrupted, by the line of its beginning
        for number, line in enumerate(whole):
            pid, text = _split(line)
            if text.endswith(_UNFINISHED):
                begun[pid] = Begun(number, text.removesuffix(_UNFINISHED))
            elif " resumed>" in line:
                first = begun.pop(pid)
                ends[first.line] = first.text + text
        assert not begun, f"{len(begun)} calls never ended"
        open_calls: dict[str, Call | None] = {}
        for number, line in enumerate(whole):
            pid, text = _split(line)
            if text.startswith(("+++", "---")):
                continue
            if text.endswith(_UNFINISHED):
                call = open_calls[pid] = self._call(ends[number])
                if call is not None:
                    yield Moment(True, call)
            elif " resumed>" in line:
                call = open_calls.pop(pid)
                if call is not None:
                    yield Moment(False, call)
            else:
                call = self._call(text)
                if call is not None:
                    yield Moment(True, call)
                    yield Moment(False, call)

    def _call(self, text: str) -> Call | None:
        """Return what a call means for the folder, or None where it means nothing."""
        found = _CALL.fullmatch(text)
        assert found is not None, f"not a call: {text[:200]}"
        name, arguments, result = found[1], found[2].split(", "), int(found[3])
        if result < 0:
            return None
        if name in REFUSED:
            self._refuse(name, arguments)
            return None
        if name in ("open", "openat"):
            return self._opened(_bytes(found[4]), arguments[-2:] if arguments[-1].startswith("0") else arguments[-1:])
        if name in NAMING:
            return self._named(name, arguments)
        path, is_gone = _descriptor(arguments[0])
        if name == "lseek":
            self._positions[path] = result
            return None
        if path == self._told:
            return Call("tell", "", _string(arguments[1])) if name == "write" else None
        inside = None if is_gone else self._inside(path)
        if inside is None:
            return None
        if name == "write":
            at = self._positions.get(path, 0)
            self._positions[path] = at + result
            return Call("write", inside, _string(arguments[1])[:result], at)
        if name == "pwrite64":
            return Call("write", inside, _string(arguments[1])[:result], int(arguments[3]))
        if name == "ftruncate":
            return Call("truncate", inside, offset=int(arguments[1]))
        return Call("sync", inside)

    def _opened(self, path: bytes, flags: Sequence[str]) -> Call | None:
        self._positions[path] = 0
        inside = self._inside(path)
        if inside is None or "O_CREAT" not in flags[0]:
            assert inside is None or "O_TRUNC" not in flags[0]
            return None
        assert "O_APPEND" not in flags[0]
        is_new = inside not in self._files
        self._files.add(inside)
        if is_new:
            return Call("create", inside)
        return Call("truncate", inside) if "O_TRUNC" in flags[0] else None

    def _named(self, name: str, arguments: Sequence[str]) -> Call | None:
        paths = [_string(argument) for argument in arguments if argument.startswith('"')]
        inside = self._inside(paths[0])
        if inside is None:
            return None
        if name.startswith("rename"):
            target = self._inside(paths[1])
            assert target is not None, "renamed out of the folder"
            assert name != "renameat2" or arguments[-1] in ("0", "RENAME_NOREPLACE"), "names exchanged"
            self._files.discard(inside)
            self._files.add(target)
            return Call("rename", inside, os.fsencode(target))
        if name.startswith("mkdir"):
            self._files.add(inside)
            return Call("mkdir", inside)
        self._files.discard(inside)
        return Call("rmdir" if name == "rmdir" or "AT_REMOVEDIR" in arguments[-1] else "unlink", inside)

    def _inside(self, path: bytes) -> str | None:
        """Return a path relative to the folder, or None where it is none of ours. Relative ones are none of ours: the programs use absolute ones."""
        if path == self._folder:
            return ""
        return os.fsdecode(path[len(self._folder) + 1 :]) if path.startswith(self._folder + b"/") else None

    def _refuse(self, name: str, arguments: Sequence[str]) -> None:
        """Raise where a call that is not modelled touches the folder."""
        if name == "mmap" and ("PROT_WRITE" not in arguments[2] or "MAP_SHARED" not in arguments[3]):
            return
        for argument in arguments:
            for found in (_FD.match(argument), _TEXT.match(argument)):
                path = b"" if found is None else _bytes(found[2] if found.re is _FD else found[1])
                assert self._inside(path) is None, f"{name} of {os.fsdecode(path)} is not modelled"


class Begun(NamedTuple):
    """A call that another thread's line interrupted."""

    line: int
    text: str


def _split(line: str) -> tuple[str, str]:
    found = _LINE.fullmatch(line.rstrip("\n"))
    assert found is not None, f"not a line of strace: {line[:200]}"
    return found[1], found[2]


def _bytes(text: str | None) -> bytes:
    return bytes.fromhex((text or "").replace("\\x", ""))


def _string(argument: str) -> bytes:
    found = _TEXT.fullmatch(argument)
    assert found is not None, f"not a whole string: {argument[:100]}"
    return _bytes(found[1])


def _descriptor(argument: str) -> tuple[bytes, bool]:
    found = _FD.fullmatch(argument)
    assert found is not None, f"not a descriptor: {argument[:100]}"
    return _bytes(found[2]), found[3] is not None
