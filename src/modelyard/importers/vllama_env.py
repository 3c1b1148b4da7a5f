"""vllama's own settings: variables named `VLLAMA_*`, and where its models are cached.

Laws of this file:
- The server's settings are converted here; the models themselves are in `models.yaml` (`vllama`).
- A token is a secret and is neither written nor shown.

Facts: `.env.example` and `vllama/config.py` of github.com/panjd123/vllama.
"""

from __future__ import annotations

from modelyard.config.tree import Plain
from modelyard.importers.draft import Entry, literal
from modelyard.importers.launch import usable_folder
from modelyard.importers.llm_manager_program import put_host, put_port
from modelyard.importers.surroundings import Work
from modelyard.importers.values import as_int, as_mapping, as_text

PREFIX = "VLLAMA_"
_CACHES = ("VLLAMA_TRANSFORMERS_CACHE", "TRANSFORMERS_CACHE")
_HOME = "HF_HOME"
_TIMEOUT, _MODE = "VLLAMA_UNLOAD_TIMEOUT", "VLLAMA_UNLOAD_MODE"
_STOP_MODE = 3
_PORTS = "Modelyard chooses a free port for each start"
_NOT_NEEDED = {"VLLAMA_VLLM_PORT_START": _PORTS, "VLLAMA_VLLM_PORT_END": _PORTS}
_NO_EQUAL = {
    "VLLAMA_DEFAULT_DEVICE": "a card is chosen by memory; name it in a model's profile",
    "VLLAMA_OFFLINE_MODE": "set HF_HUB_OFFLINE in the environment of the server",
    "HF_TOKEN": "a secret, not copied; write it into a model's env as ${env:HF_TOKEN}",
}


def looks_like(tree: Plain) -> bool:
    return any(key.startswith(PREFIX) or key in _CACHES for key in as_mapping(tree))


def convert(work: Work) -> None:
    settings = as_mapping(work.tree)
    for key, value in settings.items():
        path = (key,)
        if key == "VLLAMA_HOST":
            put_host(path, value, work)
        elif key == "VLLAMA_PORT":
            put_port(path, value, work)
        elif key in _CACHES or key == _HOME:
            _cache(key, value, work)
        elif key in (_TIMEOUT, _MODE):
            continue
        elif key in _NOT_NEEDED or not as_text(value):
            work.book.not_needed(path, _NOT_NEEDED.get(key, "is empty"))
        elif key in _NO_EQUAL:
            work.book.no_equal(path, _NO_EQUAL[key])
        elif not key.startswith(PREFIX):
            work.book.not_needed(path, "is no setting of vllama")
    _unload(settings, work)


def _cache(key: str, value: Plain, work: Work) -> None:
    folder = usable_folder(as_text(value), work.source.folder, work.here)
    if folder is None:
        work.book.no_equal((key,), "is no folder of this system; set models_dirs")
        return
    hub = f"{folder}/hub" if key == _HOME else folder
    work.draft.models_dirs.append(Entry(literal(hub), key))
    work.book.converted((key,), "models_dirs")


def _unload(settings: dict[str, Plain], work: Work) -> None:
    """Sleep after a time without use, or a stop where the mode says so."""
    mode = as_int(settings.get(_MODE, 2))
    key = "idle_stop" if mode == _STOP_MODE else "idle_sleep"
    seconds = as_int(settings.get(_TIMEOUT, 1800))
    if _MODE in settings:
        text = "how deep engines sleep follows from the memory that is needed"
        work.book.converted((_MODE,), f"defaults.{key}", text)
    if seconds is None or not 0 <= seconds <= 3650 * 86400:
        work.book.no_equal((_TIMEOUT,), f"is no number of seconds; set defaults.{key}")
        return
    if _TIMEOUT in settings or _MODE in settings:
        work.draft.put("defaults", key, f"{seconds}s" if seconds else "never", _TIMEOUT)
    if _TIMEOUT in settings:
        work.book.converted((_TIMEOUT,), f"defaults.{key}")
