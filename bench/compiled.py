"""The package as users have it: built into a wheel, with the hot path compiled, and unpacked.

It lies in build/compiled, the wheel in build/wheel, and is built again when anything that goes into
it has changed. With `build/compiled` on PYTHONPATH every program of this environment, and whatever
it starts, runs that package instead of the sources:

    make compiled
    PYTHONPATH=build/compiled .venv/bin/python -m bench.latency
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "build" / "compiled"
WHEEL = ROOT / "build" / "wheel"


def built() -> Path:
    """The folder of the package, which is compiled exactly if it can be here.

    SystemExit if pip cannot build it, or not as the environment's MODELYARD_COMPILE wants it.
    """
    mark, state = PACKAGE / ".made_of", _state()
    as_wanted = any(PACKAGE.glob("*.so")) and os.environ.get("MODELYARD_COMPILE") != "0"
    if as_wanted and mark.exists() and mark.read_text() == state:
        return PACKAGE
    print("building the package in build/compiled, which takes half a minute", file=sys.stderr)
    for folder in (WHEEL, PACKAGE):
        shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    if subprocess.run([*command, str(WHEEL), str(ROOT)], stdout=sys.stderr).returncode:
        raise SystemExit("pip cannot build the package; `--interpreted` measures the sources")
    (wheel,) = WHEEL.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(PACKAGE)
    if not any(PACKAGE.glob("*.so")):
        print("the hot path is not compiled: MODELYARD_COMPILE=1 tells why", file=sys.stderr)
    mark.write_text(state)
    return PACKAGE


def _state() -> str:
    """Changes with all that goes into the package."""
    files = [ROOT / "pyproject.toml", ROOT / "hatch_build.py", *ROOT.glob("src/modelyard/**/*")]
    state = sha256(sys.version.encode())
    for file in sorted(files):
        if file.is_file() and "__pycache__" not in file.parts:
            state.update(str(file).encode() + b"\0" + sha256(file.read_bytes()).digest())
    return state.hexdigest()


if __name__ == "__main__":
    print(built())
