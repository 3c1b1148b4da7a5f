"""Trains the demonstration models: `python -m training.train [--only NAME] [--out DIR] [--quick]`.

Laws of this file:
* The reranker starts from the word vectors of the embedding model, so it is trained after it; the
  chat model is trained beside them, in a process of its own.
* Each process computes on one thread. No network is used; the same corpus, seeds and library
  versions give the same models on the same kind of CPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from training import chat, embed, rerank

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_OUT = REPOSITORY / "src" / "modelyard" / "demo_models"
NAMES = ("chat", "embed", "rerank")


def train_one(name: str, out: Path, quick: bool) -> None:
    """Trains one model and says how long it took."""
    torch.set_num_threads(1)
    started = time.monotonic()
    if name == "chat":
        chat.train(out / "yard-chat.gguf", quick=quick)
    elif name == "embed":
        embed.train(out / "yard-embed.gguf", quick=quick)
    else:
        rerank.train(out, quick=quick)
    print(f"{name}: done in {time.monotonic() - started:.0f} s", flush=True)


def train_in_order(names: tuple[str, ...], out: Path, quick: bool) -> None:
    """Trains the models one after the other."""
    for name in names:
        train_one(name, out, quick)


def main() -> None:
    """Reads the command line and trains what it asks for."""
    parser = argparse.ArgumentParser(description="Train the demonstration models of Modelyard.")
    parser.add_argument("--only", choices=NAMES, help="train this model alone")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where the files go")
    parser.add_argument("--quick", action="store_true", help="a few steps only, to try the program")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if arguments.only is not None:
        train_one(arguments.only, out, arguments.quick)
        return
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawning) as pool:
        runs = [
            pool.submit(train_in_order, names, out, arguments.quick)
            for names in (("chat",), ("embed", "rerank"))
        ]
        for run in runs:
            run.result()


if __name__ == "__main__":
    main()
