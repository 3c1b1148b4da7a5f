"""Start scripts as commands: batch files and shell scripts, as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.importers.conftest import SAMPLES, Import

from modelyard.importers import programs
from modelyard.importers.batch import parse_batch, split_words
from modelyard.importers.script import find_script, load_script
from modelyard.importers.shell import parse_shell

BATCH = {
    "plain": ("@echo off\nsrv --port 80", ["srv", "--port", "80"]),
    "a shell that stays": ('cmd /k "srv.exe --port 80"', ["srv.exe", "--port", "80"]),
    "chained": ('cmd /c "conda activate x && srv --port 80"', ["srv", "--port", "80"]),
    "continued": ("srv ^\n  --port ^\n  80", ["srv", "--port", "80"]),
    "continued as in a shell": ("srv \\\n  --port 80", ["srv", "--port", "80"]),
    "arguments on own lines": ("srv -a 1\n  --port 80", ["srv", "-a", "1", "--port", "80"]),
    "a remark behind": ("srv --port 80  # 修改", ["srv", "--port", "80"]),
    "variables": ('set P=80\nset "D=C:\\a b"\nsrv "%D%\\m" --port %p%',
                  ["srv", "C:\\a b\\m", "--port", "80"]),
    "a window": ('start "title" /min /d C:\\x srv --port 80', ["srv", "--port", "80"]),
    "a quiet start": ("start /b srv --port 80", ["srv", "--port", "80"]),
    "written to a file": ("srv --port 80 > log.txt 2>&1", ["srv", "--port", "80"]),
    "shown and kept": ("srv --port 80 | tee log.txt", ["srv", "--port", "80"]),
    "escaped": ('srv --q a^&b --json "{\\"x\\": 1}" --port 80',
                ["srv", "--q", "a&b", "--json", '{"x": 1}', "--port", "80"]),
    "percent": ("srv --share 50%% --port 80", ["srv", "--share", "50%", "--port", "80"]),
    "helpers beside": ("nvidia-smi\nsrv --port 80\ncurl http://x", ["srv", "--port", "80"]),
    "a known server": ("srv --port 80\nllama-server -m x", ["llama-server", "-m", "x"]),
    "nothing": ("@echo off\npause", []),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCH)
def test_a_batch_file_starts_its_server(name: str) -> None:
    text, argv = BATCH[name]

    assert parse_batch(text, "/scripts").argv == argv


def test_a_batch_file_tells_folder_environment_and_variables() -> None:
    text = (
        "@echo off\nchcp 65001 >nul\nset HF_HOME=D:\\hf\nset M=x\n"
        'cd /d "%~dp0"\ncall conda activate my-env\npython -m %M% --port 80\n'
    )
    script = parse_batch(text, "/scripts")

    assert script.argv == ["python", "-m", "x", "--port", "80"]
    assert (script.cwd, script.conda, script.env) == ("/scripts/", "my-env", {"HF_HOME": "D:\\hf"})
    assert [remark for remark in script.remarks if remark.lost] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("if exist x goto y\nsrv --port 80", "`if` decides"),
        ("call other.bat\nsrv --port 80", "calls other.bat"),
        ("srv --port %PORT%", "%PORT% is a variable of the machine"),
        ("srv --port %1", "arguments of the script"),
        ("set /p X=\nsrv --port 80", "this form of `set`"),
        ("set PATH=C:\\x;%PATH%\nsrv --port 80", "the PATH is not changed"),
        ("call venv\\Scripts\\activate.bat\nsrv --port 80", "virtual environment"),
        ("call call call call call call call call srv", "commands in commands"),
    ],
)
def test_what_a_batch_file_decides_by_itself_is_remarked(text: str, told: str) -> None:
    lost = [remark.text for remark in parse_batch(text, "/s").remarks if remark.lost]

    assert any(told in text for text in lost), lost


SHELL = {
    "plain": ("#!/bin/sh\nexec srv --port 80", ["srv", "--port", "80"]),
    "continued": ("srv \\\n  --port \\\n  80", ["srv", "--port", "80"]),
    "variables": ('M="a b"; P=${PORT:-80}\nsrv "$M" --port $P', ["srv", "a b", "--port", "80"]),
    "before the command": ("CUDA_VISIBLE_DEVICES=1 srv --port 80", ["srv", "--port", "80"]),
    "in the background": ("nohup srv --port 80 > log 2>&1 &\nwait", ["srv", "--port", "80"]),
    "single quotes": ("srv --json '{\"a\": \"$x\"}' --port 80",
                      ["srv", "--json", '{"a": "$x"}', "--port", "80"]),
    "beside the script": ('srv "$(dirname "$0")/m.gguf" --port 80',
                          ["srv", "/scripts/m.gguf", "--port", "80"]),
    "arguments handed on": ('srv --port 80 "$@"', ["srv", "--port", "80", ""]),
}  # fmt: skip


@pytest.mark.parametrize("name", SHELL)
def test_a_shell_script_starts_its_server(name: str) -> None:
    text, argv = SHELL[name]

    assert [word for word in parse_shell(text, "/scripts").argv if word] == [w for w in argv if w]


def test_a_shell_script_tells_folder_environment_and_exports() -> None:
    text = (
        'set -e\ncd "$(dirname "$0")"\nsource ~/miniconda3/etc/profile.d/conda.sh\n'
        "conda activate vllm\nexport HF_HOME=/data CUDA_VISIBLE_DEVICES=0,1\nLOCAL=1\n"
        "vllm serve m --port 80\n"
    )
    script = parse_shell(text, "/scripts")

    assert script.argv == ["vllm", "serve", "m", "--port", "80"]
    assert (script.cwd, script.conda) == ("/scripts", "vllm")
    assert script.env == {"HF_HOME": "/data", "CUDA_VISIBLE_DEVICES": "0,1"}


def test_a_shell_script_that_works_values_out_is_started_itself(imported: Import) -> None:
    result = imported("#!/bin/sh\nsrv --threads $(nproc) --port 8123\n", "start.sh")

    assert "start.sh" in result.text
    assert "options: {port: 8123}" in result.text
    assert "(nproc)" not in result.text


def test_a_script_saved_by_chinese_windows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "启动.bat"
    path.write_bytes("rem 启动\r\nsrv.exe --m D:\\模型\\x --port 80\r\n".encode("gbk"))

    script = load_script(path)
    assert script is not None
    assert script.argv == ["srv.exe", "--m", "D:\\模型\\x", "--port", "80"]


def test_a_script_is_found_whatever_the_slashes_and_the_case(tmp_path: Path) -> None:
    (tmp_path / "Scripts").mkdir()
    (tmp_path / "Scripts" / "Start.bat").touch()

    assert find_script(tmp_path, "scripts\\START.bat") == tmp_path / "Scripts" / "Start.bat"


def test_a_quote_and_a_backslash_are_those_of_windows() -> None:
    assert split_words('a "b c" d\\e "f \\"g\\" h" ""') == ["a", "b c", "d\\e", 'f "g" h', ""]


@pytest.mark.parametrize(
    ("argv", "ready"),
    [
        (["llama-server", "-m", "x"], ["llama-server", "-m", "x", "--port", "{port}"]),
        (["srv", "--port=99", "--host", "0.0.0.0"], ["srv", "--port={port}", "--host", "{host}"]),
        (["lmdeploy", "serve", "api_server", "m", "--server-port", "9"],
         ["lmdeploy", "serve", "api_server", "m", "--server-port", "{port}"]),
        (["docker", "run", "-p", "10001:80", "i"], ["docker", "run", "-p", "{port}:80", "i"]),
        (["srv", "x110001"], ["srv", "x110001"]),
    ],
)  # fmt: skip
def test_the_port_of_a_command_becomes_ours(argv: list[str], ready: list[str]) -> None:
    words, placed = programs.with_blanks(argv, 10001)

    assert (words, placed) == (ready, "{port}" in " ".join(ready))


def test_a_server_that_checks_names_is_told_every_name() -> None:
    argv = ["vllm", "serve", "m", "--served-model-name", "old", "-tp", "2"]

    assert programs.with_names(argv, ["id", "alias"]) == [
        *("vllm", "serve", "m", "-tp", "2"),
        *("--served-model-name", "id", "alias", "old"),
    ]
    assert programs.with_names(["llama-server", "-m", "x"], ["id"]) == ["llama-server", "-m", "x"]


def test_the_scripts_of_a_configuration_become_commands(imported: Import) -> None:
    text = imported(SAMPLES / "llm-manager-v0.1" / "config.json").text

    assert "llama-server.exe" not in text
    assert "[llama-server, -m," in text
    assert "[conda, run, --no-capture-output, -n, lmdeploy, lmdeploy, serve, api_server," in text
    assert "自定义聊天模板" in text


def test_a_script_that_is_missing_is_named_with_its_port(imported: Import) -> None:
    model = '{"a": {"mode": "Chat", "port": 10001, "bat_path": "x\\\\gone.bat", "gpu_mem_mb": {}}}'

    result = imported(model, "config.json")
    assert "options: {port: 10001}" in result.text
    assert "x/gone.bat" in result.text
    assert any("is not beside the configuration" in each.text for each in result.findings)
