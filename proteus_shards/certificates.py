"""PEM files of TLS: how a context is made of them, and how renewed ones get into it.

A certificate is renewed by replacing its files, as every tool for it does. They are looked at when a connection begins (a `stat` each, nothing beside a
handshake), and read again where they have changed: no signal, no restart, and the connections that are open stay. Files that do not go together, as in the middle of
a renewal, are logged, and the ones before go on to be used.

TLS 1.2 is the least that is spoken, with OpenSSL's own choice of ciphers.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from proteus_shards.errors import SettingError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Renewed(Generic[T]):
    """What is made of some files, made anew when one has changed. `paths` are by setting; where `make` raises `SettingError` at the start, so does this."""

    def __init__(self, paths: Mapping[str, str], make: Callable[[], T]) -> None:
        self._paths = {name: Path(path) for name, path in paths.items() if path}
        self._make = make
        self._stamp = self._look()
        self._made = self._read()

    def now(self) -> T:
        """Return what the next connection is to use."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._made = self._read()
            except SettingError as error:
                log.error("TLS files have changed and can't be used, the ones before are", extra={"error": str(error)})  # noqa: TRY400
            else:
                log.info("TLS files have changed and are used from now on", extra={"settings": list(self._paths)})
        return self._made

    def _read(self) -> T:
        for name, path in self._paths.items():
            try:
                path.read_bytes()
            except OSError as error:
                raise SettingError(f"{name}: {path} cannot be read: {error.strerror}") from error
        return self._make()

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        stamp = []
        for path in self._paths.values():
            try:
                found = path.stat()
            except OSError:
                stamp.append((0, 0, 0))
            else:
                stamp.append((found.st_ino, found.st_mtime_ns, found.st_size))
        return tuple(stamp)


def new_context(protocol: int, certificate: tuple[str, str], key: tuple[str, str]) -> ssl.SSLContext:
    """Return a context with a certificate chain and its key, which may be in the same file. Each is a setting and its path. Raises `SettingError`."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    name, path = certificate
    try:
        context.load_cert_chain(path, key[1] or None, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        detail = f"is no PEM certificate chain with its private key ({key[0]}); a key with a password is not supported"
        raise SettingError(f"{name}: {path} {detail}") from error
    return context


def demand(context: ssl.SSLContext, authority: tuple[str, str]) -> None:
    """Let the peer have to show a certificate that an authority has signed: a setting and its path. Raises `SettingError`."""
    name, path = authority
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise SettingError(f"{name}: {path} holds no PEM certificate") from error


def _no_password() -> str:
    """Answer OpenSSL's question for the password of a key, which else would go to the terminal."""
    raise ValueError("a key with a password is not supported")
