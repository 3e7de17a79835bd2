"""TLS of the main port: the context that each connection begins with, and how a renewed certificate gets into it.

A certificate is renewed by replacing its files, as every tool for it does. They are looked at when a connection is accepted (two `stat`
calls, nothing beside a handshake), and read again where they have changed: no signal, no restart, and the connections that are open stay.
Files that do not go together, as in the middle of a renewal, are logged, and the ones before go on to be used.

TLS 1.2 is the least that is spoken, with OpenSSL's own choice of ciphers; ALPN offers HTTP/2 and HTTP/1.1. With `tls_client_ca` a client must show
a certificate that this authority has signed.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proteus_shards.config import Settings
from proteus_shards.errors import SettingError

log = logging.getLogger("proteus_shards.front")

_Stamp = tuple[tuple[int, int, int], ...]


class Certificates:
    """The TLS files of the settings. Raises `SettingError`, which names the setting, where they can't be used at the start."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._paths = [Path(path) for path in (settings.tls_cert, settings.tls_key, settings.tls_client_ca) if path]
        self._stamp = self._look()
        self._context = self._read()

    def context(self) -> ssl.SSLContext:
        """Return what the next connection is to use."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._context = self._read()
            except SettingError as error:
                log.error("TLS files have changed and can't be used, the ones before are", extra={"error": str(error)})  # noqa: TRY400
            else:
                log.info("TLS files have changed and are used from now on")
        return self._context

    def _look(self) -> _Stamp:
        stamp = []
        for path in self._paths:
            try:
                found = path.stat()
            except OSError:
                stamp.append((0, 0, 0))
            else:
                stamp.append((found.st_ino, found.st_mtime_ns, found.st_size))
        return tuple(stamp)

    def _read(self) -> ssl.SSLContext:
        settings = self._settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["h2", "http/1.1"])
        for path in self._paths:
            try:
                path.read_bytes()
            except OSError as error:
                raise SettingError(f"{self._name_of(path)}: {path} cannot be read: {error.strerror}") from error
        try:
            context.load_cert_chain(settings.tls_cert, settings.tls_key or None, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            detail = "is no PEM certificate chain with its private key (tls_key); a key with a password is not supported"
            raise SettingError(f"tls_cert: {settings.tls_cert} {detail}") from error
        if settings.tls_client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(settings.tls_client_ca)
            except ssl.SSLError as error:
                raise SettingError(f"tls_client_ca: {settings.tls_client_ca} holds no PEM certificate") from error
        return context

    def _name_of(self, path: Path) -> str:
        names = ("tls_cert", "tls_key", "tls_client_ca")
        return next(name for name in names if getattr(self._settings, name) and Path(getattr(self._settings, name)) == path)


def names_in(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """Return the names that a checked client certificate is for: its common names, and its alternative names that are DNS names, addresses of mail or URIs."""
    if not certificate:
        return frozenset()
    subject = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    others = [value for kind, value in certificate.get("subjectAltName", ()) if kind in {"DNS", "email", "URI"}]
    return frozenset([*subject, *others])


def _no_password() -> str:
    """Answer OpenSSL's question for the password of a key, which else would go to the terminal."""
    raise ValueError("a key with a password is not supported")
