"""Query strings: raw bytes to named text, strictly.

Read as an HTML form would send them (application/x-www-form-urlencoded): pairs between `&`, `+` is a space, `%2B` a plus. Bytes, escaped or
not, must be UTF-8. A parameter that is unknown, or given twice where that means nothing, is refused and not ignored: of two queues, or a misspelt
limit, the server would otherwise pick what the client did not mean. An empty pair (`a=1&&b=2`) is nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import unquote_to_bytes

from proteus_shards.core.model import SECOND_US, name_fault
from proteus_shards.front.answers import Problem, fault

SHOWN_LENGTH_MAX = 64  # of a name that the client made up, in a problem

_RUN_ID = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DIGITS = re.compile("[0-9]{1,19}")
_SECONDS = re.compile(r"[0-9]{1,10}(\.[0-9]{1,40})?([eE][-+]?[0-9]{1,3})?")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def parse_query(query: bytes, known: Collection[str], more: dict[str, list[str]] | None = None) -> dict[str, str] | Problem:
    """Return the parameters of a query string by name, or the problem that names the one at fault.

    A parameter that may be given more than once has a list in `more`, which takes its further values.
    """
    values = _plain(query, known)
    if values is not None:
        return values
    values = {}
    for pair in query.split(b"&"):
        if not pair:
            continue
        raw_name, _, raw_value = pair.partition(b"=")
        name = _text(raw_name)
        if name is None or name not in known:
            return fault(shown(name if name is not None else raw_name.decode("ascii", "backslashreplace")), _unknown(known))
        again = name in values
        if again and (more is None or name not in more):
            return fault(name, "must be given only once")
        value = _text(raw_value)
        if value is None:
            return fault(name, "must be percent-encoded UTF-8")
        if again:
            assert more is not None
            more[name].append(value)
        else:
            values[name] = value
    return values


def _plain(query: bytes, known: Collection[str]) -> dict[str, str] | None:
    """Return the parameters of a query that means what it says, as most do: nothing is escaped, unknown, empty or given twice."""
    if b"%" in query or b"+" in query or not query.isascii():
        return None
    values: dict[str, str] = {}
    for pair in query.decode().split("&"):
        name, _, value = pair.partition("=")
        if name not in known or name in values:
            return None
        values[name] = value
    return values


def read_run_id(text: str) -> bytes | Problem:
    """Return the 16 bytes of a run_id."""
    if _RUN_ID.fullmatch(text) is None:
        return fault("run_id", "must be a UUID of 36 characters")
    return bytes.fromhex(text.replace("-", ""))


def read_name(values: dict[str, str], field: str) -> str | Problem:
    """Return a parameter that is a queue name or job id, and must be there."""
    name = values.get(field)
    if name is None:
        return fault(field, "is required")
    wrong = name_fault(name)
    return name if wrong is None else fault(field, wrong)


def read_integer(field: str, text: str | None, default: int, low: int, high: int) -> int | Problem:
    """Return a whole number that is not negative."""
    if text is None:
        return default
    if _DIGITS.fullmatch(text) is not None and low <= (value := int(text)) <= high:
        return value
    return fault(field, f"must be an integer from {low} to {high}")


def read_seconds(field: str, text: str | None, high: float, default: int) -> int | Problem:
    """Return the whole microseconds of a number of seconds."""
    if text is None:
        return default
    if _SECONDS.fullmatch(text) is not None and (seconds := float(text)) <= high:
        return round(seconds * SECOND_US)
    return fault(field, f"must be a number of seconds from 0 to {high:g}")


def shown(name: str) -> str:
    """Return a name that a client made up, fit for a problem: short, and without what could confuse a terminal."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= SHOWN_LENGTH_MAX else f"{text[:SHOWN_LENGTH_MAX]}…"


def _unknown(known: Collection[str]) -> str:
    return f"is not a parameter here (there are: {', '.join(known)})" if known else "is not a parameter here (there are none)"


def _text(raw: bytes) -> str | None:
    if b"%" in raw or b"+" in raw:
        if _BAD_ESCAPE.search(raw):
            return None
        raw = unquote_to_bytes(raw.replace(b"+", b" "))
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
