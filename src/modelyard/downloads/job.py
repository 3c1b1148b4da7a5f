"""What the server and its download process tell each other: a job in, news out, a line each.

Laws of this file:
- Secrets are not part of a job: they go through the environment.
- The process ends when its stdin does, so that no download outlives who wants it.
"""

from __future__ import annotations

import msgspec

from modelyard.core.errors import ModelyardError


class Job(msgspec.Struct, frozen=True):
    """One download, completely told."""

    repo: str
    hub: str
    folder: str
    """Models folder; the files go to `folder/ORG/NAME`."""
    endpoint: str
    revision: str | None = None
    quantization: str | None = None
    files: tuple[str, ...] = ()
    pickle: bool = False
    offline: bool = False
    prefers_gguf: bool = False
    """There is no engine here for anything but GGUF."""
    http_most_bytes: int = 50_000_000_000
    """Largest file that the hub serves over plain HTTP, by huggingface_hub's own bound."""


class Chosen(msgspec.Struct, frozen=True, tag="chosen"):
    """The files are known."""

    files: tuple[str, ...]
    total_bytes: int
    done_bytes: int
    """Bytes of them that are here already."""
    folder: str
    commit: str | None
    notes: tuple[str, ...]


class Waits(msgspec.Struct, frozen=True, tag="waits"):
    """Another process fetches the same at the moment."""


class Moved(msgspec.Struct, frozen=True, tag="moved"):
    """So many bytes are on the disk."""

    done_bytes: int
    current: str


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """All files are in their place."""

    folder: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It ended without the files."""

    code: str
    message: str


News = Waits | Chosen | Moved | Finished | Failed


class PullFailed(ModelyardError):
    """A download cannot be done; `code` says which kind of reason it is."""

    def __init__(self, code: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code
