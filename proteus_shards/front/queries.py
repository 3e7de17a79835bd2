"""Query strings: raw bytes to named text, strictly.

Read as an HTML form would send them (application/x-www-form-urlencoded): pairs between `&`, `+` is a space, `%2B` a plus. Bytes, escaped or
not, must be UTF-8. A parameter that is unknown, or given twice where that means nothing, is refused and not ignored: of two queues, or a misspelt
limit, the server would otherwise pick what the client did not mean. An empty pair (`a=1&&b=2`) is nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import unquote_to_bytes

from proteus_shards.front.answers import Problem, fault

SHOWN_LENGTH_MAX = 64  # of a name that the client made up, in a problem

_RUN_ID = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def parse_query(query: bytes, known: Collection[str], more: dict[str, list[str]] | None = None) -> dict[str, str] | Problem:
    """Return the parameters of a query string by name, or the problem that names the one at fault.

    A parameter that may be given more than once has a list in `more`, which takes its further values.
    """
    values: dict[str, str] = {}
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


def read_run_id(text: str) -> bytes | Problem:
    """Return the 16 bytes of a run_id."""
    if _RUN_ID.fullmatch(text) is None:
        return fault("run_id", "must be a UUID of 36 characters")
    return bytes.fromhex(text.replace("-", ""))


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
