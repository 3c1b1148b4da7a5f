"""What the server proves itself with to its clients.

Laws of this file:
- Whatever is wrong with a file is told before the server listens, with the key that names it.
- TLS 1.2 at least; what is spoken inside is HTTP/1.1, and ALPN says so.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from modelyard.config.values import Tls
from modelyard.core.errors import ConfigError


def context(tls: Tls, source: str) -> ssl.SSLContext:
    """The server's side of TLS. Raises ConfigError, of the configuration at `source`.

    Reads files, so it blocks for a moment.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["http/1.1"])
    problems = [
        f"server.tls.{name}: {path} cannot be read: {problem}"
        for name, path in (
            ("certificate", tls.certificate), ("key", tls.key), ("client_ca", tls.client_ca)
        )
        if path is not None and (problem := _unreadable(path))
    ]  # fmt: skip
    if problems:
        raise ConfigError(source, problems)
    try:
        # An encrypted key would ask for its password on the terminal; an empty one ends that.
        made.load_cert_chain(tls.certificate, tls.key, password="")
    except (ssl.SSLError, ValueError) as error:
        both = f"{tls.certificate} and {tls.key}" if tls.key else f"{tls.certificate}"
        what = f"{both} are no certificate with its private key, as PEM without a password"
        raise ConfigError(source, [f"server.tls.certificate: {what}: {error}"]) from None
    if tls.client_ca is not None:
        try:
            made.load_verify_locations(tls.client_ca)
        except ssl.SSLError as error:
            what = f"{tls.client_ca} holds no certificates of authorities: {error}"
            raise ConfigError(source, [f"server.tls.client_ca: {what}"]) from None
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def _unreadable(path: Path) -> str:
    """Why a file cannot be read; empty if it can."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        return error.strerror or str(error)
    return ""
