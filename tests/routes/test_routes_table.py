"""The table of routes says what the tests show: no mark too many, no route too few."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.routes import table

from modelyard.http.routes import INFERENCE

TEST = """
import pytest

@pytest.mark.shows({mark})
def {name}() -> None: ...
"""


def test_the_page_is_what_the_marks_say() -> None:
    page = table.page(table.shown_by_tests())

    assert table.PAGE.read_text() == page, "run `.venv/bin/python tests/routes/table.py`"


def test_every_inference_route_has_one_row_and_every_column_a_mark() -> None:
    shown = table.shown_by_tests()
    rows = [line.split(" | ")[0] for line in table.page(shown).splitlines() if " | `" not in line]

    for path in INFERENCE:
        assert rows.count(f"| `{path.decode()}`") >= 1
    assert {each.engine for each in shown} == set(table.ENGINES)


def test_a_route_that_nothing_shows_has_no_mark() -> None:
    rows = [line for line in table.page([]).splitlines() if line.startswith("| `")]

    assert len(rows) == len(INFERENCE)
    assert not any("✓" in row or "○" in row for row in rows)


@pytest.mark.parametrize(
    ("mark", "name", "told"),
    [
        ('route="/v1/rerank", engine="vllm", dialect="openai"', "test_a", "speaks rerank"),
        ('route="/v1/no", engine="vllm", dialect="openai"', "test_a", "has no route /v1/no"),
        ('route="/v1/rerank", engine="vlm", dialect="rerank"', "test_a", "'vlm' is none of"),
        ('route="/v1/rerank", engine="vllm"', "test_a", "a mark is shows"),
        ('route="/v1/rerank", engine="vllm", dialect="rerank"', "helper", "a mark is shows"),
    ],
)
def test_a_mark_of_what_is_not_there_is_an_error(
    tmp_path: Path, mark: str, name: str, told: str
) -> None:
    (tmp_path / "test_x.py").write_text(TEST.format(mark=mark, name=name))

    with pytest.raises(table.WrongMark, match=told):
        table.shown_by_tests(tmp_path)
