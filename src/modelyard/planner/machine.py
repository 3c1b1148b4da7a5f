"""What a plan may use: cards and host memory, as they are here or as somebody names them.

Laws of this file:
- `available_mib` is what replicas may hold: reserve, budget and what strangers use are gone from
  it. What other models of ours hold is in it, because they leave when they are idle; what pinned
  models hold is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from modelyard.core.devices import short_name
from modelyard.core.specs import HOST_DEVICE, Device
from modelyard.planner.cards import APPLE_BANDWIDTH_GBS, Card, known, read_cards

ASSUMED_RAM_MIB: Final = 64 * 1024
"""Host memory of a machine of which only the cards were named."""
HOST_BANDWIDTH_GBS: Final = 51.2
"""Two channels of DDR4-3200 (JEDEC JESD79-4: 3200 x 10^6 transfers x 8 bytes x 2)."""
_APPLE: Final = "apple"


@dataclass(frozen=True, slots=True)
class Seat:
    """One device as a plan sees it. `bandwidth_gbs` and `fp16_tflops` are None if unknown."""

    id: str
    name: str
    """As a profile of the configuration would name it."""
    kind: str
    total_mib: int
    available_mib: int
    held_mib: int = 0
    bandwidth_gbs: float | None = None
    fp16_tflops: float | None = None
    fp8: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """The cards, the one with most room first, and the host."""

    gpus: tuple[Seat, ...]
    host: Seat
    is_named: bool = False
    """Somebody named it; it need not be this one."""

    @property
    def words(self) -> str:
        """`2 x rtx 4090 + 64 GiB`."""
        counted = Counter(seat.name for seat in self.gpus)
        cards = [f"{count} x {name}" for name, count in counted.items()]
        return " + ".join([*cards, f"{self.host.total_mib / 1024:.0f} GiB of host memory"])

    def with_cards(self, count: int) -> Machine:
        """The same with this many cards; those that are not there are like the first."""
        more = [
            replace(self.gpus[0], id=f"more{number}", held_mib=0)
            for number in range(count - len(self.gpus))
        ]
        return replace(self, gpus=(*self.gpus, *more)[:count], is_named=True)


def machine_of(
    devices: Sequence[Device],
    held_mib: Mapping[str, int] | None = None,
    pinned_mib: Mapping[str, int] | None = None,
) -> Machine:
    """This machine: `devices` as they were last read, what models of ours hold on each of them,
    and what of that stays because they are pinned."""
    held, pinned = held_mib or {}, pinned_mib or {}

    def seat(device: Device) -> Seat:
        card = known(device.name) if device.kind != HOST_DEVICE else None
        bandwidth = card.bandwidth_gbs if card else None
        if device.kind == _APPLE:
            bandwidth = APPLE_BANDWIDTH_GBS.get(short_name(device.name))
        return Seat(
            device.id,
            device.id if device.kind == HOST_DEVICE else short_name(device.name),
            device.kind,
            device.total_mib,
            max(0, device.capacity_mib - pinned.get(device.id, 0)),
            held.get(device.id, 0),
            HOST_BANDWIDTH_GBS if device.kind == HOST_DEVICE else bandwidth,
            card.fp16_tflops if card else None,
            card is not None and card.fp8,
        )

    seats = [seat(device) for device in devices]
    gpus = sorted(
        (each for each in seats if each.kind != HOST_DEVICE), key=lambda each: -each.available_mib
    )
    hosts = [each for each in seats if each.kind == HOST_DEVICE]
    host = hosts[0] if hosts else Seat(HOST_DEVICE, HOST_DEVICE, HOST_DEVICE, 0, 0)
    # Apple's GPU works in the host's memory: what one may hold is not there for the other.
    shared = sum(each.available_mib for each in gpus if each.kind == _APPLE)
    if shared:
        host = replace(host, available_mib=max(0, host.available_mib - shared))
    return Machine(tuple(gpus), host)


def machine_named(text: str, ram_mib: int | None, reserve_mib: int) -> Machine:
    """A machine with the cards of `text`, of each of which `reserve_mib` stays free.

    Raises InvalidRequest for cards that nobody knows.
    """
    ram = ASSUMED_RAM_MIB if ram_mib is None else ram_mib
    cards = read_cards(text)
    gpus = [_seat(card, number, reserve_mib) for number, card in enumerate(cards)]
    host = Seat(
        HOST_DEVICE,
        HOST_DEVICE,
        HOST_DEVICE,
        ram,
        max(0, ram - reserve_mib),
        bandwidth_gbs=HOST_BANDWIDTH_GBS,
    )
    gpus.sort(key=lambda each: -each.available_mib)
    return Machine(tuple(gpus), host, is_named=True)


def _seat(card: Card, number: int, reserve_mib: int) -> Seat:
    return Seat(
        f"{card.kind}:{number}",
        short_name(card.name),
        card.kind,
        card.memory_mib,
        max(0, card.memory_mib - reserve_mib),
        bandwidth_gbs=card.bandwidth_gbs,
        fp16_tflops=card.fp16_tflops,
        fp8=card.fp8,
    )
