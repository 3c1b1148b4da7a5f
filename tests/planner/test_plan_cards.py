"""Cards are found by the names that people and drivers use."""

from __future__ import annotations

import pytest

from modelyard.core.errors import InvalidRequest
from modelyard.planner.cards import CARDS, find_card, known, read_cards


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("RTX 4090", "GeForce RTX 4090"),
        ("rtx4090", "GeForce RTX 4090"),
        ("4090", "GeForce RTX 4090"),
        ("NVIDIA GeForce RTX 4060 Ti", "GeForce RTX 4060 Ti"),
        ("rtx 4060", "GeForce RTX 4060"),
        ("4080 super", "GeForce RTX 4080 SUPER"),
        ("A100 40GB", "A100 40GB"),
        ("a100 80 gb", "A100 80GB"),
        ("7900 XTX", "Radeon RX 7900 XTX"),
        ("h200", "H200"),
        ("V100 32GB", "Tesla V100 32GB"),
    ],
)
def test_people_name_cards_by_some_of_their_words(text: str, name: str) -> None:
    assert find_card(text).name == name


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA GeForce RTX 3090", "GeForce RTX 3090"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 80GB"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "Tesla T4"),
        ("AMD Radeon RX 7900 XTX", "Radeon RX 7900 XTX"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Matrox G200", None),
    ],
)
def test_drivers_say_more_than_a_name(driver: str, name: str | None) -> None:
    card = known(driver)

    assert (card.name if card else None) == name


def test_several_cards_are_counted_and_mixed() -> None:
    names = [card.name for card in read_cards("2x RTX 4090 + RTX 3090, 24GiB")]

    assert names == ["GeForce RTX 4090"] * 2 + ["GeForce RTX 3090", "a card of 24GiB"]
    assert read_cards("none") == read_cards("cpu") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("RTX 4091", "did you mean GeForce RTX 4090"),
        ("banana", "no card is known as 'banana'"),
        ("", "names no card"),
        ("0x RTX 4090", "1 to 64 cards"),
        ("999x RTX 4090", "1 to 64 cards"),
        ("999999999GiB", "none that exists"),
        ("x" * 5000, "no card is known"),
        ("+" * 5000, "names no card"),
    ],
)
def test_what_is_no_card_is_refused_with_near_names(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        read_cards(text)


def test_every_card_has_figures_and_a_source() -> None:
    assert len({card.name for card in CARDS}) == len(CARDS) > 40
    for card in CARDS:
        assert find_card(card.name) == card
        assert card.source.startswith("https://")
        assert 4096 < card.memory_mib < 200 * 1024
        assert 200 < (card.bandwidth_gbs or 0) <= 8000
        assert 10 < (card.fp16_tflops or 0) <= 2500
