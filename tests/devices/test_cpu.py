"""Host memory as a device, with and without the limits of control groups."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from modelyard.core.specs import Device
from modelyard.devices.cpu import CpuProbe

MIB = 2**20
UNLIMITED_V1 = 9223372036854771712


def probe(
    tmp_path: Path,
    groups: str = "",
    limits: dict[str, str | int] | None = None,
    *,
    reserve_mib: int = 512,
    budget_mib: int | None = None,
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
