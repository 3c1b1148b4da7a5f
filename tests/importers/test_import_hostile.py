"""Whatever is imported: a clear error or a configuration that passes, soon, and never a crash."""

from __future__ import annotations

import copy
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.importers.conftest import SAMPLES, Import, make_database, surroundings
from tests.importers.test_import_samples import KINDS as KIND_OF
from tests.importers.test_import_samples import STRUCTURED, at
from tests.importers.test_import_samples import settings as leaves_of

from modelyard.app import engine_problems
from modelyard.config import load
from modelyard.importers import KINDS, CannotImport, import_path
from modelyard.importers.kinds import recognise
from modelyard.importers.source import MAX_BYTES, read_source
from modelyard.importers.verify import problems

WRONG: list[Any] = [
    None, True, -1, 10**30, 1e308, "", " ", "\n", "{port}", "${env:X}", "$${", "\x1b[2J", "<<", "'",
    "\"", "名" * 300, "\0", "\ud800", "/" + "x" * 5000, [], [[]], [None], {}, {"": {}},
    {"a": {"b": [1, {"c": None}]}},
]  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURED)
def test_any_value_of_any_type_anywhere_is_survived(name: str, tmp_path: Path) -> None:
    _, tree = recognise(read_source(SAMPLES / name))
    kind = KIND_OF[name.partition("/")[0]]
    path = tmp_path / "config.json"
    for number, place in enumerate(leaves_of(tree)):
        changed = copy.deepcopy(tree)
        at(changed, place[:-1])[place[-1]] = WRONG[number % len(WRONG)]
        path.write_text(json.dumps(changed), encoding="utf-8")

        assert survives(path, kind, tmp_path), place


@pytest.mark.parametrize("name", STRUCTURED)
def test_any_branch_may_be_replaced_by_anything(name: str, tmp_path: Path) -> None:
    _, tree = recognise(read_source(SAMPLES / name))
    kind = KIND_OF[name.partition("/")[0]]
    path = tmp_path / "config.json"
    branches = {place[:length] for place in leaves_of(tree) for length in range(1, len(place))}
    for number, place in enumerate(sorted(branches, key=str)):
        for wrong in (WRONG[number % len(WRONG)], "text", 7, ["text"]):
            changed = copy.deepcopy(tree)
            at(changed, place[:-1])[place[-1]] = wrong
            path.write_text(json.dumps(changed), encoding="utf-8")

            assert survives(path, kind, tmp_path), (place, wrong)


def survives(path: Path, kind: str | None, folder: Path) -> bool:
    """Whether an import ends in a clear error or in a configuration that passes."""
    try:
        result = import_path(path, surroundings(folder), engine_problems, kind)
    except CannotImport as error:
        return str(path) in str(error) and "would be refused" not in str(error)
    return not problems(result.text, engine_problems)


@pytest.mark.parametrize("kind", [None, *KINDS])
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
@settings(max_examples=15)
def test_garbage_is_an_error_or_passes(kind: str | None, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(content)

    assert survives(path, kind, tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"\x7fELF\x02\x01\x00\x00\x00", "is no text"),
        (b"\xff\xff\xff\xff", "neither UTF-8 nor GBK"),
        (b"x" * (MAX_BYTES + 1), "is larger than"),
        (b"{" + b'"a":{' * 5000, "nested more than"),
        (b"[" * 100_000, "nested more than"),
        (b'{"a": 1, "a": 2}', "is written twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1', "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"a: [1", "not valid YAML"),
        (b"a: >\n    \n      more\n    less\n", "config:1: not valid YAML: more indented"),
        (b"a: !!python/object/apply:os.system [id]", "tag"),
        (b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
            b"%c: &%c [%s]\n" % (97 + n, 97 + n, b",".join([b"*%c" % (96 + n)] * 9))
            for n in range(1, 9)), "values"),
        (b"models: {a: {b: 1}}", "no configuration that is known"),
        (b"just some words", "keys and values"),
        (b"PATH=/bin\nHOME=/root", "LLM_"),
        (b"from ./x\nnonsense here", "no instruction"),
        (b'FROM ./x\nSYSTEM """never ends', "does not end"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_where_and_why(
    content: bytes, told: str, imported: Import
) -> None:
    with pytest.raises(CannotImport) as error:
        imported(content)

    assert told in str(error.value)
    assert "config" in str(error.value)


def test_quotes_and_comments_that_never_end_cost_no_time(imported: Import) -> None:
    for piece in ('"\\', "/*", "//", ",", '"a'):
        with pytest.raises(CannotImport):
            imported("{" + piece * (400_000 // len(piece)))


def test_macros_that_multiply_or_circle_leave_their_model_out(imported: Import) -> None:
    macros = {"m0": "x" * 50, **{f"m{n}": f"${{m{n - 1}}}" * 9 for n in range(1, 12)}}
    circle = {"a": "${b}", "b": "${a}"}
    models = {
        "bomb": {"cmd": "x ${m11}", "macros": macros},
        "circle": {"cmd": "x ${a} --port ${PORT}", "macros": circle},
        "unknown": {"cmd": "x ${nothing} --port ${PORT}"},
        "good": {"cmd": "x --port ${PORT}"},
    }

    result = imported(json.dumps({"models": models}))
    assert result.models == ("good",)
    assert result.left_out == ("bomb", "circle", "unknown")


def test_a_pipe_and_a_device_are_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    for path in (pipe, Path("/dev/zero"), tmp_path / "missing"):
        with pytest.raises(CannotImport):
            import_path(path, surroundings(tmp_path), engine_problems)


def test_a_script_that_is_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "start.bat")
    model = {"mode": "Chat", "port": 1, "bat_path": "start.bat", "gpu_mem_mb": {}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"a": model}))

    assert survives(path, None, tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gbk"])
def test_chinese_text_is_read_in_the_encodings_of_windows(encoding: str, imported: Import) -> None:
    model = {
        "aliases": ["千问"],
        "mode": "Chat",
        "port": 1,
        "bat_path": "启动.bat",
        "gpu_mem_mb": {},
    }
    text = json.dumps({"千问三": model}, ensure_ascii=False)

    result = imported(text.encode(encoding))
    assert result.models == ("千问",)


@pytest.mark.parametrize("damage", ["truncated", "zeroed", "no tables"])
def test_a_broken_database_is_a_clear_error(damage: str, tmp_path: Path) -> None:
    path = make_database(tmp_path / "llm_manager.db")
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:5000])
    elif damage == "zeroed":
        path.write_bytes(content[:200] + b"\0" * (len(content) - 200))
    else:
        path.unlink()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE other (a)")

    with pytest.raises(CannotImport) as error:
        import_path(path, surroundings(tmp_path), engine_problems)
    assert str(path) in str(error.value)


def test_a_view_in_place_of_a_table_is_never_computed(tmp_path: Path) -> None:
    path = tmp_path / "llm_manager.db"
    endless = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS id FROM n"
    )
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE VIEW model_defs AS {endless}")

    with pytest.raises(CannotImport):
        import_path(path, surroundings(tmp_path), engine_problems)


def test_a_name_of_the_source_cannot_leave_its_comment(imported: Import, tmp_path: Path) -> None:
    name = "a\nserver: {insecure: true}\n#"
    model = {"mode": "Chat", "port": 1, "bat_path": "x\n.bat", "gpu_mem_mb": {}}

    result = imported(json.dumps({name: model, f"{name}2": {**model, "mode": name}}))
    path = tmp_path / "out.yaml"
    path.write_text(result.text, encoding="utf-8")
    config = load(path, env={})
    assert config.server.insecure is False
    assert [spec.id for spec in config.models] == list(result.models)
    assert len(config.models) == 2


def test_many_models_are_imported_within_bounds(imported: Import) -> None:
    model = {"mode": "Chat", "port": 1, "bat_path": "x.bat", "gpu_mem_mb": {"v100": 1}}

    result = imported(json.dumps({f"model-{n}": model for n in range(300)}))
    assert len(result.models) == 300


def test_two_models_of_one_name_become_two_models(imported: Import) -> None:
    model = {"aliases": ["same"], "mode": "Chat", "port": 1, "bat_path": "x.bat", "gpu_mem_mb": {}}

    third = {**model, "aliases": ["x", "same"]}
    result = imported(json.dumps({"a": model, "b": model, "c": third}))
    assert result.models == ("same", "same-2", "x")
    assert any("is already the name" in each.text for each in result.findings)
