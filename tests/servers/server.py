"""A real store server that a test starts, hurts and stops: one shape for all kinds."""

from __future__ import annotations

from typing import Protocol


class StoreServer(Protocol):
    """One server process (or group), listening on loopback, its data in a folder that outlives it."""

    port: int

    def url(self, name: str, **options: str) -> str:
        """Return the URL of a place of its own in this server (a schema, a prefix, a table), as the `store` setting takes it."""
        ...

    def url_by_way_of(self, port: int, name: str, **options: str) -> str:
        """Return the same, but reached through another port of loopback: that of a proxy."""
        ...

    def start(self) -> None:
        """Start it, on the same port and the same data, and wait until it answers."""
        ...

    def kill(self) -> None:
        """End it by SIGKILL, all its processes, and wait until they are gone."""
        ...

    def pause(self) -> None:
        """Stop all its processes (SIGSTOP): connections stay, nothing answers."""
        ...

    def resume(self) -> None:
        """Let them go on (SIGCONT)."""
        ...

    def stop(self) -> None:
        """End it in order, and wait. Safe to call twice, and after any of the others."""
        ...
