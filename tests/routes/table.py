"""The table of routes, written from the marks on tests.

Laws of this file:
- A test that shows that a route works says so: `@pytest.mark.shows(route=..., engine=...,
  dialect=...)`, once for each engine and dialect; `route` is a path or a list of paths. Files are
  read, never imported: no engine has to be installed.
- Every route of `http/routes.py` has a row. What no test shows has no mark.
- A mark that names what is not there is an error, never a row of its own.

`python tests/routes/table.py` writes docs/routes.md anew.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelyard.http.routes import INFERENCE

TESTS: Final = Path(__file__).parent.parent
PAGE: Final = TESTS.parent / "docs/routes.md"

REAL: Final[Mapping[str, str]] = {
    "llamacpp": "llama.cpp",
    "vllm": "vLLM",
    "transformers": "transformers",
}
PLAYED: Final[Mapping[str, str]] = {
    "command": "any command",
    "preset": "presets",
    "remote": "remotes",
}
ENGINES: Final[Mapping[str, str]] = {**REAL, **PLAYED}
"""By the word of a mark, the heading of a column."""
DIALECTS: Final[Mapping[str, str]] = {
    "openai": "OpenAI",
    "responses": "OpenAI Responses",
    "anthropic": "Anthropic",
    "ollama": "Ollama",
    "rerank": "Cohere, Jina, TEI",
}

HEAD: Final = """\
# Routes

Every route on which a model is asked, and with which engines a test shows that it works: through a
whole server, with real requests. ✓ is the engine itself, ○ a program of ours in its place. An empty
place says that no test shows it, not that it fails: what needs no translation is passed on to any
engine that has the route.

`.venv/bin/python tests/routes/table.py` writes this page from the marks on the tests.

"""


class WrongMark(Exception):
    """A mark names what is not there."""


@dataclass(frozen=True, slots=True, order=True)
class Shown:
    """What one mark of one test says."""

    route: str
    engine: str
    dialect: str
    test: str
    """Path below tests/."""
    name: str
    """The test's function."""


def shown_by_tests(folder: Path = TESTS) -> list[Shown]:
    """What the marks of all tests say. Raises WrongMark."""
    return sorted(each for path in _files(folder) for each in _shown_in(path, folder))


def page(shown: Sequence[Shown]) -> str:
    """The whole document."""
    return "\n".join([HEAD + _table(shown), "", _sources(shown)])


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if each not in ("node_modules", "__pycache__")]
        yield from (Path(place, name) for name in names if re.fullmatch(r"test_\w+\.py", name))


def _shown_in(path: Path, folder: Path) -> Iterator[Shown]:
    text = path.read_text()
    if "mark.shows" not in text:
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.shows":
                    yield from _read(mark, str(path.relative_to(folder)), node.name)


def _read(mark: ast.Call, test: str, name: str) -> Iterator[Shown]:
    said = {key.arg: ast.literal_eval(key.value) for key in mark.keywords}
    if mark.args or set(said) != {"route", "engine", "dialect"} or not name.startswith("test_"):
        raise WrongMark(f"{test}, {name}: a mark is shows(route=..., engine=..., dialect=...)")
    routes = said["route"] if isinstance(said["route"], list) else [said["route"]]
    for route in routes:
        yield _checked(Shown(route, said["engine"], said["dialect"], test, name))


def _checked(shown: Shown) -> Shown:
    test, name = shown.test, shown.name
    route = INFERENCE.get(shown.route.encode())
    if route is None:
        raise WrongMark(f"{test}, {name}: http/routes.py has no route {shown.route}")
    if shown.engine not in ENGINES:
        raise WrongMark(f"{test}, {name}: {shown.engine!r} is none of {', '.join(ENGINES)}")
    if shown.dialect != route.dialect.name:
        raise WrongMark(
            f"{test}, {name}: {shown.route} speaks {route.dialect.name}, not {shown.dialect}"
        )
    return shown


def _table(shown: Sequence[Shown]) -> str:
    marks = {(each.route, each.engine) for each in shown}
    lines = [
        f"| route | dialect | task | {' | '.join(ENGINES.values())} |",
        f"|---|---|---|{':-:|' * len(ENGINES)}",
    ]
    for path, route in INFERENCE.items():
        cells = [
            ("✓" if engine in REAL else "○") if (path.decode(), engine) in marks else ""
            for engine in ENGINES
        ]
        task = route.task.value if route.task is not None else "any"
        dialect = DIALECTS[route.dialect.name]
        lines.append(f"| `{path.decode()}` | {dialect} | {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _sources(shown: Sequence[Shown]) -> str:
    lines = ["## Where it is shown", "", "| route | engine | tests |", "|---|---|---|"]
    for path in (path.decode() for path in INFERENCE):
        for engine, title in ENGINES.items():
            tests = sorted({s.test for s in shown if (s.route, s.engine) == (path, engine)})
            if tests:
                links = ", ".join(f"[{Path(test).stem}](../tests/{test})" for test in tests)
                lines.append(f"| `{path}` | {title} | {links} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(shown_by_tests()))
