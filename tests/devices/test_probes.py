"""Which probes a platform gets, and that each of them can be asked anywhere."""

from __future__ import annotations

import pytest

from modelyard.devices import probes
from modelyard.devices.base import ProbeFailed


@pytest.mark.parametrize(
    ("platform", "kinds"),
    [
        ("linux", ["cpu", "nvidia", "amd", "intel"]),
        ("darwin", ["cpu", "apple"]),
        ("win32", ["cpu", "nvidia"]),
    ],
)
def test_a_platform_gets_a_probe_for_each_kind_it_can_have(platform: str, kinds: list[str]) -> None:
    assert [probe.kind for probe in probes(platform=platform)] == kinds


def test_every_probe_of_this_machine_tells_devices_of_its_kind_under_ids_of_their_own() -> None:
    ids: list[str] = []
    for probe in probes():
        try:
            readings = probe.read()
        except ProbeFailed:
            continue  # this machine has a driver that does not work; its reason is tested elsewhere
        assert {reading.kind for reading in readings} <= {probe.kind}
        assert [reading.index for reading in readings] == list(range(len(readings)))
        ids += [reading.id for reading in readings]

    assert "cpu" in ids
    assert len(set(ids)) == len(ids)
