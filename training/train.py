"""Trains the demonstration models: `python -m training.train [--only NAME] [--out DIR] [--quick]`.

Laws of this file:
* The reranker starts from the word vectors of the embedding model, so it is trained after it.
* No network is used; the same corpus, seeds and library versions give the same models on the
  same kind of CPU.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from training import chat, embed, rerank

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_OUT = REPOSITORY / "src" / "modelyard" / "demo_models"
NAMES = ("chat", "embed", "rerank")
THREADS = 1


def main() -> None:
    """Reads the command line and trains what it asks for."""
    parser = argparse.ArgumentParser(description="Train the demonstration models of Modelyard.")
    parser.add_argument("--only", choices=NAMES, help="train this model alone")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where the files go")
    parser.add_argument("--quick", action="store_true", help="a few steps only, to try the program")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in NAMES if arguments.only is None else (arguments.only,):
        started = time.monotonic()
        if name == "chat":
            chat.train(arguments.out / "yard-chat.gguf", quick=arguments.quick)
        elif name == "embed":
            embed.train(arguments.out / "yard-embed.gguf", quick=arguments.quick)
        else:
            rerank.train(arguments.out, quick=arguments.quick)
        print(f"{name}: done in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
