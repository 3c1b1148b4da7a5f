"""Apple silicon, by what its kernel variables say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from modelyard.devices.apple import AppleProbe, sysctl
from modelyard.devices.base import ProbeFailed, Reading

GIB = 2**30


def probe(
    memory_gib: int | str = 16,
    limit_mib: int | None = 0,
    *,
    arm: str | None = "1",
    free_gib: int = 999,
    platform: str = "darwin",
) -> AppleProbe:
    told = {"machdep.cpu.brand_string": "Apple M3 Max"}
    told["hw.memsize"] = str(memory_gib * GIB if isinstance(memory_gib, int) else memory_gib)
    if arm is not None:
        told["hw.optional.arm64"] = arm
    if limit_mib is not None:
        told["iogpu.wired_limit_mb"] = str(limit_mib)

    def read(names: Sequence[str]) -> Mapping[str, str]:
        return {name: told[name] for name in names if name in told}

    return AppleProbe(
        platform=platform, read_variables=read, available_bytes=lambda: free_gib * GIB
    )


def test_the_gpu_has_the_share_of_memory_that_metal_grants_it() -> None:
    assert probe(64, free_gib=20).read() == (
        Reading(
            id="apple",
            kind="apple",
            index=0,
            name="Apple M3 Max",
            total_mib=49152,
            used_mib=49152 - 20480,
            notes=("its memory is the host's",),
        ),
    )


@pytest.mark.parametrize(
    ("memory_gib", "limit_mib", "total_mib"),
    [
        (8, 0, 5461),
        (16, 0, 10922),
        (32, 0, 21845),
        (36, 0, 27648),
        (192, None, 147456),
        (32, 28000, 28000),
        (16, 99999, 16384),
    ],
)
def test_the_bound_is_the_one_somebody_set_or_else_the_systems_own(
    memory_gib: int, limit_mib: int | None, total_mib: int
) -> None:
    (reading,) = probe(memory_gib, limit_mib).read()

    assert (reading.total_mib, reading.used_mib) == (total_mib, 0)


@pytest.mark.parametrize("arm", ["0", None])
def test_a_mac_without_apple_silicon_has_no_such_gpu(arm: str | None) -> None:
    assert probe(arm=arm).read() == ()


def test_elsewhere_than_on_macos_nothing_is_asked() -> None:
    def asked(names: Sequence[str]) -> Mapping[str, str]:
        raise AssertionError(names)

    assert AppleProbe(platform="linux", read_variables=asked).read() == ()


def test_a_kernel_that_does_not_tell_its_memory_is_a_failure() -> None:
    with pytest.raises(ProbeFailed, match=r"hw\.memsize"):
        probe("lots").read()


def program(tmp_path: Path, text: str) -> str:
    file = tmp_path / "sysctl"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


def test_sysctl_tells_the_variables_it_knows_and_fails_for_others(tmp_path: Path) -> None:
    tool = program(
        tmp_path,
        'for name; do case $name in\nhw.memsize) echo "hw.memsize: 17179869184";;\n'
        'machdep.cpu.brand_string) echo "$name: Apple M1: Pro";;\n'
        "*) echo \"sysctl: unknown oid '$name'\" >&2; wrong=1;; esac; done; exit ${wrong:-0}",
    )

    told = sysctl(("hw.memsize", "iogpu.wired_limit_mb", "machdep.cpu.brand_string"), program=tool)

    assert told == {"hw.memsize": "17179869184", "machdep.cpu.brand_string": "Apple M1: Pro"}


def test_a_machine_without_sysctl_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ProbeFailed, match="does not tell"):
        sysctl(("hw.memsize",), program=str(tmp_path / "none"))
