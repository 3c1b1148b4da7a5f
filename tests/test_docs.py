"""The documents say what is so: every checklist item has a state, every named file exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from modelyard.connect.recipes import CLIENTS

ROOT = Path(__file__).parent.parent
ITEMS = {"A": 42, "B": 36, "C": 11, "D": 19, "E": 14}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_every_checklist_item_has_one_row_and_a_state() -> None:
    rows = re.findall(
        r"^\| ([A-E]\d+) \| [^|]+ \| (yes|part|no) \|", (ROOT / "docs/parity.md").read_text(), re.M
    )

    expected = [
        f"{letter}{number}" for letter, count in ITEMS.items() for number in range(1, count + 1)
    ]
    assert expected == [item for item, _ in rows]


def test_what_parity_says_is_there_names_where_it_is_shown() -> None:
    text = (ROOT / "docs/parity.md").read_text()
    missing = [
        name
        for name in re.findall(r"\b(\w+/test_\w+\.py)", text)
        if not (ROOT / "tests" / name).is_file()
    ]

    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())

    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_client_that_can_be_connected_has_a_page() -> None:
    index = (ROOT / "docs/clients/README.md").read_text()

    assert [each for each in CLIENTS if f"]({each}.md)" not in index] == []
