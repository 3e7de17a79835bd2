"""`proteus-shards store backup`: a copy of a SQLite store on which a server may be at work meanwhile.

**How it can be.** With a write-ahead log, commits go to the log, and only a checkpoint writes the database. So while there is no checkpoint the database does not
change and the log only grows, and a copy of the first and then of the second has all that was committed before the copy began: the log's frames carry checksums,
and what is torn at its end is not read. Whoever makes a checkpoint has a shared lock on the folder for that time, and the backup an exclusive one (`CheckpointLock`): the
server puts its checkpoints off and goes on committing, with a longer log. Locks go with their process, however it ends.

**What is in it.** Of each shard all that was committed before its copy began, and the end of some commits made meanwhile; a commit is in it as a whole or not at all. The
shards are copied one after the other, so that a step over several shards which was carried out just then may be there in part.

A copy is opened, checked page by page and has its log taken in before the next one begins. The folder gets its name last: one that ends in ".partial" is what is left of a
backup that was interrupted, and no store.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from proteus_shards.errors import SettingError, StoreError
from proteus_shards.store.sqlite_file import Meta, check_meta, checkpoint, open_file, translated
from proteus_shards.store.sqlite_folder import (
    Manifest,
    database_path,
    generation_path,
    locked,
    make_folder,
    read_manifest,
    switch_manifest,
    sync,
    write_manifest,
)
from proteus_shards.store.urls import SqliteUrl, read_url

COPY_BYTES = 8 * 1024 * 1024  # between two looks at the clock
PROGRESS_SECONDS = 5.0
PARTIAL = ".partial"


class CheckpointLock:
    """One process's end of the lock on a generation's folder: checkpoints share it, a backup has it alone. Everything may raise `OSError`."""

    def __init__(self, generation: Path) -> None:
        self._fd = os.open(generation, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def share(self) -> bool:
        """Take it for a checkpoint, and say whether no backup has it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def take(self) -> None:
        """Take it for a backup, once the checkpoints that are under way are done."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def release(self) -> None:
        """Let others have it."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of it for good."""
        os.close(self._fd)


class BackedUp(msgspec.Struct, frozen=True):
    """What was copied."""

    folder: str
    shards: int
    bytes: int
    seconds: float

    @property
    def summary(self) -> str:
        """One line."""
        return f"backed up {self.shards} shards, {self.bytes / 1e6:,.1f} MB in {self.seconds:.1f} s, checked page by page: sqlite:///{self.folder}"


def run(source: str, target: str, *, tell: Callable[[str], None]) -> BackedUp:
    """Copy the store of one URL into a new folder, which may be named by a URL too. `tell` gets lines about the progress. Raises `SettingError` and `StoreError`."""
    url = read_url(source)
    if not isinstance(url, SqliteUrl):
        raise SettingError("store backup is for SQLite: other stores bring their own (pg_dump, BGSAVE, point-in-time recovery)")
    folder = _folder(target)
    if folder.exists():
        raise SettingError(f"{folder} is there already: name a folder that is not")
    partial = folder.with_name(folder.name + PARTIAL)
    if partial.exists():
        raise SettingError(f"{partial} is there, from a backup that was interrupted: remove it first")
    return Backup(url, folder, partial, tell).make()


def _folder(target: str) -> Path:
    """Return the folder that the path or URL means. What is refused is not repeated: it may hold a password."""
    scheme, mark, rest = target.partition("://")
    if not mark:
        return Path(target)
    if scheme.lower() != "sqlite" or "?" in rest:
        raise SettingError("store backup makes a folder: name its path, or sqlite:///FOLDER without options")
    url = read_url(target)
    assert isinstance(url, SqliteUrl)
    return url.folder


class Backup:
    """One backup, from the first file to the folder's name."""

    def __init__(self, url: SqliteUrl, folder: Path, partial: Path, tell: Callable[[str], None]) -> None:
        self._url = url
        self._folder = folder
        self._partial = partial
        self._tell = tell
        self._began = self._told = time.monotonic()
        self._bytes = 0

    def make(self) -> BackedUp:
        """Copy, check and name it."""
        source = self._url.folder
        with translated(source):
            if not source.is_dir():
                raise StoreError(f"{source} holds no store")
            with locked(
                source, shared=True
            ):  # the files stay the same: a server may start meanwhile, but not with another number of shards
                manifest = read_manifest(source)
                if manifest is None or manifest.generation == 0:
                    raise StoreError(f"{source} holds no store")
                self._copy_all(manifest)
        return BackedUp(str(self._folder.absolute()), manifest.shards, self._bytes, round(time.monotonic() - self._began, 3))

    def _copy_all(self, manifest: Manifest) -> None:
        with translated(self._folder):
            make_folder(self._partial.absolute())
            make_folder(generation_path(self._partial, manifest).absolute())
        for shard in range(manifest.shards):
            self._copy_shard(manifest, shard)
        with translated(self._folder):
            write_manifest(self._partial, manifest, lambda _: None)
            switch_manifest(self._partial, lambda _: None)
            self._partial.rename(self._folder)
            sync(self._folder.absolute().parent)

    def _copy_shard(self, manifest: Manifest, shard: int) -> None:
        database = database_path(self._url.folder, manifest, shard)
        copy = database_path(self._partial, manifest, shard)
        with translated(database):
            if not database.is_file():
                raise StoreError(f"{database} is missing")
            hold = CheckpointLock(database.parent)
        try:
            with translated(database):
                hold.take()
                self._copy(database, copy)
                self._copy(Path(f"{database}-wal"), Path(f"{copy}-wal"))
        finally:
            hold.close()
        db = open_file(copy, "quick")
        try:
            check_meta(db, copy, Meta(0, shard, manifest.shards, manifest.generation))
            with translated(copy):
                checkpoint(db)
        finally:
            db.close()
        with translated(copy):
            sync(copy)
            sync(copy.parent)

    def _copy(self, source: Path, target: Path) -> None:
        """Copy a file as long as it is now. One that is not there is left out: a closed database has no log."""
        try:
            reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            size = os.fstat(reading).st_size
            writing = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                left = size
                while left:
                    data = os.read(reading, min(COPY_BYTES, left))
                    if not data:
                        raise OSError(errno.EIO, "the file became shorter while it was read")
                    _write(writing, data)
                    left -= len(data)
                    self._bytes += len(data)
                    self._tell_progress()
            finally:
                os.close(writing)
        finally:
            os.close(reading)

    def _tell_progress(self) -> None:
        now = time.monotonic()
        if now - self._told >= PROGRESS_SECONDS:
            self._told = now
            self._tell(f"{self._bytes / 1e6:,.0f} MB copied")


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
