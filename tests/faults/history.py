"""What happened, as its witnesses wrote it down: one JSON object a line, one line when a request is sent and one when it is over.

How to think about it: a history claims nothing about the server. It says when a client began to ask (`invoke`), and when and how it was over:

* `ok`: a 2xx was read to its end;
* `fail`: a 4xx, or no byte of the request ever left. It has no effect, now or later;
* `unknown`: a 5xx, a broken connection, a client that lost its patience. It may have had its effect, or have it still.

The last two are never folded into one. Times are CLOCK_MONOTONIC nanoseconds of the one machine, so that "before" means before. Beside the
clients, others write too: the nemesis what it did from when to when (`f=nemesis`), the watcher of the server's log what the
server said of itself (`f=server`), the drain that a round is over (`f=drain`), and the audit what the store holds in the end (`f=audit`).

A state is JSON text, "null" where there is none; a payload is told by its digest and by the unique token (`uid`) inside it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

FOREVER = 2**62  # when an operation whose outcome is unknown has surely had its effect
SECOND = 1_000_000_000
NO_STATE = "null"


class Given(msgspec.Struct, omit_defaults=True, gc=False):
    """One job as a client was given it (or as the list of dead letters showed it)."""

    queue: str
    id: str
    uid: str
    attempt: int
    run_id: str = ""
    state: str = NO_STATE
    timeout: int = 0
    max_retries: int = 0
    persist: bool = False
    payload_sha: str = ""


class Line(msgspec.Struct, omit_defaults=True, gc=False):
    """One line of a history. `i` joins the two lines of one operation; `proc` never goes on after an unknown outcome."""

    i: int
    proc: int
    f: str  # run, enqueue, next, heartbeat, complete, dead, drain, nemesis, server, audit
    type: str  # invoke, ok, fail, unknown; info for those that are no requests
    t: int
    queue: str = ""
    id: str = ""
    uid: str = ""
    persist: bool = False
    timeout: int = 0
    max_retries: int = 0
    attempt: int = 0
    run_id: str = ""  # empty: the request named none
    state: str | None = None  # None: the request left the state alone
    payload_sha: str = ""
    wait: float = 0.0
    num_jobs: int = 0  # 0: not named
    http_status: int = 0  # 0: no answer
    retry_after: int | None = None
    conn_id: int = 0
    shard: int = -1
    jobs: list[Given] = []
    # of f=run, nemesis, server, drain, audit
    seed: int = 0
    fault: str = ""
    target: str = ""
    phase: str = ""
    event: str = ""
    server_epoch: int = 0
    detail: str = ""
    counts: dict[str, int] = {}
    queues: list[str] = []


class Op(msgspec.Struct, gc=False):
    """One request, from `s` to `e` (FOREVER where its outcome is unknown)."""

    i: int
    f: str
    type: str
    s: int
    e: int
    queue: str
    id: str
    uid: str
    persist: bool
    timeout: int
    max_retries: int
    run_id: str
    state: str | None
    payload_sha: str
    wait: float
    num_jobs: int
    http_status: int = 0
    retry_after: int | None = None
    jobs: list[Given] = []
    told: int = 0  # when the client stopped waiting, whatever the outcome


class Window(msgspec.Struct, gc=False):
    """One fault, from the moment before it to the moment after its end."""

    fault: str
    target: str
    start: int
    stop: int = FOREVER
    refused: str = ""  # why it did not happen


class Death(msgspec.Struct, gc=False):
    """Memory of some queues went, at `t` at the latest."""

    t: int
    queues: frozenset[str]
    by_itself: bool
    detail: str = ""


class History(msgspec.Struct, gc=False):
    """All of one run, paired and sorted."""

    seed: int = 0
    about: str = ""
    planned: int = 0  # faults that should have happened
    ops: list[Op] = []
    windows: list[Window] = []
    deaths: list[Death] = []
    epochs: list[tuple[str, int]] = []  # (shard and number of shards, epoch) in the order in which they were said
    drains: int = 0
    drained: int = FOREVER  # when the first complete drain began
    audits: list[Line] = []
    open_ops: int = 0


class Recorder:
    """Writes a history. All its writers live in one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb", buffering=1 << 20)
        self._encode = msgspec.json.Encoder().encode
        self._number = 0
        self._proc = 0

    def new_proc(self) -> int:
        """Return the number of a process that has not spoken yet."""
        self._proc += 1
        return self._proc

    def new_op(self) -> int:
        """Return the number of the next operation."""
        self._number += 1
        return self._number

    def write(self, line: Line) -> None:
        """Add a line."""
        self._file.write(self._encode(line) + b"\n")

    def note(self, f: str, **fields: object) -> None:
        """Add a line that is no request, at this moment."""
        self.write(msgspec.convert({"i": self.new_op(), "proc": 0, "f": f, "type": "info", "t": time.monotonic_ns(), **fields}, Line))

    def close(self) -> None:
        """Write what is buffered and let go of the file."""
        self._file.close()


def sha(data: bytes) -> str:
    """Return the digest by which bytes are compared."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a history file."""
    decode = msgspec.json.Decoder(Line).decode
    with path.open("rb") as file:
        for line in file:
            yield decode(line)


def pair(lines: Iterable[Line]) -> History:
    """Make a history of its lines. An operation without an end has an unknown outcome."""
    history = History()
    open_ops: dict[int, Op] = {}
    windows: dict[tuple[str, str], Window] = {}
    for line in lines:
        match line.f:
            case "run":
                history.seed, history.about, history.planned = line.seed, line.detail, line.counts.get("faults", 0)
            case "nemesis":
                _take_nemesis(history, windows, line)
            case "server":
                _take_server(history, line)
            case "drain":
                if line.phase == "start":
                    history.drained = min(history.drained, line.t)
                else:
                    history.drains += 1
            case "audit":
                history.audits.append(line)
            case _ if line.type == "invoke":
                op = _op_of(line)
                open_ops[line.i] = op
                history.ops.append(op)
            case _:
                _finish(open_ops.pop(line.i), line)
    history.open_ops = len(open_ops)
    return history


def _op_of(line: Line) -> Op:
    return Op(
        line.i,
        line.f,
        "unknown",
        line.t,
        FOREVER,
        line.queue,
        line.id,
        line.uid,
        line.persist,
        line.timeout,
        line.max_retries,
        line.run_id,
        line.state,
        line.payload_sha,
        line.wait,
        line.num_jobs,
        told=FOREVER,
    )


def _finish(op: Op, line: Line) -> None:
    op.type, op.told, op.http_status, op.retry_after, op.jobs = line.type, line.t, line.http_status, line.retry_after, line.jobs
    op.e = FOREVER if line.type == "unknown" else line.t


def _take_nemesis(history: History, windows: dict[tuple[str, str], Window], line: Line) -> None:
    key = (line.fault, line.target)
    if line.phase == "start":
        windows[key] = Window(line.fault, line.target, line.t)
        history.windows.append(windows[key])
    else:
        window = windows.pop(key)
        window.stop, window.refused, window.target = line.t, line.detail, line.event or line.target


def _take_server(history: History, line: Line) -> None:
    if line.event == "epoch":
        history.epochs.append((line.target, line.server_epoch))
    elif line.event == "death":
        history.deaths.append(Death(line.t, frozenset(line.queues), line.phase == "by itself", f"{line.target}: {line.detail}"))
