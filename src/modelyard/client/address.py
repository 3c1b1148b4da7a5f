"""Where the server is."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from modelyard.config import default_state_dir
from modelyard.core.errors import InvalidRequest

DEFAULT_URL = "http://127.0.0.1:8080"
STATE_FILE = "server.json"
"""In the state folder: where the running server listens. The server writes and removes it."""


def find_url(url: str | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """Where the server is: `url`, else MODELYARD_URL, else what the server wrote into its state
    folder, else the default address.

    The state folder is that of MODELYARD_SERVER__STATE_DIR or this user's; a server whose config
    file names another one is found by `url` alone. Raises InvalidRequest for what is no address.
    """
    asked = url or environ.get("MODELYARD_URL")
    if not asked:
        folder = environ.get("MODELYARD_SERVER__STATE_DIR")
        return _written_url(Path(folder) if folder else default_state_dir()) or DEFAULT_URL
    whole = asked if "://" in asked else f"http://{asked}"
    try:
        parts = urlsplit(whole)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket left open
        valid = False
    if not valid or not whole.isprintable():
        raise InvalidRequest(
            f"{asked!r} is not the address of a server", hint=f"write it like {DEFAULT_URL}"
        )
    return whole.rstrip("/").removesuffix("/v1")


def _written_url(state_dir: Path) -> str | None:
    """The address in the state file; None if there is none that can be read."""
    try:
        written = msgspec.json.decode((state_dir / STATE_FILE).read_bytes(), type=_Written)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return written.url


class _Written(msgspec.Struct):
    url: str
    pid: int


def is_loopback(url: str) -> bool:
    """Whether the address is one of this machine's own."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def certificates(url: str) -> ssl.SSLContext | bool:
    """What httpx verifies servers with. Loading the usual certificates costs more than most
    commands; without TLS an empty store does, which trusts nobody should it be asked after all."""
    if url.startswith("https:"):
        return True
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
