"""Reading the parts of a store URL: its options, each with what it may be. Used by the module of every scheme.

No message repeats the value of anything: it may hold a password. It names the option and says what that may be.
"""

from __future__ import annotations

import math
from urllib.parse import parse_qsl

from proteus_shards.errors import SettingError


class Options:
    """The options after the question mark. Each is taken once, by name; what nobody took is unknown, and refused by `finish`."""

    def __init__(self, scheme: str, query: str) -> None:
        self._scheme = scheme
        self._given = pairs(query)
        self._known: list[str] = []

    def text(self, name: str, default: str | None = None) -> str | None:
        """Return an option that may be any text but an empty one."""
        value = self._take(name)
        if value == "":
            raise SettingError(f"store: the option {name} must not be empty")
        return default if value is None else value

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """Return an option that is one of a few words."""
        value = self._take(name)
        if value is not None and value not in choices:
            raise SettingError(f"store: the option {name} must be {' or '.join(choices)}")
        return default if value is None else value

    def switch(self, name: str, *, default: bool) -> bool:
        """Return an option that is yes or no."""
        return self.choice(name, ("yes", "no"), "yes" if default else "no") == "yes"

    def count(self, name: str, default: int, low: int, high: int) -> int:
        """Return an option that is a whole number from `low` to `high`."""
        value = self._take(name)
        if value is None:
            return default
        if not (value.isascii() and value.isdigit() and len(value) <= 18 and low <= int(value) <= high):
            raise SettingError(f"store: the option {name} must be a whole number from {low} to {high}")
        return int(value)

    def seconds(self, name: str, default: float, high: float) -> float:
        """Return an option that is a number of seconds, more than 0 and at most `high`."""
        value = self._take(name)
        if value is None:
            return default
        try:
            read = float(value)
        except ValueError:
            read = math.nan
        if not 0 < read <= high:
            raise SettingError(f"store: the option {name} must be a number of seconds, more than 0, at most {high:g}")
        return read

    def finish(self) -> None:
        """Refuse what nobody took."""
        for name in self._given:
            known = f"its options are {' and '.join(self._known)}" if self._known else "it takes none"
            raise SettingError(f"store: {self._scheme} has no option {name!r}; {known}")

    def _take(self, name: str) -> str | None:
        self._known.append(name)
        return self._given.pop(name, None)


def pairs(query: str) -> dict[str, str]:
    """Return the options of a URL's query, %-escapes decoded. Raises `SettingError`."""
    try:
        given = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError as error:
        raise SettingError("store: what follows the question mark must be name=value, joined by &") from error
    if len({name for name, _ in given}) < len(given):
        raise SettingError("store: an option of the URL is given twice")
    return dict(given)
