"""Intel's graphics cards with memory of their own, as Linux tells of them.

Laws of this file:
- Graphics that are part of a processor work in the host's memory and are not told: the host is.
- The driver `xe` tells no use of memory without privilege; then it is what the processes hold that
  this one may see, and the note says so.
- A card whose driver tells no amount of memory is told with that failure, not left out.

Facts: xe: device/tile<N>/physical_vram_size_bytes (igt-gpu-tools, xe_sysfs_tile),
device/tile0/gt0/freq0/act_freq in MHz (kernel documentation, gpu/xe), hwmon temp2_input of the
package (ABI/testing/sysfs-driver-intel-xe-hwmon). i915 of Intel's own packages:
lmem_total_bytes and lmem_avail_bytes, gt_act_freq_mhz beside the card (i915_sysfs.c). Memory
regions of clients: "vram<N>" (xe), "local<N>" and "stolen-local<N>" (i915).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelyard.devices import drm
from modelyard.devices.base import Reading
from modelyard.devices.pci_ids import CardNames

_VENDOR: Final = "0x8086"
_INTEGRATED: Final = re.compile(r"0000:00:02\.\d")
"""Where every processor of Intel has its own graphics; cards are behind a bridge."""
_REGIONS: Final = re.compile(r"(vram|local|stolen-local)\d*")
_TEMPERATURES: Final = ("temp2_input", "temp1_input")
_CLOCKS: Final = (
    "device/tile0/gt0/freq0/act_freq",
    "gt_act_freq_mhz",
)


class IntelProbe:
    """Finds Arc, Flex and Max cards. The paths are those of a Linux system."""

    kind = "intel"

    def __init__(
        self,
        *,
        sys: Path = Path("/sys"),
        proc: Path = Path("/proc"),
        share: Path = Path("/usr/share"),
    ) -> None:
        self._sys = sys
        self._proc = proc
        self._names = CardNames("Intel", share)

    def read(self) -> tuple[Reading, ...]:
        """Every card, in the order of their PCI addresses. Raises ProbeFailed."""
        found = [
            card
            for card in drm.cards(self._sys, _VENDOR)
            if not _INTEGRATED.fullmatch(card.pci) or _total(card) is not None
        ]
        if not found:
            return ()
        held = drm.clients(self._proc, _REGIONS)
        return tuple(
            self._reading(card, index, held.get(card.pci, {})) for index, card in enumerate(found)
        )

    def _reading(self, card: drm.Card, index: int, held: Mapping[int, int]) -> Reading:
        name, total = self._names.of(card), _total(card)
        if not total:
            driver = (card.device / "driver").resolve().name
            return Reading(
                id=card.pci,
                kind=self.kind,
                index=index,
                name=name,
                total_mib=0,
                pci=card.pci,
                failure=f"its driver ({driver}) does not tell its memory; the driver xe does",
            )
        free = drm.number_in(card.folder / "lmem_avail_bytes")
        used = sum(held.values()) if free is None else total - free
        notes = () if free is not None else ("its use is what visible processes hold",)
        asleep = drm.is_asleep(card)
        return Reading(
            id=card.pci,
            kind=self.kind,
            index=index,
            name=name,
            total_mib=total // drm.MIB,
            used_mib=-(-min(total, max(0, used)) // drm.MIB),
            by_process_mib=drm.in_mib([held]),
            temperature_c=None if asleep else _temperature(card),
            clock_mhz=None if asleep else _clock(card),
            pci=card.pci,
            notes=(*notes, "asleep") if asleep else notes,
        )


def _total(card: drm.Card) -> int | None:
    """Bytes of the card's own memory; None where it has none, or its driver does not tell."""
    tiles = sorted(card.device.glob("tile*/physical_vram_size_bytes"))
    sizes = [size for tile in tiles if (size := drm.number_in(tile)) is not None]
    return sum(sizes) or drm.number_in(card.folder / "lmem_total_bytes") or None


def _temperature(card: drm.Card) -> float | None:
    folder = drm.sensors(card)
    if folder is None:
        return None
    told = (drm.number_in(folder / name) for name in _TEMPERATURES)
    return next((value / 1000 for value in told if value is not None), None)


def _clock(card: drm.Card) -> int | None:
    told = (drm.number_in(card.folder / name) for name in _CLOCKS)
    return next((value for value in told if value is not None), None)
