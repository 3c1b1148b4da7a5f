"""NVIDIA GPUs, through a stand-in of their management library."""

from __future__ import annotations

import threading
from pathlib import Path

import pynvml  # noqa: TID253 the numbers of the real library
import pytest

from modelyard.devices.base import ProbeFailed, Reading
from modelyard.devices.nvidia import RENEW_AFTER, NvidiaProbe
from modelyard.devices.nvml import Code, MigMode
from modelyard.testing.nvml import FakeCard, FakeInstance, FakeNvml, FakeProcess

HOPPER = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """The PCI bus of a machine without an NVIDIA card."""
    return tmp_path / "pci"


def plug_in(pci: Path, driver: str | None = None, vendor: str = "0x10de") -> None:
    card = pci / "0000:01:00.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text(f"{vendor}\n")
    (card / "class").write_text("0x030000\n")
    if driver:
        (card / "driver").symlink_to(pci.parent / driver)


def hopper(*instances: FakeInstance | None, pending: int = 1) -> FakeCard:
    return FakeCard(
        "GPU-h", name=HOPPER, total_mib=81559, mig=(1, pending), instances=list(instances)
    )


def test_a_gpu_tells_everything_its_driver_knows() -> None:
    card = FakeCard(
        "GPU-1",
        name="NVIDIA GeForce RTX 4060 Laptop GPU",
        bus=0x2F,
        total_mib=8188,
        reserved_mib=225,
        processes=[FakeProcess(71, 3000), FakeProcess(72, 150, compute=False, graphics=True)],
        gpu_percent=64,
        temperature_c=58,
        power_mw=71_250,
        clock_mhz=2370,
        memory_clock_mhz=8001,
    )

    assert NvidiaProbe(FakeNvml([card])).read() == (
        Reading(
            id="GPU-1",
            kind="nvidia",
            index=0,
            name="NVIDIA GeForce RTX 4060 Laptop GPU",
            total_mib=8188 - 225,
            used_mib=3150,
            by_process_mib={71: 3000, 72: 150},
            utilisation=0.64,
            temperature_c=58.0,
            power_w=71.25,
            clock_mhz=2370,
            memory_clock_mhz=8001,
            pci="0000:2f:00.0",
        ),
    )


def test_identical_gpus_stand_in_the_order_of_their_pci_addresses() -> None:
    cards = [
        FakeCard("GPU-c", domain=1, bus=1),
        FakeCard("GPU-b", bus=0x81),
        FakeCard("GPU-a", bus=0x21),
    ]

    readings = NvidiaProbe(FakeNvml(cards)).read()

    assert [(r.index, r.id, r.pci) for r in readings] == [
        (0, "GPU-a", "0000:21:00.0"),
        (1, "GPU-b", "0000:81:00.0"),
        (2, "GPU-c", "0001:01:00.0"),
    ]


def test_a_process_in_both_lists_is_counted_once_and_entries_of_one_list_are_added() -> None:
    card = FakeCard(
        "GPU-1",
        processes=[
            FakeProcess(71, 1000, graphics=True),
            FakeProcess(72, 300),
            FakeProcess(72, 200),
        ],
    )

    (reading,) = NvidiaProbe(FakeNvml([card])).read()

    assert reading.by_process_mib == {71: 1000, 72: 500}


@pytest.mark.parametrize(
    ("processes", "told"),
    [
        ([], {}),
        ([FakeProcess(71, None)], None),
        ([FakeProcess(71, None), FakeProcess(72, 40)], {72: 40}),
        ([FakeProcess(71, 2**44 - 1)], None),
    ],
)
def test_memory_that_is_not_told_for_a_process_is_not_guessed(
    processes: list[FakeProcess], told: dict[int, int] | None
) -> None:
    (reading,) = NvidiaProbe(FakeNvml([FakeCard("GPU-1", processes=processes)])).read()

    assert reading.by_process_mib == told


def test_no_process_on_a_gpu_in_use_means_that_processes_are_not_told() -> None:
    card = FakeCard("GPU-1", unseen_mib=4000)

    (reading,) = NvidiaProbe(FakeNvml([card])).read()

    assert (reading.used_mib, reading.by_process_mib) == (4000, None)


def test_an_old_driver_tells_memory_with_what_it_reserves() -> None:
    nvml = FakeNvml([FakeCard("GPU-1", processes=[FakeProcess(71, 1000)])])
    nvml.memory_v2 = nvml.processes_v3 = False

    (reading,) = NvidiaProbe(nvml).read()

    assert (reading.total_mib, reading.used_mib) == (24564, 1372)
    assert reading.by_process_mib == {71: 1000}


def test_facts_that_a_card_does_not_support_are_none() -> None:
    refused = Code.NO_PERMISSION
    card = FakeCard(
        "GPU-1",
        gpu_percent=None,
        temperature_c=None,
        power_mw=None,
        clock_mhz=None,
        memory_clock_mhz=None,
        failing={
            f"nvmlDeviceGet{what}RunningProcesses_v{version}": refused
            for what in ("Compute", "Graphics")
            for version in (2, 3)
        },
    )

    (reading,) = NvidiaProbe(FakeNvml([card])).read()

    assert (reading.total_mib, reading.used_mib, reading.failure) == (24192, 0, None)
    assert (reading.utilisation, reading.temperature_c, reading.power_w) == (None, None, None)
    assert (reading.clock_mhz, reading.memory_clock_mhz) == (None, None)
    assert reading.by_process_mib is None


@pytest.mark.parametrize("what", ["Name", "PciInfo"])
def test_a_card_without_a_name_or_an_address_is_still_a_device(what: str) -> None:
    card = FakeCard("GPU-1", failing={f"nvmlDeviceGet{what}": Code.UNKNOWN})

    (reading,) = NvidiaProbe(FakeNvml([card])).read()

    assert (reading.id, reading.failure) == ("GPU-1", None)
    assert reading.name == ("NVIDIA GPU 0" if what == "Name" else card.name)


def test_a_gpu_that_shares_the_hosts_memory_tells_none_of_its_own() -> None:
    card = FakeCard("GPU-1", name="NVIDIA GB10")
    card.failing["nvmlDeviceGetMemoryInfo"] = Code.NOT_SUPPORTED

    (reading,) = NvidiaProbe(FakeNvml([card])).read()

    assert reading.total_mib == 0
    assert "does not tell its memory" in (reading.failure or "")


def test_a_vgpu_is_noted() -> None:
    (reading,) = NvidiaProbe(FakeNvml([FakeCard("GPU-1", virtualization=2)])).read()

    assert reading.notes == ("a vGPU: its memory is a share of the GPU",)


def test_the_instances_of_a_gpu_in_mig_mode_are_devices_and_the_gpu_is_not() -> None:
    first = FakeInstance("MIG-1", 7, processes=[FakeProcess(71, 2000)])
    second = FakeInstance("MIG-2", 9, total_mib=40192, profile="3g.40gb")
    plain = FakeCard("GPU-x", bus=9)

    one, two, other = NvidiaProbe(FakeNvml([plain, hopper(None, first, second)])).read()

    assert [(r.index, r.id) for r in (one, two, other)] == [
        (0, "MIG-1"),
        (1, "MIG-2"),
        (2, "GPU-x"),
    ]
    assert (one.name, two.name) == (f"{HOPPER} MIG 1g.10gb", f"{HOPPER} MIG 3g.40gb")
    assert [r.total_mib for r in (one, two)] == [9856, 40192]
    assert [r.by_process_mib for r in (one, two)] == [{71: 2000}, {}]
    assert (one.pci, one.temperature_c, one.power_w, one.utilisation) == (
        "0000:01:00.0",
        41.0,
        None,
        None,
    )
    assert one.notes == ("MIG instance of GPU-h",)


def test_compute_instances_that_share_memory_are_one_device() -> None:
    shared = [FakeInstance("MIG-1", 7), FakeInstance("MIG-2", 7), FakeInstance("MIG-3", 8)]

    one, other = NvidiaProbe(FakeNvml([hopper(*shared)])).read()

    assert [one.id, other.id] == ["MIG-1", "MIG-3"]
    assert "shared with other compute instances" in one.notes[-1]
    assert other.notes == ("MIG instance of GPU-h",)


def test_a_gpu_in_mig_mode_without_instances_has_nothing_to_give() -> None:
    (reading,) = NvidiaProbe(FakeNvml([hopper()])).read()

    assert (reading.id, reading.total_mib) == ("GPU-h", 0)
    assert "there is no instance" in (reading.failure or "")


def test_a_mode_that_waits_for_a_reset_is_noted() -> None:
    (reading,) = NvidiaProbe(FakeNvml([hopper(FakeInstance("MIG-1", 7), pending=0)])).read()

    assert "MIG mode will be disabled after the GPU's next reset" in reading.notes


def test_a_lost_gpu_is_told_as_lost_and_hides_no_other() -> None:
    lost, well = FakeCard("GPU-1", bus=1), FakeCard("GPU-2", bus=2)
    nvml = FakeNvml([lost, well])
    probe = NvidiaProbe(nvml)
    before = probe.read()
    nvml.lose(lost)

    after = probe.read()

    assert [(r.id, r.pci, r.total_mib) for r in after] == [
        ("GPU-1", "0000:01:00.0", 0),
        ("GPU-2", "0000:02:00.0", 24192),
    ]
    assert after[0].failure == "it fell off its bus and answers no more (NVML 15: GPU is lost)"
    assert after[1] == before[1]
    assert nvml.begun == 1


def test_a_gpu_that_was_lost_before_it_was_known_is_told_by_its_number() -> None:
    lost = FakeCard("GPU-1")
    nvml = FakeNvml([lost, FakeCard("GPU-2", bus=2)])
    nvml.lose(lost)

    readings = NvidiaProbe(nvml).read()

    assert [(r.id, r.failure is None) for r in readings] == [("GPU-2", True), ("nvidia-0", False)]


def test_a_gpu_that_needs_a_reset_cannot_be_used() -> None:
    card = FakeCard("GPU-1", failing={"nvmlDeviceGetMemoryInfo": Code.RESET_REQUIRED})

    (reading,) = NvidiaProbe(FakeNvml([card])).read()

    assert reading.total_mib == 0
    assert "must be reset" in (reading.failure or "")


def test_a_gpu_that_comes_back_is_seen_once_the_library_begins_anew() -> None:
    card = FakeCard("GPU-1")
    nvml = FakeNvml([card])
    probe = NvidiaProbe(nvml)
    nvml.lose(card)
    for _ in range(RENEW_AFTER):
        probe.read()
    begun_while_lost = nvml.begun
    card.failing.clear()

    (reading,) = probe.read()

    assert reading.failure is None
    assert (begun_while_lost, nvml.begun) == (1, 2)


def test_a_card_that_is_unplugged_is_gone_and_one_that_is_plugged_in_is_there() -> None:
    nvml = FakeNvml([FakeCard("GPU-1"), FakeCard("GPU-2", bus=2)])
    probe = NvidiaProbe(nvml)
    probe.read()
    nvml.cards = [FakeCard("GPU-3", bus=3), nvml.cards[1]]

    assert [r.id for r in probe.read()] == ["GPU-2", "GPU-3"]


def test_the_library_begins_once_for_many_readings() -> None:
    nvml = FakeNvml([FakeCard("GPU-1")])
    probe = NvidiaProbe(nvml)

    assert probe.read() == probe.read() == probe.read()
    assert nvml.begun == 1


def test_a_driver_that_was_reloaded_is_begun_anew_at_once() -> None:
    nvml = FakeNvml([FakeCard("GPU-1")])
    probe = NvidiaProbe(nvml)
    before = probe.read()
    nvml.reload_driver()

    assert probe.read() == before
    assert nvml.begun == 2


def test_a_driver_that_stays_away_fails_until_it_is_back(nowhere: Path) -> None:
    nvml = FakeNvml([FakeCard("GPU-1")])
    probe = NvidiaProbe(nvml, pci_devices=nowhere)
    before = probe.read()
    nvml.reload_driver()
    nvml.init_error = Code.DRIVER_NOT_LOADED

    for _ in range(2):
        with pytest.raises(ProbeFailed, match="kernel module is not loaded") as failed:
            probe.read()
        assert "modprobe nvidia" in (failed.value.hint or "")

    nvml.init_error = None
    assert probe.read() == before


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (Code.LIB_RM_VERSION_MISMATCH, "different versions"),
        (Code.NO_PERMISSION, "may not talk to it"),
        (Code.OPERATING_SYSTEM, "operating system blocked access"),
        (Code.UNKNOWN, "NVML error 999: Unknown Error"),
    ],
)
def test_a_driver_that_does_not_begin_says_why(code: Code, reason: str) -> None:
    nvml = FakeNvml([FakeCard("GPU-1")])
    nvml.init_error = code

    with pytest.raises(ProbeFailed, match=reason):
        NvidiaProbe(nvml).read()


def test_without_the_library_there_are_no_devices(nowhere: Path) -> None:
    plug_in(nowhere)
    nvml = FakeNvml()
    nvml.init_error = Code.LIBRARY_NOT_FOUND

    assert NvidiaProbe(nvml, pci_devices=nowhere).read() == ()


@pytest.mark.parametrize("driver", ["vfio-pci", "nouveau"])
def test_a_library_without_its_driver_is_no_failure_where_no_card_is_for_it(
    nowhere: Path, driver: str
) -> None:
    nvml = FakeNvml()
    nvml.init_error = Code.DRIVER_NOT_LOADED
    assert NvidiaProbe(nvml, pci_devices=nowhere).read() == ()

    plug_in(nowhere, driver)
    assert NvidiaProbe(nvml, pci_devices=nowhere).read() == ()


def test_a_card_whose_driver_is_not_loaded_is_a_failure(nowhere: Path) -> None:
    plug_in(nowhere)
    nvml = FakeNvml()
    nvml.init_error = Code.DRIVER_NOT_LOADED

    with pytest.raises(ProbeFailed, match="kernel module is not loaded"):
        NvidiaProbe(nvml, pci_devices=nowhere).read()


def test_a_call_that_hangs_holds_only_its_own_thread() -> None:
    nvml = FakeNvml([FakeCard("GPU-1")])
    nvml.hang("nvmlDeviceGetMemoryInfo")
    readings: list[Reading] = []
    thread = threading.Thread(target=lambda: readings.extend(NvidiaProbe(nvml).read()))
    thread.start()
    thread.join(timeout=0.05)
    held = thread.is_alive()

    nvml.release()
    thread.join(timeout=60)

    assert held
    assert [r.id for r in readings] == ["GPU-1"]


def test_numbers_are_those_of_the_real_library() -> None:
    for code in Code:
        assert getattr(pynvml, f"NVML_ERROR_{code.name}") == code
    assert (pynvml.NVML_DEVICE_MIG_DISABLE, pynvml.NVML_DEVICE_MIG_ENABLE) == (
        MigMode.DISABLED,
        MigMode.ENABLED,
    )
    assert (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM, pynvml.NVML_TEMPERATURE_GPU) == (1, 2, 0)
    assert pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value == 2**64 - 1


def test_the_real_library_tells_devices_or_that_there_are_none() -> None:
    try:
        readings = NvidiaProbe().read()
    except ProbeFailed as failed:
        assert failed.message.startswith("NVIDIA driver: ")  # noqa: PT017
    else:
        assert all(r.total_mib > 0 or r.failure for r in readings)
