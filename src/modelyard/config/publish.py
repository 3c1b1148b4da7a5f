"""What others may see: the JSON Schema of the file, and the configuration in force.

Laws of this file:
- `describe` writes what `load` reads: keys and units as in the file, every default spelled out.
- A value that held `${env:...}` is shown as it was written, never as what the variable held, and
  what is named like a secret is not shown at all.
"""

from __future__ import annotations

from typing import Any

from modelyard.config.values import Config

HIDDEN = "<hidden>"
_SECRET_WORDS = frozenset(
    ["auth", "apikey", "credential", "credentials", "key", "passphrase", "passwd", "password", "secret", "token"]
)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `modelyard.yaml`, for editors."""
    from modelyard.config.schema import File  # see the laws of load.py

    schema = File.model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Modelyard",
    } | schema


def describe(config: Config) -> dict[str, Any]:
    """The configuration in force as plain data, in the words of the file, without secrets."""
    from modelyard.config.schema import File

    file = File.model_validate
