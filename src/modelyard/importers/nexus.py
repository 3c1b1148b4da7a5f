"""VLLM-Nexus-Gui's `server_config.json`: one vLLM, as the window's fields have it.

Laws of this file:
- What the window really handed to vLLM is converted; what it only showed is not needed.
- Options that Nexus always added are kept where they concern memory, and left out where they
  concern trust: `--trust-remote-code` lets a model's folder run code.

Facts: vllm-nexus-gui-hybrid.py of github.com/vagmr/VLLM-Nexus-Gui; `vllm serve --help` of 0.32.
"""

from __future__ import annotations

from modelyard.config.tree import Plain
from modelyard.importers.card_memory import claims
from modelyard.importers.draft import argument
from modelyard.importers.launch import Launch, Way, put_ways
from modelyard.importers.llm_manager_program import put_host, put_port
from modelyard.importers.programs import bare
from modelyard.importers.surroundings import Work
from modelyard.importers.values import as_bool, as_int, as_mapping, as_number, as_text

TELLING = frozenset(["model_path", "mem_ratio", "gpu_count", "memory_offload_ratio", "max_tokens"])
LARGEST_BLOCK = 32
"""Tokens of a block that vLLM takes on CUDA."""
_OFFLOAD = (
    "Nexus worked `--cpu-offload-gb` out at each start; where the model does not fit, add "
    "`--cpu-offload-gb N` to the command (GiB for each GPU)"
)
_SHOWN = "Nexus showed it and never handed it to vLLM"
_NOT_NEEDED = {
    "kv_dtype": _SHOWN,
    "memory_channels": _SHOWN,
    "advanced_cache_size": _SHOWN,
    "advanced_batch_size": _SHOWN,
    "calculate_scales": f"{_SHOWN}; vLLM 0.32 has no such option",
}


def looks_like(tree: Plain) -> bool:
    return len(TELLING & set(as_mapping(tree))) >= 3


def convert(work: Work) -> None:
    keys = as_mapping(work.tree)
    for key, why in _NOT_NEEDED.items():
        if key in keys:
            work.book.not_needed((key,), why)
    if "ip" in keys:
        put_host(("ip",), keys["ip"], work)
    if "port" in keys:
        put_port(("port",), keys["port"], work)
    path = as_text(keys.get("model_path"))
    if path is not None:
        options = _options(keys, work)
        _offload(keys, work)
        _model(path, keys, options, work)
        return
    why = "no model is named; once one is chosen, import again, or put it into `models_dirs`"
    for key in keys:
        if (key,) not in work.book.spoken():
            work.book.no_equal((key,), why)


def _model(path: str, keys: dict[str, Plain], options: list[str], work: Work) -> None:
    model = work.draft.model(bare(path) or "model", f"model_path in {work.source.name}")
    count = max(1, min(as_int(keys.get("gpu_count")) or 1, 16))
    argv = [
        "vllm", "serve", argument(path), "--host", "{host}", "--port", "{port}",
        "--served-model-name", argument(model.id), "--tensor-parallel-size", str(count), *options,
        "--enforce-eager", "--max-num-seqs", "32", "--disable-log-stats",
    ]  # fmt: skip
    env = {}
    split = as_int(keys.get("advanced_cuda_split_size"))
    if split is not None and split > 20:
        env["PYTORCH_CUDA_ALLOC_CONF"] = f"expandable_segments:True,max_split_size_mb:{split}"
        work.book.converted(("advanced_cuda_split_size",), "env")
    elif "advanced_cuda_split_size" in keys:
        work.book.no_equal(("advanced_cuda_split_size",), "is no size that PyTorch takes")
    model.put("tasks", ["chat", "completion"], "what Nexus served")
    launch = Launch(tuple(argv), has_port=True, env=env)
    devices = ["gpu"] * count
    way = Way("default", devices, claims(devices, argv, work.here), launch)
    model.notes += put_ways(model, [way], None)
    model.notes.append(
        "Nexus also passed --trust-remote-code and --dtype half; add what this model needs"
    )
    work.book.converted(("model_path",), "command")
    if "gpu_count" in keys:
        work.book.converted(("gpu_count",), "command", "and profiles[].devices")


def _options(keys: dict[str, Plain], work: Work) -> list[str]:
    options: list[str] = []
    ratio = as_number(keys.get("mem_ratio"))
    if ratio is not None and 1 < ratio <= 100:
        options += ["--gpu-memory-utilization", f"{ratio / 100:g}"]
        work.book.converted(("mem_ratio",), "command")
    elif "mem_ratio" in keys:
        work.book.no_equal(
            ("mem_ratio",), "is no percentage from 10 to 100; vLLM's default is used"
        )
    flags = {
        "max_tokens": "--max-num-batched-tokens",
        "max_model_len": "--max-model-len",
        "block_size": "--block-size",
        "max_blocks": "--num-gpu-blocks-override",
    }
    for key, flag in flags.items():
        number = as_int(keys.get(key))
        if key == "block_size" and number is not None and number > LARGEST_BLOCK:
            why = f"vLLM takes blocks of at most {LARGEST_BLOCK} tokens; its default is used"
            work.book.no_equal((key,), why)
        elif number is not None and number > 0:
            options += [flag, str(number)]
            work.book.converted((key,), "command")
        elif keys.get(key) in ("", None) and key in keys:
            work.book.not_needed((key,), "is empty")
        elif key in keys:
            work.book.no_equal((key,), "is no number that vLLM takes; its default is used")
    return options


def _offload(keys: dict[str, Plain], work: Work) -> None:
    is_off = "enable_memory_offload" in keys and not as_bool(keys["enable_memory_offload"])
    for key in ("enable_memory_offload", "memory_offload_ratio", "reserved_memory"):
        if key not in keys:
            continue
        if is_off:
            work.book.not_needed((key,), "memory offload is switched off")
        else:
            work.book.no_equal((key,), _OFFLOAD)
