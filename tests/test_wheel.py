"""The package as users install it: a wheel built by pip, in an environment of its own, that serves.

pip makes an environment for each build and fetches what the build needs, as it does for users.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from modelyard.config import Config, load
from modelyard.testing.server import DEMO_MODELS

ROOT = Path(__file__).parent.parent
PURE = "py3-none-any.whl"
MODEL = "yard-chat"

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Built:
    """How `pip wheel` ended."""

    code: int
    said: str
    folder: Path

    @property
    def wheel(self) -> Path:
        assert self.code == 0, self.said
        (wheel,) = self.folder.glob("*.whl")
        return wheel


Build = Callable[..., Built]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Builds a wheel of this tree, with these variables set."""

    def run(**variables: str) -> Built:
        folder = tmp_path / "wheel"
        pip = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps"]
        done = subprocess.run(
            [*pip, "--wheel-dir", str(folder), str(ROOT)],
            env={**environment(), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return Built(done.returncode, done.stdout, folder)

    return run


def environment() -> dict[str, str]:
    """This one, without what configures Modelyard or adds to Python's path."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MODELYARD_", "PYTHONPATH"))
    }


def installed(wheel: Path, folder: Path) -> Path:
    """The programs of a new environment with the wheel in it, which sees our dependencies."""
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # Our own .pth file, by which this environment finds the sources, is not read from there.
    packages.joinpath("dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)], check=True)
    return folder / "bin"


@contextmanager
def served(programs: Path, folder: Path) -> Iterator[Any]:
    """`modelyard serve` with the demo's models, and what it announced."""
    command = [str(programs / "modelyard"), "serve", "--json", "--port", "0"]
    settings = {"XDG_CONFIG_HOME": str(folder), "XDG_STATE_HOME": str(folder)}
    process = subprocess.Popen(
        [*command, "--models-dir", str(DEMO_MODELS)],
        env={**environment(), **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )
    assert process.stdout is not None
    try:
        announced = b""
        while not announced.endswith(b"\n}\n"):
            line = process.stdout.readline()
            assert line, f"the server ended: {process.wait(30)}"
            announced += line
        yield json.loads(announced)
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def answers(wheel: Path, folder: Path) -> tuple[bool, str, str]:
    """Whether a server of the wheel is compiled; what it says to one question, at once and bit by
    bit."""
    programs = installed(wheel, folder / "environment")
    asked: Any = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hello"}],
        "temperature": 0,
        "max_tokens": 12,
    }
    with (
        served(programs, folder) as told,
        openai.OpenAI(base_url=f"{told['url']}/v1", api_key="any") as client,
    ):
        whole = client.chat.completions.create(**asked).choices[0].message.content
        stream = client.chat.completions.create(**asked, stream=True)
        parts = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        version = client.with_options(base_url=told["url"]).get("/api/version", cast_to=object)
        command = [programs / "modelyard", "info", "--json", "--url", told["url"]]
        info = subprocess.run(command, capture_output=True, check=True, env=environment())
    compiled: bool = json.loads(info.stdout)["server"]["compiled"]
    assert isinstance(version, dict)
    assert version["compiled"] is compiled
    return compiled, whole or "", parts


def modules() -> list[Path]:
    """What is compiled."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hook = project["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]
    return [ROOT / module for module in hook["modules"]]


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.stem)
def test_nothing_that_is_compiled_awaits_while_it_handles_an_exception(module: Path) -> None:
    """mypyc leaves such an exception to whatever runs meanwhile, as the one being handled there:
    what is raised then, in another request, would have it as its context."""
    tree = ast.parse(module.read_text())
    handling = (ast.ExceptHandler, ast.AsyncWith, ast.AsyncFor)
    waits = (ast.Await, ast.AsyncWith, ast.AsyncFor, ast.Yield, ast.YieldFrom)
    blocks = [node for node in ast.walk(tree) if isinstance(node, handling)]
    finals = [node.finalbody for node in ast.walk(tree) if isinstance(node, ast.Try)]
    inside = [*blocks, *(statement for body in finals for statement in body)]

    assert [
        each.lineno for node in inside for each in ast.walk(node) if isinstance(each, waits)
    ] == []


def can_compile() -> bool:
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(compiler) is not None and headers.exists()


def test_a_wheel_is_compiled_where_there_is_a_compiler_and_it_serves(
    build: Build, tmp_path: Path
) -> None:
    built = build()
    compiled, whole, parts = answers(built.wheel, tmp_path)

    assert compiled is can_compile(), built.said
    assert built.wheel.name.endswith(PURE) is not compiled
    assert whole
    assert whole == parts
    assert not [*ROOT.glob("src/**/*.so"), *ROOT.glob("*.so")]
    assert {file.name for file in ROOT.glob("src/**/*.c")} == {"_chunks.c", "_skim.c"}


def test_a_broken_compiler_gives_a_pure_wheel_that_serves_and_says_why_and_what_to_do(
    build: Build, tmp_path: Path
) -> None:
    built = build(CC="/bin/false")
    compiled, whole, parts = answers(built.wheel, tmp_path)

    assert built.wheel.name.endswith(PURE)
    assert not compiled
    assert whole
    assert whole == parts
    (told,) = re.findall("modelyard: the hot path is not compiled.*", built.said)
    assert "/bin/false" in told
    assert "python3-dev" in told


def test_a_missing_compiler_is_an_error_only_for_who_wants_it_compiled(build: Build) -> None:
    built = build(CC="/no/such/compiler", MODELYARD_COMPILE="1")

    assert built.code != 0
    assert "cannot be compiled: there is no C compiler (/no/such/compiler)" in built.said
    assert "Traceback" not in built.said


def test_what_the_build_is_told_is_no_setting_of_the_server() -> None:
    assert load(None, env={"MODELYARD_COMPILE": "1"}) == Config()


def test_a_wheel_is_pure_where_nothing_is_to_be_compiled(build: Build) -> None:
    built = build(MODELYARD_COMPILE="0")

    assert built.wheel.name.endswith(PURE)
    assert "not compiled" not in built.said
