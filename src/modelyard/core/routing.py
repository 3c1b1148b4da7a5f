"""Which of a model's replicas gets a request.

Laws of this file:
- A request goes where its prompt's beginning was seen before, so that the engine's prefix cache
  helps, unless that replica has much more to do than the others (consistent hashing with bounded
  loads, Mirrokni et al. 2016); without a known beginning it goes where least is to do.
- A few replicas are ranked by a hash of prompt and replica (rendezvous hashing, Thaler and
  Ravishankar 1998): one that comes or goes moves only the prompts that it has or had.
"""

from __future__ import annotations

from collections.abc import Sequence

from modelyard.core.state import ReplicaState

FULLER = 1.25
"""How far above the mean a preferred replica's load may be."""
_MIX = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def choose(replicas: Sequence[ReplicaState], prefix: int | None) -> ReplicaState | None:
    """The replica that a request goes to, among those with room; None if none has any.

    `prefix` is a hash of the beginning of the prompt; None if the request has none.
    """
    open_ones = [replica for replica in replicas if replica.has_room()]
    if not open_ones:
        return None
    if prefix is None or len(open_ones) == 1:
        return min(open_ones, key=lambda replica: replica.in_flight)
    load = sum(replica.in_flight for replica in replicas) + 1
    most = FULLER * load / len(open_ones)
    ranked = sorted(open_ones, key=lambda replica: -_rank(prefix, replica.number))
    for replica in ranked:
        if replica.in_flight + 1 <= max(1.0, most):
            return replica
    return min(open_ones, key=lambda replica: replica.in_flight)


def _rank(prefix: int, number: int) -> int:
    """A number that is different for each pair, evenly spread (SplitMix64's last steps)."""
    x = (prefix + number * _MIX) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
