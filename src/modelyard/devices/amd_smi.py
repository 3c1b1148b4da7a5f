"""What AMD's library adds to the kernel's files: the names cards are sold by, and processes.

Laws of this file:
- It is optional. If it is not installed, cannot load its library or fails, nothing is added.
- Its answers come from C and from many versions: each is checked before it is believed.

Facts: ROCm documentation, amdsmi Python API: amdsmi_get_gpu_device_bdf,
amdsmi_get_gpu_asic_info ("market_name"), amdsmi_get_gpu_process_list ("pid" and
"memory_usage" with "vram_mem" in bytes).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

_log = logging.getLogger(__name__)


class AmdSmi(Protocol):
    """The functions of `amdsmi` that are used. Handles are opaque."""

    AmdSmiException: type[Exception]

    def amdsmi_init(self) -> object: ...
    def amdsmi_get_processor_handles(self) -> Sequence[object]: ...
    def amdsmi_get_gpu_device_bdf(self, processor_handle: object) -> str: ...
    def amdsmi_get_gpu_asic_info(self, processor_handle: object) -> Mapping[str, object]: ...
    def amdsmi_get_gpu_process_list(self, processor_handle: object) -> Sequence[object]: ...


@dataclass(frozen=True, slots=True)
class SmiCard:
    """What the library tells of one card; memory in bytes."""

    name: str | None = None
    by_process: Mapping[int, int] = field(default_factory=dict)


class SmiReader:
    """Asks the library, if there is one; after its first failure to begin never again."""

    def __init__(self, module: AmdSmi | None = None) -> None:
        self._module = module
        self._begun = False
        self._absent = False

    def read(self) -> dict[str, SmiCard]:
        """What the library tells, by PCI address."""
        smi = self._begin()
        if smi is None:
            return {}
        try:
            handles = smi.amdsmi_get_processor_handles()
        except smi.AmdSmiException:
            _log.debug("amdsmi lists no cards", exc_info=True)
            return {}
        found = {}
        for handle in handles:
            try:
                address = smi.amdsmi_get_gpu_device_bdf(handle).lower()
            except smi.AmdSmiException:
                continue  # a card it cannot place adds nothing
            found[address] = SmiCard(_name(smi, handle), _processes(smi, handle))
        return found

    def _begin(self) -> AmdSmi | None:
        if self._absent:
            return None
        if self._module is None:
            self._module = _installed()
        if self._module is None:
            self._absent = True
        elif not self._begun:
            try:
                self._module.amdsmi_init()
                self._begun = True
            except self._module.AmdSmiException:
                _log.debug("amdsmi does not begin", exc_info=True)
                self._absent = True
        return None if self._absent else self._module


def _installed() -> AmdSmi | None:
    try:
        import amdsmi
    except (ImportError, OSError, KeyError, AttributeError):
        # Its package loads the C library when imported, and how that fails differs by version.
        return None
    return cast(AmdSmi, amdsmi)


def _name(smi: AmdSmi, handle: object) -> str | None:
    try:
        name = smi.amdsmi_get_gpu_asic_info(handle).get("market_name")
    except smi.AmdSmiException:
        return None
    return name if isinstance(name, str) and name not in ("", "N/A") else None


def _processes(smi: AmdSmi, handle: object) -> dict[int, int]:
    held: dict[int, int] = {}
    try:
        processes = smi.amdsmi_get_gpu_process_list(handle)
    except smi.AmdSmiException:
        return held
    for process in processes:
        if not isinstance(process, Mapping):
            continue  # versions before 6.2 give handles here
        memory = process.get("memory_usage")
        size = memory.get("vram_mem") if isinstance(memory, Mapping) else None
        pid = process.get("pid")
        if isinstance(pid, int) and isinstance(size, int) and size > 0:
            held[pid] = held.get(pid, 0) + size
    return held
