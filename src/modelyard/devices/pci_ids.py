"""The names that people know cards by, from the lists that Linux distributions install.

Laws of this file:
- A name is only looked up; a card without one is named by its vendor and number.
- The lists are large and do not change while the server runs: they are read once per card.

Formats: pci.ids (pci-ids.ucw.cz): a vendor "1002  name" at the start of a line, its devices
"<tab>744c  name" below it, both in hexadecimal; the name sold is in brackets. amdgpu.ids of libdrm:
"device,<tab>revision,<tab>name", in hexadecimal, which tells models of one chip apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from modelyard.devices.drm import Card, text_of

_LISTS: Final = ("hwdata/pci.ids", "misc/pci.ids")
_BRACKETS: Final = re.compile(r"\[([^\]]+)\]")


class CardNames:
    """Names of one vendor's cards. `share` is where the lists are installed."""

    def __init__(self, vendor: str, share: Path) -> None:
        self._vendor = vendor
        self._share = share
        self._names: dict[tuple[str, str], str] = {}

    def of(self, card: Card) -> str:
        device = _hexadecimal(text_of(card.device / "device"))
        revision = _hexadecimal(text_of(card.device / "revision"))
        if (device, revision) not in self._names:
            self._names[device, revision] = self._look_up(device, revision)
        return self._names[device, revision]

    def _look_up(self, device: str, revision: str) -> str:
        found = self._by_revision(device, revision) or self._by_device(device)
        if found is None:
            return f"{self._vendor} GPU {device or 'of unknown number'}"
        return found if found.startswith(self._vendor) else f"{self._vendor} {found}"

    def _by_revision(self, device: str, revision: str) -> str | None:
        if self._vendor != "AMD":
            return None
        for line in _lines(self._share / "libdrm" / "amdgpu.ids"):
            fields = [field.strip() for field in line.split(",", 2)]
            if len(fields) == 3 and [part.lower() for part in fields[:2]] == [device, revision]:
                return fields[2]
        return None

    def _by_device(self, device: str) -> str | None:
        vendor = {"AMD": "1002", "Intel": "8086"}[self._vendor]
        for file in _LISTS:
            inside = False
            for line in _lines(self._share / file):
                if line[:1] not in ("\t", "#"):
                    inside = line.startswith(f"{vendor} ")
                elif inside and line.startswith(f"\t{device} "):
                    name = line.strip().partition(" ")[2].strip()
                    sold = _BRACKETS.search(name)
                    return sold[1] if sold else name
        return None


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            yield from (line.rstrip("\n") for line in stream)
    except OSError:
        return  # this list is not installed


def _hexadecimal(text: str | None) -> str:
    return (text or "").removeprefix("0x").lower()
