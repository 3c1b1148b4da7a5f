"""NVIDIA GPUs, as their management library (NVML) tells of them.

Laws of this file:
- Optional facts that a card, a driver version or a permission withholds are None. Only a card's
  identity and memory must be told; a card that cannot tell them is read with its failure and
  hides no other card.
- A GPU in MIG mode has no memory of its own to give: its instances are the devices, and the GPU
  is never told beside them. Compute instances of one GPU instance share its memory, so only the
  first of them is told.
- Memory reserved by the driver is not there for anybody: `total` is without it, as CUDA sees it.
- The library is begun once, and anew after the driver failed. No library is no failure.

Facts: NVML API reference (docs.nvidia.com/deploy/nvml-api) and nvml.h: "Initialization",
"Device Queries", "Multi Instance GPU Management". A process's memory in a list is all it holds
on the GPU, so one that is in both lists is counted once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from modelyard.devices.base import ProbeFailed, Reading
from modelyard.devices.nvml import (
    DRIVER_FAILURES,
    Code,
    MigMode,
    Nvml,
    code_of,
    explain,
    hint_for,
    library,
)

RENEW_AFTER: Final = 30
"""Readings with a failed card after which the library is begun anew, since a card that was reset
or put back may be seen only then."""
UNEXPLAINED_BYTES: Final = 512 * 2**20
"""More than any idle GPU holds without a process."""
_MIB: Final = 2**20
_NVIDIA_VENDOR: Final = "0x10de"
_DISPLAY_CLASS: Final = "0x03"
_ELSEWHERE: Final = frozenset({"nouveau", "nova_core", "vfio-pci"})
"""Kernel drivers that keep a card from NVIDIA's own, on purpose."""
_VIRTUAL: Final = {
    1: "passed through to this virtual machine",
    2: "a vGPU: its memory is a share of the GPU",
    3: "shared out as vGPUs to virtual machines",
    4: "shared out to virtual machines",
}
"""nvmlGpuVirtualizationMode_t; 0 is bare metal."""
_CLOCK_SM: Final = 1
_CLOCK_MEMORY: Final = 2
_TEMPERATURE_GPU: Final = 0
_NOT_AVAILABLE: Final = 2**64 - 1
T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Card:
    """What stays true of a card as long as it is in its slot."""

    id: str
    name: str
    pci: str | None
    order: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Memory:
    """In bytes, without what the driver reserves."""

    total: int
    used: int


class NvidiaProbe:
    """Finds NVIDIA GPUs and MIG instances.

    `nvml` stands for the module `pynvml` of nvidia-ml-py; the real one is loaded when first
    needed. `pci_devices` tells whether there is a card at all when its driver does not answer.
    """

    kind = "nvidia"

    def __init__(
        self, nvml: Nvml | None = None, *, pci_devices: Path = Path("/sys/bus/pci/devices")
    ) -> None:
        self._nvml = nvml
        self._pci_devices = pci_devices
        self._ready = False
        self._known: dict[int, _Card] = {}
        self._readings_with_failures = 0

    def read(self) -> tuple[Reading, ...]:
        """Every GPU and MIG instance, in the order of their PCI addresses. Raises ProbeFailed."""
        nvml = self._nvml = self._nvml or library()
        if nvml is None:
            return ()
        if self._readings_with_failures >= RENEW_AFTER:
            self._end(nvml)
        try:
            return self._read(nvml)
        except nvml.NVMLError as error:
            if not self._ready:
                raise _failed(error) from error
        # The driver may have been reloaded since the library was begun: once more, from the start.
        self._end(nvml)
        try:
            return self._read(nvml)
        except nvml.NVMLError as error:
            self._end(nvml)
            raise _failed(error) from error

    def _read(self, nvml: Nvml) -> tuple[Reading, ...]:
        if not self._ready:
            try:
                nvml.nvmlInit()
            except nvml.NVMLError as error:
                if self._is_absence(code_of(error)):
                    return ()
                raise
            self._ready = True
        found: list[tuple[tuple[int, int, int], Reading]] = []
        broken: dict[int, Exception] = {}
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                found += self._card(nvml, index)
            except (nvml.NVMLError, UnicodeDecodeError) as error:
                if code_of(error) in DRIVER_FAILURES:
                    raise
                broken[index] = error
        found += self._broken(broken, {reading.id for _, reading in found})
        self._readings_with_failures = self._readings_with_failures + 1 if broken else 0
        found.sort(key=lambda item: item[0])  # stable: instances stay in the order of their GPU
        return tuple(replace(reading, index=n) for n, (_, reading) in enumerate(found))

    def _is_absence(self, code: int | None) -> bool:
        """Whether the library does not begin because there is nothing to find."""
        if code == Code.LIBRARY_NOT_FOUND:
            return True
        absent = code in (Code.DRIVER_NOT_LOADED, Code.GPU_NOT_FOUND)
        return absent and not self._known and not _has_card(self._pci_devices)

    def _end(self, nvml: Nvml) -> None:
        self._ready = False
        self._readings_with_failures = 0
        try:
            nvml.nvmlShutdown()
        except nvml.NVMLError:
            # It failed so far that it cannot even end; to begin anew is all that can be tried.
            _log.debug("NVML did not shut down", exc_info=True)

    def _card(self, nvml: Nvml, index: int) -> list[tuple[tuple[int, int, int], Reading]]:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        card = self._known[index] = _identify(nvml, handle, index)
        modes = _told(nvml, nvml.nvmlDeviceGetMigMode, handle)
        notes = _notes(nvml, handle, modes)
        if modes and modes[0] == MigMode.ENABLED:
            readings = list(_instances(nvml, handle, card, notes))
            if not readings:
                why = "MIG is enabled but there is no instance; make one with `nvidia-smi mig`"
                readings = [_unusable(card, why)]
        else:
            readings = [_whole(nvml, handle, card, notes)]
        return [(card.order, reading) for reading in readings]

    def _broken(
        self, errors: dict[int, Exception], present: set[str]
    ) -> Iterator[tuple[tuple[int, int, int], Reading]]:
        for index, error in errors.items():
            card = self._known.get(index)
            if card is None or card.id in present:
                # It failed before it could say who it is, and whoever had this place is elsewhere.
                card = _Card(f"nvidia-{index}", f"NVIDIA GPU {index}", None, (2**32, 0, index))
            present.add(card.id)
            yield card.order, _unusable(card, explain(error))


def _identify(nvml: Nvml, handle: object, index: int) -> _Card:
    uuid = nvml.nvmlDeviceGetUUID(handle)
    name = _told(nvml, nvml.nvmlDeviceGetName, handle) or f"NVIDIA GPU {index}"
    pci = _told(nvml, nvml.nvmlDeviceGetPciInfo, handle)
    if pci is None:
        return _Card(uuid, name, None, (2**32, 0, index))
    order = (int(pci.domain), int(pci.bus), int(pci.device))
    # As sysfs writes it; NVML's own text has a domain of eight digits.
    return _Card(uuid, name, "{:04x}:{:02x}:{:02x}.0".format(*order), order)


def _whole(nvml: Nvml, handle: object, card: _Card, notes: tuple[str, ...]) -> Reading:
    memory = _memory(nvml, handle)
    if memory is None:
        why = "the driver does not tell its memory, perhaps because it shares the host's"
        return _unusable(card, why)
    load = _told(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    power_mw = _told(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
    return Reading(
        id=card.id,
        kind=NvidiaProbe.kind,
        index=0,
        name=card.name,
        total_mib=memory.total // _MIB,
        used_mib=-(-memory.used // _MIB),
        by_process_mib=_by_process(nvml, handle, memory),
        utilisation=None if load is None else min(100, load.gpu) / 100,
        temperature_c=_temperature(nvml, handle),
        power_w=None if power_mw is None else power_mw / 1000,
        clock_mhz=_told(nvml, nvml.nvmlDeviceGetClockInfo, handle, _CLOCK_SM),
        memory_clock_mhz=_told(nvml, nvml.nvmlDeviceGetClockInfo, handle, _CLOCK_MEMORY),
        pci=card.pci,
        notes=notes,
    )


def _instances(nvml: Nvml, gpu: object, card: _Card, notes: tuple[str, ...]) -> Iterator[Reading]:
    """The MIG instances of a GPU. Load and power are told for whole GPUs only."""
    temperature = _temperature(nvml, gpu)
    first_of: dict[int, Reading] = {}
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        handle = _told(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, place)
        if handle is None:
            continue  # places may be empty
        slice_id = nvml.nvmlDeviceGetGpuInstanceId(handle)
        if slice_id in first_of:
            shared = "its memory is shared with other compute instances, which are left out"
            first_of[slice_id] = replace(
                first_of[slice_id], notes=(*first_of[slice_id].notes, shared)
            )
            continue
        instance = replace(
            card,
            id=nvml.nvmlDeviceGetUUID(handle),
            name=_told(nvml, nvml.nvmlDeviceGetName, handle) or f"{card.name} MIG",
        )
        about = (f"MIG instance of {card.id}", *notes)
        first_of[slice_id] = replace(
            _whole(nvml, handle, instance, about), temperature_c=temperature
        )
    yield from first_of.values()


def _memory(nvml: Nvml, handle: object) -> _Memory | None:
    """Memory with and without what is reserved; drivers before 510 do not tell that apart.

    What is used is reckoned from what is free, for versions of nvml.h disagree on whether `used`
    includes the reserved part.
    """
    told = _told(nvml, nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
    if told is None:
        told = _told(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    if told is None or told.total == 0:
        return None
    reserved: int = getattr(told, "reserved", 0)  # the first version has no such field
    usable = max(0, told.total - reserved)
    return _Memory(usable, max(0, usable - told.free))


def _by_process(nvml: Nvml, handle: object, memory: _Memory) -> dict[int, int] | None:
    """MiB by process id, of those that the driver tells.

    Empty lists on a GPU in use are no answer: within a container's own process ids, the driver
    shows no process.
    """
    lists = (
        (
            nvml.nvmlDeviceGetComputeRunningProcesses_v3,
            nvml.nvmlDeviceGetComputeRunningProcesses_v2,
        ),
        (
            nvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
            nvml.nvmlDeviceGetGraphicsRunningProcesses_v2,
        ),
    )
    held: dict[int, int] = {}
    answered, withheld = False, False
    for newer, older in lists:
        found = _told(nvml, newer, handle)
        if found is None:
            found = _told(nvml, older, handle)
        if found is None:
            continue
        answered = True
        in_list: dict[int, int] = {}
        for process in found:
            used = process.usedGpuMemory
            if used is None or used == _NOT_AVAILABLE or used > memory.total:
                withheld = True
                continue
            in_list[process.pid] = in_list.get(process.pid, 0) + used
        held.update({pid: max(used, held.get(pid, 0)) for pid, used in in_list.items()})
    if not answered or (not held and (withheld or memory.used > UNEXPLAINED_BYTES)):
        return None
    return {pid: -(-used // _MIB) for pid, used in held.items()}


def _temperature(nvml: Nvml, handle: object) -> float | None:
    degrees = _told(nvml, nvml.nvmlDeviceGetTemperature, handle, _TEMPERATURE_GPU)
    return None if degrees is None else float(degrees)


def _notes(nvml: Nvml, handle: object, modes: Sequence[int] | None) -> tuple[str, ...]:
    notes = []
    mode = _told(nvml, nvml.nvmlDeviceGetVirtualizationMode, handle)
    if mode:
        notes.append(_VIRTUAL.get(mode, f"virtualisation mode {mode}"))
    if modes and modes[0] != modes[1]:
        wanted = "enabled" if modes[1] == MigMode.ENABLED else "disabled"
        notes.append(f"MIG mode will be {wanted} after the GPU's next reset")
    return tuple(notes)


def _unusable(card: _Card, failure: str) -> Reading:
    return Reading(
        id=card.id,
        kind=NvidiaProbe.kind,
        index=0,
        name=card.name,
        total_mib=0,
        pci=card.pci,
        failure=failure,
    )


def _told(nvml: Nvml, ask: Callable[..., T], *of: object) -> T | None:
    """What the driver answers, or None where it withholds this fact from this card or caller.

    A failure of the whole card or driver is no such answer and is raised.
    """
    try:
        return ask(*of)
    except nvml.NVMLError as error:
        if code_of(error) in (*DRIVER_FAILURES, Code.GPU_IS_LOST, Code.RESET_REQUIRED):
            raise
        return None
    except UnicodeDecodeError:
        return None  # text of the driver that is not text


def _failed(error: Exception) -> ProbeFailed:
    return ProbeFailed(f"NVIDIA driver: {explain(error)}", hint=hint_for(error))


def _has_card(pci_devices: Path) -> bool:
    """Whether an NVIDIA card is plugged in that no other kernel driver was given."""
    for vendor in sorted(pci_devices.glob("*/vendor")):
        folder = vendor.parent
        try:
            ours = vendor.read_text().strip() == _NVIDIA_VENDOR
            display = (folder / "class").read_text().startswith(_DISPLAY_CLASS)
        except OSError:
            continue  # gone since it was listed
        if ours and display and (folder / "driver").resolve().name not in _ELSEWHERE:
            return True
    return False
