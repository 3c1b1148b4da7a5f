"""The server's `tls`: what it proves itself with, and by whom its clients must be known.

Laws of this file:
- Without a certificate the server speaks plain HTTP, and the other keys mean nothing: they are
  refused then.
- Files are named here and read at the start of the server.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from modelyard.config.kinds import FilePathOrNone
from modelyard.config.sections import Section
from modelyard.config.values import KeyPath, Tls


class TlsSection(Section):
    """Certificates, as PEM files."""

    certificate: FilePathOrNone = Field(
        None,
        description="PEM file with the server's certificate and the chain after it. With one the "
        "server speaks https, and nothing else.",
    )
    key: FilePathOrNone = Field(
        None, description="PEM file with its private key; null if the certificate's file has it."
    )
    client_ca: FilePathOrNone = Field(
        None,
        description="PEM file with authorities. With one only clients are let in that show a "
        "certificate by one of them.",
    )

    def value(self, resolve: Callable[[Path, KeyPath], Path]) -> Tls | None:
        """What is meant, with absolute paths."""
        if self.certificate is None:
            return None
        paths = {
            name: resolve(path, ("server", "tls", name)) for name, path in self if path is not None
        }
        return Tls(**paths)


def written_tls(tls: Tls | None) -> dict[str, Any]:
    """`tls` in the words of the file."""
    names = ("certificate", "key", "client_ca")
    paths = {name: getattr(tls, name, None) for name in names}
    return {name: None if path is None else str(path) for name, path in paths.items()}
