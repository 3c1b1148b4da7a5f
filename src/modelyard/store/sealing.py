"""Secrets that are written down encrypted: `enc:...` in the configuration, its key with the state.

Laws of this file:
- Nothing is shown of a secret or of the key, whatever goes wrong.
- The key is made once, for its owner's eyes alone, and never replaced: what it encrypted would be
  lost. One that others may read is not used.
- It protects a configuration that is copied, shown or backed up; whoever can read the state folder
  can read the secrets.

Source of the format: Fernet (AES-128-CBC with HMAC-SHA256, cryptography.io/en/latest/fernet).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from modelyard.store.errors import StoreError

PREFIX = "enc:"
KEY_FILE = "secret.key"
MAX_KEY_BYTES = 1024


class Seal:
    """Encrypts and decrypts with the key in a state folder."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / KEY_FILE

    def hide(self, secret: str) -> str:
        """`secret` as it may be written down; makes the key if there is none. Raises StoreError."""
        from cryptography.fernet import Fernet  # late: see the laws of the package

        try:
            if not self._path.exists():
                _make(self._path, Fernet.generate_key())
            return PREFIX + Fernet(self._key()).encrypt(secret.encode()).decode("ascii")
        except (OSError, ValueError) as error:
            raise StoreError(f"{self._path}: {_why(error)}") from None

    def reveal(self, written: str) -> str:
        """The secret behind `enc:...`; any other text is what it is. Raises StoreError."""
        if not written.startswith(PREFIX):
            return written
        from cryptography.fernet import Fernet, InvalidToken

        advice = "write it anew with `modelyard secret`"
        try:
            token = written.removeprefix(PREFIX).encode()
            return Fernet(self._key()).decrypt(token).decode()
        except FileNotFoundError:
            raise StoreError(f"there is no {self._path} to decrypt it", hint=advice) from None
        except InvalidToken:
            text = f"it is damaged, or was encrypted with another key than that of {self._path}"
            raise StoreError(text, hint=advice) from None
        except (OSError, ValueError) as error:
            raise StoreError(f"{self._path}: {_why(error)}") from None

    def _key(self) -> bytes:
        with self._path.open("rb") as file:
            if os.name == "posix" and stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise ValueError("others may read it; make it yours alone with chmod 600")
            return file.read(MAX_KEY_BYTES)


def _make(path: Path, key: bytes) -> None:
    """Write the key where nobody else can ever have read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return  # somebody else has just made it
    with os.fdopen(handle, "wb") as file:
        file.write(key)


def _why(error: OSError | ValueError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
