"""Whether a model can run at all, whatever else is stopped.

Laws of this file:
- What can never run is refused at once, with the numbers; what only has to wait is not.
- Pinned models that run count as memory that will never be free; what strangers use does not,
  because they may leave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelyard.core import placement
from modelyard.core.errors import ModelTooLarge, NoDevice
from modelyard.core.specs import Device
from modelyard.core.state import ModelState


def obstacle(
    models: Mapping[str, ModelState], devices: Sequence[Device], slot: ModelState
) -> NoDevice | ModelTooLarge | None:
    """Why no profile of the model can ever be placed; None if one can."""
    model, ways = slot.spec.id, placement.ways(slot, devices)
    found = [choice for choices in ways.profiles for choice in choices]
    if not found:
        return NoDevice(f"model {model!r} cannot be placed: {'; '.join(ways.lacking)}")
    pinned = [s for s in models.values() if s.spec.pinned and s.held_mib and s is not slot]
    left = {device.id: device.most_mib for device in devices}
    for other in pinned:
        placement.take(left, other.held_mib)
    if any(placement.fits(candidate.claims_mib, left) for candidate in found):
        return None
    lacking = "; ".join(
        f"profile {candidate.profile!r} needs {short.needed_mib} MiB on {short.device}, which can "
        f"give {short.free_mib} MiB"
        for candidate in found
        for short in placement.shortages(candidate.claims_mib, left)
    )
    beside = f" beside pinned {', '.join(other.spec.id for other in pinned)}" if pinned else ""
    return ModelTooLarge(
        f"model {model!r} can never fit{beside}: {lacking}",
        hint="raise devices.budget, lower the model's context, or declare its real memory",
    )
