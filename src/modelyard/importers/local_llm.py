"""Local LLM Interface: variables named `LLM_*`, in an environment file.

Laws of this file:
- Its models are folders, found in one folder: they become `models_dirs`.
- A key of the API is a secret and is neither written nor shown.

Facts: the settings class of Local LLM Interface; seven of its variables were read by nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from modelyard.config.tree import Plain
from modelyard.importers.draft import Entry, literal
from modelyard.importers.launch import usable_folder
from modelyard.importers.llm_manager_program import put_host, put_port
from modelyard.importers.surroundings import Work
from modelyard.importers.values import as_bool, as_mapping, as_text

PREFIX = "LLM_"
_UNREAD = "Local LLM Interface never read it"
_BY_MODEL = "describe the model in `models`, and set it there"
_NOT_NEEDED = {
    "LLM_CUDA_VISIBLE_DEVICES": f"{_UNREAD}; Modelyard finds the cards",
    "LLM_AVAILABLE_GPU_MEMORY_GB": f"{_UNREAD}; Modelyard measures",
    "LLM_MODEL_CACHE_SIZE": f"{_UNREAD}; as many models stay as fit",
}
_NO_EQUAL = {
    "LLM_GPU_MEMORY_UTILIZATION": f"an option of vLLM for a single model: {_BY_MODEL}",
    "LLM_VLLM_TENSOR_PARALLEL_SIZE": f"an option of vLLM for a single model: {_BY_MODEL}",
    "LLM_VLLM_DTYPE": f"an option of vLLM for a single model: {_BY_MODEL}",
    "LLM_VLLM_MAX_MODEL_LEN": f"an option of vLLM for a single model: {_BY_MODEL}",
    "LLM_TRANSFORMERS_DEVICE": f"devices are chosen by memory; or {_BY_MODEL} (profiles)",
    "LLM_TRANSFORMERS_TORCH_DTYPE": f"an option of the engine for a single model: {_BY_MODEL}",
    "LLM_ENABLE_GPU_MEMORY_OFFLOAD": "a model larger than a card needs a profile that says how "
    "much of it goes to host memory",
    "LLM_GPU_MEMORY_OFFLOAD_THRESHOLD_GB": "there is no rule by size: models are placed by the "
    "memory that they need",
    "LLM_LOG_LEVEL": "not a setting: start with `modelyard serve --log-level debug`",
    "LLM_CORS_ORIGINS": "foreign web pages are turned away; name those that may in "
    "server.cors_origins",
    "LLM_API_KEY": "a key that was chosen elsewhere is not taken over; make a new one with "
    "`modelyard keys add NAME`",
}


def looks_like(tree: Plain) -> bool:
    return any(key.startswith(PREFIX) for key in as_mapping(tree))


def convert(work: Work) -> None:
    settings = as_mapping(work.tree)
    for key, value in settings.items():
        path = (key,)
        if key == "LLM_MODELS_DIR":
            _models_dir(value, work)
        elif key == "LLM_HOST":
            put_host(path, value, work)
        elif key == "LLM_PORT":
            put_port(path, value, work)
        elif key == "LLM_AUTO_UNLOAD_MODELS":
            _unload(value, work)
        elif key in _NOT_NEEDED:
            work.book.not_needed(path, _NOT_NEEDED[key])
        elif key in _NO_EQUAL and not as_text(value):
            work.book.not_needed(path, "is empty")
        elif key in _NO_EQUAL:
            work.book.no_equal(path, _NO_EQUAL[key])
        elif not key.startswith(PREFIX):
            work.book.not_needed(path, "is no setting of Local LLM Interface")


def _models_dir(value: Plain, work: Work) -> None:
    folder = usable_folder(as_text(value), work.source.folder, work.here)
    if folder is None:
        work.book.no_equal(("LLM_MODELS_DIR",), "is no folder of this system; set models_dirs")
        return
    work.draft.models_dirs.append(Entry(literal(folder), "LLM_MODELS_DIR"))
    work.book.converted(
        ("LLM_MODELS_DIR",), "models_dirs", "inside a container it had another path"
    )


def _unload(value: Plain, work: Work) -> None:
    wanted = as_bool(value)
    if wanted is False:
        work.draft.put("defaults", "idle_stop", "never", "LLM_AUTO_UNLOAD_MODELS")
        work.book.converted(("LLM_AUTO_UNLOAD_MODELS",), "defaults.idle_stop")
    else:
        text = "models that nobody uses leave when another one needs their memory"
        work.book.not_needed(("LLM_AUTO_UNLOAD_MODELS",), text)


def read_environment(text: str) -> Mapping[str, Plain] | None:
    """The variables of an environment file; None if it is none."""
    found: dict[str, Plain] = {}
    for raw in text.split("\n"):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        for word in ("export ", "set "):
            line = line.removeprefix(word).lstrip()
        name, equals, value = line.partition("=")
        if not equals or not name.strip().replace("_", "").isalnum() or not name.isascii():
            return None
        found[name.strip()] = _unquoted(value.strip())
    return found


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value.partition(" #")[0].rstrip()
