"""How people name devices: by words of the driver's name, by index, or by id.

Laws of this file:
- `rtx 4060` means every device whose name has these words; of several names that do, the shortest
  is meant, so an `RTX 4060 Ti` is taken for an `rtx 4060` only where there is no plain one.
- Identical cards stay different devices: a name may mean several, and a profile that lists it
  twice gets two of them.
- `gpu` means any GPU, `cpu` the host; `1` is the second GPU, `nvidia:1` the second of its kind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from modelyard.core.specs import HOST_DEVICE, Device

ANY_GPU = "gpu"
VENDOR_WORDS = frozenset(
    ["nvidia", "geforce", "amd", "radeon", "intel", "apple", "corporation", "graphics", "r", "tm"]
)
MIN_ID_PREFIX = 8
"""Characters of a UUID that name a device, if only one begins with them."""


def short_name(name: str) -> str:
    """The driver's name in lower case without the vendor: `rtx 4060 laptop gpu`."""
    return " ".join(word for word in _words(name) if word not in VENDOR_WORDS) or name.casefold()


def matching(wanted: str, devices: Sequence[Device]) -> list[Device]:
    """The devices that a person means by `wanted`, in the order of `devices`."""
    word = wanted.strip().casefold()
    gpus = [device for device in devices if device.kind != HOST_DEVICE]
    if word == ANY_GPU:
        return gpus
    if word == HOST_DEVICE:
        return [device for device in devices if device.kind == HOST_DEVICE]
    if word.isdecimal():
        return gpus[int(word) : int(word) + 1]
    kind, colon, index = word.rpartition(":")
    if colon and index.isdecimal() and kind.isalpha():
        kind = "nvidia" if kind == "cuda" else kind
        return [d for d in devices if d.kind == kind and d.index == int(index)]
    by_id = [device for device in devices if _is_id(word, device.id.casefold())]
    return by_id if len(by_id) == 1 else _by_words(word, gpus)


def _is_id(wanted: str, device_id: str) -> bool:
    return wanted == device_id or (len(wanted) >= MIN_ID_PREFIX and device_id.startswith(wanted))


def _by_words(wanted: str, devices: Sequence[Device]) -> list[Device]:
    words = {word for word in _words(wanted) if word not in VENDOR_WORDS} or set(_words(wanted))
    if not words:
        return []
    named = [(len(_words(device.name)), device) for device in devices]
    fitting = [(size, device) for size, device in named if words <= set(_words(device.name))]
    shortest = min((size for size, _ in fitting), default=0)
    return [device for size, device in fitting if size == shortest]


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.casefold())
