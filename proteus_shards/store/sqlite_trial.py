"""A SQLite store for trials: the same files on the same file system, in a folder of its own that goes when it is closed.

That folder lies inside the store's own, where the same rights and the same disk hold, and is named so that nothing takes it for a generation. Where there
is no such folder yet, it lies in the nearest one above. A trial that was killed leaves it behind; `sqlite_doctor.py` says so.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import msgspec

from proteus_shards.store.sqlite import SqliteStore
from proteus_shards.store.sqlite_file import translated
from proteus_shards.store.sqlite_prepare import prepare
from proteus_shards.store.urls import SqliteUrl

TRIAL_PREFIX = ".trial-"


class SqliteTrial(SqliteStore):
    """Implements `contract.Store`."""

    def __init__(self, url: SqliteUrl) -> None:
        super().__init__(url, 0, 1)
        self._home: Path | None = None

    def _open(self) -> int:
        if self._home is None:
            place = nearest_folder(self._url.folder)
            with translated(place):
                self._home = Path(tempfile.mkdtemp(prefix=TRIAL_PREFIX, dir=place))
            self._url = msgspec.structs.replace(self._url, folder=self._home)
            prepare(self._url, 1)
        return super()._open()

    def _close(self) -> None:
        try:
            super()._close()
        finally:
            if self._home is not None:
                with translated(self._home):
                    shutil.rmtree(self._home)
                self._home = None


def nearest_folder(folder: Path) -> Path:
    """Return a folder, or where it does not exist the nearest one above it that does."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
