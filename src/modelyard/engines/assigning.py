"""What `modelyard assign` means for each engine: its flags by the engine's own options.

Laws of this file:
- A flag that an engine has nothing for is refused with what to do instead, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from modelyard.config.assignment import Wanted
from modelyard.core.errors import InvalidRequest
from modelyard.core.specs import OptionValue
from modelyard.engines.presets import PRESETS

_NAMES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "vllm": {
            "gpu_memory": "gpu_memory_utilization",
            "max_model_len": "max_model_len",
            "tensor_parallel": "tensor_parallel_size",
            "dtype": "dtype",
        },
        "transformers": {"max_model_len": "max_seq_length", "dtype": "dtype"},
        "llamacpp": {"max_model_len": "ctx_size"},
        **{name: preset.assigns for name, preset in PRESETS.items()},
    }
)
_FLAGS = {
    "gpu_memory": "--gpu-memory",
    "max_model_len": "--max-model-len",
    "tensor_parallel": "--tensor-parallel",
    "dtype": "--dtype",
}
_INSTEAD: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("llamacpp", "gpu_memory"): "it takes what the model needs; --option gpu_layers=N puts "
        "fewer of its layers on the GPU",
        ("llamacpp", "tensor_parallel"): "it spreads a model over the devices that it is given; "
        "name them with --devices",
        ("llamacpp", "dtype"): "the weights have the type of the file",
    }
)


def options_for(engine: str, wanted: Wanted) -> Mapping[str, OptionValue]:
    """The options of `engine` that do what is wanted. Raises InvalidRequest for what it cannot."""
    _check(wanted)
    names = _NAMES.get(engine, {})
    if engine == "command" and wanted.options:
        raise InvalidRequest(
            "a command's options are its own arguments", hint="change `command` in the file"
        )
    options: dict[str, OptionValue] = {}
    for field, flag in _FLAGS.items():
        value = getattr(wanted, field)
        if value is None:
            continue
        if field not in names:
            has = ", ".join(_FLAGS[name] for name in _FLAGS if name in names) or "none of these"
            instead = _INSTEAD.get((engine, field), "--option NAME=VALUE sets its own options")
            if engine == "command":
                instead = "its arguments stand in `command` in the file"
            raise InvalidRequest(f"the engine {engine} has no {flag}; it has {has}", hint=instead)
        options[names[field]] = value
    both = sorted(set(options) & set(wanted.options))
    if both:
        raise InvalidRequest(f"--option {both[0]} is given twice, once by its own flag")
    return {**options, **wanted.options}


def _check(wanted: Wanted) -> None:
    if wanted.gpu_memory is not None and not 0 < wanted.gpu_memory <= 1:
        raise InvalidRequest(
            f"a share of {wanted.gpu_memory:g} of a GPU's memory makes no sense",
            param="gpu_memory",
            hint="write more than 0 and at most 1, like 0.85",
        )
    for name in ("max_model_len", "tensor_parallel"):
        value = getattr(wanted, name)
        if value is not None and value < 1:
            raise InvalidRequest(f"{_FLAGS[name]} {value}: it must be at least 1", param=name)
