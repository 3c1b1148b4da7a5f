"""What keeps a foreign configuration from being read at all.

Laws of this file:
- A message names the file, what is wrong with it, and what to do.
"""

from __future__ import annotations

from modelyard.core.errors import ModelyardError


class CannotImport(ModelyardError):
    """The file cannot be read, or is nothing that an importer knows."""

    code = "invalid_usage"
