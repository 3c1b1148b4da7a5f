"""The stand-in of NVML is held against the real binding."""

from __future__ import annotations

import inspect

import pynvml  # noqa: TID253 what the stand-in stands for
import pytest

from modelyard.testing.nvml import MIB, FakeCard, FakeInstance, FakeNvml, FakeProcess

FUNCTIONS = sorted(name for name in vars(FakeNvml) if name.startswith("nvml"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_the_parameters_of_the_real_binding(name: str) -> None:
    ours = inspect.signature(getattr(FakeNvml, name)).parameters.values()
    real = inspect.signature(getattr(pynvml, name)).parameters.values()

    assert [(p.name, p.default) for p in list(ours)[1:]] == [(p.name, p.default) for p in real]


def test_errors_are_the_real_ones() -> None:
    nvml = FakeNvml([FakeCard("GPU-1")])

    with pytest.raises(pynvml.NVMLError_Uninitialized):
        nvml.nvmlDeviceGetCount()
    nvml.nvmlInit()
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetHandleByIndex(1)
    nvml.lose(nvml.cards[0])
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        nvml.nvmlDeviceGetHandleByIndex(0)


def test_it_ends_when_everybody_who_began_has_ended() -> None:
    nvml = FakeNvml()
    nvml.nvmlInit()
    nvml.nvmlInit()
    nvml.nvmlShutdown()
    assert nvml.nvmlDeviceGetCount() == 0

    nvml.nvmlShutdown()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        nvml.nvmlShutdown()


def test_both_versions_of_memory_add_up_to_the_whole() -> None:
    nvml = FakeNvml([FakeCard("GPU-1", processes=[FakeProcess(1, 500)], unseen_mib=20)])
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByIndex(0)

    first = nvml.nvmlDeviceGetMemoryInfo(handle)
    second = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)

    assert first.used + first.free == first.total == second.total == 24564 * MIB
    assert (first.used, second.used) == (892 * MIB, 520 * MIB)
    assert first.free == second.free


def test_what_is_told_for_whole_gpus_is_not_told_for_instances() -> None:
    nvml = FakeNvml([FakeCard("GPU-1", mig=(1, 1), instances=[FakeInstance("MIG-1", 3)])])
    nvml.nvmlInit()
    gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)

    assert nvml.nvmlDeviceGetUUID(instance) == "MIG-1"
    with pytest.raises(pynvml.NVMLError_NotSupported):
        nvml.nvmlDeviceGetUtilizationRates(instance)
    with pytest.raises(pynvml.NVMLError_NotFound):
        nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 1)
