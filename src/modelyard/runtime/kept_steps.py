"""The steps that `auto` models took, in a small file, so that a restart of the server begins there.

Laws of this file:
- The file can be deleted at any time: the models begin with their plans again.
- A file that cannot be read or written costs the memory of this run only, and says so.
- A step is kept by its name: a plan that no longer has it begins anew.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec

log = logging.getLogger("modelyard")

_LARGEST = 4 * 2**20


class Step(msgspec.Struct, frozen=True):
    """Where a profile is."""

    name: str
    memory: str
    """The step whose memory it takes."""
    tried: tuple[str, ...]
    """What ran out of memory before, and how."""


class Steps(msgspec.Struct, frozen=True):
    """Where a model is, for one definition of it."""

    digest: str
    profiles: Mapping[str, Step]


class KeptSteps:
    """The file. `read` and `write` block; writes come one after another."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = threading.Lock()
        self.steps: Mapping[str, Steps] = {}

    def read(self) -> None:
        try:
            if self._path.stat().st_size > _LARGEST:
                raise msgspec.ValidationError(f"it is larger than {_LARGEST} bytes")
            self.steps = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Steps])
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s is ignored, models begin with their plans: %s", self._path, error)

    def write(self) -> None:
        with self._turn:
            fresh = self._path.with_name(f".{self._path.name}.new")
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                fresh.write_bytes(msgspec.json.format(msgspec.json.encode(self.steps)))
                fresh.replace(self._path)
            except OSError as error:
                log.warning("the steps of auto are not kept: %s", error)
