"""Estimates next to what the real llama.cpp allocates, for tiny models of each architecture.

    python -m bench.estimates

Prints a table in Markdown. Models are made by tests/catalog/tiny_models.py; llama.cpp's figures are
those of its log, which rounds each buffer to a hundredth of a MiB.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.catalog.llamacpp_log import buffers
from tests.catalog.tiny_models import MODELS, make

from modelyard.catalog.estimate import compute_term
from modelyard.catalog.gguf import read_header
from modelyard.catalog.kv import context_memory, room_for

MIB = 2**20
GRID = ((4096, 1), (8192, 3))


def main() -> int:
    print("| memory (architecture) | context | sequences | weights | estimate | cache | estimate |")
    print("|---|---|---|---|---|---|---|")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, tiny in MODELS.items():
            path = make(tiny, Path(folder) / "model.gguf")
            header = read_header(path)
            for context, sequences in GRID:
                real = buffers(path, context, sequences)
                room = room_for(context, sequences, 512)
                cache = context_memory(header, room).n_bytes / MIB
                weights = header.tensor_bytes / MIB
                compute = compute_term(header, room).mib
                worst = max(worst, abs(cache - real.cache) / max(real.cache, 1.0))
                print(
                    f"| {name} | {context} | {sequences} | {real.weights:.2f} | {weights:.2f}"
                    f" | {real.cache:.2f} | {cache:.2f} |"
                    f" <!-- compute {real.compute:.2f}, {compute:.2f} -->"
                )
    print(f"\nlargest difference of a cache: {worst:.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
