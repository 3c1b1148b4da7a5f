"""The machine as a plan sees it: the devices as they were last read, and who holds what there.

Laws of this file:
- What running models hold counts as room, because they leave when they are idle; what pinned models
  hold does not, but for the model that is planned for.
"""

from __future__ import annotations

from collections import Counter

from modelyard.planner.machine import Machine, machine_of
from modelyard.runtime.loop import Loop


def machine_here(yard: Loop, but: str = "") -> Machine:
    """This machine, planned for the model `but` if one is named."""
    pinned: Counter[str] = Counter()
    for slot in yard.scheduler.models.values():
        if slot.spec.pinned and slot.spec.id != but:
            for replica in slot.replicas:
                pinned.update(replica.held_mib)
    held = {view.id: view.claimed_mib - pinned[view.id] for view in yard.view_devices()}
    return machine_of(yard.scheduler.devices, held, pinned)
