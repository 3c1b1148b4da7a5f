"""`modelyard simulate`, as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelyard.cli import exits, main

TRACES = Path(__file__).parents[2] / "bench/traces"
MODELS = "small: {weights_gib: 8}\nlarge: {weights_gib: 50}\nother: {weights_gib: 40}\n"
TRACE = "t_s,model,input_tokens,output_tokens,key\n" + "".join(
    f"{10 * turn},{('small', 'large', 'other')[turn % 3]},600,100,{'ann' if turn % 2 else 'bob'}\n"
    for turn in range(30)
)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "trace.csv").write_text(TRACE)
    (tmp_path / "models.yaml").write_text(MODELS)
    return [
        "simulate",
        *("--trace", str(tmp_path / "trace.csv")),
        *("--models", str(tmp_path / "models.yaml")),
        *("--devices", "76GiB"),
        *("--costs", "gguf"),
    ]


def document(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> Any:
    assert main([*arguments, "--json"]) == exits.OK
    return json.loads(capsys.readouterr().out)


def test_the_document_has_the_numbers(capsys: pytest.CaptureFixture[str], files: list[str]) -> None:
    found = document(capsys, files)

    assert (found["policy"], found["requests"]) == ("modelyard", 30)
    assert 0 <= found["p50"] <= found["p95"] <= found["p99"] <= found["max"]
    assert found["swaps"] == sum(each["swaps"] for each in found["models"].values())
    assert {"mean", "swap_seconds", "makespan_s", "utilisation"} <= found.keys()
    assert sum(each["requests"] for each in found["keys"].values()) == 30


def test_all_policies_can_be_compared(capsys: pytest.CaptureFixture[str], files: list[str]) -> None:
    found = document(capsys, [*files, "--compare", "--bound"])["results"]

    assert [each["policy"] for each in found] == ["modelyard", "fifo", "single", "ollama", "lru"]
    assert all(each["lower_bound_s"]["max"] <= each["swap_seconds"] for each in found)


def test_every_move_can_be_had_in_order(
    capsys: pytest.CaptureFixture[str], files: list[str]
) -> None:
    found = document(capsys, [*files, "--policy", "fifo", "--moves"])["moves"]

    assert found[0] == {
        "begin_s": 0.0,
        "end_s": pytest.approx(1.5 + 8 / 6),
        "what": "start",
        "model": "small",
        "devices": [0],
    }
    assert [move["begin_s"] for move in found] == sorted(move["begin_s"] for move in found)


def test_a_person_sees_tables(capsys: pytest.CaptureFixture[str], files: list[str]) -> None:
    assert main([*files, "--bound", "--moves"]) == exits.OK
    told = capsys.readouterr()

    lines = told.out.splitlines()
    assert lines[0].split()[:3] == ["POLICY", "MEAN", "P50"]
    assert lines[1].startswith("modelyard")
    assert "no schedule with this p99 spends less than" in told.out
    assert any(line.startswith("large") for line in lines)
    assert "0.00 s  start  small  on 0" in told.out
    assert told.err == "30 requests for 3 models in 4 min, on 76.0 GiB\n"


def test_parameters_of_the_scheduler_can_be_tried(
    capsys: pytest.CaptureFixture[str], files: list[str]
) -> None:
    found = document(capsys, [*files, "--set", "scheduling.fair_after=1s", "--seed", "4"])

    assert found["requests"] == 30


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--policy", "best"], "--policy: 'best' is none of modelyard, fifo"),
        (["--wake", "there"], "--wake: 'there' is none of anywhere, home"),
        (["--costs", "L9"], "'L9' is no kind of costs"),
        (["--devices", "8"], "--devices"),
        (["--devices", "8GiB"], "large.weights_gib: does not fit on a device of 8 GiB"),
        (["--length", "soon"], "--length: 'soon' is not a duration"),
        (["--stretch", "0"], "--stretch: 0 is not more than 0"),
        (["--host-memory", "1"], "--host-memory"),
        (["--set", "nonsense=1"], "scheduling.nonsense"),
        (["--trace", "/nowhere.csv"], "cannot be read"),
        (["--models", "/nowhere.yaml"], "cannot be read"),
        (["--config", "/nowhere.yaml"], "cannot be read"),
    ],
)
def test_wrong_flags_are_told_in_a_sentence(
    capsys: pytest.CaptureFixture[str], files: list[str], flags: list[str], told: str
) -> None:
    assert main([*files, *flags]) == exits.USAGE
    said = capsys.readouterr()

    assert (said.out, told in said.err) == ("", True)


def test_ctrl_c_ends_a_long_run_without_a_traceback(files: list[str]) -> None:
    argv = [sys.executable, "-m", "modelyard.cli", *files, "--policy", "modelyard"]
    argv[argv.index("--trace") + 1] = str(TRACES / "azure_llm_2023_conv.csv.gz")
    argv += ["--stretch", "30"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"19366 requests")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)

    assert (process.returncode, out, b"Traceback" in err) == (exits.INTERRUPTED, b"", False)


def test_the_benchmark_prints_its_figures() -> None:
    script = TRACES.parent / "scheduler.py"
    flags = ["--json", "--quick", "--workers", "1", "--only", "servegen/30"]
    ran = subprocess.run([sys.executable, script, *flags], capture_output=True, check=True)
    found = json.loads(ran.stdout)

    assert {"mean_vs_fifo", "mean_vs_ollama", "p99_vs_fifo", "max_vs_fifo"} <= found.keys()
    (cell,) = found["cells"]
    ours, fifo = cell["policies"]["modelyard"], cell["policies"]["fifo"]
    assert found["mean_vs_fifo"] == pytest.approx(ours["mean"] / fifo["mean"], abs=0.01)
    assert found["groups"]["tuned"]["count"] == 1
