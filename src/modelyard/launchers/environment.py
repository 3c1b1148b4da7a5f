"""The environment an engine is given: what programs need, and nothing that is a secret of ours.

Laws of this file:
- Variables of the server reach an engine only if they are listed here; the command's own are added
  as they are, because a person wrote them.
- A name that looks like a secret is never inherited, listed or not. A gated download needs HF_TOKEN
  in the model's `env`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from modelyard.launchers.guard import RUN_VARIABLE

OWNER_VARIABLE = "MODELYARD_OWNER"
"""Names the server that started a process, as `leftovers.this_server` writes it."""

_INHERITED = re.compile(
    r"""
    PATH | HOME | USER | LOGNAME | SHELL | LANG | LANGUAGE | LC_\w+ | TZ | TMPDIR | TMP | TEMP
    | VIRTUAL_ENV | CONDA_PREFIX | LD_LIBRARY_PATH | DYLD_LIBRARY_PATH | XDG_\w+
    | (HTTP|HTTPS|ALL|NO)_PROXY | SSL_CERT_(FILE|DIR) | (REQUESTS|CURL)_CA_BUNDLE
    | (CUDA|NVIDIA|NCCL|HIP|HSA|ROCR|ROCM|MIOPEN|ONEAPI|SYCL|ZE|VK|OMP|MKL|KMP|OPENBLAS)_\w+
    | (HF|HUGGINGFACE|TRANSFORMERS|TORCH|PYTORCH|TRITON|GGML|LLAMA|VLLM|SGLANG|MODELSCOPE)_\w+
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL", re.IGNORECASE)

_DEFAULTS = {
    # A Python engine on a pipe would otherwise show its progress in blocks of 8 KiB.
    "PYTHONUNBUFFERED": "1",
    # Keeps `setproctitle` (vLLM, Ray) from overwriting the environment that the kernel shows,
    # which is where our markers are found again.
    "SPT_NOENV": "1",
}


def inherited(parent: Mapping[str, str]) -> dict[str, str]:
    """The variables of `parent` that every process we start may see."""
    return {name: value for name, value in parent.items() if _passes(name)}


def engine_environment(
    parent: Mapping[str, str], own: Mapping[str, str], *, run: str, owner: str
) -> dict[str, str]:
    """The whole environment of a run: inherited, then defaults, then `own`, then the markers."""
    markers = {RUN_VARIABLE: run, OWNER_VARIABLE: owner}
    return {**inherited(parent), **_DEFAULTS, **own, **markers}


def _passes(name: str) -> bool:
    return _INHERITED.fullmatch(name) is not None and _SECRET.search(name) is None
