"""What the hardware allows at best: bytes over bandwidth, operations over arithmetic (a roofline).

Laws of this file:
- A bound, not a forecast: no engine reaches it, and every figure says how it was reckoned.
- What is not known of a device makes a figure None, never a guess, except the host's bandwidth and
  the disk's, which are said to be assumed.

Writing a token reads every weight that it goes through once, and what the sequence remembers; so
memory bandwidth bounds it. Reading a prompt does two operations for each weight and token, and
weights are read once for many tokens; so arithmetic bounds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from modelyard.catalog.choice import LLAMACPP, VLLM
from modelyard.config.plans import SpeedView
from modelyard.planner.layout import Reckoning
from modelyard.planner.machine import HOST_BANDWIDTH_GBS, Seat
from modelyard.planner.subject import Subject

DISK_GBS: Final = 2.0
"""Assumed: a common NVMe drive, read as one stream. A SATA drive reads a quarter of it."""
PCIE_GBS: Final = 25.0
"""What PCIe 4.0 x16 carries of its 31.5 GB/s; offloaded weights cross it for every token."""
START_S: Final = {LLAMACPP: 1.0, VLLM: 40.0}
"""Time of an engine without a model: vLLM 0.32 takes 42 s for a tiny one, 20 of them to compile."""
_OTHER_START_S: Final = 10.0
_MIB: Final = 2**20


def speed_of(subject: Subject, reckoning: Reckoning) -> SpeedView:
    """What a layout could do at best on the devices of its reckoning."""
    layout = reckoning.layout
    start = START_S.get(layout.engine, _OTHER_START_S)
    load_s = start + subject.weight_bytes / DISK_GBS / 1e9
    size = f"{subject.weight_bytes / 1e9:.1f} GB of weights"
    basis = [f"load: {start:g} s of the engine + {size} / {DISK_GBS:g} GB/s (assumed disk)"]
    if subject.reads:
        return SpeedView(
            round(load_s, 1), None, None, None, _prefill(subject, reckoning, basis), basis
        )
    weights_s = _seconds(subject, reckoning)
    if weights_s is None:
        basis.append("decode: the bandwidth of the cards is not known")
        return SpeedView(
            round(load_s, 1), None, None, None, _prefill(subject, reckoning, basis), basis
        )
    cache_s = _cache_seconds(reckoning)
    one = 1 / (weights_s + cache_s / layout.sequences)
    many = layout.sequences / (weights_s + cache_s)
    basis.append(
        f"decode: {subject.active_bytes / 1e9:.2f} GB of weights that a token goes through, in"
        f" {weights_s * 1000:.2f} ms, and a full cache in"
        f" {cache_s / layout.sequences * 1000:.2f} ms: {_ways(reckoning)}"
    )
    prefill = _prefill(subject, reckoning, basis)
    first = round(1 / weights_s, 1)
    return SpeedView(round(load_s, 1), first, round(one, 1), round(many, 1), prefill, basis)


def _ways(reckoning: Reckoning) -> str:
    layout = reckoning.layout
    cards = Counter(
        f"{load.seat.name} {load.seat.bandwidth_gbs:g} GB/s" for load in reckoning.loads[:-1]
    )
    words = [f"{count} x {card}" for card, count in cards.items()]
    if not layout.gpus or layout.gpu_layers is not None or layout.host_experts:
        words.append(f"host {HOST_BANDWIDTH_GBS:g} GB/s (assumed)")
    if layout.offload_mib:
        words.append(f"bus {PCIE_GBS:g} GB/s (assumed)")
    return ", ".join(words)


def _seconds(subject: Subject, reckoning: Reckoning) -> float | None:
    """To read once all weights that one token goes through; None where a bandwidth is unknown."""
    parts = list(_parts(subject, reckoning))
    if any(bandwidth is None for _, bandwidth in parts):
        return None
    each = [n_bytes / (bandwidth or 1) / 1e9 for n_bytes, bandwidth in parts]
    if reckoning.layout.tensor_parallel > 1:
        return max(each)
    return sum(each)


def _parts(subject: Subject, reckoning: Reckoning) -> Iterator[tuple[float, float | None]]:
    """Bytes that a token reads in each place, and how fast they are read there."""
    layout = reckoning.layout
    if not layout.gpus:
        yield subject.active_bytes, reckoning.loads[-1].seat.bandwidth_gbs
        return
    dense = subject.active_bytes - subject.expert_bytes * subject.experts_used
    away = layout.host_experts / subject.layers if subject.layers else 0.0
    on_host = 0.0
    if layout.gpu_layers is not None:
        on_host = 1 - layout.gpu_layers / (subject.layers + 1)
    host_experts = max(away, on_host)
    experts = subject.expert_bytes * subject.experts_used
    host = dense * on_host + experts * host_experts
    cards = subject.active_bytes - host
    held = sum(max(1.0, load.estimate.term("weights")) for load in reckoning.loads[:-1])
    total = subject.weight_bytes / _MIB or 1.0
    crossing = min(1.0, layout.offload_mib * layout.gpus / total)
    for load in reckoning.loads[:-1]:
        share = max(1.0, load.estimate.term("weights")) / held
        yield cards * share * (1 - crossing), load.seat.bandwidth_gbs
        if crossing:
            yield cards * share * crossing, PCIE_GBS
    if host > 0:
        yield host, reckoning.loads[-1].seat.bandwidth_gbs or HOST_BANDWIDTH_GBS


def _cache_seconds(reckoning: Reckoning) -> float:
    """To read once all that the sequences remember when they are full."""
    each = [_cache_second(load.seat, load.estimate.term("kv cache")) for load in reckoning.loads]
    return max(each) if reckoning.layout.tensor_parallel > 1 else sum(each)


def _cache_second(seat: Seat, mib: float) -> float:
    return mib * _MIB / (seat.bandwidth_gbs or HOST_BANDWIDTH_GBS) / 1e9


def _prefill(subject: Subject, reckoning: Reckoning, basis: list[str]) -> float | None:
    layout = reckoning.layout
    known = [load.seat.fp16_tflops for load in reckoning.loads[:-1]]
    flops = [value for value in known if value is not None]
    if layout.offloads or not flops or len(flops) < len(known) or not subject.active_parameters:
        basis.append("prefill: not reckoned (host, offload, or a card of unknown arithmetic)")
        return None
    # Cards that share each layer work together; those that have whole layers, one after another.
    together = min(flops) * len(flops) if layout.tensor_parallel > 1 else min(flops)
    basis.append(
        f"prefill: {together:g} TFLOP/s / (2 x {subject.active_parameters / 1e9:.2f} billion"
        " weights that a token goes through)"
    )
    return round(together * 1e12 / 2 / subject.active_parameters, 1)
