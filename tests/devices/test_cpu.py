"""Host memory as a device, with and without the limits of control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from modelyard.core.specs import Device
from modelyard.devices.base import Reading
from modelyard.devices.cpu import CpuProbe, CpuTime

MIB = 2**20
UNLIMITED_V1 = 9223372036854771712


def probe(
    tmp_path: Path,
    groups: str = "",
    limits: dict[str, str | int] | None = None,
    *,
    reserve_mib: int = 512,
    budget_mib: int | None = None,
    available_mib: int = 16384,
    times: Iterator[CpuTime] | None = None,
    sensors: dict[str, list[float]] | None = None,
) -> CpuProbe:
    """A machine of 16 GiB whose control groups lie below `tmp_path`."""
    for name, limit in (limits or {}).items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    (tmp_path / "self").write_text(groups)
    return CpuProbe(
        reserve_mib=reserve_mib,
        budget_mib=budget_mib,
        physical_bytes=lambda: 16384 * MIB,
        available_bytes=lambda: available_mib * MIB,
        cpu_time=lambda: next(times) if times else CpuTime(0, 0),
        temperatures=lambda: sensors or {},
        cgroup_root=tmp_path / "cgroup",
        process_cgroups=tmp_path / "self",
    )


def test_without_control_groups_the_machines_memory_less_the_reserve_is_there(
    tmp_path: Path,
) -> None:
    assert probe(tmp_path).devices() == (
        Device("cpu", "cpu", total_mib=16384, capacity_mib=16384 - 512),
    )


def test_a_machine_without_a_list_of_groups_has_no_limit(tmp_path: Path) -> None:
    nowhere = CpuProbe(
        physical_bytes=lambda: 4096 * MIB,
        cgroup_root=tmp_path / "none",
        process_cgroups=tmp_path / "none",
    )

    assert nowhere.total_mib() == 4096


@pytest.mark.parametrize(
    ("groups", "limits", "total_mib"),
    [
        pytest.param("0::/\n", {"memory.max": "max"}, 16384, id="v2 without limit"),
        pytest.param("0::/\n", {"memory.max": 2048 * MIB}, 2048, id="v2 in a container"),
        pytest.param("0::/a/b\n", {"a/b/memory.max": 1024 * MIB}, 1024, id="v2 own group"),
        pytest.param(
            "0::/a/b\n",
            {"a/b/memory.max": "max", "a/memory.max": 3072 * MIB},
            3072,
            id="v2 group above",
        ),
        pytest.param(
            "0::/a\n",
            {"a/memory.max": 3072 * MIB, "memory.max": 4096 * MIB},
            3072,
            id="the smallest",
        ),
        pytest.param("0::/a\n", {"a/memory.max": 2**60}, 16384, id="more than there is"),
        pytest.param("0::/a\n", {"a/memory.max": "broken"}, 16384, id="not a number"),
        pytest.param("0::/../x\n", {"memory.max": 1024 * MIB}, 1024, id="outside of what is seen"),
        pytest.param(
            "5:cpu,memory:/job\n1:name=systemd:/x\n",
            {"memory/job/memory.limit_in_bytes": 512 * MIB},
            512,
            id="v1",
        ),
        pytest.param(
            "5:memory:/docker/12ab\n",
            {"memory/memory.limit_in_bytes": 256 * MIB},
            256,
            id="v1 in a container",
        ),
        pytest.param(
            "5:memory:/\n",
            {"memory/memory.limit_in_bytes": UNLIMITED_V1},
            16384,
            id="v1 without limit",
        ),
        pytest.param("nonsense\n\n0\n", {}, 16384, id="a list nobody understands"),
    ],
)
def test_the_smallest_limit_above_the_process_is_the_memory_there_is(
    tmp_path: Path, groups: str, limits: dict[str, str | int], total_mib: int
) -> None:
    assert probe(tmp_path, groups, limits).total_mib() == total_mib


@pytest.mark.parametrize(
    ("reserve_mib", "budget_mib", "capacity_mib"),
    [
        (0, None, 16384),
        (1000, None, 15384),
        (99999, None, 0),
        (1000, 4096, 4096),
        (0, 99999, 16384),
        (0, 0, 0),
    ],
)
def test_a_budget_replaces_the_reserve_and_never_exceeds_what_is_there(
    tmp_path: Path, reserve_mib: int, budget_mib: int | None, capacity_mib: int
) -> None:
    found = probe(tmp_path, reserve_mib=reserve_mib, budget_mib=budget_mib).devices()

    assert [device.capacity_mib for device in found] == [capacity_mib]


def test_negative_memory_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="reserve_mib=-1"):
        CpuProbe(reserve_mib=-1)


def test_this_machine_has_memory_and_uses_some_of_it() -> None:
    here = CpuProbe(reserve_mib=0)

    assert 0 < here.total_mib() <= psutil.virtual_memory().total // MIB
    assert 0 < here.used_mib() < psutil.virtual_memory().total // MIB


def test_the_host_is_read_with_its_use_its_load_and_its_heat(tmp_path: Path) -> None:
    host = probe(
        tmp_path,
        available_mib=10000,
        times=iter([CpuTime(100, 1000), CpuTime(130, 1040)]),
        sensors={"nvme": [70.0], "k10temp": [55.5, 61.0]},
    )
    host.read()

    assert host.read() == (
        Reading(
            id="cpu",
            kind="cpu",
            index=0,
            name="cpu",
            total_mib=16384,
            used_mib=6384,
            utilisation=0.75,
            temperature_c=61.0,
        ),
    )


@pytest.mark.parametrize(
    ("first", "second", "load"),
    [
        (CpuTime(0, 0), CpuTime(8, 8), 1.0),
        (CpuTime(5, 50), CpuTime(5, 50), None),
        (CpuTime(5, 50), CpuTime(1, 20), None),
        (CpuTime(5, 50), CpuTime(4, 60), 0.0),
    ],
)
def test_load_is_a_share_of_the_time_between_two_readings(
    tmp_path: Path, first: CpuTime, second: CpuTime, load: float | None
) -> None:
    host = probe(tmp_path, times=iter([first, second]))

    assert [host.read()[0].utilisation for _ in range(2)] == [None, load]


V2_STAT = f"anon 5\ninactive_file {300 * MIB}\nactive_file {200 * MIB}\nslab_reclaimable {4 * MIB}"
V1_STAT = f"inactive_file 9\ntotal_inactive_file {300 * MIB}\ntotal_active_file {204 * MIB}"


@pytest.mark.parametrize(
    ("groups", "files", "available_mib", "used_mib"),
    [
        pytest.param(
            "0::/a\n",
            {"a/memory.max": 4096 * MIB, "a/memory.current": 1504 * MIB, "a/memory.stat": V2_STAT},
            16384,
            1000,
            id="v2 without its caches",
        ),
        pytest.param(
            "4:memory:/a\n",
            {
                "memory/a/memory.limit_in_bytes": 4096 * MIB,
                "memory/a/memory.usage_in_bytes": 1504 * MIB,
                "memory/a/memory.stat": V1_STAT,
            },
            16384,
            1000,
            id="v1 without its caches",
        ),
        pytest.param(
            "0::/a\n",
            {"a/memory.max": 4096 * MIB, "a/memory.current": 1000 * MIB},
            500,
            3596,
            id="a machine fuller than the group",
        ),
        pytest.param(
            "0::/a/b\n",
            {
                "a/b/memory.max": 4096 * MIB,
                "a/b/memory.current": 100 * MIB,
                "a/memory.max": 8192 * MIB,
                "a/memory.current": 7192 * MIB,
            },
            16384,
            3096,
            id="a group above that is fuller",
        ),
        pytest.param(
            "0::/a\n",
            {"a/memory.max": 4096 * MIB, "a/memory.current": 9000 * MIB},
            16384,
            4096,
            id="more than allowed",
        ),
        pytest.param(
            "0::/a\n",
            {"a/memory.max": 4096 * MIB, "a/memory.current": MIB, "a/memory.stat": V2_STAT},
            16384,
            0,
            id="counts that do not fit together",
        ),
    ],
)
def test_under_a_limit_the_fullest_of_groups_and_machine_decides_what_is_used(
    tmp_path: Path,
    groups: str,
    files: dict[str, str | int],
    available_mib: int,
    used_mib: int,
) -> None:
    (reading,) = probe(tmp_path, groups, files, available_mib=available_mib).read()

    assert (reading.total_mib, reading.used_mib) == (4096, used_mib)
    assert reading.notes == ("limited by a control group",)


def test_this_machine_tells_its_load_from_the_second_reading_on() -> None:
    here = CpuProbe()
    (first,) = here.read()
    sum(range(2_000_000))  # a few ticks of the clock that counts
    (second,) = here.read()

    assert first.utilisation is None
    assert second.utilisation is None or 0 <= second.utilisation <= 1
