"""AMD cards, in trees of files as amdgpu shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from modelyard.devices.amd import AmdProbe
from modelyard.devices.base import ProbeFailed, Reading

GIB = 2**30
CARD: dict[str, object] = {
    "device": "0x744c",
    "revision": "0xc8",
    "mem_info_vram_total": 24 * GIB,
    "mem_info_vram_used": 3 * GIB + 1,
    "mem_info_gtt_total": 16 * GIB,
    "gpu_busy_percent": 37,
    "unique_id": "7a3c5be8019fd264",
    "power/runtime_status": "active",
    "hwmon/hwmon4/name": "amdgpu",
    "hwmon/hwmon4/temp1_input": 51000,
    "hwmon/hwmon4/power1_average": 88_500_000,
    "hwmon/hwmon4/freq1_input": 1_850_000_000,
    "pp_dpm_sclk": "0: 500Mhz\n1: 2000Mhz *\n2: 2500Mhz",
    "pp_dpm_mclk": "0: 96Mhz\n1: 456Mhz\n2: 1249Mhz *",
    "gpu_metrics": bytes([120, 0, 1, 3]),
}


class SmiError(Exception):
    pass


class NoSmi:
    """`amdsmi` on a machine where its library does not begin; it must not be asked further."""

    AmdSmiException: type[Exception] = SmiError
    begun = 0

    def amdsmi_init(self) -> None:
        self.begun += 1
        raise SmiError("driver not loaded")

    def amdsmi_get_processor_handles(self) -> Sequence[object]:
        raise AssertionError

    def amdsmi_get_gpu_device_bdf(self, processor_handle: object) -> str:
        raise AssertionError(processor_handle)

    def amdsmi_get_gpu_asic_info(self, processor_handle: object) -> Mapping[str, object]:
        raise AssertionError(processor_handle)

    def amdsmi_get_gpu_process_list(self, processor_handle: object) -> Sequence[object]:
        raise AssertionError(processor_handle)


class Smi(NoSmi):
    """`amdsmi` with answers by handle; an answer that is an exception is raised."""

    def __init__(self, cards: dict[str, tuple[Any, Any]]) -> None:
        self.cards = cards

    def amdsmi_init(self) -> None:
        self.begun += 1

    def amdsmi_get_processor_handles(self) -> Sequence[object]:
        return list(self.cards)

    def amdsmi_get_gpu_device_bdf(self, processor_handle: object) -> str:
        return str(processor_handle)

    def amdsmi_get_gpu_asic_info(self, processor_handle: object) -> Mapping[str, object]:
        return {"market_name": self.cards[str(processor_handle)][0]}

    def amdsmi_get_gpu_process_list(self, processor_handle: object) -> Sequence[object]:
        answer = self.cards[str(processor_handle)][1]
        if isinstance(answer, Exception):
            raise answer
        return list(answer)


def probe(machine: Any, smi: NoSmi | None = None) -> AmdProbe:
    root = machine.root
    return AmdProbe(
        sys=root / "sys", proc=root / "proc", share=root / "usr/share", smi=smi or NoSmi()
    )


def only(readings: Sequence[Reading]) -> Reading:
    assert len(readings) == 1
    return readings[0]


def test_a_card_tells_everything_its_driver_shows(machine: Any) -> None:
    machine.card(1, "0000:03:00.0", "0x1002", CARD)
    machine.write("usr/share/libdrm/amdgpu.ids", "# list\n744C,\tC8,\tAMD Radeon RX 7900 XTX")
    machine.client(500, 7, "0000:03:00.0", 21, {"drm-memory-vram": "1048577 KiB"})

    assert only(probe(machine).read()) == Reading(
        id="GPU-7a3c5be8019fd264",
        kind="amd",
        index=0,
        name="AMD Radeon RX 7900 XTX",
        total_mib=24576,
        used_mib=3073,
        by_process_mib={500: 1025},
        utilisation=0.37,
        temperature_c=51.0,
        power_w=88.5,
        clock_mhz=1850,
        memory_clock_mhz=1249,
        pci="0000:03:00.0",
    )


def test_a_machine_without_cards_or_without_graphics_has_none(machine: Any) -> None:
    assert probe(machine).read() == ()

    machine.card(0, "0000:01:00.0", "0x10de", {})
    machine.write("sys/class/drm/version", "drm 1.1.0 20060810")
    machine.write("sys/class/drm/card0-DP-1/status", "connected")

    assert probe(machine).read() == ()


def test_identical_cards_stand_in_the_order_of_their_pci_addresses(machine: Any) -> None:
    machine.card(0, "0000:43:00.0", "0x1002", {**CARD, "unique_id": "00000000000000aa"})
    machine.card(1, "0000:03:00.0", "0x1002", {**CARD, "unique_id": "00000000000000bb"})
    machine.card(10, "10000:01:00.0", "0x1002", {**CARD, "unique_id": "00000000000000cc"})

    readings = probe(machine).read()

    assert [(r.index, r.id) for r in readings] == [
        (0, "GPU-00000000000000bb"),
        (1, "GPU-00000000000000aa"),
        (2, "GPU-00000000000000cc"),
    ]


@pytest.mark.parametrize("unique", ["0000000000000000", "none", ""])
def test_a_card_without_a_number_of_its_own_is_known_by_its_slot(machine: Any, unique: str) -> None:
    machine.card(0, "0000:03:00.0", "0x1002", {**CARD, "unique_id": unique})

    assert only(probe(machine).read()).id == "0000:03:00.0"


def test_two_cards_that_claim_one_number_are_known_by_their_slots(machine: Any) -> None:
    machine.card(0, "0000:03:00.0", "0x1002", CARD)
    machine.card(1, "0000:04:00.0", "0x1002", CARD)

    assert [r.id for r in probe(machine).read()] == ["0000:03:00.0", "0000:04:00.0"]


def test_what_files_do_not_tell_is_none(machine: Any) -> None:
    bare: dict[str, object] = {"mem_info_vram_total": 8 * GIB, "gpu_busy_percent": "busy"}
    machine.card(0, "0000:03:00.0", "0x1002", bare)

    reading = only(probe(machine).read())

    assert reading.name == "AMD GPU of unknown number"
    assert (reading.total_mib, reading.used_mib, reading.by_process_mib) == (8192, None, None)
    assert (reading.utilisation, reading.temperature_c, reading.power_w) == (None, None, None)
    assert (reading.clock_mhz, reading.memory_clock_mhz) == (None, None)


def test_a_card_whose_driver_fails_hides_no_other(machine: Any) -> None:
    machine.card(0, "0000:03:00.0", "0x1002", {**CARD, "unique_id": "", "mem_info_vram_total": ""})
    machine.card(1, "0000:04:00.0", "0x1002", CARD)

    broken, well = probe(machine).read()

    assert broken.total_mib == 0
    assert broken.failure is not None
    assert (well.total_mib, well.failure) == (24576, None)


def test_a_card_of_the_old_driver_is_left_out(machine: Any) -> None:
    machine.card(0, "0000:03:00.0", "0x1002", {"device": "0x6798"})

    assert probe(machine).read() == ()


def test_a_sleeping_card_is_not_woken_to_ask_its_sensors(machine: Any) -> None:
    machine.card(0, "0000:03:00.0", "0x1002", {**CARD, "power/runtime_status": "suspended"})

    reading = only(probe(machine).read())

    assert (reading.total_mib, reading.used_mib) == (24576, 3073)
    assert (reading.utilisation, reading.temperature_c, reading.clock_mhz) == (None, None, None)
    assert reading.notes == ("asleep",)


@pytest.mark.parametrize(
    "mark",
    [
        {"gpu_metrics": bytes([128, 0, 2, 4])},
        {"gpu_metrics": bytes([8, 1, 3, 0])},
        {"hwmon/hwmon4/in1_label": "vddnb"},
    ],
)
def test_a_processors_graphics_say_what_they_may_borrow(
    machine: Any, mark: dict[str, object]
) -> None:
    machine.card(0, "0000:c1:00.0", "0x1002", {**CARD, "mem_info_vram_total": GIB // 2, **mark})

    reading = only(probe(machine).read())

    assert reading.total_mib == 512
    assert reading.notes == ("part of a processor; it may borrow 16384 MiB of the host's memory",)


def test_a_client_shared_by_two_processes_is_counted_once(machine: Any) -> None:
    machine.card(0, "0000:03:00.0", "0x1002", CARD)
    held = {"drm-memory-vram": "100 MiB"}
    machine.client(500, 7, "0000:03:00.0", 21, held)
    machine.client(500, 8, "0000:03:00.0", 21, held)
    machine.client(501, 7, "0000:03:00.0", 21, held)
    machine.client(501, 9, "0000:03:00.0", 22, {"drm-memory-vram": "5242880"})
    machine.client(502, 7, "0000:04:00.0", 21, held)

    assert only(probe(machine).read()).by_process_mib == {500: 100, 501: 5}


def test_of_the_sizes_of_a_region_the_one_that_is_there_counts(machine: Any) -> None:
    machine.card(0, "0000:03:00.0", "0x1002", CARD)
    sizes = {
        "drm-total-vram": "900 MiB",
        "drm-memory-vram": "700 MiB",
        "drm-resident-vram": "600 MiB",
        "drm-resident-gtt": "50 MiB",
        "amd-requested-vram": "900 MiB",
    }
    machine.client(500, 7, "0000:03:00.0", 21, sizes)

    assert only(probe(machine).read()).by_process_mib == {500: 600}


@pytest.mark.parametrize("size", ["-5 KiB", "5 GiB", "much", "9" * 40, ""])
def test_a_size_that_is_none_counts_nothing(machine: Any, size: str) -> None:
    machine.card(0, "0000:03:00.0", "0x1002", CARD)
    machine.client(500, 7, "0000:03:00.0", 21, {"drm-memory-vram": size})

    assert only(probe(machine).read()).by_process_mib == {500: 0}


def test_a_process_that_ends_while_it_is_looked_at_is_passed_over(machine: Any) -> None:
    machine.card(0, "0000:03:00.0", "0x1002", CARD)
    machine.client(500, 7, "0000:03:00.0", 21, {"drm-memory-vram": "100 MiB"})
    (machine.root / "proc/500/fdinfo/7").unlink()
    (machine.root / "proc/501").mkdir()

    assert only(probe(machine).read()).by_process_mib is None


def test_compute_processes_are_seen_through_the_compute_driver(machine: Any) -> None:
    machine.card(0, "0000:03:00.0", "0x1002", CARD)
    nodes = "sys/class/kfd/kfd/topology/nodes"
    machine.write(f"{nodes}/0/gpu_id", 0)
    machine.write(f"{nodes}/0/properties", "cpu_cores_count 16\nlocation_id 0\ndomain 0")
    machine.write(f"{nodes}/1/gpu_id", 30381)
    machine.write(f"{nodes}/1/properties", "simd_count 192\nlocation_id 768\ndomain 0")
    machine.write("sys/class/kfd/kfd/proc/600/vram_30381", 2 * GIB)
    machine.write("sys/class/kfd/kfd/proc/500/vram_30381", GIB)
    machine.client(500, 7, "0000:03:00.0", 21, {"drm-memory-vram": "1030 MiB"})

    assert only(probe(machine).read()).by_process_mib == {600: 2048, 500: 1030}


def test_names_come_from_the_list_of_pci_numbers_where_there_is_no_better(machine: Any) -> None:
    machine.card(0, "0000:03:00.0", "0x1002", {**CARD, "revision": "0x01"})
    machine.write(
        "usr/share/misc/pci.ids",
        "# comment\n1000  Other\n\t744c  Wrong\n"
        "1002  Advanced Micro Devices, Inc. [AMD/ATI]\n"
        "\t744c  Navi 31 [Radeon RX 7900 XT/7900 XTX]\n\t\t1002 0e3b  Board\n",
    )

    assert only(probe(machine).read()).name == "AMD Radeon RX 7900 XT/7900 XTX"


def test_amds_library_adds_names_and_processes(machine: Any) -> None:
    machine.card(0, "0000:03:00.0", "0x1002", CARD)
    processes = [
        {"pid": 700, "memory_usage": {"vram_mem": 5 * GIB}},
        {"pid": "?", "memory_usage": {"vram_mem": 1}},
        {"pid": 701, "memory_usage": "N/A"},
        "handle",
    ]
    smi = Smi({"0000:03:00.0": ("AMD Instinct MI300X", processes)})

    reading = only(probe(machine, smi).read())

    assert (reading.name, reading.by_process_mib) == ("AMD Instinct MI300X", {700: 5120})


def test_amds_library_may_fail_without_a_trace_in_what_the_kernel_tells(machine: Any) -> None:
    machine.card(0, "0000:03:00.0", "0x1002", CARD)
    silent, half = NoSmi(), Smi({"0000:03:00.0": ("N/A", SmiError("no"))})
    without = probe(machine, silent)

    assert without.read() == without.read() == probe(machine, half).read()
    assert silent.begun == 1


def test_cards_that_cannot_be_listed_are_a_failure(machine: Any) -> None:
    machine.write("sys/class/drm", "not a folder")

    with pytest.raises(ProbeFailed, match="cannot list graphics cards"):
        probe(machine).read()
