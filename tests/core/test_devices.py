"""The words people use for devices, against the names that drivers give."""

import pytest

from modelyard.core.devices import matching, short_name
from modelyard.core.footprints import Footprints
from modelyard.core.placement import MAX_CHOICES, candidates
from modelyard.core.specs import Device, ModelSpec, Profile


def gpu(name: str, index: int = 0, uuid: str = "", kind: str = "nvidia") -> Device:
    return Device(uuid or f"GPU-{index:08d}-aaaa", name, 8000, 7000, kind, index)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "rtx 4060 laptop gpu"),
        ("NVIDIA GeForce RTX 4090", "rtx 4090"),
        ("Tesla V100-SXM2-16GB", "tesla v100 sxm2 16gb"),
        ("NVIDIA A100-SXM4-80GB", "a100 sxm4 80gb"),
        ("AMD Radeon RX 7900 XTX", "rx 7900 xtx"),
        ("Intel(R) Arc(TM) A770 Graphics", "arc a770"),
        ("Apple M3 Max", "m3 max"),
        ("cpu", "cpu"),
    ],
)
def test_names_lose_the_vendor(name: str, short: str) -> None:
    assert short_name(name) == short


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("rtx 4060", "NVIDIA GeForce RTX 4060 Laptop GPU"),
        ("RTX 4060", "NVIDIA GeForce RTX 4060 Laptop GPU"),
        ("v100", "Tesla V100-SXM2-16GB"),
        ("nvidia a100", "NVIDIA A100-SXM4-80GB"),
        ("7900 xtx", "AMD Radeon RX 7900 XTX"),
        ("nvidia", "NVIDIA GeForce RTX 4060 Laptop GPU"),
    ],
)
def test_words_of_the_name_mean_the_device(wanted: str, name: str) -> None:
    device = gpu(name)

    assert matching(wanted, [Device("cpu", "cpu", 1, 1), device]) == [device]


@pytest.mark.parametrize("wanted", ["rtx 4070", "406", "rtx 4060 super", "5", "amd:0", ""])
def test_other_words_do_not(wanted: str) -> None:
    device = gpu("NVIDIA GeForce RTX 4060 Laptop GPU")

    assert matching(wanted, [device]) == []


def test_the_plain_card_is_meant_and_not_its_bigger_sister() -> None:
    plain, sister = gpu("NVIDIA GeForce RTX 4060"), gpu("NVIDIA GeForce RTX 4060 Ti", 1)

    assert matching("rtx 4060", [sister, plain]) == [plain]
    assert matching("rtx 4060", [sister]) == [sister]
    assert matching("rtx 4060 ti", [sister, plain]) == [sister]


def test_a_name_may_mean_several_identical_cards() -> None:
    cards = [gpu("NVIDIA GeForce RTX 3090", n) for n in range(3)]

    assert matching("rtx 3090", cards) == cards


def test_an_index_or_an_id_means_one() -> None:
    host = Device("cpu", "cpu", 1, 1)
    one = gpu("NVIDIA GeForce RTX 3090", 0, "GPU-1f2e3d4c-1111")
    two = gpu("NVIDIA GeForce RTX 3090", 1, "GPU-5a6b7c8d-2222")
    other = gpu("AMD Radeon RX 7900 XTX", 0, "0000:0c:00.0", "amd")
    devices = [host, one, two, other]

    assert matching("1", devices) == [two]
    assert matching("nvidia:1", devices) == [two]
    assert matching("cuda:0", devices) == [one]
    assert matching("amd:0", devices) == [other]
    assert matching("GPU-5a6b7c8d-2222", devices) == [two]
    assert matching("gpu-5a6b", devices) == [two]
    assert matching("0000:0c:00.0", devices) == [other]
    assert matching("gpu", devices) == [one, two, other]
    assert matching("cpu", devices) == [host]


def test_looking_at_every_choice_of_many_cards_stays_bounded() -> None:
    cards = [gpu("NVIDIA GeForce RTX 3090", n) for n in range(16)]
    profile = Profile("all", ("gpu",) * 8)
    spec = ModelSpec("m", "llamacpp", frozenset(), profiles=(profile,), estimate_mib=8)

    found, _ = candidates(spec, cards, Footprints())

    assert len(found) == MAX_CHOICES
    assert all(len(choice.claims_mib) == 8 for choice in found)
