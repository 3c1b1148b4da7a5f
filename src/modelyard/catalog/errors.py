"""The error of the catalog."""

from __future__ import annotations

from pathlib import Path

from modelyard.core.errors import ModelyardError


class BadModelFile(ModelyardError):
    """A model file that cannot be used: damaged, incomplete, or of a kind nobody here serves."""

    code = "bad_model_file"

    def __init__(self, path: Path, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{path}: {reason}", hint=hint)
        self.path = path
        self.reason = reason
