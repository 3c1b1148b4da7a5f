"""Which devices an engine's process may see: those it was placed on, and no others.

CUDA reads its variable before anything else, and takes UUIDs, which stay right whatever order a
program counts the cards in (CUDA programming guide, environment variables). ROCm's runtime takes
UUIDs in a variable of its own, below HIP, so that programs count what is left from 0 (ROCm
documentation, GPU isolation techniques).
"""

from __future__ import annotations

import re

from modelyard.core.specs import HOST_DEVICE, Placement

_ROCM_ID = re.compile(r"GPU-[0-9a-f]{16}")
"""`GPU-` and the 16 digits of the card's unique id; NVIDIA's UUIDs are longer and have dashes."""


def visible_devices(placement: Placement) -> dict[str, str]:
    """Variables that hide the GPUs which a replica was not placed on.

    The order is that of the placement, so the engine's first card is the profile's first. A replica
    on the host alone sees none; one on devices without UUIDs is left as it is.
    """
    ordered = (*placement.devices, *placement.claims_mib)
    gpus = [d for d in dict.fromkeys(ordered) if d != HOST_DEVICE and d in placement.claims_mib]
    if gpus and all(_ROCM_ID.fullmatch(device) for device in gpus):
        return {"ROCR_VISIBLE_DEVICES": ",".join(gpus)}
    if all(device.startswith(("GPU-", "MIG-")) for device in gpus):
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    return {}
