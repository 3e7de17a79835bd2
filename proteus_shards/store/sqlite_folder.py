"""The folder of a SQLite store: a manifest, and one file per shard in the generation that it names.

    manifest.json                           layout, number of shards, generation
    generation-000007/shard-0.sqlite3       … with -wal beside it while it is in use
    generation-000007/shard-1.sqlite3

Another number of shards is another generation, written whole beside the one in force (`sqlite_prepare.py`). Replacing the manifest is the
one step that puts it in force: before, the new generation is scrap, after, the old one. Either is swept away at the next start, so a
crash at any moment costs nothing but the work. Generation 0 has no files: it is in force while the first one is being made. Files
without a manifest therefore mean that it was lost, and are never taken for scrap.

All of it belongs to its owner: the folder and its generations are made with mode 0700, files with 0600. The folder's own name is synced too, and
so are those above it that had to be made: else a loss of power could take the whole folder with all that was acknowledged.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import msgspec

from proteus_shards.errors import StoreError, StoreLocked
from proteus_shards.store.sqlite_file import translated

LAYOUT = 1
MANIFEST = "manifest.json"
NEW_MANIFEST = "manifest.json.new"

Step: TypeAlias = Callable[[str], None]

_GENERATION = re.compile(r"generation-(\d{6,})")
_DATABASE = re.compile(r"shard-\d+\.sqlite3(-wal|-shm|-journal)?")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is in force."""

    layout: int
    shards: int
    generation: int


def manifest_for(folder: Path, shards: int) -> Manifest:
    """Return the manifest of a folder that is ready for so many shards. Raises `StoreError`."""
    with translated(folder):
        manifest = read_manifest(folder)
    if manifest is None or manifest.generation == 0:
        raise StoreError(f"{folder} is not prepared: it has no files yet")
    if manifest.shards != shards:
        raise StoreError(f"{folder} is prepared for {manifest.shards} shards, not {shards}: stop the whole server and start it again")
    return manifest


def database_path(folder: Path, manifest: Manifest, shard: int) -> Path:
    """Return where a shard's file is."""
    return generation_path(folder, manifest) / f"shard-{shard}.sqlite3"


def generation_path(folder: Path, manifest: Manifest) -> Path:
    """Return where the files of a generation are."""
    return folder / f"generation-{manifest.generation:06d}"


def generations(folder: Path) -> dict[int, Path]:
    """Return the generations that have a folder, in force or not."""
    return {int(found[1]): path for path in sorted(folder.iterdir()) if (found := _GENERATION.fullmatch(path.name)) and path.is_dir()}


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest, or None where there is none. Raises `StoreError` where it cannot be understood, and `OSError`."""
    try:
        text = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None
    try:
        layout = msgspec.json.decode(text, type=_Layout).layout
        if layout > LAYOUT:
            raise StoreError(
                f"{folder} was written by a newer version of proteus-shards (layout {layout}, this one knows {LAYOUT}): run that one"
            )
        return msgspec.json.decode(text, type=Manifest)
    except msgspec.DecodeError as error:
        raise StoreError(f"{folder / MANIFEST} is damaged: restore it from a backup") from error


def write_manifest(folder: Path, manifest: Manifest, step: Step) -> None:
    """Write a manifest beside the one in force. Raises `OSError`."""
    fd = os.open(folder / NEW_MANIFEST, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    try:
        os.write(fd, msgspec.json.encode(manifest) + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    step("written")


def switch_manifest(folder: Path, step: Step) -> None:
    """Put the manifest that was written last in force, durably. Raises `OSError`; either may then be in force."""
    (folder / NEW_MANIFEST).replace(folder / MANIFEST)
    step("switched")
    sync(folder)
    step("settled")


def sweep(folder: Path, manifest: Manifest, step: Step) -> None:
    """Remove all generations but the one in force. What is in them and not ours stays. Raises `OSError`."""
    (folder / NEW_MANIFEST).unlink(missing_ok=True)
    for number, generation in generations(folder).items():
        if number == manifest.generation:
            continue
        for path in sorted(generation.iterdir()):
            if _DATABASE.fullmatch(path.name):
                path.unlink()
                step("swept")
        with suppress(OSError):
            generation.rmdir()


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Make a folder, and those above it, durably. One that is there may owe its name to a process that was killed just then. Raises `OSError`."""
    if not folder.is_dir():
        make_folder(folder.parent, 0o777)
        folder.mkdir(mode=mode, exist_ok=True)
    try:
        sync(folder.parent)
    except PermissionError:
        os.sync()  # a folder that may not be read cannot be synced by itself


def sync(path: Path) -> None:
    """Make a file or folder durable. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the folder against a process that would prepare it; `shared` with others that hold it so. Raises `StoreLocked` and `OSError`."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreLocked(f"another proteus-shards process is preparing {folder}, or makes a backup of it") from error
        yield
    finally:
        os.close(fd)


class _Layout(msgspec.Struct):
    layout: int
