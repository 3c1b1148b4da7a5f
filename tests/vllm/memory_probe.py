"""What the real vLLM holds for each checkpoint in a folder, one JSON object a line.

Run with vLLM's own Python: `.venv-vllm/bin/python tests/vllm/memory_probe.py FOLDER [NAME ...]`.
Every model is loaded by an engine in a process of its own, forked after the slow imports. Told are
the bytes of the parameters once their weights are in, and what vLLM's log says of its cache of
VLLM_CPU_KVCACHE_SPACE GiB: the tokens that it holds, and how many sequences of full length.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

CONTEXT = 4096
_SAYS = re.compile(
    r"KV cache size: ([\d,]+) tokens, Maximum concurrency for ([\d,]+) tokens per request: "
    r"([\d.]+)x"
)

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"


def watched(seen: list[int]) -> None:
    """Have the loader note what the parameters take once their weights are in.

    After that the build for processors packs them for its kernels, out of sight.
    """
    from vllm.model_executor.model_loader import base_loader

    packs = base_loader.process_weights_after_loading

    def look(model: Any, *rest: Any) -> None:
        held = {}
        for parameter in model.parameters():  # what two names share counts once
            place = parameter.untyped_storage().data_ptr()
            held[place, parameter.shape] = parameter.numel() * parameter.element_size()
        seen.append(sum(held.values()))
        packs(model, *rest)

    base_loader.process_weights_after_loading = look


def loaded(folder: Path) -> dict[str, Any]:
    """Load one model and look."""
    from vllm import LLM

    weights: list[int] = []
    watched(weights)
    llm = LLM(
        str(folder),
        enforce_eager=True,
        max_model_len=CONTEXT,
        max_num_seqs=8,
        max_num_batched_tokens=2048,  # a server's own number; that of `LLM` is larger
        dtype="bfloat16",
    )
    core = llm.llm_engine.engine_core.engine_core
    cache = core.scheduler.kv_cache_config
    return {
        "weights": weights[0],
        "blocks": cache.num_blocks,
        "block": max(group.kv_cache_spec.block_size for group in cache.kv_cache_groups),
    }


def told(folder: Path) -> dict[str, Any]:
    """The same from a process of its own, with what it logged."""
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as answer:
        child = os.fork()
        if not child:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                answer.write(json.dumps(loaded(folder)).encode())
                answer.flush()
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        log.seek(0)
        text = log.read().decode(errors="replace")
        answer.seek(0)
        found: dict[str, Any] = json.loads(answer.read() or "{}")
    says = _SAYS.search(text)
    if not found or says is None:
        return {"name": folder.name, "error": text.strip().splitlines()[-1][-300:]}
    tokens, context, sequences = (each.replace(",", "") for each in says.groups())
    return {
        "name": folder.name,
        **found,
        "tokens": int(tokens),
        "context": int(context),
        "sequences": float(sequences),
    }


if __name__ == "__main__":
    import vllm  # noqa: F401  # slow: once, for all that are forked

    place = Path(sys.argv[1])
    for name in sys.argv[2:] or sorted(each.name for each in place.iterdir()):
        print(json.dumps(told(place / name)), flush=True)
