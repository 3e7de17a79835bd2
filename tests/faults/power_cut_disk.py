"""A disk that loses power: which files may be found there afterwards, given what was written and what was synced.

Only what a sync covered is sure: all changes of a file that had returned when its fsync or fdatasync began, once that has returned; of
a folder in the same way the names in it. Of all else, each thing may have reached the disk or not, in any order: each 512-byte sector of
each write, a cut through the midst of one sector, each change of a file's length, each name that was made, changed or removed. A rename is
there as a whole or not at all. No real disk and file system is worse, and none may be relied upon to be better. (Bytes that nobody wrote never change,
which SQLite calls powersafe overwrite and relies upon by default.)
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TypeAlias

import msgspec

from tests.faults.power_cut_trace import Call, Moment

SECTOR_BYTES = 512

Image: TypeAlias = dict[str, bytes | None]  # by path relative to the disk's folder; None for a folder


class Change(msgspec.Struct):
    """A change of one file's content: bytes written somewhere, or a new length."""

    at: int
    data: bytes | None
    ended: bool = False
    lasting: bool = False  # a sync that is under way covers it


class File(msgspec.Struct, eq=False):
    """A file's content as it surely is on the disk, and what may have reached it since. A folder has none."""

    is_folder: bool
    durable: bytearray = msgspec.field(default_factory=bytearray)
    changes: list[Change] = msgspec.field(default_factory=list)


class Naming(msgspec.Struct):
    """A change of the names in one folder: what each stands for afterwards, or None."""

    folder: str
    names: dict[str, File | None]
    ended: bool = False
    lasting: bool = False


class Disk:
    """Follows a record, moment by moment."""

    def __init__(self, start: Image) -> None:
        self._durable: dict[str, File] = {path: File(data is None, bytearray(data or b"")) for path, data in start.items()}
        self._now: dict[str, File] = dict(self._durable)
        self._namings: list[Naming] = []
        self._under_way: list[tuple[Call, Change | Naming | None]] = []

    def follow(self, moment: Moment) -> None:
        """Take the next moment of the record."""
        call = moment.call
        if moment.begins:
            if call.name == "sync":
                self._begin_sync(call.path)
            self._under_way.append((call, None if call.name in ("sync", "tell") else self._change(call)))
            return
        index = next(index for index, (begun, _) in enumerate(self._under_way) if begun is call)
        _, change = self._under_way.pop(index)
        if change is not None:
            change.ended = True
        elif call.name == "sync":
            self._end_sync(call.path)

    def synced(self) -> Image:
        """Return what is surely there, and nothing else."""
        return _image(self._durable, {path: bytes(file.durable) for path, file in self._durable.items()})

    def written(self) -> Image:
        """Return what every other process sees: all is there."""
        return _image(self._now, {path: _with(file, None) for path, file in self._now.items()})

    def mixed(self, chance: random.Random) -> Image:
        """Return one of the many things that may be there."""
        share, names_share = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0)), chance.choice((0.0, 0.5, 1.0))
        names = dict(self._durable)
        for naming in self._namings:
            if chance.random() < names_share:
                _apply(names, naming)
        torn = chance.choice([*(path for path, file in names.items() if file.changes), ""])  # of one file, or none
        return _image(names, {path: _with(file, (chance, share, path == torn)) for path, file in names.items()})

    def _change(self, call: Call) -> Change | Naming:
        if call.name in ("write", "truncate"):
            change = Change(call.offset, call.data if call.name == "write" else None)
            self._now[call.path].changes.append(change)
            return change
        names: dict[str, File | None] = {call.path: None}
        if call.name == "rename":
            target = os.fsdecode(call.data)
            assert _folder_of(target) == _folder_of(call.path), "a rename from folder to folder is not modelled"
            names[target] = self._now[call.path]
        elif call.name in ("create", "mkdir"):
            names[call.path] = File(call.name == "mkdir")
        naming = Naming(_folder_of(call.path), names)
        self._namings.append(naming)
        _apply(self._now, naming)
        return naming

    def _begin_sync(self, path: str) -> None:
        covered = [naming for naming in self._namings if naming.folder == path] if self._is_folder(path) else self._now[path].changes
        for change in covered:
            change.lasting = change.lasting or change.ended

    def _end_sync(self, path: str) -> None:
        if self._is_folder(path):
            for naming in self._namings:
                if naming.folder == path and naming.lasting:
                    _apply(self._durable, naming)
            self._namings = [naming for naming in self._namings if naming.folder != path or not naming.lasting]
            return
        file = self._now[path]
        for change in file.changes:
            if change.lasting:
                _write(file.durable, change)
        file.changes = [change for change in file.changes if not change.lasting]

    def _is_folder(self, path: str) -> bool:
        return path == "" or self._now[path].is_folder


def read_image(folder: Path) -> Image:
    """Return what is in a folder."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in sorted(folder.rglob("*"))}


def write_image(image: Image, folder: Path) -> None:
    """Write files and folders into a folder that is there."""
    for path, data in sorted(image.items()):
        if data is None:
            (folder / path).mkdir(mode=0o700)
        else:
            (folder / path).write_bytes(data)


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def _apply(names: dict[str, File], naming: Naming) -> None:
    for path, file in naming.names.items():
        if file is not None:
            names[path] = file
            continue
        gone = names.pop(path, None)
        if gone is not None and gone.is_folder:
            for below in [other for other in names if other.startswith(f"{path}/")]:
                del names[below]


def _image(names: dict[str, File], contents: dict[str, bytes]) -> Image:
    """Leave out what lies in a folder that is not there."""
    image: Image = {}
    for path in sorted(names):
        if _folder_of(path) in ("", *image):
            image[path] = None if names[path].is_folder else contents[path]
    return image


def _write(content: bytearray, change: Change) -> None:
    """Write bytes, or set the length. What was never written in between is zero."""
    end = change.at + len(change.data or b"")
    if change.data is None or len(content) < end:
        del content[end:]
        content.extend(bytes(end - len(content)))
    if change.data is not None:
        content[change.at : end] = change.data


def _with(file: File, luck: tuple[random.Random, float, bool] | None) -> bytes:
    """Return a file's content with its changes since the last sync: all, or those that luck chooses."""
    content = bytearray(file.durable)
    if luck is None:
        for change in file.changes:
            _write(content, change)
        return bytes(content)
    chance, share, torn = luck
    sectors = []
    for change in file.changes:
        if change.data is None:
            sectors.append(change)
            continue
        start, end = change.at, change.at + len(change.data)
        while start < end:
            stop = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
            sectors.append(Change(start, change.data[start - change.at : stop - change.at]))
            start = stop
    tear = chance.randrange(len(sectors)) if torn and sectors else -1
    for number, sector in enumerate(sectors):
        if number == tear and sector.data is not None:
            _write(content, Change(sector.at, sector.data[: chance.randrange(len(sector.data) + 1)]))
        elif chance.random() < share:
            _write(content, sector)
    return bytes(content)
