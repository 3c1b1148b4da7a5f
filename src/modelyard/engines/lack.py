"""What an engine's words say of memory that was lacking, so that a smaller start can be tried.

Laws of this file:
- Only words of engines that ended before they were ready are looked at; what they say of prompts
  and of measuring is not here.
- Who frees more for such an engine is decided elsewhere: here is only what was short.

Sources: vLLM 0.8.5 to 0.32 (v1/core/kv_cache_utils.py, v1/worker/utils.py, v1/worker/
gpu_model_runner.py `_dummy_sampler_run`, device_allocator/cumem.py); llama.cpp (ggml.c
`ggml_aligned_malloc`, ggml-alloc.c `alloc_tensor_range`, ggml-cuda.cu, ggml-vulkan.cpp; quoted in
ggml-org/llama.cpp issues 20431 and 7366); torch (c10/cuda/CUDACachingAllocator.cpp).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

_LONGEST: Final = 2000


class Lack(StrEnum):
    """What was too little."""

    BUDGET = "budget"
    """The share that the engine was told to take: its settings need more than that."""
    DEVICE = "device"
    """The device: it had less than the engine took, or was told to take."""


_NUMBER: Final = r"\d[\d.,]{0,15}"
_BUDGET: Final = re.compile(
    r"GiB KV cache is needed, which is larger than|No available memory for the cache blocks"
    r"|is larger than the maximum number of tokens that can be stored in KV cache"
)
_DEVICE: Final = re.compile(
    rf"Free memory on device .{{1,60}}is less than desired|Available memory on node {_NUMBER} .*"
    r"requested memory|(?:CUDA|HIP|XPU|MPS)(?: [Ee]rror:)?(?: backend)? out of memory"
    r"|cudaMalloc failed: out of memory|OutOfMemoryError|MemoryError"
    r"|[Cc]annot allocate memory|can't allocate memory|bad_alloc"
    r"|insufficient memory \(attempted"
    r"|(?:[Ff]ailed|unable) to allocate (?:\w+ )?(?:compute )?buffer"
    r"|(?:[Ff]ailed|unable) to allocate .{0,40}(?:memory|of size)|ErrorOutOf(?:Device|Host)?Memory"
)
_LENGTH: Final = re.compile(
    r"estimated maximum model length is (?P<a>\d{1,12})"
    r"|tokens that can be stored in KV cache \((?P<b>\d{1,12})\)"
)


def lack_in(line: str) -> Lack | None:
    """What `line` says was too little, if it says so."""
    text = line[:_LONGEST]
    if _BUDGET.search(text):
        return Lack.BUDGET
    return Lack.DEVICE if _DEVICE.search(text) else None


def longest_in(line: str) -> int | None:
    """The longest sequence for which the engine says that memory would do, in tokens."""
    found = _LENGTH.search(line[:_LONGEST])
    return int(found["a"] or found["b"]) if found else None
