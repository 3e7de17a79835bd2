r"""Load from wrk: one thread, keep-alive connections, one request at a time on each, and a generated Lua script.

What the script costs. `request()` is called for every request, so it only joins three ready strings. Measured over a bare server: 1.2 µs of wrk's own
time a request without any script, 2.0 µs with this, 2.5 µs where `wrk.format` builds the same, each beside about 4 µs in the kernel.

What wrk can check is the status class (anything but 2xx and 3xx is counted as an error) and nothing inside an answer: a `response`
function would have it parse all headers into Lua tables. So the scenarios are made such that a wrong answer shows as a status, or in what is left behind.

wrk takes whole seconds only. It is started with more than enough of them and ended by SIGINT, which it takes as the end of the measurement:
it then reports over the time that has really passed.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import msgspec

from bench.jobs import COMPLETE_TAIL, ENQUEUE_TAIL, HEARTBEAT_TAIL, ID_FIRST, Family, next_job

WRK = "wrk"
GRACE_SECONDS = 30.0
_MARK = "BENCH "

_DONE = f"""
function done(summary, latency, requests)
  io.write(string.format(
    '{_MARK}{{"requests":%d,"us":%d,"bytes":%d,"status":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d,"p50_us":%d,"p99_us":%d}}\\n',
    summary.requests, summary.duration, summary.bytes, summary.errors.status, summary.errors.connect, summary.errors.read,
    summary.errors.write, summary.errors.timeout, latency:percentile(50), latency:percentile(99)))
end
"""


class WrkResult(msgspec.Struct, frozen=True):
    """What wrk counted. Errors are answers of a wrong status and all that went wrong with a connection."""

    requests: int
    seconds: float
    bytes: int
    errors: int
    cpu_seconds: float
    closed_p50_ms: float  # of a closed loop: what waits for an answer is not asked, so these say little about latency
    closed_p99_ms: float


def available() -> bool:
    """Say whether wrk is installed."""
    return shutil.which(WRK) is not None


def run(address: tuple[str, int], script: str, *, connections: int, seconds: float, folder: Path) -> WrkResult:
    """Load an address with a script for some seconds."""
    path = folder / "wrk.lua"
    path.write_text(script + _DONE, encoding="ascii")
    command = [WRK, "-t1", f"-c{connections}", f"-d{int(seconds + GRACE_SECONDS)}s", "--timeout", "30s", "-s", str(path)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        [*command, f"http://{address[0]}:{address[1]}/"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=GRACE_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = [line for line in said.splitlines() if line.startswith(_MARK)]
    if not found:
        raise RuntimeError(f"wrk gave no result: {said.strip()[-500:]}")
    numbers = json.loads(found[-1].removeprefix(_MARK))
    return WrkResult(
        requests=numbers["requests"],
        seconds=numbers["us"] / 1e6,
        bytes=numbers["bytes"],
        errors=sum(numbers[name] for name in ("status", "connect", "read", "write", "timeout")),
        cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        closed_p50_ms=numbers["p50_us"] / 1000,
        closed_p99_ms=numbers["p99_us"] / 1000,
    )


def enqueue_script(family: Family, first: int) -> str:
    """Enqueue the jobs of a family from number `first` on."""
    return f"""
{_list("heads", [family.enqueue_head(queue) for queue in family.slots])}
local tail, count = {_quoted(ENQUEUE_TAIL)}, {len(family.slots)}
local number = {ID_FIRST + first} - 1
function request()
  number = number + 1
  return heads[(number - {ID_FIRST}) % count + 1] .. number .. tail
end
"""


def next_script(family: Family) -> str:
    """Ask for the next job of each slot in turn."""
    return f"""
{_list("asks", [next_job(queue) for queue in family.slots])}
local count, number = {len(family.slots)}, -1
function request()
  number = number + 1
  return asks[number % count + 1]
end
"""


def life_script(family: Family, first: int, ready: int, lag: int) -> str:
    """Take jobs through enqueue, next, heartbeat and complete without reading an answer.

    When this begins, `ready` jobs before `first` wait and 2 × `lag` jobs before those are in flight. Then, for each new job: enqueue it, take the
    next of its queue, heartbeat the one that was taken `lag` jobs ago, and complete the one that was heartbeaten `lag` jobs ago. What these
    need has surely happened by then, as far more requests than there are connections lie between; had it not, the status would be
    404, which wrk counts. Both numbers are multiples of the number of slots.
    """
    assert ready % len(family.slots) == 0
    assert lag % len(family.slots) == 0
    return f"""
{_list("enqueues", [family.enqueue_head(queue) for queue in family.slots])}
{_list("nexts", [next_job(queue) for queue in family.slots])}
{_list("heartbeats", [family.heartbeat_head(queue) for queue in family.slots])}
{_list("completes", [family.complete_head(queue) for queue in family.slots])}
local enqueue_tail, heartbeat_tail, complete_tail = {_quoted(ENQUEUE_TAIL)}, {_quoted(HEARTBEAT_TAIL)}, {_quoted(COMPLETE_TAIL)}
local count, number, phase, slot = {len(family.slots)}, {ID_FIRST + first} - 1, 3, 1
local looked_at = false
function request()
  if not looked_at then -- wrk looks at one request before it begins, and never sends it
    looked_at = true
    return nexts[1]
  end
  if phase == 3 then
    phase = 0
    number = number + 1
    slot = (number - {ID_FIRST}) % count + 1
    return enqueues[slot] .. number .. enqueue_tail
  end
  phase = phase + 1
  if phase == 1 then return nexts[slot] end
  if phase == 2 then return heartbeats[slot] .. number - {ready + lag} .. heartbeat_tail end
  return completes[slot] .. number - {ready + 2 * lag} .. complete_tail
end
"""


def loop_script(family: Family, first: int, ready: int) -> str:
    """Lead a runner's loop without reading an answer: for each new job, enqueue it, and complete the one that was taken long ago and take the next.

    When this begins, `ready` jobs before `first` wait, and at least as many before those are in flight, as in `life_script`.
    """
    assert ready % len(family.slots) == 0
    return f"""
{_list("enqueues", [family.enqueue_head(queue) for queue in family.slots])}
{_list("loops", [family.complete_and_next_head(queue) for queue in family.slots])}
local enqueue_tail, loop_tail = {_quoted(ENQUEUE_TAIL)}, {_quoted(HEARTBEAT_TAIL)}
local count, number, enqueued, slot = {len(family.slots)}, {ID_FIRST + first} - 1, false, 1
local looked_at = false
function request()
  if not looked_at then -- wrk looks at one request before it begins, and never sends it
    looked_at = true
    return loops[1] .. number .. loop_tail
  end
  enqueued = not enqueued
  if enqueued then
    number = number + 1
    slot = (number - {ID_FIRST}) % count + 1
    return enqueues[slot] .. number .. enqueue_tail
  end
  return loops[slot] .. number - {2 * ready} .. loop_tail
end
"""


def _quoted(text: bytes) -> str:
    """Write bytes as a Lua string: ours are printable ASCII but for line ends."""
    return '"' + text.decode("ascii").replace("\\", "\\\\").replace('"', '\\"').replace("\r", "\\r").replace("\n", "\\n") + '"'


def _list(name: str, texts: list[bytes]) -> str:
    """Write a Lua list. A long text that several share is written once by its repeat count, so that 1 MiB payloads stay a short script."""
    return f"local {name} = {{{', '.join(_folded(text) for text in texts)}}}"


def _folded(text: bytes) -> str:
    run = b"x" * 256
    at = text.find(run)
    if at < 0:
        return _quoted(text)
    end = at + len(text[at:]) - len(text[at:].lstrip(b"x"))
    return f"{_quoted(text[:at])} .. string.rep('x', {end - at}) .. {_quoted(text[end:])}"
