"""docs/cli.md knows every command and every flag."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from modelyard.cli import app

DOC = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([a-z ]+)\n(.*?)(?=^## |\Z)", DOC, re.M | re.S))


def commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    for word, below in getattr(command, "commands", {}).items():
        full = f"{name} {word}".strip()
        if hasattr(below, "commands"):
            yield from commands(below, full)
        else:
            yield full, below


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_section_with_all_its_flags(name: str) -> None:
    section = SECTIONS.get(name, "")
    flags = [
        flag
        for parameter in COMMANDS[name].params
        for flag in parameter.opts
        if flag.startswith("-") and flag not in ("-h", "--help")
    ]

    missing = [flag for flag in flags if f"`{flag}`" not in section]
    assert (name in SECTIONS, missing) == (True, [])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_json_on_demand(name: str) -> None:
    assert "--json" in {flag for parameter in COMMANDS[name].params for flag in parameter.opts}


def test_no_section_describes_a_command_or_flag_that_is_gone() -> None:
    gone = set(SECTIONS) - set(COMMANDS)
    known = {flag for command in COMMANDS.values() for p in command.params for flag in p.opts}
    written = set(re.findall(r"^\| `(--[a-z-]+)`", DOC, re.M))

    assert (gone, written - known) == (set(), set())
