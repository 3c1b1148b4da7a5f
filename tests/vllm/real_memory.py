"""What the real vLLM holds for tiny checkpoints, next to what is reckoned here."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelyard.catalog.estimate_folder import Wish, estimate_folder
from modelyard.catalog.folder_checkpoint import FolderCheckpoint
from modelyard.planner.locate import models_at

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PLACE = Path(os.environ.get("VLLM_BIN", ROOT / ".venv-vllm"))
MIB = 2**20
SPACE_MIB = 1024
"""VLLM_CPU_KVCACHE_SPACE of `memory_probe`."""


@dataclass(frozen=True)
class Compared:
    """One model: MiB of weights, and of the cache of a sequence of `context` tokens."""

    name: str
    context: int
    weights: float
    reckoned_weights: float
    cache: float
    reckoned_cache: float

    @property
    def weights_off(self) -> float:
        return self.reckoned_weights / self.weights - 1

    @property
    def cache_off(self) -> float:
        return self.reckoned_cache / self.cache - 1


def compared(folder: Path, names: Sequence[str] = ()) -> Iterator[Compared]:
    """Make the checkpoints in `folder`, load each in the real vLLM, and compare.

    `names` are slugs of `tiny_checkpoints`; none takes all. Takes 15 s each. Raises RuntimeError
    for one that vLLM does not load.
    """
    python = str(PLACE / "bin" / "python")
    make = [python, str(HERE / "tiny_checkpoints.py"), str(folder), *names]
    subprocess.run(make, check=True, capture_output=True)
    probe = [python, str(HERE / "memory_probe.py"), str(folder), *names]
    with subprocess.Popen(probe, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        for line in process.stdout:
            seen = json.loads(line)
            if "error" in seen:
                raise RuntimeError(f"{seen['name']}: {seen['error']}")
            found, _ = models_at(folder / seen["name"])
            assert isinstance(found.checkpoint, FolderCheckpoint)
            wish = Wish(context=seen["context"])
            reckoned = estimate_folder(found.checkpoint, "vllm", wish)["host"]
            yield Compared(
                seen["name"],
                seen["context"],
                seen["weights"] / MIB,
                reckoned.term("weights"),
                SPACE_MIB / seen["sequences"],
                reckoned.term("kv cache"),
            )
