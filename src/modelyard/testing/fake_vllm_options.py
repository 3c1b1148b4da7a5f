"""The command line of the fake vLLM: what vLLM 0.32 takes, and what goes wrong on demand.

Laws of this file:
- Only the standard library is imported.
- What vLLM would refuse is refused in argparse's words; what it takes and what changes nothing
  here is taken and forgotten.
- Everything that only a fake can do begins with `--fake-`. MODELYARD_FAKE_VLLM holds more
  arguments, read before the command's own, so that a command written for vLLM need not change.

Facts about options: `vllm serve --help=all` of 0.32. Dashes and underscores are the same there,
integers take 1k for 1000 and 1K for 1024, and a JSON option may be given key by key with a dot.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NoReturn

from modelyard.testing.fake_engine import duration
from modelyard.testing.fake_page import mebibytes

EXTRA_VARIABLE = "MODELYARD_FAKE_VLLM"
"""Arguments that are added to every fake vLLM's own."""

VERSION = "0.32.0"
_IGNORED = (
    "api-server-count", "attention-backend", "block-size", "chat-template", "compilation-config",
    "config-format", "cpu-offload-gb", "cudagraph-capture-sizes", "data-parallel-size",
    "disable-access-log-for-endpoints", "distributed-executor-backend", "download-dir", "dtype",
    "generation-config", "hf-overrides", "kv-cache-dtype", "kv-offloading-backend",
    "kv-offloading-size", "limit-mm-per-prompt", "load-format", "max-num-active-seqs",
    "max-num-batched-tokens", "max-num-queued-reqs", "max-num-seqs", "mm-processor-cache-gb",
    "num-gpu-blocks-override", "offload-backend", "offload-group-size", "offload-num-in-group",
    "offload-params", "offload-prefetch-step", "optimization-level", "override-generation-config",
    "pipeline-parallel-size", "pooler-config", "quantization", "reasoning-parser", "revision",
    "seed", "sleep-preserve-parameter-names", "speculative-config", "tokenizer", "tokenizer-mode",
    "tool-call-parser", "uvicorn-log-level",
)  # fmt: skip
_IGNORED_SWITCHES = (
    "async-scheduling", "disable-log-stats", "enable-auto-tool-choice", "enable-chunked-prefill",
    "enable-expert-parallel", "enable-force-include-usage", "enable-log-requests", "enable-lora",
    "enable-nccl-comm-suspend", "enable-prefix-caching", "enable-prompt-tokens-details",
    "enable-server-load-tracking", "enforce-eager", "language-model-only",
    "sleep-mode-offload-cudagraph", "trust-remote-code",
)  # fmt: skip
_SHOWN = (
    "model", "host", "port", "served_model_name", "gpu_memory_utilization", "max_model_len",
    "kv_cache_memory_bytes", "tensor_parallel_size", "runner", "convert", "enable_sleep_mode",
)  # fmt: skip
_FACTORS = {
    "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
}  # fmt: skip


def human_int(text: str) -> int:
    """An integer as vLLM takes it: `4096`, `4k` for 4000, `4K` for 4096."""
    factor = _FACTORS.get(text[-1:], 0)
    if not factor:
        return int(text)
    try:
        return int(Fraction(text[:-1]) * factor)
    except (ValueError, ZeroDivisionError):
        raise ValueError(text) from None


def context_length(text: str) -> int:
    """Of `--max-model-len`: -1 for `auto`, which takes what memory allows."""
    return -1 if text == "auto" else human_int(text)


def share(text: str) -> float:
    """Of `--gpu-memory-utilization`: more than 0, at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError(text)
    return value


class _Parser(argparse.ArgumentParser):
    """Speaks as `vllm serve` does when it refuses."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"usage: {self.usage}\nvllm: error: {message}\n")


def arguments(argv: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """The options of one engine. Exits with status 2 on what vLLM refuses, as argparse does."""
    parser = _parser()
    words = [*shlex.split(environment.get(EXTRA_VARIABLE, "")), *argv]
    args = parser.parse_args([_normal(word) for word in words])
    positional = [word for word in args.words if word != "serve"]
    if len(positional) > 1:
        parser.error(f"unrecognized arguments: {' '.join(positional[1:])}")
    args.model = positional[0] if positional else args.model
    args.names = args.served_model_name or [args.model]
    args.dev_mode = environment.get("VLLM_SERVER_DEV_MODE") == "1"
    if args.fake_graphs > args.fake_residue:
        parser.error("--fake-residue includes --fake-graphs and cannot be less")
    return args


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The options that differ from their defaults: what vLLM prints as its non-default args."""
    defaults = vars(arguments((), {}))
    different = {name: value for name, value in vars(args).items() if value != defaults[name]}
    return {key: value for key, value in different.items() if key in _SHOWN}


def _normal(word: str) -> str:
    """`--max_model_len` as `--max-model-len`, and `--hf-overrides.key` as `--hf-overrides`."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-").partition(".")[0] + equals + value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vllm serve", usage="vllm serve [model_tag] [options]")
    parser.add_argument("words", nargs="*", metavar="model_tag")
    parser.add_argument("-v", "--version", action="version", version=VERSION)
    add = parser.add_argument
    add("--model", default="Qwen/Qwen3-0.6B")
    add("--host", default="0.0.0.0")
    add("--port", type=int, default=8000)
    add("--api-key", nargs="+", default=[])
    add("--served-model-name", nargs="+", default=[])
    add("--gpu-memory-utilization", "--device-memory-utilization", type=share, default=0.92)
    add("--kv-cache-memory-bytes", type=human_int)
    add("--max-model-len", type=context_length)
    add("--tensor-parallel-size", "-tp", type=int, default=1)
    add("--runner", choices=["auto", "generate", "pooling", "draft"], default="auto")
    add("--convert", choices=["auto", "none", "embed", "classify"], default="auto")
    add("--shutdown-timeout", type=float, default=0.0)
    add("--enable-sleep-mode", action=argparse.BooleanOptionalAction, default=False)
    for name in _IGNORED:
        add(f"--{name}")
    for name in _IGNORED_SWITCHES:
        add(f"--{name}", action=argparse.BooleanOptionalAction)
    _add_fake(parser)
    return parser


def _add_fake(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what only a fake does")

    def size(name: str, default: str, text: str) -> None:
        group.add_argument(f"--fake-{name}", type=mebibytes, default=mebibytes(default), help=text)

    def time(name: str, text: str, default: float = 0.0) -> None:
        group.add_argument(f"--fake-{name}", type=duration, default=default, help=text)

    def switch(name: str, text: str) -> None:
        group.add_argument(f"--fake-{name}", action="store_true", help=text)

    size("weights", "1GiB", "of the whole model, shared by its devices")
    size("activation", "100MiB", "peak of one step, kept while awake")
    size("graphs", "50MiB", "CUDA graphs; part of the residue")
    size("residue", "350MiB", "what sleep leaves on a device: context, graphs")
    size("leak", "0MiB", "what a sleep does not give back, on each device")
    group.add_argument("--fake-kv-bytes", type=human_int, default=32768, help="for one token")
    group.add_argument("--fake-derived-len", type=human_int, default=4096, help="of the config")
    group.add_argument("--fake-tps", type=float, default=0.0, help="tokens a second, 0: no limit")
    group.add_argument("--fake-tokens", type=int, default=16, help="where max_tokens is unset")
    group.add_argument("--fake-version", default=VERSION)
    time("load", "of loading")
    time("sleep-time", "of falling asleep")
    time("wake-time", "of waking up")
    time("death-notice", "from the engine's death to the server's exit", 0.2)
    switch("crash-while-loading", "die halfway")
    switch("lie-about-sleep", "say that memory was freed and keep it")
    switch("wake-fails", "run out of memory in every wake, halfway")
    switch("crash-on-wake", "die in a wake, halfway")
    switch("ignore-sigterm", "go on")
