"""TLS between the hosts of a cluster: each shows a certificate that the cluster's authority has signed, whichever of them asks.

The name in a certificate is not held against the address: that authority is the cluster's own, and whoever has a certificate of it is a host of the cluster and may serve any shard that
the store gives it. TLS 1.2 is the least that is spoken.

Files are looked at when a connection begins, and read again where they have changed. Files that do not go together, as in the middle of a renewal, are
logged, and the ones before go on to be used.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from proteus_shards.config import Settings
from proteus_shards.errors import SettingError

log = logging.getLogger(__name__)

_NAMES = ("cluster_cert", "cluster_key", "cluster_ca")


class Peering:
    """The certificate of this host, and whom it trusts. Raises `SettingError`, which names the setting, where the files can't be used at the start."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._paths = {name: Path(getattr(settings, name)) for name in _NAMES if getattr(settings, name)}
        self._stamp = self._look()
        self._contexts = self._read() if self._paths else (None, None)

    def server(self) -> ssl.SSLContext | None:
        """Return what the next connection that is accepted is to use; None: plain TCP."""
        self._renew()
        return self._contexts[0]

    def client(self) -> ssl.SSLContext | None:
        """Return what the next connection that is made is to use; None: plain TCP."""
        self._renew()
        return self._contexts[1]

    def _renew(self) -> None:
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._contexts = self._read()
        except SettingError as error:
            log.error("TLS files of the cluster have changed and can't be used, the ones before are", extra={"error": str(error)})  # noqa: TRY400
        else:
            log.info("TLS files of the cluster have changed and are used from now on")

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

    def _read(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        return self._context(ssl.PROTOCOL_TLS_SERVER), self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, protocol: int) -> ssl.SSLContext:
        settings = self._settings
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.verify_mode = ssl.CERT_REQUIRED
        for name, path in self._paths.items():
            try:
                path.read_bytes()
            except OSError as error:
                raise SettingError(f"{name}: {path} cannot be read: {error.strerror}") from error
        try:
            context.load_cert_chain(settings.cluster_cert, settings.cluster_key or None, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            detail = "is no PEM certificate chain with its private key (cluster_key); a key with a password is not supported"
            raise SettingError(f"cluster_cert: {settings.cluster_cert} {detail}") from error
        try:
            context.load_verify_locations(settings.cluster_ca)
        except ssl.SSLError as error:
            raise SettingError(f"cluster_ca: {settings.cluster_ca} holds no PEM certificate") from error
        return context


def _no_password() -> str:
    """Answer OpenSSL's question for the password of a key, which else would go to the terminal."""
    raise ValueError("a key with a password is not supported")
