"""What is written means what the source said, whatever characters it is made of."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelyard.config import load
from modelyard.config.read import read_text
from modelyard.config.tree import Origin
from modelyard.engines.command import fill
from modelyard.importers import CannotImport
from modelyard.importers.draft import Draft, argument, literal
from modelyard.importers.jsonc import read_json
from modelyard.importers.kinds import plain
from modelyard.importers.local_llm import read_environment
from modelyard.importers.source import decode
from modelyard.importers.yaml_text import render, scalar

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
BLANKS = {"port": "1", "host": "h", "model": "m", "alias": "a"}


@given(TEXT)
@example("null")
@example("0x1F")
@example("- a")
@example("a: b # c")
@example("\x85\u2028\ufeff")
@example("6144MiB")
def test_any_text_is_read_back_as_it_was(text: str) -> None:
    written = f"key: {scalar(text)}\nlist: [{scalar(text)}, {{{scalar(text)}: 1}}]\n"

    read = plain(read_text(written.encode(), Origin("t", Path("/")), "t"))
    assert read == {"key": text, "list": [text, {text: 1}]}


@given(st.lists(TEXT | st.text(alphabet="${}ab:env \\\"'", max_size=20), max_size=6))
@example(
    ["{port}", "{{port}}", "${{port}}", '{"a": "{b}"}', "${env:X}", "$${env:X}", "$$${", "${HOME}"]
)
@settings(deadline=None, max_examples=60)
def test_words_of_a_command_reach_the_engine_as_the_source_had_them(words: list[str]) -> None:
    draft = Draft()
    model = draft.model("a", "from\nsomewhere")
    model.put("engine", "command", "a\nb")
    model.put("tasks", ["chat"])
    model.put("command", ["srv", "{port}", *map(argument, words)])
    model.put("env", {"A": literal("${env:X}")})

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "modelyard.yaml"
        path.write_text(render(draft, ["#", *words]), encoding="utf-8")
        [spec] = load(path, env={}).models
    assert [fill(word, BLANKS) for word in spec.command] == ["srv", "1", *words]
    assert dict(spec.env) == {"A": "${env:X}"}


def test_comments_and_last_commas_of_json_are_no_matter() -> None:
    text = '// a\n{"a": "x // y", /* b\n */ "b": [1, 2,], // c\n}\n'

    assert read_json(text, "t") == {"a": "x // y", "b": [1, 2]}


def test_a_mistake_in_json_is_told_with_its_place() -> None:
    with pytest.raises(CannotImport, match=r"t:3:\d+: not valid JSON"):
        read_json('{"a": 1,\n// b\n"c" 2}', "t")


def test_line_ends_of_every_system_are_one() -> None:
    assert decode(b"\xef\xbb\xbfa\r\nb\rc\n", "t") == "a\nb\nc\n"


def test_an_environment_file_may_export_quote_and_remark() -> None:
    text = "# c\nexport LLM_A=\"x y\"\nset LLM_B=1 # why\nLLM_C='#'\n\nLLM_D=\n"

    assert read_environment(text) == {"LLM_A": "x y", "LLM_B": "1", "LLM_C": "#", "LLM_D": ""}
    assert read_environment("not an assignment") is None
