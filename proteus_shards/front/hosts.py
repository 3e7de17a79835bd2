"""The names that a server answers to where nobody is asked who they are.

A page on the web may have its own name point to 127.0.0.1 a moment after it was loaded (DNS rebinding). The browser then takes this server for that page's
own, and lets it ask and read whatever it likes. Such a request still says that name as its Host. So where nothing but the address keeps others away,
only addresses, `localhost` and names that the operator gave pass; a request without a Host comes from no browser.
"""

from __future__ import annotations

import ipaddress
from typing import TypeAlias

from proteus_shards.config import Settings
from proteus_shards.front.answers import Problem

Names: TypeAlias = frozenset[str]

_LOCAL = "localhost"
_MISDIRECTED = Problem(status=421, detail="host: is no name of this server, where nobody is asked who they are; hosts names more")


def names_of(settings: Settings) -> Names | None:
    """Return the names that a server answers to beside addresses; None: to any."""
    if settings.tokens_file or settings.tls_client_ca or settings.insecure:
        return None
    more = (name.strip() for name in settings.hosts.split(","))
    return frozenset(name.lower().rstrip(".") for name in (_LOCAL, settings.host, *more) if name)


def misdirected(host: bytes, names: Names | None) -> Problem | None:
    """Return the problem of a request whose Host is none of these names, if it is not. Empty: it said none."""
    if names is None or not host:
        return None
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        return None if _is_address(text[1:].partition("]")[0]) else _MISDIRECTED
    name = text.partition(":")[0].rstrip(".")
    return None if name in names or name.endswith("." + _LOCAL) or _is_address(name) else _MISDIRECTED


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
