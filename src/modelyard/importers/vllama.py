"""vllama's `models.yaml`: a vLLM for each model, by the model's Hugging Face id.

Laws of this file:
- The command is the one that vllama starts, with its defaults, so a model behaves as before.
- vllama's GPU numbers are CUDA's; `nvidia:0` is the first NVIDIA card by its PCI address.

Facts: `vllama/config.py` and `vllama/instance.py` of github.com/panjd123/vllama.
"""

from __future__ import annotations

from modelyard.config.tree import Plain
from modelyard.config.values import KeyPath
from modelyard.importers import programs
from modelyard.importers.card_memory import claims
from modelyard.importers.draft import argument
from modelyard.importers.launch import Launch, Way, put_ways
from modelyard.importers.surroundings import Work
from modelyard.importers.values import as_bool, as_int, as_mapping, as_number, as_text

KEYS = frozenset(
    ["port", "gpu_memory_utilization", "devices", "tensor_parallel_size", "max_model_len", "dtype",
     "trust_remote_code", "auto_start", "extra_args"]
)  # fmt: skip
TELLING = KEYS - {"port", "auto_start", "devices", "dtype"}
DEFAULT_UTILISATION = 0.85
DEFAULT_LENGTH = 2048


def looks_like(tree: Plain) -> bool:
    """Whether every value is a mapping with keys of vllama, and one of them tells it apart."""
    models = [as_mapping(value) for value in as_mapping(tree).values()]
    is_ours = all(models) and all(set(model) & KEYS for model in models)
    return bool(models) and is_ours and any(set(model) & TELLING for model in models)


def convert(work: Work) -> None:
    for name, value in as_mapping(work.tree).items():
        if isinstance(value, dict):
            _convert_model(name, value, work)
    work.book.model = ""


def _convert_model(name: str, keys: dict[str, Plain], work: Work) -> None:
    model = work.draft.model(name, f'"{name}" in {work.source.name}')
    work.book.model = model.id
    tasks, because = programs.tasks_of((), name)
    model.put("tasks", list(tasks), f"concluded from {because}; vllama does not say")
    count = as_int(keys.get("tensor_parallel_size")) or 1
    argv = [
        "vllm", "serve", argument(name), "--host", "{host}", "--port", "{port}",
        "--served-model-name", argument(model.id), "--tensor-parallel-size", str(count),
        *_options(name, keys, work), "--enable-sleep-mode", *_extra(name, keys, work),
    ]  # fmt: skip
    devices = _devices((name, "devices"), keys, count, work)
    launch = Launch(tuple(argv), has_port=True, env={"VLLM_SERVER_DEV_MODE": "1"})
    memory = claims(devices, argv, work.here)
    model.notes += put_ways(model, [Way("default", devices, memory, launch)], None)
    model.put("sleep", "vllm", "as vllama does")
    _rest(name, keys, work)
    if as_bool(keys.get("auto_start")):
        model.put("preload", True, "auto_start")


def _options(name: str, keys: dict[str, Plain], work: Work) -> list[str]:
    """vLLM's options, in vllama's order, with vllama's defaults."""
    book = work.book
    share = as_number(keys.get("gpu_memory_utilization", DEFAULT_UTILISATION))
    if share is None or not 0 < share <= 1:
        book.no_equal((name, "gpu_memory_utilization"), "is no share between 0 and 1; 0.85 is used")
        share = DEFAULT_UTILISATION
    options = ["--gpu-memory-utilization", f"{share:g}"]
    dtype = as_text(keys.get("dtype"))
    if dtype:
        options += ["--dtype", argument(dtype)]
    length = as_int(keys.get("max_model_len", DEFAULT_LENGTH))
    if length is not None and length > 0:
        options += ["--max-model-len", str(length)]
    elif keys.get("max_model_len") is not None:
        book.no_equal((name, "max_model_len"), "is no length; the model's own is used")
    trust = as_bool(keys.get("trust_remote_code"))
    if trust:
        options.append("--trust-remote-code")
    for key in ("gpu_memory_utilization", "dtype", "max_model_len", "tensor_parallel_size"):
        if key in keys:
            book.converted((name, key), "command")
    if "trust_remote_code" in keys:
        if trust:
            book.converted((name, "trust_remote_code"), "command")
        else:
            book.not_needed((name, "trust_remote_code"), "vLLM trusts no code unless it is told to")
    return options


def _extra(name: str, keys: dict[str, Plain], work: Work) -> list[str]:
    """`extra_args`: true is a bare flag, false nothing, anything else a value."""
    words: list[str] = []
    for option, value in as_mapping(keys.get("extra_args")).items():
        path: KeyPath = (name, "extra_args", option)
        flag = f"--{option.lstrip('-')}"
        chosen = as_bool(value) if str(value).lower() in ("true", "false") else None
        text = as_text(value)
        if chosen is not None:
            words += [flag] if chosen else []
        elif text is not None:
            words += [flag, argument(text)]
        else:
            work.book.no_equal(path, "is no value of an option; write it into `command`")
            continue
        if chosen is False:
            work.book.not_needed(path, "false is left out, as vllama does")
        else:
            work.book.converted(path, "command")
    return words


def _devices(path: KeyPath, keys: dict[str, Plain], count: int, work: Work) -> list[str]:
    listed = keys.get("devices")
    numbers = [as_int(item) for item in listed] if isinstance(listed, list) else []
    devices = [f"nvidia:{number}" for number in numbers if number is not None and number >= 0]
    if devices and len(devices) == len(numbers):
        work.book.converted(path, "profiles[].devices", "cards are counted by their PCI addresses")
        return devices
    if listed is not None:
        work.book.no_equal(path, "is no list of GPU numbers; any GPU is taken")
    return ["gpu"] * max(1, min(count, 16))


def _rest(name: str, keys: dict[str, Plain], work: Work) -> None:
    if "port" in keys:
        work.book.not_needed((name, "port"), "Modelyard chooses a free port for each start")
    if "auto_start" in keys:
        if as_bool(keys["auto_start"]):
            work.book.converted((name, "auto_start"), "preload")
        else:
            text = "models start when they are asked for"
            work.book.not_needed((name, "auto_start"), text)
    if keys.get("extra_args") == {}:
        work.book.not_needed((name, "extra_args"), "is empty")
    if "devices" in keys and keys["devices"] is None:
        work.book.not_needed((name, "devices"), "any GPU is taken")
