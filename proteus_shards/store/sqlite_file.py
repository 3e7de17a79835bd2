"""One SQLite file: how it is made, opened, locked, checked and brought up to date, and what its errors mean.

Exactly one connection has a file, and holds its exclusive lock for as long as it lives. A second process is refused at once, and SQLite needs
no shared memory, so that the known faults of several connections on one write-ahead log cannot occur. Never open such a file by
other means in a process that has it open: closing any descriptor of it drops the lock (POSIX).

**What an error means** is decided in `fault_of`, by SQLite's own result code, never by a message. A full disk (ENOSPC) is told
apart from an I/O error, and SQLite has then rolled back: a commit's last frame, which alone makes it valid, was not written. Any other error
of COMMIT may come after that frame is on disk. The row may then be there on reopening, and only a restart that reads everything back knows.

A file is never made where one is expected, and an empty one is not taken for a new one: lost data must not look like none.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path

import msgspec

from proteus_shards.errors import StoreError, StoreFailed, StoreLocked, StorePermanent, StoreRefused

SQLITE_VERSION_MIN = (3, 37, 0)
APPLICATION_ID = 0x70736864  # "pshd"
MIGRATIONS = ("sqlite_schema_1.sql", "sqlite_schema_2.sql")  # the n-th leads to schema version n
CACHE_KIB = 16 * 1024
WIDTH_MAX = 512  # rows in one statement: 512 × 17 columns are a quarter of SQLite's 32,766 parameters

_SECTION = re.compile(r"^-- (\w+) --$", re.MULTILINE)
_COMMENT = re.compile(r"^--.*$", re.MULTILINE)
_REPEAT = re.compile(r"/\*\[\*/(.*?)/\*\]\*/", re.DOTALL)


class Meta(msgspec.Struct, frozen=True):
    """What a file says of itself."""

    epoch: int
    shard: int
    shards: int
    generation: int


def _text(name: str) -> str:
    return files("proteus_shards.store").joinpath(name).read_text(encoding="utf-8")


@cache
def _queries() -> dict[str, str]:
    parts = _SECTION.split(_text("sqlite_queries.sql"))
    return {name: _COMMENT.sub("", text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


@cache
def query(name: str, width: int = 1) -> str:
    """Return a statement of sqlite_queries.sql for `width` rows at once."""
    return _REPEAT.sub(lambda found: ", ".join([found[1]] * width), _queries()[name]).strip()


# --- errors ------------------------------------------------------------------------------------------------------


def fault_of(error: Exception, path: Path, *, committing: bool = False) -> StoreError:
    """Return what an error means for the rows, supposing that a transaction before COMMIT has been rolled back.

    The message of a `StorePermanent` may reach a client, and so names no file.
    """
    if isinstance(error, StoreError):
        return error
    extended = getattr(error, "sqlite_errorcode", None)
    code = extended & 0xFF if isinstance(extended, int) else None
    if code == sqlite3.SQLITE_FULL or (isinstance(error, OSError) and error.errno in _NO_SPACE):
        return StoreRefused(f"no space is left for {path}: nothing was written; jobs are taken again once there is some")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreLocked(f"another proteus-shards process holds {path}: end it, or give each server a store of its own")
    if not committing:
        if code == sqlite3.SQLITE_TOOBIG:
            return StorePermanent("a value is larger than the store can take")
        if code == sqlite3.SQLITE_CONSTRAINT and extended not in _CLASHES:
            return StorePermanent("a value is of a type that the store cannot take")
        if code is None and isinstance(error, (sqlite3.Error, UnicodeError, OverflowError)):  # a parameter could not be bound
            return StorePermanent("a value cannot be stored: text must be unicode, a number must fit 64 bits")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(path)
    if isinstance(error, OSError):
        return StoreFailed(f"{path} cannot be used: {error.strerror}; check that it is a folder that this user may write to")
    name = getattr(error, "sqlite_errorname", None) or (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    return StoreFailed(f"{path} failed ({name}): it must be opened and read anew")


_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_CLASHES = {sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID, sqlite3.SQLITE_CONSTRAINT_UNIQUE}


def damaged(path: Path) -> StoreFailed:
    """Return the error of a file that is not whole."""
    return StoreFailed(f"{path} is damaged: restore it from a backup, or start with the store option check=none to save what can be read")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise what SQLite or the file system raises as the `StoreError` that it means."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise fault_of(error, path, committing=True) from error


# --- opening -----------------------------------------------------------------------------------------------------


def create_file(path: Path, meta: Meta) -> None:
    """Make a new file with no rows, readable by its owner alone. Nothing of it is synced yet. Raises `StoreError`."""
    with translated(path):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        db = _connect(path)
        try:
            _run(db, "configure")
            db.execute(query("sync_never"))
            _run(db, "configure_new")
            _use_write_ahead_log(db, path)
            _migrate(db, path, 0)
            db.execute(query("write_meta"), (meta.epoch, meta.shard, meta.shards, meta.generation))
            checkpoint(db)  # closing would pass over its errors
        finally:
            db.close()


def open_file(path: Path, check: str, cache_kib: int = CACHE_KIB) -> sqlite3.Connection:
    """Return a connection that holds the file's lock, with its schema up to date.

    `check`: "quick" reads the whole file for damage first, "none" does not. Raises `StoreLocked`, `StoreFailed` or `StoreError`.
    The connection belongs to the calling thread, has no transaction of its own accord, and syncs at each commit.
    """
    if sqlite3.sqlite_version_info < SQLITE_VERSION_MIN:
        raise StoreError(f"SQLite {'.'.join(map(str, SQLITE_VERSION_MIN))} or later is needed, this Python has {sqlite3.sqlite_version}")
    with translated(path):
        if not path.is_file():
            raise StoreError(f"{path} is missing: restore it from a backup (no other file may take its place)")
        db = _connect(path)
        try:
            _run(db, "configure")
            db.execute(f"PRAGMA cache_size = {-cache_kib:d}")
            version = _check_kind(db, path)
            _use_write_ahead_log(db, path)
            if check == "quick":
                _check_pages(db, path)
            _migrate(db, path, version)
        except BaseException:
            abandon(db)
            raise
        return db


def check_meta(db: sqlite3.Connection, path: Path, expected: Meta) -> int:
    """Return the file's epoch. Raises `StoreError` where it is not the file that is expected, its epoch aside."""
    with translated(path):
        found = db.execute(query("read_meta")).fetchall()
    if len(found) != 1:
        raise damaged(path)
    meta = Meta(*found[0])
    if msgspec.structs.replace(meta, epoch=expected.epoch) != expected:
        raise StoreError(
            f"{path} holds shard {meta.shard} of {meta.shards}, generation {meta.generation}, not shard {expected.shard} of "
            f"{expected.shards}, generation {expected.generation}: put the right file there, from a backup if need be"
        )
    return meta.epoch


def take_epoch(db: sqlite3.Connection) -> int:
    """Raise the file's epoch by one, durably, and return it. Raises SQLite's errors; the caller rolls back."""
    db.execute(query("begin"))
    ((epoch,),) = db.execute(query("take_epoch")).fetchall()
    db.execute(query("commit"))
    return int(epoch)


def checkpoint(db: sqlite3.Connection) -> None:
    """Copy the log into the database. Raises SQLite's errors."""
    ((busy, pages, copied),) = db.execute(query("checkpoint")).fetchall()
    assert (busy, pages) == (0, copied), "a checkpoint was held up although nobody else has the file"


def abandon(db: sqlite3.Connection) -> None:
    """Close a connection without a checkpoint: after an error of the disk, or of another owner, the file is left as it is.

    SQLite would copy the log into the database when it closes. An interrupt that is still pending stops it before the first page.
    """
    db.interrupt()
    db.close()


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=0, isolation_level=None, cached_statements=256)


def _run(db: sqlite3.Connection, name: str) -> None:
    """Run a section of several statements."""
    for statement in query(name).split(";"):
        db.execute(statement).fetchall()


def _check_kind(db: sqlite3.Connection, path: Path) -> int:
    """Return the schema version of one of our files; raise for any other. The first read takes the lock."""
    ((application,),) = db.execute(query("read_application")).fetchall()
    ((version,),) = db.execute(query("read_version")).fetchall()
    if application != APPLICATION_ID or version < 1:
        raise StoreFailed(f"{path} is not a file of proteus-shards, or is emptied: restore it from a backup")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path} was written by a newer version of proteus-shards (schema {version}, this one knows {len(MIGRATIONS)}): run that one"
        )
    return int(version)


def _check_pages(db: sqlite3.Connection, path: Path) -> None:
    if db.execute(query("quick_check")).fetchall() != [("ok",)]:
        raise damaged(path)


def _use_write_ahead_log(db: sqlite3.Connection, path: Path) -> None:
    ((mode,),) = db.execute(query("use_write_ahead_log")).fetchall()
    if mode != "wal":
        raise StoreFailed(f"{path} cannot have a write-ahead log beside it: put the store on a local disk")


def _migrate(db: sqlite3.Connection, path: Path, version: int) -> None:
    """Bring the schema from `version` to the newest, each step whole or not at all."""
    for number in range(version + 1, len(MIGRATIONS) + 1):
        script = _text(MIGRATIONS[number - 1])
        try:
            db.executescript(f"{query('begin')}\n{script}\nPRAGMA user_version = {number:d};\n{query('commit')}")
        except sqlite3.Error as error:
            if db.in_transaction:
                db.execute(query("rollback"))
            raise fault_of(error, path, committing=True) from error
