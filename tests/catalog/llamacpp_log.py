"""Loads a GGUF file with the real llama.cpp and reads from its log what it allocated."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 60.0

_PROGRAM = """
import os, sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel = int(sys.argv[2]), int(sys.argv[3])
params.cache_type_k = params.cache_type_v = getattr(xllamacpp.ggml_type, sys.argv[4])
params.verbosity, params.n_gpu_layers, params.fit_params = 4, 0, False
params.hostnames, params.port, params.warmup = ["127.0.0.1"], 0, False
try:
    server = xllamacpp.Server(params)
except RuntimeError as error:
    print("cannot serve:", error, flush=True)
    os._exit(1)
print("is ready", flush=True)
sys.stdin.read()
os._exit(0)
"""
_BUFFER = re.compile(r"(\w+): +\S+ +(?:(\w[\w ]*?) +)?buffer size = +([\d.]+) MiB")


@dataclass(frozen=True)
class Buffers:
    """MiB by llama.cpp's log, which rounds each buffer to two digits."""

    weights: float
    cache: float
    compute: float


def buffers(path: Path, context: int, sequences: int, cache_type: str = "F16") -> Buffers:
    """What llama.cpp allocates on the host for the model at `path`.

    `context` is shared by `sequences`. Raises RuntimeError with the log where it does not load.
    """
    argv = [sys.executable, "-c", _PROGRAM, str(path), str(context), str(sequences)]
    found: list[tuple[str, str, float]] = []
    lines: list[str] = []
    with subprocess.Popen(
        [*argv, f"GGML_TYPE_{cache_type}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        is_ready = False
        for line in process.stdout:
            lines.append(line)
            is_ready |= "is ready" in line
            match = _BUFFER.search(line)
            if match is not None:
                found.append((match[1], match[2] or "", float(match[3])))
            # The log is written by a thread of its own: its lines may come after ours.
            if is_ready and any("compute" in kind for _, kind, _ in found):
                break
        process.kill()
    if not is_ready:
        raise RuntimeError("".join(lines)[-2000:])

    def total(*sources: str) -> float:
        return sum(
            mib for source, kind, mib in found if source in sources and "compute" not in kind
        )

    return Buffers(
        weights=total("load_tensors"),
        cache=total("llama_kv_cache", "llama_memory_recurrent"),
        compute=max((mib for _, kind, mib in found if "compute" in kind), default=0.0),
    )
