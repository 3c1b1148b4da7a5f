"""Apple silicon: a GPU that works in the memory of its machine.

Laws of this file:
- Only Apple silicon is told, and only on macOS; other Macs have no memory shared this way.
- The memory is the host's own. What it tells must not be added to the host's, and its note says
  so.
- Metal bounds what the GPU may hold ("wired"). Where nobody set a bound, it is the system's own:
  two thirds of the memory up to 32 GiB, three quarters above. These are the values that Metal
  gives as `recommendedMaxWorkingSetSize` on machines of 8 to 192 GiB; sysctl tells just 0.

Facts: sysctl(3) on macOS: `hw.memsize` in bytes, `hw.optional.arm64`, `machdep.cpu.brand_string`;
`iogpu.wired_limit_mb` (since macOS 14; 0 means the system's own bound).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import psutil

from modelyard.devices.base import ProbeFailed, Reading

SYSCTL_TIMEOUT_S: Final = 5.0
_MIB: Final = 2**20
_SMALL: Final = 32 * 2**30
_ARM: Final = "hw.optional.arm64"
_NAME: Final = "machdep.cpu.brand_string"
_MEMORY: Final = "hw.memsize"
_LIMIT: Final = "iogpu.wired_limit_mb"


def sysctl(names: Sequence[str], *, program: str = "/usr/sbin/sysctl") -> Mapping[str, str]:
    """The values of those variables that the kernel knows, as text. Raises ProbeFailed."""
    try:
        # It exits with 1 when one name is unknown, and prints the others all the same.
        done = subprocess.run(
            [program, *names],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SYSCTL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProbeFailed(f"{program} does not tell the machine's memory: {error}") from error
    pairs = (line.partition(": ") for line in done.stdout.splitlines())
    return {name: value.strip() for name, colon, value in pairs if colon and name in names}


def _available_bytes() -> int:
    return int(psutil.virtual_memory().available)


class AppleProbe:
    """Finds the GPU of an Apple silicon machine.

    `read_variables` gives kernel variables by name; `available_bytes` the host's free memory.
    """

    kind = "apple"

    def __init__(
        self,
        *,
        platform: str = sys.platform,
        read_variables: Callable[[Sequence[str]], Mapping[str, str]] = sysctl,
        available_bytes: Callable[[], int] = _available_bytes,
    ) -> None:
        self._platform = platform
        self._read_variables = read_variables
        self._available_bytes = available_bytes

    def read(self) -> tuple[Reading, ...]:
        """The GPU, with the memory Metal grants it. Raises ProbeFailed."""
        if self._platform != "darwin":
            return ()
        told = self._read_variables((_ARM, _NAME, _MEMORY, _LIMIT))
        if told.get(_ARM) != "1":
            return ()
        memory = _number(told.get(_MEMORY))
        if not memory:
            raise ProbeFailed(f"the kernel tells no {_MEMORY}")
        total = min(memory, _limit(memory, _number(told.get(_LIMIT))))
        free = min(total, self._available_bytes())
        return (
            Reading(
                id=self.kind,
                kind=self.kind,
                index=0,
                name=told.get(_NAME) or "Apple GPU",
                total_mib=total // _MIB,
                used_mib=total // _MIB - free // _MIB,
                notes=("its memory is the host's",),
            ),
        )


def _limit(memory: int, set_mib: int) -> int:
    if set_mib:
        return set_mib * _MIB
    return memory * 2 // 3 if memory <= _SMALL else memory * 3 // 4


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) <= 20 else 0
