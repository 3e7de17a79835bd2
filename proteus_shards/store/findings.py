"""What `proteus-shards doctor` finds: one fact a finding, and how to mend it where it is none to be glad of."""

from __future__ import annotations

from typing import Literal

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    `good` needs nothing, `note` is worth knowing, `warning` works but weaker or slower than one may think, `fault` keeps the server from working.
    """

    level: Literal["good", "note", "warning", "fault"]
    what: str  # one sentence, without a secret
    remedy: str = ""  # what to do about it, one sentence or a command
