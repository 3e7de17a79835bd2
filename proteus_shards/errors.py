"""Every error that proteus-shards raises. This module imports nothing.

Refusals that a client may meet (queue full, unknown job) are values, not exceptions: they live in `core.commands`.
What is raised here is a fault: a setting that makes no sense, a peer that breaks the protocol, a store in trouble.
The class docstring is the default message; a driver's own error is kept as `__cause__`.
"""

from __future__ import annotations


class ProteusError(Exception):
    """Something went wrong in proteus-shards."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").partition("\n")[0])


class SettingError(ProteusError):
    """A setting is wrong."""


class SharedError(SettingError):
    """The hosts of a cluster share this store."""


class StartError(ProteusError):
    """The server could not start."""


class ReplacedError(StartError):
    """Another server was started in the place of this one, on its store or under its address in a cluster, and has its shards now."""


class ProtocolError(ProteusError):
    """A peer sent bytes that are not a frame of this protocol."""


class VersionError(ProtocolError):
    """A front and a shard of different versions met."""


class StoreError(ProteusError):
    """The backing store failed."""


class StoreRefused(StoreError):
    """The store did not take the batch, and nothing of it was written. Trying again later may help."""


class StorePermanent(StoreError):
    """The store did not take the batch, nothing of it was written, and no retry will help."""


class StoreUnknown(StoreError):
    """The store did not say whether the batch was written. Read the rows back before going on."""


class StoreFenced(StoreError):
    """Another owner has taken over these rows. This process must end without another write."""


class StoreFailed(StoreError):
    """The store met an I/O error of its own. Only a restart that reads everything back is safe."""


class StoreLocked(StoreFailed):
    """Another process holds the store."""


class StoreWeak(StoreError):
    """The store keeps what it acknowledges less surely than was asked for."""


class RowError(ProteusError):
    """A stored row does not describe a job."""


class LuggageError(ProteusError):
    """What another process of a shard left behind cannot be taken in."""


class RecordError(ProteusError):
    """A stored record does not say what it should."""
