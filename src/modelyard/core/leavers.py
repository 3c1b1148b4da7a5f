"""Who would leave for models that are not here, kept from one look ahead to the next.

Laws of this file:
- What is kept for a device holds while all that it was made of is as it was: who is there, in which
  state, used or not, last asked when, and what is left. A request changes one device, so the next
  look ahead weighs the others no second time.
- Rates fade nearly alike, so by time alone nobody else would be chosen for a while. That, and what
  is measured meanwhile of durations and memory, counts after KEPT_S at the latest.
- Only idle ones are counted on: a model in use leaves for somebody who waits, and for nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelyard.core.specs import HOST_DEVICE, Placement
from modelyard.core.state import ModelState, ReplicaState
from modelyard.core.swap import Market, Swap, Times

KEPT_S = 60.0


class Leavers:
    """Swaps with idle ones by device; those of places on several devices are put together anew each
    time."""

    __slots__ = ("_kept", "_market", "_seen", "_times")

    def __init__(self) -> None:
        self._seen: dict[str, object] = {}
        self._kept: dict[str, dict[tuple[object, ...], Swap | None]] = {}
        self._market: Market
        self._times: Times

    def see(
        self,
        market: Market,
        holders: Sequence[ReplicaState],
        soon: Mapping[str, int],
        times: Times,
        now: float,
    ) -> None:
        """Begin a look: forget the devices on which anything is new. `soon` is what is left there
        when all who are going are gone."""
        self._market, self._times = market, times
        there: dict[str, list[object]] = {device: [] for device in soon}
        for replica in holders:
            state = _state(replica)
            for device in replica.held_mib:
                there.setdefault(device, []).append(state)
        host, period = soon.get(HOST_DEVICE), now // KEPT_S
        for device, states in there.items():
            seen = (soon.get(device), host, period, states)
            if self._seen.get(device) != seen:
                self._seen[device] = seen
                self._kept[device] = {}

    def swap(self, slot: ModelState, choice: Placement) -> Swap | None:
        """Which idle ones would leave for the model there; None if they are not enough."""
        claims = choice.claims_mib
        if len(claims) != 1:
            return self._market.swap_with_idle(slot, choice, self._times)
        ((device, mib),) = claims.items()
        kept = self._kept[device]
        key = (slot, choice.profile, mib)
        swap = kept.get(key)
        if swap is None and key not in kept:
            swap = kept[key] = self._market.swap_with_idle(slot, choice, self._times)
        return swap


def _state(replica: ReplicaState) -> tuple[object, ...]:
    """What decides whether it may leave and what that costs."""
    slot = replica.model
    return (
        replica,
        replica.life.state,
        bool(replica.in_flight),
        replica.promised_to,
        replica.reservation,
        len(slot.queue),
        slot.wanted_since,
        slot.demand.changed_at,
        slot.spec,
        len(slot.serving) if len(slot.replicas) > 1 else 1,
        replica.last_used,
    )
