"""A stand-in for NVIDIA's management library, for machines without its GPUs.

Laws of this file:
- Functions have the names, parameters, results and exceptions of nvidia-ml-py's `pynvml`; a test
  compares them. Exceptions and constants are that module's own.
- A world is described by plain values that may change at any time, as cards do: `FakeNvml.cards`.
- What a real driver refuses is refused: calls before the library has begun, whole-GPU facts of MIG
  instances, anything of a lost card.

Source: NVML API reference (docs.nvidia.com/deploy/nvml-api), "Device Queries", "Multi Instance GPU
Management", "Initialization and Cleanup", and the text of pynvml.
"""

# ruff: noqa: N802, A002

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from modelyard.devices.nvml import MemoryInfo, PciInfo, ProcessInfo, Utilization

MIB: Final = 2**20
HANG_LIMIT_S: Final = 60.0
"""A call that hangs gives up after this time, so that a forgotten one cannot hold a test run."""


@dataclass(slots=True)
class FakeProcess:
    """A process on a card. `mib` None is what drivers say under Windows (WDDM) and in vGPUs."""

    pid: int
    mib: int | None
    compute: bool = True
    graphics: bool = False


@dataclass(slots=True)
class FakeInstance:
    """A compute instance of a MIG GPU. Instances with one `gpu_instance` share its memory."""

    uuid: str
    gpu_instance: int
    total_mib: int = 9856
    reserved_mib: int = 0
    profile: str = "1g.10gb"
    processes: list[FakeProcess] = field(default_factory=list)


@dataclass(slots=True)
class FakeCard:
    """A GPU. Facts that are None are not supported by it."""

    uuid: str
    name: str = "NVIDIA GeForce RTX 4090"
    domain: int = 0
    bus: int = 1
    device: int = 0
    total_mib: int = 24564
    reserved_mib: int = 372
    processes: list[FakeProcess] = field(default_factory=list)
    unseen_mib: int = 0
    """Memory in use that no process is listed for."""
    gpu_percent: int | None = 0
    temperature_c: int | None = 41
    power_mw: int | None = 21_500
    clock_mhz: int | None = 210
    memory_clock_mhz: int | None = 405
    virtualization: int = 0
    mig: tuple[int, int] | None = None
    """Current and pending mode, 1 is enabled; None on GPUs that cannot."""
    instances: list[FakeInstance | None] = field(default_factory=list)
    """Places of MIG instances; None is an empty place."""
    failing: dict[str, int] = field(default_factory=dict)
    """Function names that end with this error code when asked of this card."""


@dataclass(frozen=True, slots=True)
class _Handle:
    card: FakeCard
    generation: int
    instance: FakeInstance | None = None


class FakeNvml:
    """In place of the module `pynvml`.

    `init_error` makes the library refuse to begin. `memory_v2` and `processes_v3` False are drivers
    that are too old for them. `begun` counts how often it began.
    """

    def __init__(self, cards: list[FakeCard] | None = None) -> None:
        import pynvml

        self._pynvml = pynvml
        self.NVMLError: type[Exception] = pynvml.NVMLError
        self.nvmlMemory_v2: int = pynvml.nvmlMemory_v2
        self.cards = cards or []
        self.init_error: int | None = None
        self.memory_v2 = True
        self.processes_v3 = True
        self.begun = 0
        self._users = 0
        self._generation = 0
        self._hanging: set[str] = set()
        self._released = threading.Event()

    def lose(self, card: FakeCard) -> None:
        """The card falls off its bus: whatever is asked of it ends so."""
        card.failing["*"] = self._pynvml.NVML_ERROR_GPU_IS_LOST

    def reload_driver(self) -> None:
        """The kernel module is unloaded and loaded: the library must begin anew."""
        self._users = 0
        self._generation += 1

    def hang(self, function: str) -> None:
        """Calls of that function do not return until `release`."""
        self._released.clear()
        self._hanging.add(function)

    def release(self) -> None:
        self._hanging.clear()
        self._released.set()

    def nvmlInit(self) -> None:
        self._maybe_hang("nvmlInit")
        if self.init_error is not None:
            raise self._error(self.init_error)
        self.begun += 1
        self._users += 1

    def nvmlShutdown(self) -> None:
        self._check("nvmlShutdown")
        self._users -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._check("nvmlDeviceGetCount")
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:
        self._check("nvmlDeviceGetHandleByIndex")
        if not 0 <= index < len(self.cards):
            raise self._error(self._pynvml.NVML_ERROR_INVALID_ARGUMENT)
        handle = _Handle(self.cards[index], self._generation)
        self._of(handle, "nvmlDeviceGetHandleByIndex")
        return handle

    def nvmlDeviceGetUUID(self, handle: object) -> str:
        of = self._of(handle, "nvmlDeviceGetUUID")
        return of.instance.uuid if of.instance else of.card.uuid

    def nvmlDeviceGetName(self, handle: object) -> str:
        of = self._of(handle, "nvmlDeviceGetName")
        return f"{of.card.name} MIG {of.instance.profile}" if of.instance else of.card.name

    def nvmlDeviceGetPciInfo(self, handle: object) -> PciInfo:
        card = self._whole(handle, "nvmlDeviceGetPciInfo")
        text = f"{card.domain:08X}:{card.bus:02X}:{card.device:02X}.0"
        return SimpleNamespace(
            domain=card.domain, bus=card.bus, device=card.device, busId=text, busIdLegacy=text[4:]
        )

    def nvmlDeviceGetMemoryInfo(self, handle: object, version: int | None = None) -> MemoryInfo:
        of = self._of(handle, "nvmlDeviceGetMemoryInfo")
        if version and not self.memory_v2:
            raise self._error(self._pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        source = of.instance or of.card
        sharing = [of.instance] if of.instance else []
        if of.instance:
            slice_id = of.instance.gpu_instance
            sharing = [i for i in of.card.instances if i and i.gpu_instance == slice_id]
        holders = [p for i in sharing for p in i.processes] if sharing else of.card.processes
        held = sum(process.mib or 0 for process in holders)
        used = (held + (0 if of.instance else of.card.unseen_mib)) * MIB
        total, reserved = source.total_mib * MIB, source.reserved_mib * MIB
        free = total - reserved - used
        if version:
            return SimpleNamespace(
                version=version, total=total, reserved=reserved, free=free, used=used
            )
        return SimpleNamespace(total=total, free=free, used=used + reserved)

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: object) -> list[ProcessInfo]:
        return self._processes(handle, "nvmlDeviceGetComputeRunningProcesses_v3", graphics=False)

    def nvmlDeviceGetComputeRunningProcesses_v2(self, handle: object) -> list[ProcessInfo]:
        return self._processes(handle, "nvmlDeviceGetComputeRunningProcesses_v2", graphics=False)

    def nvmlDeviceGetGraphicsRunningProcesses_v3(self, handle: object) -> list[ProcessInfo]:
        return self._processes(handle, "nvmlDeviceGetGraphicsRunningProcesses_v3", graphics=True)

    def nvmlDeviceGetGraphicsRunningProcesses_v2(self, handle: object) -> list[ProcessInfo]:
        return self._processes(handle, "nvmlDeviceGetGraphicsRunningProcesses_v2", graphics=True)

    def nvmlDeviceGetUtilizationRates(self, handle: object) -> Utilization:
        card = self._whole(handle, "nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=self._supported(card.gpu_percent), memory=0)

    def nvmlDeviceGetTemperature(self, handle: object, sensor: int) -> int:
        card = self._whole(handle, "nvmlDeviceGetTemperature")
        if sensor != self._pynvml.NVML_TEMPERATURE_GPU:
            raise self._error(self._pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self._supported(card.temperature_c)

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:
        card = self._whole(handle, "nvmlDeviceGetPowerUsage")
        return self._supported(card.power_mw)

    def nvmlDeviceGetClockInfo(self, handle: object, type: int) -> int:
        card = self._whole(handle, "nvmlDeviceGetClockInfo")
        if type == self._pynvml.NVML_CLOCK_MEM:
            return self._supported(card.memory_clock_mhz)
        return self._supported(card.clock_mhz)

    def nvmlDeviceGetVirtualizationMode(self, handle: object) -> int:
        return self._whole(handle, "nvmlDeviceGetVirtualizationMode").virtualization

    def nvmlDeviceGetMigMode(self, device: object) -> list[int]:
        card = self._whole(device, "nvmlDeviceGetMigMode")
        if card.mig is None:
            raise self._error(self._pynvml.NVML_ERROR_NOT_SUPPORTED)
        return list(card.mig)

    def nvmlDeviceGetMaxMigDeviceCount(self, device: object) -> int:
        card = self._whole(device, "nvmlDeviceGetMaxMigDeviceCount")
        return max(7, len(card.instances)) if card.mig else 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: object, index: int) -> object:
        card = self._whole(device, "nvmlDeviceGetMigDeviceHandleByIndex")
        instance = card.instances[index] if index < len(card.instances) else None
        if instance is None:
            raise self._error(self._pynvml.NVML_ERROR_NOT_FOUND)
        return _Handle(card, self._generation, instance)

    def nvmlDeviceGetGpuInstanceId(self, device: object) -> int:
        of = self._of(device, "nvmlDeviceGetGpuInstanceId")
        if of.instance is None:
            raise self._error(self._pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return of.instance.gpu_instance

    def _processes(self, handle: object, function: str, *, graphics: bool) -> list[ProcessInfo]:
        of = self._of(handle, function)
        if function.endswith("v3") and not self.processes_v3:
            raise self._error(self._pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        none = 2**32 - 1
        of_whom = of.instance or of.card
        return [
            SimpleNamespace(
                pid=process.pid,
                usedGpuMemory=None if process.mib is None else process.mib * MIB,
                gpuInstanceId=of.instance.gpu_instance if of.instance else none,
                computeInstanceId=0 if of.instance else none,
            )
            for process in of_whom.processes
            if (process.graphics if graphics else process.compute)
        ]

    def _supported(self, value: int | None) -> int:
        if value is None:
            raise self._error(self._pynvml.NVML_ERROR_NOT_SUPPORTED)
        return value

    def _whole(self, handle: object, function: str) -> FakeCard:
        of = self._of(handle, function)
        if of.instance:
            raise self._error(self._pynvml.NVML_ERROR_NOT_SUPPORTED)
        return of.card

    def _of(self, handle: object, function: str) -> _Handle:
        self._check(function)
        if not isinstance(handle, _Handle) or handle.generation != self._generation:
            raise self._error(self._pynvml.NVML_ERROR_INVALID_ARGUMENT)
        code = handle.card.failing.get(function, handle.card.failing.get("*"))
        if code is not None:
            raise self._error(code)
        return handle

    def _check(self, function: str) -> None:
        self._maybe_hang(function)
        if not self._users:
            raise self._error(self._pynvml.NVML_ERROR_UNINITIALIZED)

    def _maybe_hang(self, function: str) -> None:
        if function in self._hanging:
            self._released.wait(HANG_LIMIT_S)

    def _error(self, code: int) -> Exception:
        return self.NVMLError(code)
