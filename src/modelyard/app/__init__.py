"""The program that serves: its parts put together, its engines found, its listener run.

Laws of this package:
- Only here every part is known; parts are handed to each other, nothing is global.
"""

from modelyard.app.composition import Yard
from modelyard.app.engines import engine_problems, find_vllm
from modelyard.app.server import listening, serve

__all__ = ["Yard", "engine_problems", "find_vllm", "listening", "serve"]
