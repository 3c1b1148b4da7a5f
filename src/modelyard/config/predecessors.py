"""Variables of the tools that Modelyard replaces: Local LLM Interface, vllama, LLM-Manager.

Laws of this file:
- They are the weakest voice: below the file, above the defaults. So a variable that happens to be
  there for another program changes nothing that anybody has written.
- Each one that was obeyed, and each one that was not, is told once, with what to write instead.
- Only variables that are listed here are looked at: `LLM_*` is a name that many programs use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from modelyard.config.tree import EnvText, Node, Origin, nested, overlay


def _same(value: str) -> str:
    return value


def _minutes(value: str) -> str:
    return f"{value}m" if value.replace(".", "", 1).isdigit() else value


_OBEYED: Mapping[str, tuple[tuple[str, ...], Callable[[str], str]]] = {
    "LLM_HOST": (("server", "host"), _same),
    "LLM_PORT": (("server", "port"), _same),
    "LLM_MODELS_DIR": (("models_dirs",), _same),
    "VLLAMA_HOST": (("server", "host"), _same),
    "VLLAMA_PORT": (("server", "port"), _same),
    "VLLAMA_TRANSFORMERS_CACHE": (("models_dirs",), _same),
    "LLM_MANAGER_HOST": (("server", "host"), _same),
    "LLM_MANAGER_PORT": (("server", "port"), _same),
    "LLM_MANAGER_ALIVE_TIME": (("defaults", "idle_stop"), _minutes),
}
"""By the key that each stands for. Where several stand for one key, the last one set counts."""

_UNLOAD = ("VLLAMA_UNLOAD_TIMEOUT", "VLLAMA_UNLOAD_MODE")
_STOPPED = "3"

_BY_MODEL = "it belongs to a model: `modelyard assign MODEL"
_NOT_OBEYED: Mapping[str, str] = {
    "LLM_GPU_MEMORY_UTILIZATION": f"{_BY_MODEL} --gpu-memory SHARE`",
    "LLM_VLLM_TENSOR_PARALLEL_SIZE": f"{_BY_MODEL} --tensor-parallel GPUS`",
    "LLM_VLLM_DTYPE": f"{_BY_MODEL} --dtype TYPE`",
    "LLM_VLLM_MAX_MODEL_LEN": f"{_BY_MODEL} --max-model-len TOKENS`",
    "LLM_CUDA_VISIBLE_DEVICES": f"{_BY_MODEL} --devices 0,1`",
    "LLM_TRANSFORMERS_DEVICE": f"{_BY_MODEL} --devices cpu`",
    "LLM_TRANSFORMERS_TORCH_DTYPE": f"{_BY_MODEL} --dtype TYPE`",
    "LLM_ENABLE_GPU_MEMORY_OFFLOAD": "models are placed by the memory that they need",
    "LLM_GPU_MEMORY_OFFLOAD_THRESHOLD_GB": "models are placed by the memory that they need",
    "LLM_AVAILABLE_GPU_MEMORY_GB": "memory is measured; `devices.budget` bounds it",
    "LLM_AUTO_UNLOAD_MODELS": "`defaults.idle_stop` says when models are stopped, or never",
    "LLM_MODEL_CACHE_SIZE": "as many models stay as fit",
    "LLM_LOG_LEVEL": "write `modelyard serve --log-level`",
    "LLM_CORS_ORIGINS": "`server.allowed_hosts` says who may ask",
    "VLLAMA_DEFAULT_DEVICE": f"{_BY_MODEL} --devices 0`",
    "VLLAMA_OFFLINE_MODE": "HF_HUB_OFFLINE=1 is passed on to engines",
    "VLLAMA_VLLM_PORT_START": "ports of engines are chosen among the free ones",
    "VLLAMA_VLLM_PORT_END": "ports of engines are chosen among the free ones",
    "LLM_MANAGER_LOG_LEVEL": "write `modelyard serve --log-level`",
    "LLM_MANAGER_DB_PATH": "`modelyard import` reads such a database",
}


def inherited(env: Mapping[str, str], folder: Path) -> tuple[Node, list[str]]:
    """What these variables say, as a tree to lay the file on, and notes about each of them.

    Relative paths start from `folder`.
    """
    root = Node({}, Origin("", folder))
    notes = []
    for name, path, value in _obeyed(env):
        node = Node(EnvText(value), Origin(name, folder))
        root = overlay(root, nested(path, node))
        key = ".".join(path)
        notes.append(f"{name} is obeyed as {key}; better write {key} into the configuration")
    notes += [
        f"{name} is not obeyed: {instead}"
        for name, instead in _NOT_OBEYED.items()
        if _set(env, name)
    ]
    return root, notes


def _obeyed(env: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...], str]]:
    for name, (path, convert) in _OBEYED.items():
        if _set(env, name):
            yield name, path, convert(env[name].strip())
    timeout, mode = _UNLOAD
    if _set(env, timeout):  # in seconds; at mode 3 vllama stops what is idle, else it sleeps
        key = "idle_stop" if env.get(mode, "").strip() == _STOPPED else "idle_sleep"
        yield timeout, ("defaults", key), env[timeout].strip()


def _set(env: Mapping[str, str], name: str) -> bool:
    return bool(env.get(name, "").strip())
