"""Edits of a person's file: one key changes, everything else stays byte for byte."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from modelyard.config.assignment import Assignment
from modelyard.config.edit import current, replace_file, with_assignment
from modelyard.config.load import load
from modelyard.core.errors import ConfigError

ENTRY = {"source": "/models/found.gguf"}
WANTED = Assignment(("0", "1"), {"max_model_len": 4096, "rope": {"a": [1, "b"]}})
BLOCK = """\
assigned:
  devices: ["0", "1"]
  options:
    max_model_len: 4096
    rope:
      a: [1, "b"]
"""


def edited(text: str, model: str = "a", wanted: Assignment = WANTED) -> str:
    return with_assignment(text.encode(), "/etc/m.yaml", model, wanted, ENTRY).decode()


def indented(block: str, by: int) -> str:
    return "".join(f"{' ' * by}{line}\n" for line in block.splitlines())


COMMENTED = """\
# Our machine.
models:   # all of them

  a:  # the good one
    engine: command   # not llama.cpp
    # why these: see the wiki
    command: [x,   "{port}"]
    tasks: [ chat ]   # for now
{here}
  # The next one is slow.
  b:
    source: b.gguf

server: {port: 1}
"""


def test_a_key_is_added_at_the_end_of_its_model_and_no_other_byte_changes() -> None:
    assert edited(COMMENTED.replace("{here}\n", "")) == COMMENTED.replace(
        "{here}\n", indented(BLOCK, 4)
    )


def test_taking_it_back_gives_the_file_that_was_there_before() -> None:
    text = COMMENTED.replace("{here}\n", "")

    assert edited(edited(text), wanted=Assignment()) == text
    assert edited(text, wanted=Assignment()) == text


def test_an_assignment_replaces_the_one_before() -> None:
    once = edited(COMMENTED.replace("{here}\n", ""), wanted=Assignment(("cpu",)))

    assert 'devices: ["cpu"]' in once
    assert edited(once) == COMMENTED.replace("{here}\n", indented(BLOCK, 4))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "models:\n  a:\n    source: \"/models/found.gguf\"\n    assigned:\n      X\n"),
        ("# empty", ("# empty\nmodels:\n  a:\n    source: \"/models/found.gguf\"\n    assigned:\n"
         "      X\n")),
        ("server: {port: 1}", ("server: {port: 1}\nmodels:\n  a:\n"
         "    source: \"/models/found.gguf\"\n    assigned:\n      X\n")),
        ("models:\n# none yet\n", ("models:\n  a:\n    source: \"/models/found.gguf\"\n"
         "    assigned:\n      X\n# none yet\n")),
        ("models: {}  # none yet\n", ("models:  # none yet\n  a:\n"
         "    source: \"/models/found.gguf\"\n    assigned:\n      X\n")),
        ("models:\n  b: {source: b}\n\n# the end\n", ("models:\n  b: {source: b}\n  a:\n"
         "    source: \"/models/found.gguf\"\n    assigned:\n      X\n\n# the end\n")),
        ("models:\n    b:\n          source: b\n", ("models:\n    b:\n          source: b\n    a:\n"
         "      source: \"/models/found.gguf\"\n      assigned:\n        X\n")),
        ("models: {b: {source: b}}\n", ('models: {b: {source: b}, "a": {"source": '
         '"/models/found.gguf", "assigned": {"devices": ["7"]}}}\n')),
        ('{"models": {}}', ('{"models": {"a": {"source": "/models/found.gguf", "assigned": '
         '{"devices": ["7"]}}}}')),
    ],
)  # fmt: skip
def test_a_model_that_was_found_gets_an_entry(text: str, expected: str) -> None:
    assert edited(text, wanted=Assignment(("7",))) == expected.replace("X", 'devices: ["7"]')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models: {a: {source: x}}", 'models: {a: {source: x, "assigned": {"devices": ["7"]}}}'),
        ("models:\n  a: {source: x,}  # why\n",
         'models:\n  a: {source: x,"assigned": {"devices": ["7"]}}  # why\n'),
        ('{\n  "models": {\n    "a": {\n      "source": "x"\n    }\n  }\n}\n',
         ('{\n  "models": {\n    "a": {\n      "source": "x", '
         '"assigned": {"devices": ["7"]}\n    }\n  }\n}\n')),
        ("models: {a: {assigned: {devices: [b]}, source: x}}",
         'models: {a: {"assigned": {"devices": ["7"]}, source: x}}'),
    ],
)  # fmt: skip
def test_entries_on_one_line_and_json_are_edited_in_their_own_way(text: str, expected: str) -> None:
    assert edited(text, wanted=Assignment(("7",))) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models: {a: {assigned: {devices: [b]}, source: x}}", "models: {a: {source: x}}"),
        ("models: {a: {source: x, assigned: {devices: [b]}}}", "models: {a: {source: x}}"),
        ("models:\n  a:\n    assigned:\n      devices: [b]\n      # a note\n    source: x\n",
         "models:\n  a:\n      # a note\n    source: x\n"),
        ("models:\n  a:\n    source: x\n    assigned: {devices: [b]}", ("models:\n  a:\n"
         "    source: x\n")),
        (("models:\n  a:\n    source: x\n    assigned:\n      options:\n        t: |\n          1\n"
         "          2\n  # b\n  b: {source: b}\n"),
         "models:\n  a:\n    source: x\n  # b\n  b: {source: b}\n"),
    ],
)  # fmt: skip
def test_an_assignment_is_taken_out_of_any_layout(text: str, expected: str) -> None:
    assert edited(text, wanted=Assignment()) == expected


@pytest.mark.parametrize(
    ("text", "path"),
    [("models: text\n", "models"), ("models: [a]\n", "models"), ("models: {a: [1]}\n", "models.a")],
)
def test_what_is_no_mapping_is_not_overwritten(text: str, path: str) -> None:
    with pytest.raises(ConfigError) as refused:
        edited(text)

    assert refused.value.problems == (f"{path}: must hold keys and values (key: value)",)


@pytest.mark.parametrize(
    "text",
    [
        "models:\r\n  a:\r\n    source: x\r\n",
        "\ufeffmodels:\n  a:\n    source: x\n",
        "---\nmodels:\n  a:\n    source: x\n...\n",
        "models:\n  a:\n    source: x",
        "models:\n\n  a:\n\n  b: {source: x}",
        "models:\n  a:\n    options:\n      text: |\n        one\n\n        two\n    source: x\n",
        "base: &base {source: x}\nmodels:\n  a:\n    <<: *base\n",
        'models:\n  "a": {source: x}\n',
        "models:\n  a:\n    source: x\n    profiles:\n    - name: p\n      devices: [c]\n  b: {}\n",
    ],
    ids=range(9),
)
def test_what_is_unusual_in_a_file_stays_as_it_is(text: str) -> None:
    written = edited(text)

    assert edited(written, wanted=Assignment()).rstrip() == text.rstrip()
    assert ("\r\n" in written) == ("\r\n" in text)
    assert written.count("\n") == written.count("\r\n") or "\r\n" not in text
    assert written.startswith("\ufeff") == text.startswith("\ufeff")


@pytest.mark.parametrize(
    "text",
    [
        "models:\n  b: &b\n    source: x\n  a: *b\n",
        "models:\n  a: &a\n    source: x\n  b: *a\n",
        "models:\n  a: &a\n    source: x\n  b:\n    <<: *a\n",
        "entries: &all\n  a: {source: x}\nmodels: *all\n",
    ],
)
def test_an_entry_that_others_share_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        edited(text, wanted=Assignment(("7",)))

    (problem,) = refused.value.problems
    assert problem.startswith("cannot be edited where it says models.a")
    assert problem.endswith('write it by hand: "assigned": {"devices": ["7"]}')


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("qwen3:4b", '"qwen3:4b"'),
        ("org/m.gguf", '"org/m.gguf"'),
        ("on", '"on"'),
        ("模型", '"模型"'),
    ],
)
def test_names_that_yaml_would_misread_are_quoted(name: str, shown: str) -> None:
    assert f"\n  {shown}:\n" in edited("server:\n", name)


def test_what_was_written_means_what_was_assigned(tmp_path: Path) -> None:
    file = tmp_path / "modelyard.yaml"
    file.write_text(COMMENTED.replace("{here}\n", "").replace("b.gguf", "b.gguf  # b"))
    before = file.read_bytes()
    content = with_assignment(before, str(file), "b", WANTED, {})
    config = load(file, env={}, content=content)

    model = next(spec for spec in config.models if spec.id == "b")
    assert config.assigned == {"b": WANTED}
    assert [profile.devices for profile in model.profiles] == [("0", "1")]
    assert model.options == {"max_model_len": 4096, "rope": {"a": [1, "b"]}}
    assert load(file, env={}).assigned == {}


ASSIGNED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # what the model says, what its only profile is like with devices [x, y] and {o: 1} assigned
    ({}, {"name": "assigned", "devices": ("x", "y"), "memory": {}, "options": {}}),
    ({"memory": "1GiB"}, {"name": "assigned", "devices": ("x", "y"), "memory": {}, "options": {}}),
    (
        {"memory": {"a": "1GiB", "b": "2GiB"}, "options": {"o": 7, "p": 8}},
        {
            "name": "assigned",
            "devices": ("x", "y"),
            "memory": {"x": 1024, "y": 2048},
            "options": {},
        },
    ),
    (
        {"profiles": [{"name": "p", "devices": ["c"], "options": {"o": 2, "q": 3}}, {"name": "z"}]},
        {"name": "assigned", "devices": ("x", "y"), "memory": {}, "options": {"q": 3}},
    ),
]


@pytest.mark.parametrize(("model", "profile"), ASSIGNED)
def test_assigned_devices_stand_for_all_profiles(
    tmp_path: Path, model: dict[str, Any], profile: dict[str, Any]
) -> None:
    import json

    file = tmp_path / "modelyard.yaml"
    said = {"source": "x.gguf", **model, "assigned": {"devices": ["x", "y"], "options": {"o": 1}}}
    file.write_text(json.dumps({"models": {"m": said}}))
    spec = load(file, env={}).models[0]

    (only,) = spec.profiles
    assert (only.name, only.devices, only.memory_mib, only.options) == tuple(profile.values())
    assert spec.options["o"] == 1


# -------------------------------------------------------------------------------------- the writing


def test_a_file_is_replaced_where_a_link_leads_and_keeps_its_mode(tmp_path: Path) -> None:
    real = tmp_path / "real.yaml"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(real)

    replace_file(link, b"new", b"old")

    assert real.read_bytes() == b"new"
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link.yaml", "real.yaml"]  # noqa: PTH208


def test_a_file_that_somebody_else_has_changed_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_bytes(b"theirs")

    with pytest.raises(ConfigError, match="was changed by somebody else meanwhile; try again"):
        replace_file(file, b"mine", b"old")
    with pytest.raises(ConfigError, match="was changed by somebody else"):
        replace_file(file, b"mine", None)
    assert file.read_bytes() == b"theirs"


def test_a_new_file_is_made_with_its_folder_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "m.yaml"
    assert current(file) is None

    replace_file(file, b"x", None)

    assert current(file) == b"x"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_folder_where_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=r"cannot be (read|written): Not a directory"):
        replace_file(tmp_path / "file" / "m.yaml", b"x", None)
