"""Intel's cards, in trees of files as i915 and xe show them."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.devices.base import Reading
from modelyard.devices.intel import IntelProbe

GIB = 2**30
ARC = "0000:03:00.0"


def probe(machine: Any) -> IntelProbe:
    root = machine.root
    return IntelProbe(sys=root / "sys", proc=root / "proc", share=root / "usr/share")


def test_a_card_of_the_driver_xe_uses_what_its_processes_hold(machine: Any) -> None:
    machine.card(
        1,
        ARC,
        "0x8086",
        {
            "device": "0xe20b",
            "tile0/physical_vram_size_bytes": 12 * GIB,
            "tile0/gt0/freq0/act_freq": 2850,
            "hwmon/hwmon2/temp2_input": 48000,
            "hwmon/hwmon2/temp3_input": 52000,
        },
    )
    machine.write(
        "usr/share/hwdata/pci.ids",
        "8086  Intel Corporation\n\te20b  Battlemage G21 [Arc B580]\n",
    )
    machine.client(900, 5, ARC, 3, {"drm-total-vram0": "2 GiB", "drm-resident-vram0": "1024 MiB"})
    machine.client(901, 5, ARC, 4, {"drm-total-vram0": "23992 KiB", "drm-total-gtt": "900 MiB"})

    assert probe(machine).read() == (
        Reading(
            id=ARC,
            kind="intel",
            index=0,
            name="Intel Arc B580",
            total_mib=12288,
            used_mib=1048,
            by_process_mib={900: 1024, 901: 24},
            temperature_c=48.0,
            clock_mhz=2850,
            pci=ARC,
            notes=("its use is what visible processes hold",),
        ),
    )


def test_tiles_of_one_card_are_added(machine: Any) -> None:
    tiles: dict[str, object] = {f"tile{n}/physical_vram_size_bytes": 64 * GIB for n in (0, 1)}
    machine.card(0, "0000:3a:00.0", "0x8086", tiles)

    assert [r.total_mib for r in probe(machine).read()] == [131072]


def test_a_card_of_the_driver_i915_tells_what_is_free(machine: Any) -> None:
    machine.card(0, ARC, "0x8086", {"device": "0x56a0", "hwmon/hwmon1/temp1_input": 39500})
    machine.write("sys/class/drm/card0/lmem_total_bytes", 16 * GIB)
    machine.write("sys/class/drm/card0/lmem_avail_bytes", 10 * GIB)
    machine.write("sys/class/drm/card0/gt_act_freq_mhz", 600)
    sizes = {"drm-resident-local0": "4000 MiB", "drm-resident-stolen-local0": "8 MiB"}
    machine.client(900, 5, ARC, 11, {**sizes, "drm-resident-system0": "700 MiB"})

    (reading,) = probe(machine).read()

    assert (reading.total_mib, reading.used_mib) == (16384, 6144)
    assert reading.by_process_mib == {900: 4008}
    assert (reading.temperature_c, reading.clock_mhz, reading.notes) == (39.5, 600, ())
    assert reading.name == "Intel GPU 56a0"


def test_a_processors_own_graphics_are_left_out(machine: Any) -> None:
    machine.card(0, "0000:00:02.0", "0x8086", {"device": "0xa7a0"})

    assert probe(machine).read() == ()


def test_a_card_whose_memory_is_not_told_says_so(machine: Any) -> None:
    machine.card(0, ARC, "0x8086", {"device": "0x56a0"})
    driver = machine.root / "sys/bus/pci/drivers/i915"
    driver.mkdir(parents=True)
    (machine.root / "sys/class/drm/card0/device/driver").symlink_to(driver)

    (reading,) = probe(machine).read()

    assert reading.total_mib == 0
    assert reading.failure == "its driver (i915) does not tell its memory; the driver xe does"


@pytest.mark.parametrize(("free", "used_mib"), [(99 * GIB, 0), (-5, 16384)])
def test_use_stays_between_nothing_and_all(machine: Any, free: int, used_mib: int) -> None:
    machine.card(0, ARC, "0x8086", {})
    machine.write("sys/class/drm/card0/lmem_total_bytes", 16 * GIB)
    machine.write("sys/class/drm/card0/lmem_avail_bytes", free)

    assert [r.used_mib for r in probe(machine).read()] == [used_mib]


def test_a_sleeping_card_is_not_woken_to_ask_its_sensors(machine: Any) -> None:
    machine.card(
        0,
        ARC,
        "0x8086",
        {
            "tile0/physical_vram_size_bytes": GIB,
            "tile0/gt0/freq0/act_freq": 300,
            "hwmon/hwmon2/temp2_input": 48000,
            "power/runtime_status": "suspended",
        },
    )

    (reading,) = probe(machine).read()

    assert (reading.temperature_c, reading.clock_mhz) == (None, None)
    assert reading.notes == ("its use is what visible processes hold", "asleep")
