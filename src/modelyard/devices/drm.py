"""What Linux tells about graphics cards of any vendor: sysfs and the clients of each card.

Laws of this file:
- A file that is missing, may not be read or holds nonsense tells nothing: None, never a guess.
- A client is counted once, however many processes share its file; processes of other users tell
  nothing unless this one may see them.
- Reading must not wake a sleeping card: callers ask `is_asleep` before they read its sensors.

Facts: kernel documentation, gpu/drm-usage-stats ("drm-pdev", "drm-client-id",
"drm-resident-<region>", "drm-memory-<region>", "drm-total-<region>", unit bytes, KiB or MiB);
ABI/testing/sysfs-class-hwmon (temperature in millidegrees, power in microwatts, frequency in
hertz); ABI/testing/sysfs-devices-power (power/runtime_status).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelyard.devices.base import ProbeFailed

MIB: Final = 2**20
_CARD: Final = re.compile(r"card\d+")
_PCI: Final = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")
_AMOUNT: Final = re.compile(r"(\d{1,20})(?: (KiB|MiB))?")
_UNITS: Final = {None: 1, "KiB": 2**10, "MiB": 2**20}
_LIMIT_OF_FILE: Final = 64 * 2**10
_SIZES: Final = ("drm-resident-", "drm-memory-", "drm-total-")
"""Keys of a region's size, the truest first: what is there, its old name, what was asked for."""


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card that has a kernel driver."""

    folder: Path
    """/sys/class/drm/card<N>"""
    pci: str

    @property
    def device(self) -> Path:
        return self.folder / "device"

    @property
    def order(self) -> tuple[int, ...]:
        return pci_order(self.pci)


def pci_order(pci: str) -> tuple[int, ...]:
    """Sorts PCI addresses; one that is none comes last."""
    match = _PCI.fullmatch(pci)
    return tuple(int(part, 16) for part in match.groups()) if match else (2**40,)


def cards(sys: Path, vendor: str) -> list[Card]:
    """The cards of a vendor ("0x1002"), in the order of their PCI addresses. Raises ProbeFailed."""
    drm = sys / "class" / "drm"
    try:
        folders = [folder for folder in drm.iterdir() if _CARD.fullmatch(folder.name)]
    except FileNotFoundError:
        return []  # no graphics in this kernel, or none for this container
    except OSError as error:
        raise ProbeFailed(f"cannot list graphics cards: {error}") from error
    found = {}
    for folder in folders:
        if text_of(folder / "device" / "vendor") == vendor:
            card = Card(folder, _address(folder / "device"))
            found[card.pci] = card
    return sorted(found.values(), key=lambda card: card.order)


def _address(device: Path) -> str:
    for line in (text_of(device / "uevent") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PCI_SLOT_NAME":
            return value.strip().lower()
    return device.resolve().name.lower()


def text_of(file: Path) -> str | None:
    """The file's text without the newline at its end."""
    try:
        with file.open("rb") as stream:
            return stream.read(_LIMIT_OF_FILE).decode("utf-8", "replace").strip()
    except OSError:
        return None


def number_in(file: Path) -> int | None:
    return number(text_of(file))


def number(text: str | None) -> int | None:
    """A decimal number, with a sign perhaps."""
    digits = (text or "").removeprefix("-")
    if not (text and digits.isascii() and digits.isdecimal() and len(digits) <= 20):
        return None
    return int(text)


def is_asleep(card: Card) -> bool:
    """Whether the kernel has put the card to sleep, because nobody uses it."""
    return text_of(card.device / "power" / "runtime_status") == "suspended"


def sensors(card: Card) -> Path | None:
    """The folder of the card's own sensors."""
    return next(iter(sorted((card.device / "hwmon").glob("hwmon*"))), None)


def clients(proc: Path, regions: re.Pattern[str]) -> Mapping[str, Mapping[int, int]]:
    """Bytes that each process holds in memory regions of such names, by card and process id."""
    held: dict[str, dict[int, int]] = {}
    seen: set[tuple[str, str]] = set()
    for pid in sorted(_processes(proc)):
        for text in _graphics_files(proc / str(pid)):
            facts = dict(_facts(text))
            pci, client = facts.get("drm-pdev", "").lower(), facts.get("drm-client-id")
            if not pci or client is None or (pci, client) in seen:
                continue
            seen.add((pci, client))
            size = sum(_sizes(facts, regions).values())
            by_process = held.setdefault(pci, {})
            by_process[pid] = by_process.get(pid, 0) + size
    return held


def in_mib(lists: Iterable[Mapping[int, int]]) -> dict[int, int] | None:
    """MiB by process id, the larger where lists of bytes differ; None where none knows anybody.

    Old kernels and foreign process namespaces tell of no process, which does not mean that none
    holds memory.
    """
    sizes: dict[int, int] = {}
    for held in lists:
        for pid, size in held.items():
            sizes[pid] = max(size, sizes.get(pid, 0))
    return {pid: -(-size // MIB) for pid, size in sizes.items()} or None


def _processes(proc: Path) -> Iterator[int]:
    try:
        names = [entry.name for entry in proc.iterdir()]
    except OSError as error:
        raise ProbeFailed(f"cannot list processes: {error}") from error
    return (int(name) for name in names if name.isascii() and name.isdecimal())


def _graphics_files(process: Path) -> Iterator[str]:
    """What the kernel tells of each graphics device that the process has open."""
    try:
        files = list((process / "fd").iterdir())
    except OSError:
        return  # it ended, or belongs to another user
    for file in files:
        try:
            target = file.readlink()
        except OSError:
            continue  # closed since it was listed
        if target.is_relative_to("/dev/dri"):
            yield text_of(process / "fdinfo" / file.name) or ""


def _facts(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        yield key.strip(), value.strip()


def _sizes(facts: Mapping[str, str], regions: re.Pattern[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for prefix in _SIZES:
        for key, value in facts.items():
            region = key.removeprefix(prefix)
            amount = _AMOUNT.fullmatch(value)
            if region == key or region in sizes or not amount or not regions.fullmatch(region):
                continue
            sizes[region] = int(amount[1]) * _UNITS[amount[2]]
    return sizes
