"""What numbers a model's weights are stored in, and under which name people know that.

Laws of this file:
- Pure. A name that is not known is passed on as it is written.

The names are those of transformers' `quantization_config` (quant_method), of compressed-tensors'
`config_groups`, of MLX's own `quantization`, and of `llama_ftype` in llama.h for GGUF files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from modelyard.catalog.gguf import GgufHeader
from modelyard.catalog.json_object import JsonObject

_FILE_TYPES: Final[Mapping[int, str]] = MappingProxyType(
    {
        0: "F32",
        1: "F16",
        2: "Q4_0",
        3: "Q4_1",
        7: "Q8_0",
        8: "Q5_0",
        9: "Q5_1",
        10: "Q2_K",
        11: "Q3_K_S",
        12: "Q3_K_M",
        13: "Q3_K_L",
        14: "Q4_K_S",
        15: "Q4_K_M",
        16: "Q5_K_S",
        17: "Q5_K_M",
        18: "Q6_K",
        19: "IQ2_XXS",
        20: "IQ2_XS",
        21: "Q2_K_S",
        22: "IQ3_XS",
        23: "IQ3_XXS",
        24: "IQ1_S",
        25: "IQ4_NL",
        26: "IQ3_S",
        27: "IQ3_M",
        28: "IQ2_S",
        29: "IQ2_M",
        30: "IQ4_XS",
        31: "IQ1_M",
        32: "BF16",
        36: "TQ1_0",
        37: "TQ2_0",
        38: "MXFP4",
        39: "NVFP4",
    }
)
_QUANT_IN_NAME: Final = re.compile(
    r"[-_.]((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|BF16|F16|F32|FP16|MXFP4(?:_MOE)?|NVFP4))$",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Quantization:
    """How weights are stored: `method` as engines name it, `label` as people do."""

    method: str
    label: str
    bits: int | None = None
    group: int | None = None
    pack_factor: int = 1
    """Weights in one stored integer."""


def of_config(config: JsonObject) -> Quantization | None:
    """What the configuration says; None where the weights are plain numbers.

    Raises BadModelFile where the section is malformed.
    """
    section = config.part("quantization_config", "compression_config")
    if section is None:
        mlx = config.part("quantization")
        if mlx is not None and "group_size" in mlx:
            bits = mlx.count("bits") or 4
            return Quantization("mlx", f"MLX {bits}-bit", bits, mlx.count("group_size"), 32 // bits)
        return None
    method = section.text("quant_method") or section.text("quant_algo") or "unknown"
    return _METHODS.get(method, _other)(method, section)


def plain_label(dtypes: Mapping[str, int]) -> str:
    """The name of the number format that most bytes are in."""
    return Counter(dtypes).most_common(1)[0][0] if dtypes else "unknown"


def of_gguf(header: GgufHeader) -> str:
    """The file's own word, else the format that most bytes of its matrices are in."""
    declared = header.metadata.get("general.file_type")
    named = _FILE_TYPES.get(declared & 1023) if isinstance(declared, int) else None
    if named is not None:
        return named
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        if len(tensor.shape) > 1:
            sizes[tensor.type.name] += tensor.n_bytes
    return plain_label(sizes)


def without_quantization(stem: str) -> tuple[str, str | None]:
    """A file's stem without the number format at its end, and that format."""
    match = _QUANT_IN_NAME.search(stem)
    return (stem, None) if match is None else (stem[: match.start()], match[1].upper())


def _packed(method: str, section: JsonObject) -> Quantization:
    bits = section.count("bits", "w_bit") or 4
    group = section.values.get("group_size", section.values.get("q_group_size"))
    factor = 32 // bits if bits in {2, 4, 8} else 1
    number = group if isinstance(group, int) and group > 0 else None
    return Quantization(method, f"{method.upper()} {bits}-bit", bits, number, factor)


def _fp8(method: str, section: JsonObject) -> Quantization:
    blocks = section.counts("weight_block_size")
    group = blocks[0] if blocks else None
    return Quantization(method, "FP8", 8, group)


def _compressed(method: str, section: JsonObject) -> Quantization:
    """compressed-tensors names its format, and each group says the bits of its weights."""
    form = section.text("format") or "unknown"
    groups = section.part("config_groups")
    bits: set[int] = set()
    for name in groups.values if groups is not None else ():
        group = groups.part(name) if groups is not None else None
        weights = None if group is None else group.part("weights")
        told = None if weights is None else weights.count("num_bits")
        bits |= {told} if told else set()
    number = min(bits) if bits else None
    factor = 32 // number if number and form == "pack-quantized" else 1
    if form == "nvfp4-pack-quantized":
        return Quantization(method, "NVFP4", 4, None, 2)
    label = {"float-quantized": "FP8", "int-quantized": "INT8", "pack-quantized": f"INT{number}"}
    return Quantization(method, label.get(form, form), number, None, factor)


def _bitsandbytes(method: str, section: JsonObject) -> Quantization:
    four = section.flag("load_in_4bit")
    kind = section.text("bnb_4bit_quant_type") or "fp4"
    if four:
        return Quantization(method, f"bitsandbytes {kind.upper()}", 4, None, 2)
    return Quantization(method, "bitsandbytes INT8", 8)


def _mxfp4(method: str, section: JsonObject) -> Quantization:  # noqa: ARG001 - as the others
    return Quantization(method, "MXFP4", 4, 32, 2)


def _modelopt(method: str, section: JsonObject) -> Quantization:
    algorithm = section.text("quant_algo") or method
    factor = 2 if "4" in algorithm else 1
    return Quantization(method, algorithm, 4 if "4" in algorithm else 8, None, factor)


def _other(method: str, section: JsonObject) -> Quantization:
    return Quantization(method, method, section.count("bits"))


_METHODS: Final = {
    "awq": _packed,
    "gptq": _packed,
    "auto-round": _packed,
    "intel/auto-round": _packed,
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "compressed-tensors": _compressed,
    "bitsandbytes": _bitsandbytes,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
}

UNKNOWN_TO_ENGINES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "mlx": "it is stored for MLX, which runs on Apple's chips: use the `command` engine",
        "exl2": "it is stored for ExLlamaV2: use the `command` engine",
        "exl3": "it is stored for ExLlamaV3: use the `command` engine",
    }
)
"""Formats that no engine adapter here loads, with what to do."""


WITHOUT_VLLM: Final = frozenset({"bitsandbytes", "quanto", "eetq", "hqq", "aqlm", "vptq"})
"""Methods that vLLM 0.32 does not load and transformers does."""
