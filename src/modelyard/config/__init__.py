"""The configuration: a YAML file, `MODELYARD_*` variables and flags become one frozen `Config`.

Laws of this package:
- Everything that is wrong is reported at once, each problem with its place, its key and a way out.
- Reading is bounded: a hostile file costs a few seconds at most, and runs nothing.
- Nothing is looked up that can change: whether files, programs and devices exist is not asked here.
- Importing this package is cheap: what reads files and validates is imported when first used.
"""

from modelyard.config.load import default_path, load
from modelyard.config.publish import describe, json_schema
from modelyard.config.values import (
    ENGINE_NAMES,
    Config,
    Devices,
    Engines,
    Server,
    default_state_dir,
)

__all__ = [
    "ENGINE_NAMES",
    "Config",
    "Devices",
    "Engines",
    "Server",
    "default_path",
    "default_state_dir",
    "describe",
    "json_schema",
    "load",
]
