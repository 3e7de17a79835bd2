"""What a result depends on besides the code: the machine, the versions, the folder that the stores are in."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import time
from pathlib import Path

import msgspec
import psutil

from bench.targets import BEANSTALKD, ROOT

PROBES = 200
PROBE_BYTES = 4096


class Machine(msgspec.Struct, frozen=True):
    """The machine and what runs on it."""

    cores: int
    cpu: str
    memory_gib: float
    kernel: str
    python: str
    versions: dict[str, str]
    commit: str
    load_before: float  # the load average as the run began: on a quiet machine near 0
    filesystem: str
    fdatasync_us: float  # the median of small appends, each with an fdatasync, in the folder of the stores


def look(folder: Path) -> Machine:
    """Look at this machine. `folder` is where the stores will be."""
    return Machine(
        cores=len(psutil.Process().cpu_affinity() or []) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1,
        cpu=_cpu_name(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        versions=_versions(),
        commit=_said(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]),
        load_before=round(os.getloadavg()[0], 2),
        filesystem=_filesystem(folder),
        fdatasync_us=_fdatasync_us(folder),
    )


def _versions() -> dict[str, str]:
    found = {"sqlite": sqlite3.sqlite_version}
    for name in ("trio", "quart", "hypercorn", "httptools", "msgspec", "uvloop", "uvicorn"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if shutil.which("wrk"):
        found["wrk"] = _said(["wrk", "-v"]).removeprefix("wrk ").split(" [")[0]
    if BEANSTALKD:
        found["beanstalkd"] = _said([BEANSTALKD, "-v"]).removeprefix("beanstalkd ")
    return found


def _said(command: list[str]) -> str:
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return ((ran.stdout or ran.stderr).strip().splitlines() or ["unknown"])[0]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _filesystem(folder: Path) -> str:
    path = folder.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


def _fdatasync_us(folder: Path) -> float:
    path = folder / "probe"
    spent: list[float] = []
    with path.open("wb", buffering=0) as file:
        for _ in range(PROBES):
            started = time.perf_counter()
            file.write(b"x" * PROBE_BYTES)
            os.fdatasync(file.fileno())
            spent.append(time.perf_counter() - started)
    path.unlink()
    return round(1e6 * statistics.median(spent), 1)
