"""Common accelerators: memory, bandwidth, arithmetic.

Laws of this file:
- `memory_mib` is what the driver reports as the total (nvidia-smi, rocm-smi), which is often less
  than the name says: error correction keeps a sixteenth of GDDR6, and the driver keeps some more.
- `fp16_tflops` is that of dense matrices with sums in single precision, which is what inference
  uses; makers also print twice as much (sparse) or the figure without matrix units.
- `fp8` says whether the card multiplies 8-bit floats itself (NVIDIA from compute capability 8.9
  on, AMD from CDNA 3 and RDNA 4 on).
- Every row names the maker's document that its bandwidth and arithmetic are from.

Most of NVIDIA's memory figures, and those of the 7900 XTX, the 9070 XT and the A770, were compared
with what drivers print in logs that people have published; the others are the makers'. Bandwidths
were compared with public tables for GeForce and for some of the others, arithmetic only here and
there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final

from modelyard.core.errors import InvalidRequest

_NVIDIA: Final = "https://www.nvidia.com/en-us"
_IMAGES: Final = "https://images.nvidia.com/aem-dam/Solutions"
SOURCES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "blackwell": f"{_IMAGES}/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf",
        "ada": f"{_IMAGES}/geforce/ada/nvidia-ada-gpu-architecture.pdf",
        "ampere": f"{_NVIDIA}/geforce/news/rtx-30-series-ampere-architecture-whitepaper-download/",
        "turing": f"{_IMAGES}/design-visualization/technologies/turing-architecture/"
        "NVIDIA-Turing-Architecture-Whitepaper.pdf",
        "geforce": f"{_NVIDIA}/geforce/graphics-cards/compare/",
        "rtx-pro": f"{_NVIDIA}/products/workstations/",
        "v100": f"{_NVIDIA}/data-center/v100/",
        "t4": f"{_NVIDIA}/data-center/tesla-t4/",
        "p40": "https://www.techpowerup.com/gpu-specs/tesla-p40.c2878",
        "a10": f"{_NVIDIA}/data-center/products/a10-gpu/",
        "a30": f"{_NVIDIA}/data-center/products/a30-gpu/",
        "a40": f"{_NVIDIA}/data-center/a40/",
        "a100": f"{_NVIDIA}/data-center/a100/",
        "l4": f"{_NVIDIA}/data-center/l4/",
        "l40s": f"{_NVIDIA}/data-center/l40s/",
        "h100": f"{_NVIDIA}/data-center/h100/",
        "h200": f"{_NVIDIA}/data-center/h200/",
        "b200": f"{_NVIDIA}/data-center/dgx-b200/",
        "amd": "https://www.amd.com/en/products/graphics/desktops/radeon.html",
        "instinct": "https://www.amd.com/en/products/accelerators/instinct.html",
        "intel": "https://www.intel.com/content/www/us/en/products/details/discrete-gpus/arc.html",
    }
)
"""Documents by the word that rows use."""


@dataclass(frozen=True, slots=True)
class Card:
    """One accelerator. Bandwidth is in GB/s (10^9 bytes), arithmetic in 10^12 operations/s."""

    name: str
    memory_mib: int
    bandwidth_gbs: float | None
    fp16_tflops: float | None
    fp8: bool
    document: str = ""

    @property
    def source(self) -> str:
        """Where bandwidth and arithmetic are from."""
        return SOURCES.get(self.document, "as given")

    @property
    def kind(self) -> str:
        """`nvidia`, `amd` or `intel`, as the probes say it."""
        return _KINDS.get(self.document, "nvidia")


_KINDS: Final = {"amd": "amd", "instinct": "amd", "intel": "intel"}

CARDS: Final = (
    Card("GeForce RTX 5090", 32607, 1792, 209.5, True, "blackwell"),
    Card("GeForce RTX 5080", 16303, 960, 112.6, True, "blackwell"),
    Card("GeForce RTX 5070 Ti", 16303, 896, 87.9, True, "blackwell"),
    Card("GeForce RTX 5070", 12227, 672, 61.7, True, "blackwell"),
    Card("GeForce RTX 5060 Ti 16GB", 16311, 448, 47.4, True, "geforce"),
    Card("GeForce RTX 4090", 24564, 1008, 165.2, True, "ada"),
    Card("GeForce RTX 4080 SUPER", 16376, 736, 104.4, True, "geforce"),
    Card("GeForce RTX 4080", 16376, 717, 97.5, True, "ada"),
    Card("GeForce RTX 4070 Ti SUPER", 16376, 672, 88.2, True, "geforce"),
    Card("GeForce RTX 4070 Ti", 12282, 504, 80.2, True, "ada"),
    Card("GeForce RTX 4070 SUPER", 12282, 504, 71.0, True, "geforce"),
    Card("GeForce RTX 4070", 12282, 504, 58.3, True, "geforce"),
    Card("GeForce RTX 4060 Ti 16GB", 16380, 288, 44.1, True, "geforce"),
    Card("GeForce RTX 4060 Ti", 8188, 288, 44.1, True, "geforce"),
    Card("GeForce RTX 4060", 8188, 272, 30.2, True, "geforce"),
    Card("GeForce RTX 3090 Ti", 24564, 1008, 80.0, False, "geforce"),
    Card("GeForce RTX 3090", 24576, 936, 71.2, False, "ampere"),
    Card("GeForce RTX 3080 Ti", 12288, 912, 68.2, False, "geforce"),
    Card("GeForce RTX 3080", 10240, 760, 59.5, False, "ampere"),
    Card("GeForce RTX 3070", 8192, 448, 40.6, False, "ampere"),
    Card("GeForce RTX 3060", 12288, 360, 25.5, False, "geforce"),
    Card("GeForce RTX 2080 Ti", 11264, 616, 53.8, False, "turing"),
    Card("RTX PRO 6000 Blackwell", 97887, 1792, 251.9, True, "rtx-pro"),
    Card("RTX 6000 Ada", 49140, 960, 182.1, True, "rtx-pro"),
    Card("RTX A6000", 49140, 768, 154.8, False, "rtx-pro"),
    Card("RTX A5000", 24564, 768, 111.1, False, "rtx-pro"),
    Card("RTX A4000", 16376, 448, 76.7, False, "rtx-pro"),
    Card("Tesla T4", 15360, 320, 65.0, False, "t4"),
    Card("Tesla P40", 22919, 347, 11.8, False, "p40"),
    Card("Tesla V100 16GB", 16384, 900, 125.0, False, "v100"),
    Card("Tesla V100 32GB", 32768, 900, 125.0, False, "v100"),
    Card("A10", 23028, 600, 125.0, False, "a10"),
    Card("A30", 24258, 933, 165.0, False, "a30"),
    Card("A40", 46068, 696, 149.7, False, "a40"),
    Card("A100 40GB", 40960, 1555, 312.0, False, "a100"),
    Card("A100 80GB", 81920, 2039, 312.0, False, "a100"),
    Card("L4", 23034, 300, 121.0, True, "l4"),
    Card("L40S", 46068, 864, 362.0, True, "l40s"),
    Card("H100 PCIe", 81559, 2000, 756.0, True, "h100"),
    Card("H100 80GB", 81559, 3350, 989.0, True, "h100"),
    Card("H200", 143771, 4800, 989.0, True, "h200"),
    Card("B200", 183359, 8000, 2250.0, True, "b200"),
    Card("Radeon RX 7900 XTX", 24560, 960, 122.8, False, "amd"),
    Card("Radeon RX 7900 XT", 20464, 800, 103.0, False, "amd"),
    Card("Radeon RX 9070 XT", 16304, 640, 195.0, True, "amd"),
    Card("Instinct MI210", 65520, 1638, 181.0, False, "instinct"),
    Card("Instinct MI300X", 196592, 5300, 1307.4, True, "instinct"),
    Card("Arc A770 16GB", 16288, 560, 138.0, False, "intel"),
    Card("Arc B580", 12216, 456, 117.0, False, "intel"),
)
"""In the order in which equal matches are preferred."""

APPLE_BANDWIDTH_GBS: Final[Mapping[str, float]] = MappingProxyType(
    {
        "m1": 68.3,
        "m1 pro": 200,
        "m1 max": 400,
        "m1 ultra": 800,
        "m2": 100,
        "m2 pro": 200,
        "m2 max": 400,
        "m2 ultra": 800,
        "m3": 100,
        "m3 pro": 150,
        "m3 max": 400,
        "m3 ultra": 819,
        "m4": 120,
        "m4 pro": 273,
        "m4 max": 546,
    }
)
"""Of Apple's chips, by the name without `Apple`; the larger kind where there are two (Apple's own
specifications, https://support.apple.com/specs; measured in llama.cpp's discussion 4167)."""

_VENDORS: Final = frozenset(
    ["nvidia", "geforce", "amd", "radeon", "intel", "tesla", "instinct", "generation", "gpu"]
)
_DECORATION: Final = frozenset(["laptop", "mobile", "max", "q"])
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(mib|gib|gb|g)", re.I)
_COUNT: Final = re.compile(r"(\d{1,3})\s*[x×*]\s*(?=\S)(.+)", re.I)
_TOO_MANY: Final = 64
_LONGEST: Final = 200


def find_card(text: str) -> Card:
    """The card that a person means: `rtx 4090`, `4090`, `A100 40GB`, or only a size, `24GiB`.

    Raises InvalidRequest with near names where there is none.
    """
    size = _SIZE.fullmatch(text.strip())
    if size is not None:
        mib = float(size[1]) * (1 if size[2].casefold() == "mib" else 1024)
        if not 1 <= mib <= 2**24:
            raise InvalidRequest(f"a card of {text.strip()[:_LONGEST]} is none that exists")
        return Card(f"a card of {text.strip()}", int(mib), None, None, False)
    found = known(text)
    if found is not None:
        return found
    names = {" ".join(sorted(_words(card.name))): card.name for card in CARDS}
    near = get_close_matches(" ".join(sorted(_words(text))), names, 3, 0.5)
    meant = f"; did you mean {' or '.join(names[name] for name in near)}?" if near else ""
    raise InvalidRequest(
        f"no card is known as {text.strip()[:_LONGEST]!r}{meant}",
        param="gpus",
        hint="give its memory instead, like `2x 24GiB`",
    )


def known(name: str) -> Card | None:
    """The card of this name, or that a driver calls so: the row whose words are most of it."""
    words = _words(name)
    if not words or words & _DECORATION:
        return None  # cards for notebooks share a name and little else
    asked = [card for card in CARDS if words <= _words(card.name)]
    if asked:
        return min(asked, key=lambda card: len(_words(card.name)))
    told = [card for card in CARDS if _words(card.name) <= words]
    return max(told, key=lambda card: len(_words(card.name)), default=None)


def read_cards(text: str) -> list[Card]:
    """The cards of `2x RTX 4090 + RTX 3090`; an empty list for `none` or `cpu`.

    Raises InvalidRequest where a part means no card.
    """
    if text.strip().casefold() in {"none", "cpu", "0"}:
        return []
    cards: list[Card] = []
    for part in re.split(r"[+,;]", text[: 10 * _LONGEST]):
        if not part.strip():
            raise InvalidRequest(f"--gpus names no card in {text[:_LONGEST]!r}", param="gpus")
        counted = _COUNT.fullmatch(part.strip())
        count, name = (int(counted[1]), counted[2]) if counted else (1, part)
        if count < 1 or len(cards) + count > _TOO_MANY:
            raise InvalidRequest(f"a machine has 1 to {_TOO_MANY} cards", param="gpus")
        cards += [find_card(name)] * count
    return cards


def _words(name: str) -> frozenset[str]:
    """`RTX 4090` and `rtx4090` alike; sizes as one word."""
    text = re.sub(r"(\d+)\s*gi?b\b", r" \1gb ", name.casefold())
    text = re.sub(r"\b(rtx|gtx|rx)(?=\d)", r"\1 ", text)
    return frozenset(word for word in re.findall(r"[a-z0-9]+", text) if word not in _VENDORS)
