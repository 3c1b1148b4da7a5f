"""What an engine's own log says of the memory it holds.

Laws of this file:
- A report is an engine's word, not a measurement, for devices whose driver does not tell processes
  apart. It counts what the engine allocated, touched or not; the driver's context of each process
  (0.3 to 0.6 GiB on CUDA) and the program itself are not in it. One public log each gives the
  driver's figure too: llama.cpp is 0.2 % below it, vLLM with its summary 3 % above, vLLM with a
  cache of fixed size, which prints no summary, 14 % below.
- Nothing rather than nonsense. A number that is negative, absurd or not a number is not read; where
  the log does not tell on which card something lies, no card is reported.
- Only lines in the engine's own form count, from their first character on: a prompt that an engine
  logs cannot tell us anything.
- One pass over the lines, a bounded look at each of them.

llama.cpp prints one line per buffer (`load_tensors`, `llama_kv_cache`, `llama_memory_recurrent`,
`llama_context`, `sched_reserve`, `llama_adapter` in src/, `clip_ctx` in tools/mtmd), since May 2026
only from verbosity 4 on (pull request 23021). Weights and caches have a line per buffer and add up;
a compute buffer that is reserved again replaces itself; a draft ("creating MTP draft context") is
another context of the same model.

vLLM's workers each print figures (v1/worker/gpu_worker.py, gpu_model_runner.py), some of them only
the first. The summary says "for weight, … for non-torch memory" from 0.10.2 on, with the cache in
bytes at first, and later "for consumed memory (weights + non-torch)"; before 0.10.2 there was none
but that of the V0 engine (worker/worker.py). What is "still in use" after a sleep is said of the
device with everybody on it: total less free, in `Worker.sleep`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from modelyard.core.specs import HOST_DEVICE, Placement

MOST_MIB: Final = 16 * 2**20
"""16 TiB: no device has as much."""
_LONGEST: Final = 2000
"""Characters of a line that are looked at; vLLM's longest has 600."""
_NUMBER: Final = r"\d{1,16}(?:\.\d{1,9})?"

# ------------------------------------------------------------------------------------- llama.cpp

_LOG: Final = r"(?:\d[\d.]{4,20} [A-Z] )?"
"""Time and level, as in `0.00.009.815 I load_tensors: …`; older builds print neither."""
_BUFFER: Final = re.compile(
    rf"{_LOG}(?P<source>\w{{1,60}}): +(?P<name>\S{{1,80}}) +"
    rf"(?:(?P<kind>\w[\w ]{{0,40}}?) +)?buffer size = +(?P<mib>{_NUMBER}) MiB"
)
_MODEL: Final = re.compile(
    rf"{_LOG}llama_model_loader: loaded meta data with \d+ key-value pairs and \d+ tensors from"
    r" (?P<path>.+) \(version .*"
)
_REHEARSAL: Final = re.compile(rf"{_LOG}print_info: no_alloc += 1")
"""A load that only counts: `--fit` makes one before the real load of the same file."""
_CONTEXT: Final = re.compile(
    rf"{_LOG}(?:llama_context|llama_new_context_with_model|llama_init_from_model): "
    r"(?:constructing llama_context|n_ctx +=.*)"
)
_ASLEEP: Final = re.compile(rf"{_LOG}srv +\w+: server is entering sleeping state")
"""`--sleep-idle-seconds`: weights and caches are gone until the file is loaded again."""
_PROJECTOR: Final = re.compile(rf"{_LOG}clip_model_loader: model name: .*")
_PROJECTOR_PLACE: Final = re.compile(rf"{_LOG}clip_ctx: CLIP using (?P<name>\S{{1,80}}) backend")
_PROJECTOR_SIZE: Final = re.compile(rf"{_LOG}load_hparams: model size: +(?P<mib>{_NUMBER}) MiB")
_PROJECTOR_SOURCES: Final = frozenset({"alloc_compute_meta", "reserve_compute_meta"})
_REPLACED: Final = frozenset({"compute", "output"})
"""Kinds of buffers of which a context has one for each device."""

_HOST_NAME: Final = re.compile(r"(?:CPU|AMX|BLAS|Accelerate)(?![a-z]).*|.+_Host")
_REMOTE_NAME: Final = re.compile(r"RPC\d*\[.*|RPC\d+")
_CARD_NAME: Final = re.compile(
    r"(?P<backend>[A-Za-z]+)(?P<index>\d{1,3})?(?:_Mapped|_Private|[_-]REPACK)?"
)
_APPLE: Final = frozenset({"Metal", "MTL"})


def llamacpp(lines: Iterable[str], placement: Placement) -> Mapping[str, int]:
    """MiB by device id from the log of a llama.cpp server since its start.

    The host is told besides the placement's devices. Mapped weights are counted by the part of the
    file that the mapping spans. An engine that sleeps tells nothing.
    """
    log = _LlamaLog()
    for line in lines:
        log.read(line[:_LONGEST].rstrip())
    return _placed(log.held(), placement)


@dataclass(slots=True)
class _LlamaLog:
    """Follows loads and contexts; `parts` holds, by file, the size of each buffer."""

    parts: dict[str, dict[tuple[int, str, str], float]] = field(default_factory=dict)
    part: dict[tuple[int, str, str], float] | None = None
    context: int = 0
    projector: dict[tuple[int, str, str], float] = field(default_factory=dict)
    projector_place: str = HOST_DEVICE.upper()

    def read(self, line: str) -> None:
        if (found := _BUFFER.fullmatch(line)) is not None:
            self._buffer(found["source"], found["name"], found["kind"] or "model", found["mib"])
        elif (found := _MODEL.fullmatch(line)) is not None:
            self.part = self.parts[found["path"]] = {}
        elif _CONTEXT.fullmatch(line):
            self.context += 1
        elif _REHEARSAL.fullmatch(line):
            (self.part or {}).clear()
            self.part = None
        elif _ASLEEP.fullmatch(line):
            self.parts, self.part, self.projector = {}, None, {}
        else:
            self._read_projector(line)

    def _read_projector(self, line: str) -> None:
        if _PROJECTOR.fullmatch(line):
            self.projector = {}
        elif (found := _PROJECTOR_PLACE.fullmatch(line)) is not None:
            self.projector_place = found["name"]
        elif (found := _PROJECTOR_SIZE.fullmatch(line)) is not None:
            self.projector[0, self.projector_place, "model"] = float(found["mib"])

    def _buffer(self, source: str, name: str, kind: str, mib: str) -> None:
        if source in _PROJECTOR_SOURCES:
            self.projector[0, name, kind] = float(mib)
        elif self.part is not None:
            key = (self.context, name, kind)
            before = 0.0 if kind in _REPLACED else self.part.get(key, 0.0)
            self.part[key] = before + float(mib)

    def held(self) -> Mapping[str, float]:
        """MiB by buffer name; nothing before a model is loaded."""
        held: dict[str, float] = {}
        for part in (*self.parts.values(), self.projector if any(self.parts.values()) else {}):
            for (_, name, _), mib in part.items():
                held[name] = held.get(name, 0.0) + mib
        return held


def _placed(held: Mapping[str, float], placement: Placement) -> Mapping[str, int]:
    """The host, and the n-th card that llama.cpp sees as the n-th GPU of the placement."""
    gpus = _gpus(placement)
    host, shared = 0.0, 0.0
    cards: dict[tuple[str, int], float] = {}
    for name, mib in held.items():
        found = _CARD_NAME.fullmatch(name)
        if not mib or _REMOTE_NAME.fullmatch(name):
            continue
        if _HOST_NAME.fullmatch(name) or (found and found["backend"] in _APPLE and not gpus):
            host += mib
        elif found is not None:
            card = (found["backend"], int(found["index"] or 0))
            cards[card] = cards.get(card, 0.0) + mib
        else:
            # Cut over several cards (`CUDA_Split`, `Meta(CUDA0,CUDA1)`) in unknown parts.
            shared += mib
    told = _by_gpu(cards, gpus)
    if shared:
        told = {gpus[0]: sum(told.values()) + shared} if len(gpus) == 1 and len(cards) < 2 else {}
    return _rounded({HOST_DEVICE: host, **told})


def _by_gpu(cards: Mapping[tuple[str, int], float], gpus: Sequence[str]) -> dict[str, float]:
    if len({backend for backend, _ in cards}) > 1:
        return {}
    seen = sorted(index for _, index in cards)
    if seen and seen[-1] >= len(gpus):
        # Told to use some of the cards it sees: their order is all there is to go by.
        if len(seen) != len(gpus):
            return {}
        gpu_of = dict(zip(seen, gpus, strict=True))
    else:
        gpu_of = dict(enumerate(gpus))
    return {gpu_of[index]: mib for (_, index), mib in cards.items()}


# ------------------------------------------------------------------------------------------ vLLM

_COLOUR: Final = re.compile(r"\x1b\[[\d;]{0,12}m")
_SAID: Final = re.compile(
    r"(?P<who>(?:\([^()]{1,80}\) ?){0,3})(?:INFO|DEBUG|WARNING) [\d-]{5,10} [\d:.]{8,15} "
    r"\[?[\w./-]{1,100}\.py:\d+\] (?P<said>.+)"
)
_WOKEN: Final = re.compile(rf"It took {_NUMBER} seconds to wake up tags ")
_WEIGHTS: Final = rf"(?:Model loading|Loading model weights) took (?P<weights>{_NUMBER}) Gi?B\b"
_CACHE: Final = rf"Available KV cache memory: (?P<kv>{_NUMBER}) GiB"
_FIXED_CACHE: Final = (
    rf"Initial free memory {_NUMBER} GiB, reserved (?P<kv>{_NUMBER}) GiB memory for KV Cache"
)
_GRAPHS: Final = rf"Graph capturing finished in {_NUMBER} secs?, took (?P<graphs>{_NUMBER}) GiB"
_SUMMARY: Final = (
    rf"Free memory on device .{{1,300}}? Actual usage is (?P<consumed>{_NUMBER}) GiB for "
    rf"(?:weight|consumed memory \(weights \+ non-torch\)), (?P<activation>{_NUMBER}) GiB for peak "
    rf"activation,(?: (?P<other>-?{_NUMBER}) GiB for non-torch memory,)? and "
    rf"(?P<graphs>-?{_NUMBER}) GiB for CUDAGraph memory\."
    rf"(?:.{{1,900}}? in use is (?P<kv>{_NUMBER})(?P<unit> bytes| GiB))?"
)
_V0_SUMMARY: Final = (
    rf"model weights take (?P<consumed>{_NUMBER})GiB; non_torch_memory takes "
    rf"(?P<other>-?{_NUMBER})GiB; PyTorch activation peak memory takes "
    rf"(?P<activation>{_NUMBER})GiB; the rest of the memory reserved for KV Cache is "
    rf"(?P<kv>{_NUMBER})GiB"
)
_SLEEP: Final = (
    rf"Sleep mode (?:\(level=\d\) )?freed (?P<freed>{_NUMBER}) GiB memory, "
    rf"(?P<left>{_NUMBER}) GiB memory is still in use"
)
_FIGURES: Final = tuple(
    re.compile(line)
    for line in (_WEIGHTS, _CACHE, _FIXED_CACHE, _GRAPHS, _SUMMARY, _V0_SUMMARY, _SLEEP)
)
_RANK: Final = re.compile(
    r"(?<![A-Za-z])(?P<kind>DP|PP|PCP|TP|rank=|EngineCore_)(?P<number>\d{1,5})(?!\d)"
)
_RANK_PLACES: Final = {"DP": 0, "EngineCore_": 0, "PP": 1, "PCP": 2, "TP": 3, "rank=": 3}
"""How vLLM numbers its workers: data parallel outermost, tensor parallel innermost."""


def vllm(lines: Iterable[str], placement: Placement) -> Mapping[str, int]:
    """MiB by GPU from the log of a vLLM server since its start.

    Awake: weights, what lies outside PyTorch, peak activation, graphs and KV cache; where the
    summary ("Actual usage") is missing, as with `--kv-cache-memory-bytes`, without the second and
    third. Asleep: what it held less what it says it freed, where it gave the summary; else all
    that is still in use on the device, an upper bound.

    Where some of the GPUs have no worker that speaks for them, all are told the largest share.
    """
    workers: dict[tuple[int, ...] | str, dict[str, float]] = {}
    for line in lines:
        found = _SAID.match(_COLOUR.sub("", line[:_LONGEST]))
        if found is None:
            continue
        if _WOKEN.match(found["said"]):
            for figures in workers.values():
                figures.pop("freed", None)
        elif figures := _figures(found["said"]):
            who = _worker(found["who"])
            workers[who] = figures if "weights" in figures else workers.get(who, {}) | figures
    return _rounded(_shared_out(workers, _gpus(placement)))


def _figures(said: str) -> dict[str, float]:
    """The figures of one line in MiB."""
    for pattern in _FIGURES:
        if (found := pattern.match(said)) is not None:
            told = {name: text for name, text in found.groupdict().items() if text}
            unit = 2**-20 if told.pop("unit", "") == " bytes" else 1024.0
            sizes = {
                # With sleep mode, what lies outside PyTorch can come out negative.
                name: max(0.0, float(text)) * (unit if name == "kv" else 1024.0)
                for name, text in told.items()
            }
            return sizes if max(sizes.values()) <= MOST_MIB else {}
    return {}


def _worker(who: str) -> tuple[int, ...] | str:
    """Its rank if the line tells one, else its name and process id."""
    rank = [0, 0, 0, 0]
    found = list(_RANK.finditer(who))
    for each in found:
        rank[_RANK_PLACES[each["kind"]]] = int(each["number"])
    return tuple(rank) if found else who


def _shared_out(
    workers: Mapping[tuple[int, ...] | str, Mapping[str, float]], gpus: Sequence[str]
) -> dict[str, float]:
    said_once = _largest(workers.values())
    held = {
        who: mib
        for who, figures in workers.items()
        if (mib := _held({**said_once, **figures})) is not None
    }
    ranks = sorted(who for who in held if isinstance(who, tuple))
    if not held or len(ranks) > len(gpus):
        return {}
    if len(ranks) == len(gpus):
        return {gpu: held[rank] for gpu, rank in zip(gpus, ranks, strict=True)}
    return dict.fromkeys(gpus, max(held.values()))


def _largest(workers: Iterable[Mapping[str, float]]) -> Mapping[str, float]:
    """The largest figures of all, for workers that leave a line to the first of them."""
    largest: dict[str, float] = {}
    for figures in workers:
        for name, mib in figures.items():
            if name not in ("freed", "left"):
                largest[name] = max(mib, largest.get(name, 0.0))
    return largest


def _held(figures: Mapping[str, float]) -> float | None:
    """What a worker holds now, or None if it did not say."""
    summed_up = "consumed" in figures
    own = ("consumed", "other", "activation") if summed_up else ("weights",)
    awake = sum(figures.get(name, 0.0) for name in (*own, "graphs", "kv"))
    if own[0] not in figures:
        return figures["left"] if "freed" in figures else None
    if "freed" not in figures:
        return awake
    kept = awake - figures["freed"]
    # Without the summary too much is missing for the difference to mean anything.
    return min(kept, figures["left"]) if summed_up and kept > 0 else min(awake, figures["left"])


# ----------------------------------------------------------------------------------------- common


def _gpus(placement: Placement) -> tuple[str, ...]:
    """In the order in which the engine is made to see them (`visibility`)."""
    return tuple(device for device in placement.claims_mib if device != HOST_DEVICE)


def _rounded(held: Mapping[str, float]) -> Mapping[str, int]:
    return {device: math.ceil(mib) for device, mib in held.items() if 0 < mib <= MOST_MIB}
