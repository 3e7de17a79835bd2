"""TLS of the main port: ALPN offers HTTP/2 and HTTP/1.1, and with `tls_client_ca` a client must show a certificate that this authority has signed.

How files become contexts, and renewed ones get into them, stands in `certificates.py`.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from proteus_shards.certificates import Renewed, demand, new_context
from proteus_shards.config import Settings


class Certificates:
    """The TLS files of the settings. Raises `SettingError`, which names the setting, where they can't be used at the start."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        paths = {name: getattr(settings, name) for name in ("tls_cert", "tls_key", "tls_client_ca")}
        self._context = Renewed(paths, self._read)

    def context(self) -> ssl.SSLContext:
        """Return what the next connection is to use."""
        return self._context.now()

    def _read(self) -> ssl.SSLContext:
        settings = self._settings
        context = new_context(ssl.PROTOCOL_TLS_SERVER, ("tls_cert", settings.tls_cert), ("tls_key", settings.tls_key))
        context.set_alpn_protocols(["h2", "http/1.1"])
        if settings.tls_client_ca:
            demand(context, ("tls_client_ca", settings.tls_client_ca))
        return context


def names_in(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """Return the names that a checked client certificate is for: its common names, and its alternative names that are DNS names, addresses of mail or URIs."""
    if not certificate:
        return frozenset()
    subject = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    others = [value for kind, value in certificate.get("subjectAltName", ()) if kind in {"DNS", "email", "URI"}]
    return frozenset([*subject, *others])
