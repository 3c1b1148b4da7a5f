"""Feeds the catalog's parsers with damaged files, and says what they did wrong.

Laws of this file:
- A parser may answer or refuse with `BadModelFile`; anything else is a finding, and so is an input
  that takes longer than `SLOW_S` of processor time or more memory than the process may have.
- What is accepted goes on through classification, attention and estimates, which must give finite
  numbers.
- The same seed gives the same inputs.
"""

from __future__ import annotations

import copy
import json
import math
import random
import resource
import struct
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.catalog.checkpoints import TOKENIZER, safetensors
from tests.catalog.conftest import LLAMA, TENSORS, Gguf

from modelyard.catalog.attention_config import attention_of_config
from modelyard.catalog.checkpoint import HeaderCache, open_checkpoint
from modelyard.catalog.classify import Kind
from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.estimate import estimate
from modelyard.catalog.estimate_folder import Wish, estimate_folder
from modelyard.catalog.folder_checkpoint import read_folder
from modelyard.catalog.kv import kv_bytes
from modelyard.catalog.quantization import of_gguf
from modelyard.catalog.safetensors import read_safetensors

SLOW_S: Final = 0.5
SPARE_BYTES: Final = 256 * 2**20
"""What the process may grow by, all inputs together."""

MOST_BYTES: Final = 8 * 2**20
"""Of one damaged input."""

_NUMBERS: Final = (0, 1, 2, 4, 8, 31, 64, 127, 128, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
_LARGE: Final = (2**33, 2**48, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_JSON_VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**40, 1e308, 0.5, "", "x", "8", "auto"),
    *([], {}, [1, 2], [None], ["a"], {"a": 1}, [[]], "sliding_attention", float("inf")),
)


@dataclass
class Findings:
    """What came of a run."""

    inputs: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    wrong: list[tuple[str, bytes, str]] = field(default_factory=list)
    """Parser, input, and what it did."""
    reasons: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        accepted = self.inputs - self.refused - len(self.wrong)
        return (
            f"{self.inputs} inputs: {accepted} accepted, {self.refused} refused,"
            f" {len(self.wrong)} wrong; slowest {self.slowest_s * 1000:.1f} ms"
        )


def run(count: int, seed: int, place: Path, seeds: Mapping[str, Sequence[bytes]]) -> Findings:
    """Try `count` damaged inputs over all parsers; `place` is a folder to write them into."""
    chance = random.Random(seed)
    findings = Findings()
    parsers = list(PARSERS)
    _bound_memory()
    for _ in range(count):
        parser = chance.choice(parsers)
        source = chance.choice(seeds[parser])
        content = _mutated(chance, parser, source, seeds[parser])
        attempt(parser, content, place, findings)
    return findings


def attempt(parser: str, content: bytes, place: Path, findings: Findings) -> None:
    """Give one input to one parser and note what it did."""
    findings.inputs += 1
    began = time.process_time()
    try:
        PARSERS[parser](content, place)
    except BadModelFile as error:
        findings.refused += 1
        findings.reasons[error.reason[:24]] += 1
    except (Exception, MemoryError, RecursionError):
        findings.wrong.append((parser, content, traceback.format_exc(limit=-4)))
    took = time.process_time() - began
    findings.slowest_s = max(findings.slowest_s, took)
    if took > SLOW_S:
        findings.wrong.append((parser, content, f"it took {took:.2f} s"))


def _bound_memory() -> None:
    """Let the process grow by `SPARE_BYTES` and no further."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    size = pages * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + SPARE_BYTES, hard))


# ------------------------------------------------------------------------------------- the parsers


def _gguf(content: bytes, place: Path) -> None:
    path = place / "fuzzed.gguf"
    path.write_bytes(content)
    checkpoint = open_checkpoint(path, HeaderCache())
    of_gguf(checkpoint.header)
    if checkpoint.verdict.kind is Kind.MODEL:
        _finite(estimate(checkpoint.header, checkpoint.file_bytes).total_mib)


def _safetensors(content: bytes, place: Path) -> None:
    path = place / "fuzzed.safetensors"
    path.write_bytes(content)
    header = read_safetensors(path)
    _finite(header.tensor_bytes)


def _folder(content: bytes, place: Path) -> None:
    """A JSON object of files: `config.json` and its companions."""
    folder = place / "fuzzed"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    files = json.loads(content)
    for name, value in files.items():
        written = value if isinstance(value, str) else json.dumps(value)
        (folder / name).write_bytes(written.encode("utf-8", errors="replace"))
    (folder / "model.safetensors").write_bytes(safetensors())
    checkpoint = read_folder(folder, "fuzzed", {path.name: path for path in folder.iterdir()})
    text = checkpoint.description.text
    attention = attention_of_config(text, checkpoint.description.model_type)
    for engine in ("vllm", "transformers", "llamacpp"):
        _finite(kv_bytes(attention, engine, 4096, 2, "auto").n_bytes)
    for wish in (Wish(), Wish(gpus=2, tensor_parallel=2)):
        for share in estimate_folder(checkpoint, "vllm", wish).values():
            _finite(share.total_mib)


def _config(content: bytes, place: Path) -> None:
    """The bytes of a `config.json`."""
    path = place / "config.json"
    path.write_bytes(content)
    tokenizer = place / "tokenizer.json"
    tokenizer.write_text("{}", encoding="utf-8")
    weights = place / "model.safetensors"
    weights.write_bytes(safetensors())
    files = {each.name: each for each in (path, tokenizer, weights)}
    checkpoint = read_folder(place, "fuzzed", files)
    for share in estimate_folder(checkpoint, "transformers").values():
        _finite(share.total_mib)


def _finite(number: float) -> None:
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"an estimate is {number}")


PARSERS: Final[Mapping[str, Callable[[bytes, Path], None]]] = {
    "gguf": _gguf,
    "safetensors": _safetensors,
    "folder": _folder,
    "config": _config,
}


# --------------------------------------------------------------------------------------- the seeds


def seeds(table: Sequence[Mapping[str, Any]]) -> dict[str, list[bytes]]:
    """Whole inputs for each parser; `table` is that of real models."""
    folders = [{**entry["files"], **TOKENIZER} for entry in table if "files" in entry]
    return {
        "gguf": list(_gguf_seeds(table)),
        "safetensors": [
            safetensors(),
            safetensors({"a": ("F32", ()), "b": ("U8", (3,)), "c": ("F8_E4M3", (4, 4))}),
            safetensors({}),
        ],
        "folder": [json.dumps(files).encode() for files in folders],
        "config": [json.dumps(files["config.json"]).encode() for files in folders],
    }


def _gguf_seeds(table: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
    yield Gguf(LLAMA, TENSORS).content()
    yield Gguf({**LLAMA, "llama.attention.head_count_kv": [1, 2, 0, 4]}, TENSORS).content()
    for entry in table:
        if "gguf" in entry:
            tensors = [(name, (32, 2), 0, 256) for name in entry["tensors"]]
            yield Gguf(entry["gguf"], tensors).content()


# ----------------------------------------------------------------------------------- the mutations


def _mutated(chance: random.Random, parser: str, source: bytes, others: Sequence[bytes]) -> bytes:
    if parser == "folder" or (parser == "config" and chance.random() < 0.5):
        value = json.loads(source)
        for _ in range(chance.randint(1, 4)):
            _change_value(chance, value, json.loads(chance.choice(others)))
        written = json.dumps(value).encode()
        # Repeats of repeats grow beyond what this program itself could read.
        return written if len(written) <= MOST_BYTES else source
    content = bytearray(source)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        chance.choice(_CHANGES)(chance, content, others)
    if parser == "safetensors" and chance.random() < 0.5 and len(content) > 8:
        # Otherwise nearly all of them end at a length that does not fit.
        end = content.find(b"}}") + 2
        if end > 8:
            content[:8] = struct.pack("<Q", end - 8)
    return bytes(content)


def _change_value(chance: random.Random, value: Any, other: Any) -> None:
    """Put something else somewhere inside a JSON value."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = chance.choice(keys)
    inner = value[key]
    if isinstance(inner, dict | list) and inner and chance.random() < 0.7:
        _change_value(chance, inner, other)
    elif isinstance(value, dict) and chance.random() < 0.2:
        del value[key]
    elif isinstance(value, dict) and isinstance(other, dict) and chance.random() < 0.4:
        theirs = chance.choice(list(other)) if other else key
        value[theirs] = copy.deepcopy(other.get(theirs))
    elif chance.random() < 0.2:
        value[key] = [inner] * chance.choice((1, 2, 100))
    else:
        value[key] = copy.deepcopy(chance.choice(_JSON_VALUES))


def _flip(chance: random.Random, content: bytearray, _: Sequence[bytes]) -> None:
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def _overwrite(chance: random.Random, content: bytearray, _: Sequence[bytes]) -> None:
    if len(content) < 8:
        return
    layout, value = chance.choice(
        (("<I", chance.choice(_NUMBERS)), ("<Q", chance.choice(_NUMBERS + _LARGE)))
    )
    at = chance.randrange(len(content) - 7)
    content[at : at + struct.calcsize(layout)] = struct.pack(layout, value)


def _remove(chance: random.Random, content: bytearray, _: Sequence[bytes]) -> None:
    at = chance.randrange(len(content) + 1)
    del content[at : at + chance.choice((1, 4, 8, 64, 4096))]


def _repeat(chance: random.Random, content: bytearray, _: Sequence[bytes]) -> None:
    at = chance.randrange(len(content) + 1)
    part = content[at : at + chance.choice((1, 8, 64))]
    content[at:at] = part * chance.choice((1, 2, 50))


def _splice(chance: random.Random, content: bytearray, others: Sequence[bytes]) -> None:
    other = chance.choice(others)
    at = chance.randrange(len(content) + 1)
    content[at:] = other[chance.randrange(len(other) + 1) :]


def _insert(chance: random.Random, content: bytearray, _: Sequence[bytes]) -> None:
    at = chance.randrange(len(content) + 1)
    words = (
        b"[" * 100,
        b'{"a":' * 90,
        b"\xff\xfe",
        b"\0" * 16,
        b'"',
        b"9" * 5000,
        b"Infinity",
        b",",
    )
    content[at:at] = chance.choice(words)


_WORDS: Final = (
    *(b"[" * 100, b'{"a":' * 90, b"\xff\xfe", b"\0" * 16),
    *(b'"', b"9" * 5000, b"Infinity", b","),
)
_CHANGES: Final = (_flip, _overwrite, _overwrite, _remove, _repeat, _splice, _insert)
