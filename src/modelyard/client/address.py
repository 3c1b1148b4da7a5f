"""Where the server is."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from modelyard.config import default_state_dir
from modelyard.core.errors import InvalidRequest

DEFAULT_URL = "http://127.0.0.1:8080"
KEY_VARIABLE = "MODELYARD_API_KEY"
"""Holds the key that every command shows to the server. There is no flag for it: arguments are seen
by everybody on the machine, and kept by the shell."""
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
        return _written_url(_state_dir(environ)) or DEFAULT_URL
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


def _state_dir(environ: Mapping[str, str]) -> Path:
    folder = environ.get("MODELYARD_SERVER__STATE_DIR")
    return Path(folder) if folder else default_state_dir()


def _written_url(state_dir: Path) -> str | None:
    """The address in the state file; None if there is none that can be read."""
    written = _written(state_dir)
    return None if written is None else written.url


def _written(state_dir: Path) -> _Written | None:
    try:
        return msgspec.json.decode((state_dir / STATE_FILE).read_bytes(), type=_Written)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


class _Written(msgspec.Struct):
    url: str
    pid: int
    certificate: str | None = None
    """What it proves itself with, if it speaks https."""


def credentials(key: str | None = None, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The header lines that show `key`, else that of MODELYARD_API_KEY; none if there is neither.

    Raises InvalidRequest for a key that no header can hold. It is not repeated: what somebody put
    there by mistake may be a secret, too.
    """
    shown = (key or environ.get(KEY_VARIABLE) or "").strip()
    if not shown:
        return {}
    if not shown.isascii() or not shown.isprintable() or " " in shown:
        raise InvalidRequest(
            "the key for the server holds spaces, or characters that no header can hold",
            hint=f"set {KEY_VARIABLE} to what `modelyard keys add` has printed",
        )
    return {"authorization": f"Bearer {shown}"}


def is_loopback(url: str) -> bool:
    """Whether the address is one of this machine's own."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def certificates(url: str, environ: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """What httpx verifies servers with. Raises InvalidRequest for files that are no certificates.

    Trusted are the system's authorities, those in the file that MODELYARD_CA names, and the
    certificate of this user's own server, which it has written down beside its address. The client
    itself is known by MODELYARD_CLIENT_CERTIFICATE, a file with a certificate and its key.
    """
    if not url.startswith("https:"):
        # Loading the usual certificates costs more than most commands; without TLS an empty store
        # does, which trusts nobody should it be asked after all.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context = ssl.create_default_context()
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a server's own certificate will do
    for path in (environ.get("MODELYARD_CA"), _own_certificate(url, environ)):
        if path:
            _load(context.load_verify_locations, path)
    client = environ.get("MODELYARD_CLIENT_CERTIFICATE")
    if client:
        _load(context.load_cert_chain, client)
    return context


def _own_certificate(url: str, environ: Mapping[str, str]) -> str | None:
    """The certificate of the server at `url` if it is this user's own."""
    written = _written(_state_dir(environ))
    if written is None or written.url != url or not written.certificate:
        return None
    return written.certificate if Path(written.certificate).is_file() else None


def _load(load: Callable[[str], None], path: str) -> None:
    try:
        load(path)
    except OSError as error:  # ssl.SSLError among them
        raise InvalidRequest(
            f"{path} cannot be used as a certificate: {error.strerror or error}",
            hint="MODELYARD_CA and MODELYARD_CLIENT_CERTIFICATE name PEM files",
        ) from None
