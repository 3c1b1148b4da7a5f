"""The error of the store."""

from __future__ import annotations

from modelyard.core.errors import ModelyardError


class StoreError(ModelyardError):
    """The store cannot be opened, read or written. What was asked has not been done at all."""

    code = "store_failed"
