"""The `store` setting: a URL, read into what it means.

    memory:                                   nothing is kept
    sqlite:///relative/folder                 below the folder that the server was started in
    sqlite:////absolute/folder?check=none     options follow a question mark

Reading a URL loads no driver: the supervisor does it too, to refuse a wrong setting before anything starts. What it cannot
understand it refuses, an unknown option included, since a misspelt one would silently weaken what is promised. No message repeats
more of a URL than its scheme and the names of its options: the rest may hold a password.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeAlias
from urllib.parse import parse_qsl, unquote

import msgspec

from proteus_shards.errors import SettingError

SCHEMES = ("memory", "sqlite")
SCHEMES_LATER = ("postgres", "postgresql", "redis", "rediss", "dynamodb")

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


class MemoryUrl(msgspec.Struct, frozen=True):
    """Keep nothing."""


class SqliteUrl(msgspec.Struct, frozen=True):
    """Keep a SQLite file per shard in a folder."""

    folder: Path
    synchronous: str = "full"  # normal: a loss of power may take the last commits with it
    check: str = "quick"  # what is done to see damage when a file is opened


StoreUrl: TypeAlias = MemoryUrl | SqliteUrl


def read_url(url: str) -> StoreUrl:
    """Return what a store URL means. Raises `SettingError`."""
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    if not colon or not _SCHEME.fullmatch(scheme):
        raise SettingError("store must be a URL: sqlite:///FOLDER, sqlite:////ABSOLUTE/FOLDER or memory:")
    if scheme in SCHEMES_LATER:
        raise SettingError(f"store: {scheme} is not available in this version; there are {' and '.join(SCHEMES)}")
    if scheme not in SCHEMES:
        raise SettingError(f"store: there is no store of the scheme {scheme!r}; there are {' and '.join(SCHEMES)}")
    if "#" in rest:
        raise SettingError("store: a # inside the URL must be written %23")
    place, _, query = rest.partition("?")
    given = _pairs(query)
    if scheme == "memory":
        if place:
            raise SettingError("store: nothing may follow memory:")
        _choices(scheme, given, {})
        return MemoryUrl()
    options = _choices(scheme, given, {"synchronous": ("full", "normal"), "check": ("quick", "none")})
    return SqliteUrl(_folder(place), **options)


def _pairs(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError as error:
        raise SettingError("store: what follows the question mark must be name=value, joined by &") from error
    if len({name for name, _ in pairs}) < len(pairs):
        raise SettingError("store: an option of the URL is given twice")
    return dict(pairs)


def _choices(scheme: str, given: dict[str, str], there_are: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the given options, once each is found to be one of `there_are`, with one of the values listed there."""
    for name, value in given.items():
        if name not in there_are:
            known = f"its options are {' and '.join(there_are)}" if there_are else "it takes none"
            raise SettingError(f"store: {scheme} has no option {name!r}; {known}")
        if value not in there_are[name]:
            raise SettingError(f"store: the option {name} must be {' or '.join(there_are[name])}")
    return given


def _folder(place: str) -> Path:
    if not place.startswith("///"):
        raise SettingError("store: write sqlite:///FOLDER for a relative folder, or sqlite:////FOLDER for an absolute one")
    try:
        path = unquote(place[3:], errors="strict")
    except UnicodeDecodeError as error:
        raise SettingError("store: the folder of the URL is not UTF-8 once its %-escapes are decoded") from error
    if not path.strip("/"):
        raise SettingError("store: the URL names no folder")
    if "\0" in path:
        raise SettingError("store: the folder of the URL must not hold a NUL")
    return Path(path)
