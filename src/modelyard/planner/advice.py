"""Why each setting is as it is, and what a person should know besides.

Laws of this file:
- A reason names the number that decides it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from modelyard.catalog.choice import LLAMACPP, VLLM
from modelyard.catalog.kv import VLLM_BLOCK
from modelyard.config.plans import Ask, SettingView
from modelyard.planner.choose import Chosen
from modelyard.planner.layout import Layout, Reckoning, default_batch
from modelyard.planner.machine import Machine
from modelyard.planner.subject import Subject

_GIB: Final = 1024


def gib(mib: float) -> str:
    """`512 MiB`, `7.5 GiB`."""
    return f"{mib:.0f} MiB" if mib < _GIB else f"{mib / _GIB:.1f} GiB"


def settings_of(chosen: Chosen, machine: Machine, ask: Ask, longest: int) -> list[SettingView]:
    """Every choice with its reason."""
    subject, layout = chosen.subject, chosen.reckoning.layout
    rows = [_devices(chosen, machine), _context(subject, layout, ask, longest)]
    rows += _splitting(subject, chosen.reckoning)
    if not subject.reads:
        rows.append(_sequences(layout, ask))
        rows.append(_cache(chosen))
    rows.append(
        SettingView("batch", f"{_batch(subject, layout)} tokens", _why_batch(subject, layout))
    )
    if layout.engine == VLLM:
        rows += _vllm(chosen)
    return rows


def _devices(chosen: Chosen, machine: Machine) -> SettingView:
    layout, loads = chosen.reckoning.layout, chosen.reckoning.loads[:-1]
    if not layout.gpus:
        why = "there is no card" if not machine.gpus else "the cards have too little room"
        return SettingView("devices", "host", why)
    names = ", ".join(load.seat.id for load in loads)
    if layout.offloads:
        why = "what fits of it is there, the rest on the host"
    elif layout.gpus == 1:
        why = "it fits on one card" if chosen.reckoning.fits else "the card with most room"
    else:
        why = f"it does not fit on {layout.gpus - 1}"
    if machine.gpus and not machine.is_named:
        why += "; reserve, and what others hold, is left alone"
    return SettingView("devices", names, why)


def _context(subject: Subject, layout: Layout, ask: Ask, longest: int) -> SettingView:
    value = f"{layout.context} tokens"
    if ask.context is not None and ask.context > subject.trained:
        return SettingView("context", value, f"the model was made for {subject.trained}")
    if ask.context is not None:
        more = f"; up to {longest} would fit" if longest > layout.context else ""
        return SettingView("context", value, f"as asked for{more}")
    if layout.context == subject.trained:
        return SettingView("context", value, "all that the model was made for")
    if layout.context >= longest > 0:
        return SettingView("context", value, "the longest that fits")
    if not longest:
        return SettingView("context", value, "shorter ones do not fit either")
    return SettingView("context", value, f"enough for most; up to {longest} would fit")


def _splitting(subject: Subject, reckoning: Reckoning) -> Iterator[SettingView]:
    layout = reckoning.layout
    if layout.tensor_parallel > 1:
        why = f"{subject.heads} heads divide by {layout.tensor_parallel}; cards work together"
        yield SettingView("tensor parallel", str(layout.tensor_parallel), why)
    elif layout.gpus > 1:
        why = "whole layers per card, in proportion to their room"
        if layout.engine == VLLM:
            why = f"{subject.heads} heads do not divide by {layout.gpus}: whole layers per card"
        yield SettingView("layers split", f"{layout.gpus} cards", why)
    if layout.host_experts:
        why = f"{gib(subject.expert_bytes / 2**20)} of experts; a token needs"
        why += f" {subject.experts_used:.0%} of them"
        value = f"{layout.host_experts} of {subject.layers} layers on the host"
        yield SettingView("experts", value, why)
    if layout.gpu_layers is not None:
        value = f"{layout.gpu_layers} of {subject.layers + 1} on cards"
        yield SettingView("layers", value, "as many as fit; the processor computes the rest")
    if layout.offload_mib:
        value = f"{gib(layout.offload_mib)} per card"
        yield SettingView("CPU offload", value, "the rest of the weights does not fit on the card")


def _sequences(layout: Layout, ask: Ask) -> SettingView:
    if ask.concurrency is not None:
        why = "as asked for" if layout.sequences == ask.concurrency else "more do not fit"
    elif layout.engine == LLAMACPP:
        return SettingView("sequences", "4 share the context", "llama.cpp's own choice")
    else:
        why = "this many fit at full length; more shorter ones share the cache"
    return SettingView("sequences", str(layout.sequences), why)


def sacrifice(subject: Subject, layout: Layout) -> str:
    """In a few words what of a layout is not as one would wish; empty if nothing is."""
    words = []
    if layout.kv:
        words.append(f"a KV cache in {layout.kv}")
    if layout.eager:
        words.append("eager")
    if layout.batch:
        words.append(f"batches of {layout.batch}")
    if layout.host_experts:
        words.append(f"the experts of {layout.host_experts} of {subject.layers} layers on the host")
    if layout.gpu_layers is not None:
        words.append(f"{layout.gpu_layers} of {subject.layers + 1} layers on cards")
    if layout.offload_mib:
        words.append(f"{gib(layout.offload_mib)} of weights per card on the host")
    return ", ".join(words)


def _cache(chosen: Chosen) -> SettingView:
    layout = chosen.reckoning.layout
    mib = gib(chosen.reckoning.term("kv cache"))
    if layout.kv:
        return SettingView("KV cache", layout.kv, f"{mib}; at 16 bits it does not fit")
    fits = "; it fits as it is" if chosen.reckoning.fits else ""
    return SettingView("KV cache", "the engine's own format", f"{mib}{fits}")


def _batch(subject: Subject, layout: Layout) -> int:
    return layout.context if subject.reads and not layout.batch else default_batch(layout)


def _why_batch(subject: Subject, layout: Layout) -> str:
    if subject.reads:
        return "an input is computed as one"
    return "smaller, so that intermediate results fit" if layout.batch else "the engine's default"


def _vllm(chosen: Chosen) -> Iterator[SettingView]:
    reckoning = chosen.reckoning
    layout = reckoning.layout
    if reckoning.utilisation is not None:
        outside = sum(
            reckoning.loads[0].estimate.term(n) for n in ("CUDA context", "collective buffers")
        )
        why = f"what is needed of the card's total; {gib(outside)} of driver and NCCL come on top"
        yield SettingView("utilisation", f"{reckoning.utilisation:g}", why)
    if layout.gpus:
        graphs = gib(reckoning.term("CUDA graphs"))
        why = "CUDA graphs do not fit" if layout.eager else f"CUDA graphs ({graphs}) are faster"
        yield SettingView("eager", "on" if layout.eager else "off", why)
    block = VLLM_BLOCK if layout.gpus else 128
    why = "vLLM's default; larger blocks waste more at each sequence's end"
    yield SettingView("block size", f"{block} tokens", why)


# ------------------------------------------------------------------------------------------- notes


def notes_of(chosen: Chosen, machine: Machine, ask: Ask) -> Iterator[str]:
    """What a person should know besides."""
    found, layout = chosen.subject.found, chosen.reckoning.layout
    yield from found.remarks
    seats = machine.gpus[: layout.gpus]
    if machine.is_named and ask.ram_mib is None:
        yield f"host memory was not named: {gib(machine.host.total_mib)} are assumed (--ram)"
    if len({seat.name for seat in seats}) > 1 and layout.tensor_parallel > 1:
        yield "the cards differ: the slowest and smallest decides for all"
    if any(seat.held_mib for seat in seats):
        held = sum(seat.held_mib for seat in seats)
        yield f"{gib(held)} of these cards are held by other models, which leave when they are idle"
    if layout.engine == LLAMACPP and layout.gpus:
        yield "cards need a llama-server that was built for them (engines.llama_server)"
    quantization = found.quantization.upper()
    if "FP8" in quantization and seats and not all(seat.fp8 for seat in seats):
        yield "its weights are FP8 and the card has no FP8 arithmetic: it is unpacked on the way"
    if layout.engine == VLLM and any(
        seat.kind == "nvidia" and not seat.bandwidth_gbs for seat in seats
    ):
        yield "this card is not in the table of cards: speeds are not reckoned"
    if layout.offload_mib and layout.engine == VLLM:
        yield "vLLM of 2026 before 0.32 ignores CPU offload in some builds (issues 51396, 48468)"
    if (
        layout.gpus
        and not layout.offloads
        and machine.host.available_mib * 2**20 < found.weight_bytes
    ):
        yield "host memory is smaller than the weights: loading reads past the page cache, slowly"
