"""A layout in the words of engines: options, commands, configuration.

Laws of this file:
- Options have the names that our configuration takes, and the commands say the same to the engine
  itself, so that a person can check the one with the other.
- Nothing is written that the engine would choose by itself.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping
from typing import Any, Final

from ruamel.yaml import YAML

from modelyard.catalog.choice import LLAMACPP, VLLM
from modelyard.core.specs import HOST_DEVICE, OptionValue, Task
from modelyard.planner.layout import Reckoning, host_kv_gib
from modelyard.planner.subject import Subject

Options = dict[str, OptionValue]

_LLAMA_FLAGS: Final[Mapping[str, str]] = {
    "ctx_size": "--ctx-size",
    "parallel": "--parallel",
    "cache_type_k": "--cache-type-k",
    "cache_type_v": "--cache-type-v",
    "flash_attn": "--flash-attn",
    "ubatch_size": "--ubatch-size",
    "batch_size": "--batch-size",
    "gpu_layers": "--gpu-layers",
    "tensor_split": "--tensor-split",
    "override_tensor": "--override-tensor",
    "mmproj": "--mmproj",
    "fit": "--fit",
}


def options_of(subject: Subject, reckoning: Reckoning) -> Options:
    """The engine's options for a layout, as `options` of a model in `modelyard.yaml`."""
    layout = reckoning.layout
    if layout.engine == LLAMACPP:
        return dict(subject.found.options or {}) | _llamacpp(subject, reckoning)
    if layout.engine == VLLM:
        return _vllm(subject, reckoning)
    return _transformers(subject, reckoning)


def _llamacpp(subject: Subject, reckoning: Reckoning) -> Options:
    layout = reckoning.layout
    options: Options = {"ctx_size": layout.context * layout.sequences}
    if layout.sequences > 1:
        options["parallel"] = layout.sequences
    if layout.kv:
        # llama.cpp takes a value cache of 8 bits only together with flash attention.
        options |= {"cache_type_k": layout.kv, "cache_type_v": layout.kv, "flash_attn": "on"}
    if layout.batch:
        options |= {"batch_size": max(layout.batch, 512), "ubatch_size": layout.batch}
    if not layout.gpus:
        return options
    away = layout.gpu_layers
    options["gpu_layers"] = subject.layers + 1 if away is None else away
    # What was reckoned is what is to happen, whatever is free at that moment.
    options["fit"] = "off"
    if layout.gpus > 1:
        rooms = [load.seat.available_mib for load in reckoning.loads[:-1]]
        options["tensor_split"] = [round(room / max(rooms), 3) for room in rooms]
    if layout.host_experts:
        numbers = "|".join(str(number) for number in range(layout.host_experts))
        pattern = rf"blk\.({numbers})\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"
        options["override_tensor"] = pattern
    return options


def _vllm(subject: Subject, reckoning: Reckoning) -> Options:
    layout = reckoning.layout
    options: Options = {}
    if reckoning.utilisation is not None:
        # Told, because it would otherwise follow from the memory with a fixed part for the driver.
        options["gpu_memory_utilization"] = min(1.0, reckoning.utilisation)
    if not subject.reads or layout.context < subject.trained:
        options["max_model_len"] = layout.context
    if layout.sequences > 1:
        options["max_num_seqs"] = layout.sequences
    if layout.kv:
        options["kv_cache_dtype"] = layout.kv
    if layout.batch:
        options["max_num_batched_tokens"] = layout.batch
    if layout.eager:
        options["enforce_eager"] = True
    if layout.tensor_parallel > 1:
        options["tensor_parallel_size"] = layout.tensor_parallel
    if layout.pipeline_parallel > 1:
        options["pipeline_parallel_size"] = layout.pipeline_parallel
    if layout.offload_mib:
        options["cpu_offload_gb"] = layout.offload_mib / 1024
    return options


def _transformers(subject: Subject, reckoning: Reckoning) -> Options:
    layout = reckoning.layout
    if not subject.reads:
        return {}
    options: Options = {"max_seq_length": layout.context}
    if layout.offload_mib:
        cards: dict[str, OptionValue] = {
            str(number): f"{load.needs_mib}MiB" for number, load in enumerate(reckoning.loads[:-1])
        }
        options["max_memory"] = {**cards, "cpu": f"{reckoning.host_mib}MiB"}
    return options


def commands_of(subject: Subject, reckoning: Reckoning, options: Options) -> list[str]:
    """What would start the engine by hand, and what gives the same to Modelyard."""
    found, layout = subject.found, reckoning.layout
    if layout.engine == LLAMACPP:
        return [
            shlex.join(
                ["llama-server", "--model", str(found.source), *_llama_words(subject, options)]
            )
        ]
    if layout.engine == VLLM:
        words = ["vllm", "serve", str(found.source), "--served-model-name", found.id]
        if not layout.gpus:
            gib = host_kv_gib(reckoning.loads[-1].estimate)
            words = ["env", f"VLLM_CPU_KVCACHE_SPACE={gib}", *words]
        for name, value in options.items():
            flag = f"--{name.replace('_', '-')}"
            words += [flag] if value is True else [flag, str(value)]
        return [shlex.join(words)]
    if subject.reads:
        return ["modelyard serve --config modelyard.yaml"]
    return [shlex.join(["transformers", "serve", str(found.source), "--device", "auto"])]


def _llama_words(subject: Subject, options: Options) -> list[str]:
    words: list[str] = []
    for name, value in options.items():
        text = (
            ",".join(f"{each:g}" for each in value if isinstance(each, float | int))
            if isinstance(value, list)
            else str(value)
        )
        words += [_LLAMA_FLAGS.get(name, f"--{name.replace('_', '-')}"), text]
    if subject.reads and "ubatch_size" not in options:
        # What is only read must fit one batch, or llama-server refuses it.
        words += [
            "--batch-size",
            str(options["ctx_size"]),
            "--ubatch-size",
            str(options["ctx_size"]),
        ]
    modes = {Task.EMBEDDING: "--embedding", Task.RERANK: "--reranking"}
    return words + [modes[task] for task in sorted(subject.found.verdict.tasks) if task in modes]


def config_of(subject: Subject, reckoning: Reckoning, options: Options) -> str:
    """The model in `modelyard.yaml`, with what it claims on each device."""
    found, layout = subject.found, reckoning.layout
    cards = reckoning.loads[:-1]
    memory: dict[str, str] = {}
    devices: list[str] = []
    for load in cards:
        # Cards of one name are told apart by their ids where there are any.
        same = sum(other.seat.name == load.seat.name for other in cards) > 1
        name = load.seat.id if same else load.seat.name
        devices.append(name)
        memory[name] = f"{load.needs_mib}MiB"
    on_host = not cards or layout.offloads
    if on_host:
        devices.append(HOST_DEVICE)
        memory[HOST_DEVICE] = f"{reckoning.host_mib}MiB"
    entry: dict[str, Any] = {
        "engine": layout.engine,
        "source": str(found.source),
        "profiles": [{"name": "planned", "devices": devices, "memory": memory}],
    }
    if options:
        entry["options"] = options
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = io.StringIO()
    yaml.dump({"models": {found.id: entry}}, text)
    return text.getvalue()
