"""From a profile's memory to what vLLM is told to take, and back.

Laws of this file:
- The share of a card is computed from what the profile declares, never from what was measured: a
  vLLM that is told less because it took less would shrink from start to start.
- One number holds for all cards of a replica, so the tightest card decides.

vLLM's accounting (v1/worker/gpu_worker.py, `determine_available_memory`): its share covers weights,
activations, graphs and KV cache, as a part of the card's total. The driver's context and NCCL's
buffers were there before it counted, so they come on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from modelyard.core.defaults import VLLM_CONTEXT_MIB, VLLM_NCCL_MIB
from modelyard.core.specs import HOST_DEVICE, Placement, Profile

LEAST_SHARE: Final = 0.01
HOST_BASE_MIB: Final = 2560
"""Three Python processes with torch, seen with a model of no size (0.32, CPU)."""
HOST_KV_GIB: Final = 4
"""KV cache on the host where no memory is declared: vLLM's own default before 0.11."""
_GIB: Final = 1024


def overhead_mib(cards: int) -> int:
    """What a replica takes on each of its cards outside vLLM's own accounting."""
    return VLLM_CONTEXT_MIB + (VLLM_NCCL_MIB if cards > 1 else 0)


def memory_for(share: float, total_mib: int, cards: int) -> int:
    """What a replica takes on a card when vLLM is told to take this share of it."""
    return math.ceil(share * total_mib) + overhead_mib(cards)


def share_of_card(
    placement: Placement, profile: Profile | None, total_mib: Callable[[str], int | None]
) -> float | None:
    """`gpu_memory_utilization` for a placement; None where a card's size is not known."""
    ordered = placement.devices or tuple(placement.claims_mib)
    names = profile.devices if profile and len(profile.devices) == len(ordered) else ordered
    declared = profile.memory_mib if profile else {}
    cards = [(n, d) for n, d in zip(names, ordered, strict=True) if d != HOST_DEVICE]
    shares = []
    for name, device in cards:
        total = total_mib(device)
        memory = declared.get(name, placement.claims_mib.get(device, 0))
        if not total or not memory:
            return None
        shares.append((memory - overhead_mib(len(cards))) / total)
    if not shares:
        return None
    # Rounded down: rounding up could ask for more than there is.
    return max(LEAST_SHARE, math.floor(min(1.0, *shares, 1.0) * 10000) / 10000)


def host_kv_gib(memory_mib: int | None, weights_mib: int) -> int:
    """Whole GiB of KV cache on the host, within a profile's memory if one is declared."""
    if memory_mib is None:
        return HOST_KV_GIB
    return max(1, (memory_mib - weights_mib - HOST_BASE_MIB) // _GIB)


def host_memory_for(weights_mib: int, kv_gib: int) -> int:
    """What a replica takes on the host with this much KV cache."""
    return weights_mib + kv_gib * _GIB + HOST_BASE_MIB
