"""Modules that are written in C, compiled for a test as a wheel would have them."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import modelyard

SOURCES = Path(modelyard.__file__).parent


def compiled(name: str, folder: Path) -> ModuleType | None:
    """The module of this name; None where nothing can be compiled, as for users."""
    headers = Path(sysconfig.get_path("include"))
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    source = SOURCES.joinpath(*name.split(".")[1:]).with_suffix(".c")
    library = folder / f"{source.stem}.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(library)]
    if not (headers / "Python.h").exists():
        return None
    try:
        subprocess.run([*compiler, *flags, f"-I{headers}", str(source)], check=True)
    except FileNotFoundError:
        return None
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
