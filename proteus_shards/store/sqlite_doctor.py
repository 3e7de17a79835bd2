"""What a look at a SQLite store's folder finds, without opening any of its files.

Not even to read: whoever opens a file of a running server must not be in its process (`sqlite_holder.py`), and would meet its lock. So rows are not
counted; how the files are is found out by the server that opens them, which checks each as a whole.

The one thing that is written is a file of 4 KiB, synced a few times and removed: how long a sync takes decides how long every commit takes.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from proteus_shards.errors import StoreError
from proteus_shards.store.findings import Finding
from proteus_shards.store.sqlite_file import SQLITE_VERSION_MIN
from proteus_shards.store.sqlite_folder import MANIFEST, Manifest, database_path, generations, read_manifest
from proteus_shards.store.sqlite_holder import holder_of
from proteus_shards.store.sqlite_trial import TRIAL_PREFIX, nearest_folder
from proteus_shards.store.urls import SqliteUrl

SQLITE_VERSION_MENDED = (3, 51, 3)  # from here on several connections may write one write-ahead log at once
FREE_BYTES_SCARCE = 1024**3
FREE_BYTES_NONE = 16 * 1024**2
SYNCS = 20
SYNC_SECONDS_MAX = 1.0  # for all of them
SYNC_MS_SLOW = 20.0

_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs", "virtiofs"}
_MOUNTS = Path("/proc/self/mountinfo")


def examine_folder(url: SqliteUrl) -> Iterator[Finding]:
    """Yield what is worth knowing about the folder, its files and the SQLite that would open them."""
    yield _version()
    yield _synchronous(url)
    if url.check == "none":
        yield Finding("note", "check=none: the files are not looked through for damage at the start", "leave the option out")
    folder = url.folder
    try:
        place = nearest_folder(folder)
        yield from _place(folder, place)
        yield from _disk(place)
        yield from _files(folder)
        yield _sync_time(place)
    except OSError as error:
        yield Finding("fault", f"{folder} cannot be looked at: {error.strerror}", "give this user the right to read and write there")


def _version() -> Finding:
    found, version = sqlite3.sqlite_version, sqlite3.sqlite_version_info
    if version < SQLITE_VERSION_MIN:
        needed = ".".join(map(str, SQLITE_VERSION_MIN))
        return Finding("fault", f"SQLite {found} is too old", f"use a Python with SQLite {needed} or later")
    if version < SQLITE_VERSION_MENDED:
        return Finding(
            "note",
            f"SQLite {found}: below 3.51.3 several connections may damage a write-ahead log; a shard has exactly one, and holds the lock",
            "open the files of a running server with no other program",
        )
    return Finding("good", f"SQLite {found}")


def _synchronous(url: SqliteUrl) -> Finding:
    if url.synchronous == "full":
        return Finding("good", "synchronous=full: an acknowledged job survives a loss of power")
    return Finding(
        "warning",
        f"synchronous={url.synchronous}: an acknowledged job survives the end of any process, but a loss of power may take the last moments",
        "leave the option synchronous out, unless that is meant",
    )


def _place(folder: Path, place: Path) -> Iterator[Finding]:
    """Yield whether the folder is there, and whose it is."""
    may_write = os.access(place, os.R_OK | os.W_OK | os.X_OK)
    if not may_write:
        yield Finding("fault", f"{place} may not be read and written by this user", f"chown it, or run the server as {_owner(place)}")
    elif place != folder.absolute():
        yield Finding("note", f"{folder} does not exist yet: the first start makes it")
    else:
        yield Finding("good", f"{folder} is a folder that this user may read and write")
        if place.stat().st_mode & 0o077:
            yield Finding("warning", f"{folder} may be entered by other users", f"chmod 700 {folder}")
        left = [path.name for path in sorted(place.iterdir()) if path.name.startswith(TRIAL_PREFIX)]
        if left:
            yield Finding(
                "note", f"{folder} holds {', '.join(left)}: a trial is running, or was ended before its time", "remove what is old"
            )


def _disk(place: Path) -> Iterator[Finding]:
    """Yield what kind of file system it is, and how much is free."""
    kind = _file_system(place)
    if kind in _REMOTE or (kind or "").startswith("fuse."):
        yield Finding(
            "warning",
            f"the file system is {kind}: over a network neither locks nor syncs may be what the store relies on",
            "put the folder on a local disk",
        )
    elif kind == "overlay":
        yield Finding("warning", "the file system is overlay: a container's own layer, which goes with it", "mount a volume there")
    elif kind in {"tmpfs", "ramfs"}:
        yield Finding("warning", f"the file system is {kind}: it lives in memory, and so do the jobs", "put the folder on a disk")
    elif kind is not None:
        yield Finding("good", f"the file system is {kind}")
    disk = os.statvfs(place)
    free = disk.f_bavail * disk.f_frsize
    if free < FREE_BYTES_NONE:
        yield Finding("fault", f"{_size(free)} are free: no job can be taken", "make room; the server goes on by itself once there is some")
    elif free < FREE_BYTES_SCARCE:
        yield Finding("warning", f"{_size(free)} are free", "make room before it is used up: jobs are then refused with 429")
    else:
        yield Finding("good", f"{_size(free)} are free")


def _files(folder: Path) -> Iterator[Finding]:
    """Yield for how many shards the folder is prepared, how large its files are and who has them."""
    try:
        manifest = read_manifest(folder)
    except StoreError as error:
        yield Finding("fault", str(error))
        return
    if manifest is None and folder.is_dir() and (lost := generations(folder)):
        yield Finding("fault", f"{folder} holds {min(lost.values()).name} but no {MANIFEST}", "restore it from a backup")
        return
    if manifest is None or manifest.generation == 0:
        yield Finding("note", "nothing is stored yet: the first start prepares the folder")
        return
    yield Finding("good", f"prepared for {manifest.shards} shards (generation {manifest.generation})")
    paths = [database_path(folder, manifest, shard) for shard in range(manifest.shards)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        yield Finding("fault", f"{len(missing)} files are missing: {', '.join(missing[:10])}", "restore them from a backup")
        return
    yield _sizes(folder, manifest, paths)
    yield _holder(paths)


def _sizes(folder: Path, manifest: Manifest, paths: list[Path]) -> Finding:
    logs = [path for path in (path.with_name(f"{path.name}-wal") for path in paths) if path.is_file()]
    data, logged = (sum(path.stat().st_size for path in some) for some in (paths, logs))
    old = [path.name for number, path in generations(folder).items() if number != manifest.generation]
    if old:
        return Finding("note", f"the files hold {_size(data)}, and {', '.join(old)} is left of a move", "the next start removes it")
    return Finding("good", f"the files hold {_size(data)}, their logs {_size(logged)}")


def _holder(paths: list[Path]) -> Finding:
    try:
        holder = holder_of(paths)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("note", f"whether a server has the files open cannot be told ({type(error).__name__})")
    if holder is None:
        return Finding("good", "no server has the files open")
    return Finding(
        "good", f"a server has the files open (process {holder})" if holder else "a server on another machine has the files open"
    )


def _sync_time(place: Path) -> Finding:
    """Sync a small file a few times."""
    took_ms: list[float] = []
    try:
        with tempfile.NamedTemporaryFile(prefix=TRIAL_PREFIX, dir=place) as file:
            began = time.perf_counter()
            while len(took_ms) < SYNCS and time.perf_counter() - began < SYNC_SECONDS_MAX:
                os.pwrite(file.fileno(), bytes(4096), 0)
                before = time.perf_counter()
                os.fsync(file.fileno())
                took_ms.append((time.perf_counter() - before) * 1000)
    except OSError as error:
        return Finding(
            "fault", f"a file in {place} cannot be written and synced: {error.strerror}", "make room, or check the disk's health"
        )
    median_ms = statistics.median(took_ms)
    if median_ms > SYNC_MS_SLOW:
        return Finding(
            "warning",
            f"a sync takes {median_ms:.1f} ms (median of {len(took_ms)}): a lone enqueue takes at least as long",
            "use a faster disk, or send jobs from several connections: they share a sync",
        )
    return Finding("good", f"a sync takes {median_ms:.2f} ms (median of {len(took_ms)})")


def _file_system(place: Path) -> str | None:
    """Return the kind of file system of a folder as Linux names it; None where that is not known."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    best, kind = -1, None
    here = place.resolve()
    for line in lines:
        before, _, after = line.partition(" - ")
        mounted = Path(before.split()[4].encode().decode("unicode_escape"))
        if here.is_relative_to(mounted) and len(mounted.parts) >= best:
            best, kind = len(mounted.parts), after.split()[0]
    return kind


def _owner(place: Path) -> str:
    return f"user {place.stat().st_uid}"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
