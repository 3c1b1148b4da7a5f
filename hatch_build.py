"""Builds wheels: with the hot path compiled by mypyc and a C compiler, or without where none is.

Laws of this file:
- Who has a C compiler and Python's headers gets the hot path compiled. Who has not gets a pure
  wheel and is told why: no installation fails for it. `MODELYARD_COMPILE=1` makes it an error, and
  `MODELYARD_COMPILE=0` never compiles.
- Nothing is written into the source tree: a copy of it is compiled.
- An editable installation runs the sources as they are. A compiled wheel has them, too.
- What is compiled is listed in pyproject.toml: modules, which mypyc turns into C, and what is
  written in C. All of it is, or nothing.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "MODELYARD_COMPILE"
INSTALL_ONE = (
    "to have it compiled, install a C compiler and Python's headers (Debian: apt-get install gcc "
    f"python3-dev), then install again; {SWITCH}=1 makes this an error"
)
SEE_ALL = f"{SWITCH}=1 makes this an error and shows all that they said"
PROBE_TIMEOUT_S = 60
COMPILE_TIMEOUT_S = 1800
"""It takes half a minute on a desktop; a small board may need many times as long."""

MYPY_OPTIONS = (
    "--config-file=",  # nobody's but ours: neither the user's nor the one for `make check`
    "--ignore-missing-imports",  # few dependencies are there while a wheel is built
    "--follow-imports=silent",  # so what is not compiled cannot be checked, and need not be
    # A compiled class with a base that mypyc does not know crashes when it is used.
    "--disallow-subclassing-any",
)
SETUP = """
import json, sys
from setuptools import Extension, setup  # before mypyc, which takes what is there
from mypyc.build import mypycify

modules, options, written_in_c = json.loads(sys.argv.pop())
setup(
    name="modelyard",
    package_dir={"": "src"},
    ext_modules=[
        *mypycify([*options, *modules], group_name="modelyard", opt_level="3", debug_level="0",
                  target_dir="c"),
        *(Extension(name, [file], extra_compile_args=["-O3"])
          for name, file in written_in_c.items()),
    ],
    script_args=["build_ext", "--build-lib", "lib", "--build-temp", "objects"],
)
"""


class NotCompiled(Exception):
    """Why the hot path could not be compiled: in one line, and all that the tools said."""

    def __init__(self, reason: str, output: str = "") -> None:
        super().__init__(reason)
        self.output = output


class CompiledHotPath(BuildHookInterface):  # type: ignore[misc, type-arg, unused-ignore]
    """Hatch's hook for a build of a wheel."""

    _folder: TemporaryDirectory[str] | None = None

    def dependencies(self) -> list[str]:
        """What the build needs besides Hatch: nothing where nothing will be compiled."""
        return list(self.config["requires"]) if _wanted() and not _obstacle() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and add what came out to the wheel."""
        if version == "editable" or not _wanted():
            return
        try:
            built = self._compile()
        except NotCompiled as error:
            if os.environ.get(SWITCH):
                sys.exit(f"{error.output}\nmodelyard: the hot path cannot be compiled: {error}")
            print(
                "modelyard: the hot path is not compiled, so each request will cost about twice "
                f"as much: {error}; {SEE_ALL if error.output else INSTALL_ONE}",
                file=sys.stderr,
            )
            return
        build_data["force_include"].update(built)
        build_data["infer_tag"] = True
        build_data["pure_python"] = False

    def finalize(self, *_: object) -> None:
        """Remove the copy that was compiled."""
        if self._folder is not None:
            self._folder.cleanup()

    def _compile(self) -> dict[str, str]:
        """Where each compiled file is, and its place in the wheel."""
        if obstacle := _obstacle():
            raise NotCompiled(obstacle)
        modules: list[str] = self.config["modules"]
        written_in_c: dict[str, str] = self.config["written_in_c"]
        self._folder = TemporaryDirectory(prefix="modelyard-build-")
        folder = Path(self._folder.name)
        command = [sys.executable, "-c", SETUP, json.dumps([modules, MYPY_OPTIONS, written_in_c])]
        try:
            shutil.copytree(
                Path(self.root, "src"), folder / "src", ignore=shutil.ignore_patterns("*.so")
            )
            output, failed = _run(command, COMPILE_TIMEOUT_S, folder)
        except OSError as error:
            raise NotCompiled(str(error)) from error
        library = folder / "lib"
        files = {str(file): str(file.relative_to(library)) for file in library.rglob("*.so")}
        # One for each, and one with the code of all modules.
        if failed or len(files) != len(modules) + 1 + len(written_in_c):
            raise NotCompiled(f"mypyc or the compiler failed: {_fault(output)}", output)
        return files


def _wanted() -> bool:
    wish = os.environ.get(SWITCH, "")
    if wish not in ("", "0", "1"):
        sys.exit(f"{SWITCH} is {wish!r}: 1 compiles or fails, 0 never compiles; or unset it")
    return wish != "0"


def _obstacle() -> str:
    """Why nothing can be compiled here; nothing if a C compiler works and has Python's headers."""
    if sys.implementation.name != "cpython":
        return f"mypyc compiles for CPython, not for {platform.python_implementation()}"
    if sys.platform == "win32":
        return "it is not compiled on Windows"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    headers = {f"-I{sysconfig.get_path(name)}" for name in ("include", "platinclude")}
    with TemporaryDirectory(prefix="modelyard-probe-") as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <Python.h>\n")
        try:
            output, failed = _run([*compiler, *headers, "-c", "probe.c"], PROBE_TIMEOUT_S, folder)
        except FileNotFoundError:
            return f"there is no C compiler ({compiler[0]})"
        except OSError as error:
            return f"the C compiler does not start: {error}"
        if failed or not source.with_suffix(".o").exists():
            return f"{shlex.join(compiler)} cannot compile with Python's headers: {_fault(output)}"
    return ""


def _run(command: list[str], timeout_s: float, folder: Path | str) -> tuple[str, bool]:
    """What a program printed, and whether it failed."""
    try:
        done = subprocess.run(
            command, cwd=folder, timeout=timeout_s, stdin=subprocess.DEVNULL, text=True,
            errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"it took more than {timeout_s} s", True
    return done.stdout, done.returncode != 0


def _fault(output: str) -> str:
    """The line that tells most of what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines[-1:] or ["it said nothing"])[0]
