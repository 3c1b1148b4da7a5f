"""What a llama.cpp engine is expected to hold on GPUs and in host memory, device by device.

Laws of this file:
- The same terms as on the host alone (`estimate`), cut the way llama.cpp cuts them: whole layers go
  to devices in the shares asked for, the table of words stays in host memory, the output layer
  goes with the last layers.
- Experts may stay in host memory while the rest of their layer is on a GPU (`n_cpu_moe`).

Sources: llama.cpp's src/llama-model.cpp (`load_tensors`: input layer on the host, layers by
`tensor_split`, the output as one more layer) and src/llama-kv-cache.cpp (a layer's cache lies where
the layer lies).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelyard.catalog.attention_gguf import attention_of
from modelyard.catalog.estimate import (
    DEFAULT_UBATCH,
    FALLBACK_CONTEXT,
    compute_term,
    outputs_term,
    process_term,
)
from modelyard.catalog.gguf import GgufHeader, TensorInfo
from modelyard.catalog.kv import llamacpp_memory, room_for
from modelyard.catalog.terms import HEADERS, MIB, Estimate, Term

CUDA_CONTEXT_MIB: Final = 400.0
"""What the driver and llama.cpp's kernels hold on a GPU without a model; 376 to 600 were seen."""
ALL_LAYERS: Final = 2**16

_BLOCK: Final = re.compile(r"blk\.(\d{1,5})\.")
_EXPERTS: Final = re.compile(r"\.ffn_(up|down|gate|gate_up)_(ch)?exps")


@dataclass(frozen=True, slots=True)
class Split:
    """How a model is spread.

    `shares` are the parts of each GPU (any positive numbers); `gpu_layers` how many layers, counted
    from the last, leave the host, the output counting as one more; `host_experts` in how many
    layers, counted from the first, the experts stay on the host.
    """

    shares: Sequence[float] = (1.0,)
    gpu_layers: int = ALL_LAYERS
    host_experts: int = 0


def estimate_split(
    header: GgufHeader,
    split: Split,
    *,
    context: int = 0,
    parallel: int = 1,
    ubatch: int = DEFAULT_UBATCH,
    key_type: str = "f16",
    value_type: str = "f16",
    projector_bytes: int = 0,
) -> Mapping[str, Estimate]:
    """The memory of one engine by device: `gpu0`, `gpu1`, … and `host`.

    `context` is in tokens and shared by `parallel` sequences; 0 takes all that the model was
    trained for. `ubatch` tokens are computed at once. The projector goes to the first GPU.
    Raises BadModelFile where the header contradicts itself.
    """
    tokens = context or header.count("context_length") or FALLBACK_CONTEXT
    room = room_for(tokens, parallel, min(ubatch, tokens))
    layers = header.count("block_count") or 0
    homes = _homes(layers, split)
    weights: dict[str, int] = defaultdict(int)
    for tensor in header.tensors:
        weights[_home(tensor, homes, layers, split)] += tensor.n_bytes
    weights[homes[layers]] += _second_table(header, homes[layers])
    cache = llamacpp_memory(attention_of(header), room, key_type, value_type)
    compute = compute_term(header, room)
    devices = [*(f"gpu{number}" for number in range(len(split.shares))), "host"]
    shares: dict[str, Estimate] = {}
    for device in devices:
        here = sum(home == device for home in homes[:layers])
        words = f"{weights[device]} bytes of tensors, {here} of {layers} layers"
        terms = [Term("weights", weights[device] / MIB, words, HEADERS)]
        part = cache.n_bytes * here / layers / MIB if layers else 0.0
        formula = f"({cache.formula}) x {here} / {layers} layers"
        terms.append(Term("kv cache", part, formula, "header values; llama.cpp's caches"))
        if here or device == "gpu0":
            terms.append(compute)
        if device == "host":
            terms += [outputs_term(header, room.sequences), process_term(header)]
        else:
            terms.append(
                Term("CUDA context", CUDA_CONTEXT_MIB, "per process and GPU", "reports: 376 to 600")
            )
        if device == devices[0] and projector_bytes:
            looked = f"{projector_bytes} bytes of the projector's file + 256 MiB while it works"
            terms.append(Term("projector", projector_bytes / MIB + 256, looked, HEADERS))
        shares[device] = Estimate(tuple(term for term in terms if term.mib), room.context)
    return shares


def _second_table(header: GgufHeader, output_home: str) -> int:
    """A table of words that serves as the output too is loaded once more beside it."""
    tied = all(tensor.name != "output.weight" for tensor in header.tensors)
    if not tied or output_home == "host":
        return 0
    return sum(tensor.n_bytes for tensor in header.tensors if tensor.name == "token_embd.weight")


def _homes(layers: int, split: Split) -> list[str]:
    """The device of each layer, and of the output, which counts as one more."""
    away = min(split.gpu_layers, layers + 1)
    first = layers + 1 - away
    total = sum(split.shares)
    homes = ["host"] * first
    for number in range(away):
        reached, gpu = 0.0, len(split.shares) - 1
        for index, share in enumerate(split.shares):
            reached += share / total
            if number / away < reached:
                gpu = index
                break
        homes.append(f"gpu{gpu}")
    return homes


def _home(tensor: TensorInfo, homes: Sequence[str], layers: int, split: Split) -> str:
    block = _BLOCK.match(tensor.name)
    if block is None:
        return homes[layers] if tensor.name.startswith("output") else "host"
    number = min(int(block[1]), layers)
    if number < split.host_experts and _EXPERTS.search(tensor.name):
        return "host"
    return homes[number]
