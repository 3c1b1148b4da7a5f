"""Estimates next to what the real engines allocate, for tiny models of each architecture.

    python -m bench.estimates            # llama.cpp
    python -m bench.estimates --vllm     # vLLM's build for processors (`make test-vllm` has it)

Prints a table in Markdown. Models are made by tests/catalog/tiny_models.py and
tests/vllm/tiny_checkpoints.py. llama.cpp's figures are those of its log, which rounds each buffer
to a hundredth of a MiB. vLLM's weights are the bytes of its parameters, and its cache is the space
that it was given over the number of sequences of 4096 tokens that its log says fit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.catalog.llamacpp_log import buffers
from tests.catalog.tiny_models import MODELS, make
from tests.vllm.real_memory import compared

from modelyard.catalog.estimate import compute_term
from modelyard.catalog.gguf import read_header
from modelyard.catalog.kv import context_memory, room_for

MIB = 2**20
GRID = ((4096, 1), (8192, 3))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--vllm", action="store_true", help="compare with vLLM: 15 s a model")
    return of_vllm() if parser.parse_args().vllm else of_llama_cpp()


def of_vllm() -> int:
    print("| architecture | weights | estimate | off | cache | estimate | off |")
    print("|---|---|---|---|---|---|---|")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for each in compared(Path(folder)):
            worst = max(worst, abs(each.cache_off))
            print(
                f"| {each.name} | {each.weights:.2f} | {each.reckoned_weights:.2f}"
                f" | {each.weights_off:+.1%} | {each.cache:.3f} | {each.reckoned_cache:.3f}"
                f" | {each.cache_off:+.2%} |",
                flush=True,
            )
    print(f"\nlargest difference of a cache: {worst:.2%}")
    return 0


def of_llama_cpp() -> int:
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
