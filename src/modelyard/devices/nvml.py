"""The part of NVIDIA's management library that the probe uses, with types and words.

Laws of this file:
- Names, parameters and numbers are those of nvidia-ml-py's module `pynvml` and of nvml.h.
- The library is imported only when a probe asks for it: it loads the driver's own code.
"""

# ruff: noqa: N802, N815

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, Protocol, cast


class Code(IntEnum):
    """nvmlReturn_t, as far as it matters here."""

    UNINITIALIZED = 1
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    NOT_FOUND = 6
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    LIBRARY_NOT_FOUND = 12
    FUNCTION_NOT_FOUND = 13
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    OPERATING_SYSTEM = 17
    LIB_RM_VERSION_MISMATCH = 18
    GPU_NOT_FOUND = 28
    UNKNOWN = 999


class MigMode(IntEnum):
    DISABLED = 0
    ENABLED = 1


DRIVER_FAILURES: Final[frozenset[int]] = frozenset(
    {
        Code.UNINITIALIZED,
        Code.DRIVER_NOT_LOADED,
        Code.LIBRARY_NOT_FOUND,
        Code.LIB_RM_VERSION_MISMATCH,
    }
)
"""What concerns the driver as a whole, whichever card was asked for."""


class MemoryInfo(Protocol):
    """nvmlMemory_t, in bytes. The second version has `reserved` too."""

    total: int
    free: int
    used: int


class ProcessInfo(Protocol):
    """nvmlProcessInfo_t. `usedGpuMemory` is in bytes, None where it is not told."""

    pid: int
    usedGpuMemory: int | None


class PciInfo(Protocol):
    domain: int
    bus: int
    device: int


class Utilization(Protocol):
    """Per cent of the last sample period."""

    gpu: int


class Nvml(Protocol):
    """The functions of `pynvml` that are used. Handles are opaque."""

    NVMLError: type[Exception]
    nvmlMemory_v2: int

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> object: ...
    def nvmlDeviceGetUUID(self, handle: object) -> str: ...
    def nvmlDeviceGetName(self, handle: object) -> str: ...
    def nvmlDeviceGetPciInfo(self, handle: object) -> PciInfo: ...
    def nvmlDeviceGetMemoryInfo(self, handle: object, version: int | None = None) -> MemoryInfo: ...
    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: object) -> Sequence[ProcessInfo]: ...
    def nvmlDeviceGetComputeRunningProcesses_v2(self, handle: object) -> Sequence[ProcessInfo]: ...
    def nvmlDeviceGetGraphicsRunningProcesses_v3(self, handle: object) -> Sequence[ProcessInfo]: ...
    def nvmlDeviceGetGraphicsRunningProcesses_v2(self, handle: object) -> Sequence[ProcessInfo]: ...
    def nvmlDeviceGetUtilizationRates(self, handle: object) -> Utilization: ...
    def nvmlDeviceGetTemperature(self, handle: object, sensor: int) -> int: ...
    def nvmlDeviceGetPowerUsage(self, handle: object) -> int: ...
    def nvmlDeviceGetClockInfo(self, handle: object, type: int) -> int: ...  # noqa: A002
    def nvmlDeviceGetVirtualizationMode(self, handle: object) -> int: ...
    def nvmlDeviceGetMigMode(self, device: object) -> Sequence[int]: ...
    def nvmlDeviceGetMaxMigDeviceCount(self, device: object) -> int: ...
    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: object, index: int) -> object: ...
    def nvmlDeviceGetGpuInstanceId(self, device: object) -> int: ...


_WORDS: Final = {
    Code.NO_PERMISSION: "this user may not talk to it",
    Code.DRIVER_NOT_LOADED: "its kernel module is not loaded",
    Code.GPU_IS_LOST: "it fell off its bus and answers no more",
    Code.RESET_REQUIRED: "it stopped after an error and must be reset",
    Code.OPERATING_SYSTEM: "the operating system blocked access",
    Code.LIB_RM_VERSION_MISMATCH: "its library and its kernel module are of different versions",
    Code.TIMEOUT: "it took too long to answer",
}
_HINTS: Final = {
    Code.NO_PERMISSION: "add this user to the group that may open /dev/nvidia*",
    Code.DRIVER_NOT_LOADED: "load it with `modprobe nvidia`, and see `dmesg` if that fails",
    Code.LIB_RM_VERSION_MISMATCH: "the driver was updated: reboot, or unload and load its module",
    Code.OPERATING_SYSTEM: "check that the container or virtual machine was given the GPU",
}


def library() -> Nvml | None:
    """The real library's binding, or None where it is not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    return cast(Nvml, pynvml)


def code_of(error: Exception) -> int | None:
    """The nvmlReturn_t that an error of the binding stands for."""
    code = getattr(error, "value", None)
    return code if isinstance(code, int) else None


def explain(error: Exception) -> str:
    """What happened, in words and as the driver says it."""
    code = code_of(error)
    words = next((text for known, text in _WORDS.items() if known == code), None)
    return f"{words} (NVML {code}: {error})" if words else f"NVML error {code}: {error}"


def hint_for(error: Exception) -> str | None:
    code = code_of(error)
    return next((text for known, text in _HINTS.items() if known == code), None)
