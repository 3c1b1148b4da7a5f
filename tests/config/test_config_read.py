"""The file as text: where YAML breaks, what is refused, and that hostile files cost little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.config import load
from modelyard.config.read import MAX_BYTES, read_text
from modelyard.config.tree import Node, Origin
from modelyard.core.errors import ConfigError

ORIGIN = Origin("modelyard.yaml", Path("/etc/modelyard"))


def plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: plain(below) for key, below in node.value.items()}
    if isinstance(node.value, tuple):
        return [plain(below) for below in node.value]
    return node.value


def read(text: str | bytes) -> Any:
    return plain(read_text(text if isinstance(text, bytes) else text.encode(), ORIGIN, "here"))


def refusal(text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return caught.value.problems[-1]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("12", 12),
        ("-3", -3),
        ("0x1F", 31),
        ("0o17", 15),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("2026-11-20", "2026-11-20"),
        ("1_000", "1_000"),
        ("'12'", "12"),
        ('"true"', "true"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_plain_values_follow_the_core_schema(written: str, value: object) -> None:
    found = read(f"a: {written}")["a"]

    assert (found, type(found)) == (value, type(value))


def test_json_is_read_as_it_is() -> None:
    assert read('{"a": [1, {"b": null}], "c": "d"}') == {"a": [1, {"b": None}], "c": "d"}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~", b"\xef\xbb\xbf# a mark\n"])
def test_an_empty_file_says_nothing(text: str | bytes) -> None:
    assert read(text) == {}


def test_keys_are_text_whatever_they_look_like() -> None:
    assert read("1.5: a\ntrue: b\n~: c") == {"1.5": "a", "true": "b", "~": "c"}


def test_anchors_and_merge_keys_share_settings() -> None:
    text = "a: &one {x: 1, y: 2}\nb: &two {y: 3}\nc: {<<: [*two, *one], z: 4}\nd: {y: 5, <<: *one}"

    assert read(text)["c"] == {"x": 1, "y": 3, "z": 4}
    assert read(text)["d"] == {"x": 1, "y": 5}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: b: c", "1:5: not valid YAML: mapping values are not allowed here"),
        (
            "a: 1\nb:\n\t- c",
            "3:1: not valid YAML: found character '\\t' that cannot start any token",
        ),
        ("a: [1, 2", "1:9: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: 'open", "1:9: not valid YAML: found unexpected end of stream"),
        ("a: \x07", "1:4: not valid YAML: the character U+0007"),
        ('a: b\nc: "\\UFFFFFFFF"', "2: not valid YAML: an escape or a version after this is out"),
        ('a: "\\U00110000"', "1: not valid YAML: an escape or a version after this is out of"),
        (f"%YAML 1.{'9' * 5000}\n---\n", "1: not valid YAML: an escape or a version after this"),
        ("%YAML 9.9\n---\n", "1:1: not valid YAML: found incompatible YAML document"),
        ("a: *b", "1:4: *b refers to no &b before it"),
        ("a: &b [*b]", "1:8: *b refers to itself"),
        ("a: !!python/object/apply:os.system [ls]", "1:4: the tag 'tag:yaml.org,2002:python"),
        ("a: !secret b", "1:4: the tag '!secret' is refused; write the value without it"),
        ("? [a]\n: b", "1:3: a key must be plain text"),
        ("a: &b c\n*b : d", "2:1: a key must be plain text"),
        ("a: 1\n---\nb: 2", "2: a second document begins; keep only one"),
        ("- a", "1: the file must hold keys and values"),
        ("a: .nan", "1:4: '.nan' is not a number that can be used"),
        ("a: 1e999", "1:4: '1e999' is not a number that can be used"),
        ('a: "\\0"', "1:4: text with a NUL or half a surrogate pair is refused"),
        ('a: "\\ud800"', "1:4: text with a NUL or half a surrogate pair is refused"),
        ("a: {<<: 1}", "1: << takes a mapping or a list of mappings"),
        (b"a: 1\nb: \xff", "2: is not UTF-8 text; save the file as UTF-8"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(text: str | bytes, problem: str) -> None:
    assert refusal(text).startswith(f"modelyard.yaml:{problem}")


def test_every_key_written_twice_is_named_with_both_lines() -> None:
    text = "models:\n  m:\n    source: a\n    source: b\nserver: {}\nserver: {}\n"

    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.problems == (
        "modelyard.yaml:4: models.m.source: is written twice, first on line 3; remove one of them",
        "modelyard.yaml:6: server: is written twice, first on line 5; remove one of them",
    )


def test_a_billion_laughs_are_stopped_while_they_are_few() -> None:
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]

    assert refusal("\n".join(lines)) == (
        "modelyard.yaml:5: more than 20000 values, aliases included"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 400_000, "1:41: nested more than 40 levels deep"),
        ("{a: " * 100_000, "1:161: nested more than 40 levels deep"),
        ("- " * 200_000, "1:81: nested more than 40 levels deep"),
        ("a: [" + "1," * 100_000 + "]", "1: more than 20000 values, aliases included"),
        ("---\n" * 100_000, "2: a second document begins; keep only one"),
        ("a: 1\n" * 50_000, "52: and more keys are written twice"),
        (
            "a: &a {"
            + ", ".join(f"k{n}: 1" for n in range(999))
            + "}\nb: {<<: ["
            + "*a, " * 9999
            + "]}",
            "2: more than 20000 values, aliases included",
        ),
    ],
    ids=["brackets", "braces", "dashes", "values", "documents", "repeats", "merges"],
)
def test_a_hostile_file_is_given_up_early(text: str, problem: str) -> None:
    assert refusal(text) == f"modelyard.yaml:{problem}"


def test_a_file_that_is_too_large_is_not_even_parsed() -> None:
    assert refusal(b"#" * (MAX_BYTES + 1)) == (
        "modelyard.yaml: is larger than 512 KiB; no configuration needs that"
    )


def test_a_file_that_cannot_be_opened_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: 1 problem\n  cannot be read: No such file"):
        load(tmp_path / "none.yaml", env={})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, env={})
    with pytest.raises(ConfigError, match="cannot be read: embedded null byte"):
        load(tmp_path / "a\0b", env={})


SYNTAX = st.text(
    st.sampled_from("ab:-[]{}&*!|>'\"%@`,?# \n\t<~01.\\\0\x85\ufeff\ud7ffé"), max_size=60
)
WORDS = st.sampled_from(
    [
        "server",
        "models",
        "port",
        "tasks",
        "memory",
        "profiles",
        "defaults",
        "devices",
        "budget",
        "idle_stop",
        "m",
        "cpu",
        "command",
        "engine",
        "env",
        "aliases",
        "engines",
        "llama_server",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["10m", "1GiB", "chat", "llamacpp", "command", "never", "${env:X}"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=20,
)


def problems_in(path: Path | None, values: Mapping[str, Any]) -> Sequence[str]:
    """What is wrong, if anything; any other error than ConfigError is the test's to fail on."""
    try:
        load(path, env={"X": "y"}, overrides=values)
    except ConfigError as error:
        return error.problems
    return ()


@given(SYNTAX | st.text(max_size=60) | st.binary(max_size=60))
def test_no_text_breaks_the_reader(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "modelyard.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "replace"))
    problems = problems_in(path, {})

    assert all(problem.startswith("modelyard.yaml:") for problem in problems)


@given(st.dictionaries(WORDS, VALUES, max_size=5))
def test_no_values_break_the_checks(values: dict[str, Any]) -> None:
    problems = problems_in(None, values)

    assert all("\n" not in problem for problem in problems)
