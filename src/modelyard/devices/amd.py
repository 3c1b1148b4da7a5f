"""AMD's graphics cards, as the kernel driver amdgpu tells of them.

Laws of this file:
- The kernel's files are the truth; AMD's library `amdsmi` adds names and processes where it is
  installed, and whatever fails in it is left out.
- A processor's graphics (APU) is told with the memory set apart for it. What it may borrow from
  the host is the host's and only noted.
- The driver tells use by process in two places: to graphics clients and to compute processes. The
  same memory can be in both, so the larger counts.

Facts: kernel documentation, gpu/amdgpu/driver-misc (mem_info_vram_*, mem_info_gtt_*, unique_id,
product_name) and gpu/amdgpu/thermal (gpu_busy_percent, pp_dpm_*, hwmon; "in1_input" with label
"vddnb" on APUs only); kgd_pp_interface.h (the third byte of gpu_metrics is the format: 1 for
cards, 2 and 3 for APUs); kfd_process.c (/sys/class/kfd/kfd/proc/<pid>/vram_<gpu id>, in bytes) and
kfd_topology.c (nodes with "domain" and "location_id", which is bus << 8 | device << 3 | function).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from modelyard.devices import drm
from modelyard.devices.amd_smi import AmdSmi, SmiCard, SmiReader
from modelyard.devices.base import Reading
from modelyard.devices.pci_ids import CardNames

_VENDOR: Final = "0x1002"
_REGIONS: Final = re.compile(r"vram")
_UNIQUE: Final = re.compile(r"[0-9a-f]{16}")
_LEVEL: Final = re.compile(r"(\d{1,6})mhz", re.IGNORECASE)
_APU_FORMATS: Final = (2, 3)


class AmdProbe:
    """Finds Radeon and Instinct cards. The paths are those of a Linux system.

    `smi` stands for the module `amdsmi`; the real one is loaded if it is installed.
    """

    kind = "amd"

    def __init__(
        self,
        *,
        sys: Path = Path("/sys"),
        proc: Path = Path("/proc"),
        share: Path = Path("/usr/share"),
        smi: AmdSmi | None = None,
    ) -> None:
        self._sys = sys
        self._proc = proc
        self._names = CardNames("AMD", share)
        self._smi = SmiReader(smi)

    def read(self) -> tuple[Reading, ...]:
        """Every card, in the order of their PCI addresses. Raises ProbeFailed."""
        cards = [card for card in drm.cards(self._sys, _VENDOR) if _is_amdgpu(card)]
        if not cards:
            return ()
        held = drm.clients(self._proc, _REGIONS)
        computing = _computing(self._sys / "class" / "kfd" / "kfd")
        told = self._smi.read()
        ids = _ids(cards)
        return tuple(
            self._reading(
                card,
                index,
                ids[card.pci],
                told.get(card.pci),
                [held.get(card.pci, {}), computing.get(card.pci, {})],
            )
            for index, card in enumerate(cards)
        )

    def _reading(
        self,
        card: drm.Card,
        index: int,
        identity: str,
        smi: SmiCard | None,
        lists: list[Mapping[int, int]],
    ) -> Reading:
        product = drm.text_of(card.device / "product_name")
        name = (smi.name if smi else None) or product or self._names.of(card)
        total = drm.number_in(card.device / "mem_info_vram_total")
        if not total:
            failure = "its driver does not answer when asked for its memory"
            return Reading(identity, self.kind, index, name, 0, pci=card.pci, failure=failure)
        used = drm.number_in(card.device / "mem_info_vram_used")
        if smi:
            lists = [*lists, smi.by_process]
        asleep = drm.is_asleep(card)
        folder = None if asleep else drm.sensors(card)
        busy = None if asleep else drm.number_in(card.device / "gpu_busy_percent")
        power = _sensor(folder, "power1_average", "power1_input")
        heat = _sensor(folder, "temp1_input")
        return Reading(
            id=identity,
            kind=self.kind,
            index=index,
            name=name,
            total_mib=total // drm.MIB,
            used_mib=None if used is None else -(-used // drm.MIB),
            by_process_mib=drm.in_mib(lists),
            utilisation=None if busy is None else min(100, max(0, busy)) / 100,
            temperature_c=None if heat is None else heat / 1000,
            power_w=None if power is None else power / 1_000_000,
            clock_mhz=None if asleep else _clock(card, folder, "freq1_input", "pp_dpm_sclk"),
            memory_clock_mhz=None if asleep else _clock(card, folder, "freq2_input", "pp_dpm_mclk"),
            pci=card.pci,
            notes=(*_shared_memory(card, folder), *(["asleep"] if asleep else [])),
        )


def _is_amdgpu(card: drm.Card) -> bool:
    """Older drivers (radeon) tell no memory, and nothing can compute on their cards."""
    return (card.device / "mem_info_vram_total").exists()


def _ids(cards: Iterable[drm.Card]) -> dict[str, str]:
    """Ids by PCI address: as ROCm writes them, unless two cards claim the same or have none."""
    unique = {card.pci: (drm.text_of(card.device / "unique_id") or "").lower() for card in cards}
    numbers = list(unique.values())
    return {
        pci: f"GPU-{n}" if _UNIQUE.fullmatch(n) and int(n, 16) and numbers.count(n) == 1 else pci
        for pci, n in unique.items()
    }


def _computing(kfd: Path) -> dict[str, dict[int, int]]:
    """Bytes by card and process of those that compute through ROCm."""
    cards = {}
    for node in sorted((kfd / "topology" / "nodes").glob("*")):
        gpu = drm.number_in(node / "gpu_id")
        lines = (drm.text_of(node / "properties") or "").splitlines()
        facts = {key: drm.number(value) for key, _, value in (ln.partition(" ") for ln in lines)}
        place = facts.get("location_id")
        if gpu and place is not None:
            slot = f"{place >> 8:02x}:{place >> 3 & 31:02x}.{place & 7}"
            cards[gpu] = f"{facts.get('domain') or 0:04x}:{slot}"
    held: dict[str, dict[int, int]] = {}
    for gpu, pci in cards.items():
        for file in (kfd / "proc").glob(f"*/vram_{gpu}"):
            pid, size = drm.number(file.parent.name), drm.number_in(file)
            if pid is not None and size:
                held.setdefault(pci, {})[pid] = size
    return held


def _shared_memory(card: drm.Card, folder: Path | None) -> tuple[str, ...]:
    if not _is_apu(card, folder):
        return ()
    borrowed = (drm.number_in(card.device / "mem_info_gtt_total") or 0) // drm.MIB
    return (f"part of a processor; it may borrow {borrowed} MiB of the host's memory",)


def _is_apu(card: drm.Card, folder: Path | None) -> bool:
    if folder is None:
        return False  # asleep: only cards sleep by themselves
    if drm.text_of(folder / "in1_label") == "vddnb":
        return True
    try:
        with (card.device / "gpu_metrics").open("rb") as stream:
            header = stream.read(3)
    except OSError:
        return False
    return len(header) == 3 and header[2] in _APU_FORMATS


def _sensor(folder: Path | None, *names: str) -> int | None:
    if folder is None:
        return None
    told = (drm.number_in(folder / name) for name in names)
    return next((value for value in told if value is not None), None)


def _clock(card: drm.Card, folder: Path | None, sensor: str, table: str) -> int | None:
    """MHz, from the sensor or else from the level that is marked as current."""
    hertz = _sensor(folder, sensor)
    if hertz is not None:
        return hertz // 1_000_000
    for line in (drm.text_of(card.device / table) or "").splitlines():
        level = _LEVEL.search(line)
        if line.rstrip().endswith("*") and level:
            return int(level[1])
    return None
