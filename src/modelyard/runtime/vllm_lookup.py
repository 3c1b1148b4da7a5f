"""Finds the vLLMs of this machine, and asks each what it offers.

Laws of this file:
- Everything blocks: call it in a thread. A question to a vLLM takes at most `ASK_S`, one that was
  not answered in time is not followed by another, and what was learned is kept on disk until the
  program or its version changes.
- The version and the platform are read from files, without starting anything; importing torch
  takes ten seconds and more. The options are asked for, `--help=all`.
- A vLLM that cannot be found or does not answer is no error here: the `Build` says so, and the
  models that need it say so when they are checked or started.
- Programs are asked with the environment that engines get: none of our secrets.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelyard.engines import vllm_help
from modelyard.engines.vllm_builds import MODULE, Build
from modelyard.engines.vllm_table import Form
from modelyard.launchers.environment import inherited

log = logging.getLogger("modelyard")

BIN_VARIABLE: Final = "VLLM_BIN"
"""Where vLLM is, unless the configuration says: a program, a Python, a folder or a name."""
ASK_S: Final = 120.0
"""How long a vLLM may take to print its options; it imports torch for that."""
MOST_OUTPUT: Final = 4 * 2**20
MOST_KEPT: Final = 32
"""Builds whose options are kept on disk."""
CACHE_FILE: Final = "vllm-options.json"
_DIST: Final = re.compile(r"(?P<name>vllm(?:_(?P<platform>cpu|rocm|xpu)\w*)?)-\d[^-]*\.dist-info")
_METADATA: Final = re.compile(r"^Version: *(\S+)", re.MULTILINE)
_TORCH_FIELD: Final = re.compile(r"^(cuda|hip|xpu)\b[^=]*= *(['\"].+['\"]|True)", re.MULTILINE)
_VERSION: Final = re.compile(r"\b\d+\.\d+\.\d+\S*")
_CONDA_FOLDERS: Final = (
    "miniconda3", "anaconda3", "miniforge3", "mambaforge", "micromamba", ".conda", ".virtualenvs",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Environment:
    """A Python environment that holds a vLLM."""

    prefix: Path
    version: str
    platform: str
    has_script: bool
    """Whether `bin/vllm` works: it asks for a distribution of just this name."""


class Lookup:
    """Looks up vLLMs by the words that a configuration uses for them.

    `place` is where to look where a model says nothing, None for automatic; `folder` is where
    answers are kept.
    """

    def __init__(
        self, place: str | None, folder: Path, env: Mapping[str, str], ask_s: float = ASK_S
    ) -> None:
        self._ask_s = ask_s
        self._place = place or env.get(BIN_VARIABLE, "").strip() or None
        self._file = folder / CACHE_FILE
        self._env = env

    def builds(self, wanted: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], Build]:
        """A build for each: no words mean the usual vLLM, one names a place, several a command."""
        return {words: self._build(words) for words in dict.fromkeys(wanted)}

    def unasked(self, place: str | None = None) -> Build:
        """What files say of the vLLM at a place, or of the usual one. Starts nothing."""
        if place is not None and os.sep not in place:
            place = shutil.which(place, path=self._env.get("PATH")) or place
        return self._located(place)

    def _build(self, words: tuple[str, ...]) -> Build:
        build = command(words) if len(words) > 1 else self._located(words[0] if words else None)
        return build if build.trouble else self._asked(build)

    def _located(self, place: str | None) -> Build:
        place = place or self._place
        if place is not None:
            return located(place, self._env)
        script = shutil.which("vllm", path=self._env.get("PATH"))
        if script:
            return located(script, self._env)
        own = environment(Path(sys.prefix))
        if own is not None:
            return _started_in(own)
        looked = f"no `vllm` on the PATH, and none beside {sys.executable}"
        return Build(trouble=f"no vLLM was found: {looked}, and {BIN_VARIABLE} is not set")

    def _asked(self, build: Build) -> Build:
        key, stamp = " ".join(build.launch), _stamp(build)
        kept = self._read()
        known = kept.get(key)
        if isinstance(known, dict) and known.get("stamp") == stamp:
            told = _forms(known.get("options"))
            if told:
                return _with(build, str(known.get("version", "")), told)
        log.info("asking %s for its options; this takes a while, once", key)
        told = ask(build.launch, self._ask_s)
        version = build.version
        if told:
            version = version or _told_version(build.launch, self._ask_s)
            options = {name: form.name for name, form in told.items()}
            entry = {"stamp": stamp, "version": version, "options": options}
            newest = dict(list({**kept, key: entry}.items())[-MOST_KEPT:])
            self._write(newest)
        else:
            log.warning("%s did not tell its options; those of its version are assumed", key)
        return _with(build, version, told)

    def _read(self) -> dict[str, Any]:
        try:
            kept = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def _write(self, kept: Mapping[str, Any]) -> None:
        beside = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(kept))
            beside.replace(self._file)
        except OSError as error:
            log.warning("cannot keep vLLM's options in %s: %s", self._file, error)


# ------------------------------------------------------------------------------------- where it is


def located(place: str, env: Mapping[str, str]) -> Build:
    """The vLLM at a path (program, Python or environment), or in an environment of this name."""
    if os.sep in place or place.startswith("~"):
        return _at(Path(os.path.abspath(Path(place).expanduser())))  # noqa: PTH100  # keeps links
    for prefix in named_environments(place, env):
        if (found := environment(prefix)) is not None:
            return _started_in(found)
    program = shutil.which(place, path=env.get("PATH"))
    if program:
        return _at(Path(program))
    return Build(trouble=f"no environment and no program named {place!r} with a vLLM was found")


def command(words: Sequence[str]) -> Build:
    """A vLLM that is started by words of the user's own."""
    program = shutil.which(words[0])
    found = environment(_prefix_of(Path(program))) if program else None
    if program is None:
        return Build(trouble=f"there is no program {words[0]!r}")
    if found is None:
        return Build(tuple(words))
    return Build(tuple(words), found.version, found.platform)


def _at(path: Path) -> Build:
    if path.is_dir():
        found = environment(path)
        if found is None:
            return Build(trouble=f"there is no vLLM in the environment {path}")
        return _started_in(found)
    if not path.is_file():
        return Build(trouble=f"there is nothing at {path}")
    found = environment(_prefix_of(path))
    if path.name.startswith("python"):
        if found is None:
            return Build(trouble=f"there is no vLLM in the environment of {path}")
        return Build((str(path), "-m", MODULE), found.version, found.platform)
    if found is None:
        return Build((str(path), "serve"))
    if not found.has_script:
        return _started_in(found)
    return Build((str(path), "serve"), found.version, found.platform)


def _started_in(found: Environment) -> Build:
    folder = found.prefix / "bin"
    if found.has_script:
        launch: tuple[str, ...] = (str(folder / "vllm"), "serve")
    else:
        launch = (str(folder / "python"), "-m", MODULE)
    return Build(launch, found.version, found.platform)


def _prefix_of(program: Path) -> Path:
    """The environment of a program: that of the Python in its first lines, else its own."""
    with suppress(OSError, ValueError), program.open("rb") as file:
        head = file.read(512).decode("utf-8", "replace")
        # Long paths stand in the second line: `'''exec' "/long/bin/python" "$0" "$@"`.
        found = re.match(r"#!\s*(?:/bin/sh\n'''exec' \"?)?(?P<python>/[^\s\"]*python[\d.]*)", head)
        if found:
            return Path(found["python"]).parent.parent
    return program.parent.parent


def named_environments(name: str, env: Mapping[str, str]) -> Iterator[Path]:
    """Folders of conda and virtual environments that may have this name."""
    home = Path(env.get("HOME", "/nonexistent"))
    listed = home / ".conda" / "environments.txt"
    with suppress(OSError, UnicodeDecodeError):
        lines = listed.read_text().splitlines()[:1000]
        yield from (Path(line) for line in lines if Path(line).name == name)
    roots = [home / folder for folder in _CONDA_FOLDERS]
    roots += [Path("/opt/conda"), Path("/opt/miniconda3")]
    roots += [Path(env[key]) for key in ("MAMBA_ROOT_PREFIX", "WORKON_HOME") if env.get(key)]
    if env.get("CONDA_EXE"):
        roots.append(Path(env["CONDA_EXE"]).parent.parent)
    for root in roots:
        yield root / "envs" / name
        yield root / name


def environment(prefix: Path) -> Environment | None:
    """What the files of an environment say of its vLLM, if there is one."""
    found: dict[str, tuple[str, str]] = {}
    torch = ""
    for site in _sites(prefix):
        for dist in site.glob("vllm*.dist-info"):
            if (match := _DIST.fullmatch(dist.name)) is not None:
                found[match["name"]] = (_version_in(dist), match["platform"] or "")
        with suppress(OSError, UnicodeDecodeError):
            torch = torch or _torch_platform((site / "torch" / "version.py").read_text())
    if not found:
        return None
    name = "vllm" if "vllm" in found else next(iter(found))
    version, platform = found[name]
    named = next((p for _, p in found.values() if p), platform) or _local_platform(version)
    has_script = name == "vllm" and (prefix / "bin" / "vllm").is_file()
    return Environment(prefix, version.partition("+")[0], named or torch, has_script)


def _version_in(dist: Path) -> str:
    """The version in a distribution's own words.

    Not that of the folder's name: the CPU package lays a distribution `vllm-0.0.0` beside itself
    when it is first imported, so that scripts that ask for `vllm` find its version in it.
    """
    with suppress(OSError):
        with (dist / "METADATA").open(encoding="utf-8", errors="replace") as file:
            found = _METADATA.search(file.read(4096))
        return found[1] if found else ""
    return ""


def _sites(prefix: Path) -> Iterator[Path]:
    for lib in ("lib", "lib64", "local/lib"):
        for kind in ("site-packages", "dist-packages"):
            yield from prefix.glob(f"{lib}/python3*/{kind}")


def _local_platform(version: str) -> str:
    local = version.partition("+")[2]
    words = {"cpu": "cpu", "rocm": "rocm", "xpu": "xpu", "cu": "cuda"}
    return next((platform for word, platform in words.items() if local.startswith(word)), "")


def _torch_platform(text: str) -> str:
    """What torch was built for, as its `version.py` says."""
    built_for = {match[0] for match in _TORCH_FIELD.findall(text)}
    for field, platform in (("hip", "rocm"), ("cuda", "cuda"), ("xpu", "xpu")):
        if field in built_for:
            return platform
    return "cpu" if "__version__" in text else ""


# ----------------------------------------------------------------------------------- what it offers


def ask(launch: Sequence[str], timeout_s: float = ASK_S) -> dict[str, Form]:
    """The options that a vLLM prints; empty if it prints none in time."""
    # Before vllm pull request 18643 plain `--help` prints everything, and `=all` is an error.
    for question in ("--help=all", "--help"):
        said = _output([*launch, question], timeout_s)
        if said is None:
            return {}
        if told := vllm_help.options(said):
            return told
    return {}


def _told_version(launch: Sequence[str], timeout_s: float) -> str:
    words = launch[:-1] if launch[-1] == "serve" else launch
    found = _VERSION.findall(_output([*words, "--version"], timeout_s) or "")
    return found[-1] if found else ""


def _output(argv: Sequence[str], timeout_s: float) -> str | None:
    """What a program prints, up to a bound in size, None if it was not done in time.

    It is ended afterwards, with all that it started.
    """
    env = {**inherited(os.environ), "COLUMNS": "200", "NO_COLOR": "1", "PYTHONSAFEPATH": "1"}
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        log.warning("cannot start %s: %s", argv[0], error)
        return None
    late = threading.Event()

    def end() -> None:
        late.set()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(timeout_s, end)
    timer.start()
    try:
        assert process.stdout is not None, "it was asked for"
        with process.stdout:
            said = process.stdout.read(MOST_OUTPUT)
        return None if late.is_set() else said.decode("utf-8", "replace")
    finally:
        timer.cancel()
        end()
        process.wait()
        timer.join()


def _stamp(build: Build) -> str:
    """Changes when the program or its version does."""
    try:
        changed = Path(build.launch[0]).stat().st_mtime_ns
    except OSError:
        changed = 0
    return f"{changed} {build.version} {build.platform}"


def _with(build: Build, version: str, told: Mapping[str, Form]) -> Build:
    return Build(build.launch, build.version or version, build.platform, told)


def _forms(kept: object) -> dict[str, Form]:
    if not isinstance(kept, dict):
        return {}
    names = Form.__members__
    return {str(name): names[form] for name, form in kept.items() if form in names}


# ------------------------------------------------------------------------------------- the machine


def weights_mib(source: str) -> int:
    """Size of the weights in a checkpoint's folder, 0 if it cannot be read."""
    folder = Path(source)
    for suffix in (".safetensors", ".bin", ".pt"):
        size = 0
        with suppress(OSError):
            files = (file for file in folder.iterdir() if file.suffix == suffix)
            # Mistral's checkpoints hold the same weights again in one file of this name.
            size = sum(f.stat().st_size for f in files if not f.name.startswith("consolidated"))
        if size:
            return -(-size // 2**20)
    return 0


def cores() -> list[int]:
    """One logical CPU of each core that we may use."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    first_of: dict[str, int] = {}
    for cpu in allowed:
        siblings = str(cpu)
        with suppress(OSError):
            topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            siblings = topology.read_text().strip()
        first_of.setdefault(siblings, cpu)
    return sorted(first_of.values())
