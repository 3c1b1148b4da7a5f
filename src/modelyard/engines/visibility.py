"""Which devices an engine's process may see: those it was placed on, and no others.

CUDA reads its variable before anything else, and takes UUIDs, which stay right whatever order a
program counts the cards in (CUDA programming guide, environment variables).
"""

from __future__ import annotations

from modelyard.core.specs import HOST_DEVICE, Placement


def visible_devices(placement: Placement) -> dict[str, str]:
    """Variables that hide the GPUs which a replica was not placed on.

    A replica on the host alone sees none; one on devices without NVIDIA's UUIDs is left as it is.
    """
    gpus = [device for device in placement.claims_mib if device != HOST_DEVICE]
    if all(device.startswith(("GPU-", "MIG-")) for device in gpus):
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    return {}
