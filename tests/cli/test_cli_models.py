"""ps, list, show, start, stop, restart, logs, info, version: what they print and how they end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from modelyard import __version__, compiled

if TYPE_CHECKING:
    from tests.cli.conftest import Run, ServerProcess

UNUSED_URL = "http://127.0.0.1:1"
MODELYARD = [sys.executable, "-m", "modelyard.cli"]


# ------------------------------------------------------------------------------------------ looking


def test_list_shows_every_model_with_its_size_and_source(cli: Run) -> None:
    ran = cli("list")

    lines = ran.out.splitlines()
    assert lines[0].split() == ["NAME", "TASKS", "ENGINE", "NEEDS", "CONTEXT", "STATE", "SOURCE"]
    chat = next(line for line in lines if line.startswith("yard-chat"))
    assert "chat, completion" in chat
    assert "llamacpp" in chat
    assert chat.endswith("yard-chat.gguf")
    assert ran.code == 0


def test_list_as_json_holds_what_the_admin_api_says(cli: Run) -> None:
    models = {model["id"]: model for model in cli("list", "--json").json}

    assert models["vectors"]["tasks"] == ["embedding"]
    assert models["yard-embed"]["needs_mib"]["cpu"] > 0
    assert models["quick"]["aliases"] == ["fast"]


def test_ps_leaves_out_what_does_not_run_unless_asked(cli: Run) -> None:
    assert "huge" not in [model["id"] for model in cli("ps", "--json").json]
    assert "huge" in cli("ps", "--all").out


def test_ps_shows_a_running_model_and_what_it_holds(cli: Run) -> None:
    cli("start", "quick")

    ran = cli("ps")
    row = next(line for line in ran.out.splitlines() if line.startswith("quick"))
    state, task, device, mib, unit = row.split()[1:6]
    assert (state, task, device, unit) == ("ready", "chat", "cpu", "MiB")
    assert int(mib) > 0  # what is declared, until what it really holds is measured
    assert "IN-FLIGHT" in ran.out


def test_ps_says_why_a_model_has_failed(cli: Run) -> None:
    cli("start", "broken")

    assert "broken failed: out of memory" in cli("ps").out


def test_show_tells_everything_by_an_alias_too(cli: Run) -> None:
    cli("start", "quick")

    shown = dict(line.split(maxsplit=1) for line in cli("show", "fast").out.splitlines())
    assert shown["Name"] == "quick"
    assert shown["State"] == "ready"
    assert re.fullmatch(r"cpu [1-9]\d* MiB", shown["Memory"])  # declared, or measured by now
    assert Path(shown["Logs"]).expanduser().is_file()


def test_show_names_the_log_of_an_engine_that_has_failed(cli: Run) -> None:
    cli("start", "broken")

    out = cli("show", "broken").out
    assert "out of memory while loading" in out
    assert "broken.log" in out


def test_show_as_json_is_the_model(cli: Run) -> None:
    assert cli("show", "huge", "--json").json["state"] == "stopped"


def test_info_shows_the_server_its_devices_and_its_problems(
    cli: Run, server: ServerProcess
) -> None:
    out = cli("info").out

    assert f"OpenAI base URL: {server.url}/v1" in out
    assert "of 1000 MiB claimed by models" in out
    assert "truncated.gguf" in out


def test_info_as_json_is_one_document(cli: Run, server: ServerProcess) -> None:
    told = cli("info", "--json").json

    assert told["server"]["pid"] == server.pid
    assert [device["capacity_mib"] for device in told["devices"]] == [1000]


def test_version_needs_no_server(alone: Run) -> None:
    how = "compiled" if compiled() else "interpreted"

    assert alone("version").out == f"modelyard {__version__}, {how}\n"
    assert alone("--version").out == f"modelyard {__version__}, {how}\n"
    told = alone("version", "--json").json
    assert (told["modelyard"], told["compiled"]) == (__version__, compiled())


def test_version_and_help_import_neither_server_nor_http_client(alone: Run) -> None:
    look = (
        "import sys; from modelyard.cli import main; main(['version']); main(['--help']);"
        "print({'httpx', 'fastapi', 'uvicorn', 'xllamacpp', 'ruamel.yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "set()"


# ------------------------------------------------------------------------------------------- acting


def test_start_waits_with_progress_and_names_the_log(cli: Run) -> None:
    cli("stop", "slow")

    ran = cli("start", "slow")
    ready, log = ran.out.splitlines()
    assert ready.startswith("slow is ready in ")
    assert Path(log.removeprefix("Logs: ")).expanduser().name == "slow.log"
    assert "slow: starting: loading" in ran.err
    assert ran.code == 0


def test_starting_a_ready_model_says_so(cli: Run) -> None:
    cli("start", "quick")

    assert cli("start", "quick").out.splitlines()[0] == "quick was ready already"


def test_start_as_json_prints_the_ready_model_and_nothing_else(cli: Run) -> None:
    assert cli("start", "quick", "--json").json["state"] == "ready"


def test_a_failed_start_tells_the_reason_the_last_lines_and_the_log(cli: Run) -> None:
    ran = cli("start", "broken")

    assert (ran.code, ran.out) == (1, "")
    assert "the engine of model 'broken' did not start: out of memory" in ran.err
    assert "  | broken: loading model" in ran.err
    assert "broken.log" in ran.err
    assert "Traceback" not in ran.err


def test_a_start_that_takes_too_long_goes_on_without_us(cli: Run) -> None:
    ran = cli("start", "stuck", "--timeout", "1")

    assert ran.code == 1
    assert "model 'stuck' needs longer than 1.0 s; it is starting" in ran.err
    assert cli("show", "stuck", "--json").json["state"] == "starting"
    cli("stop", "stuck")


def test_start_can_return_at_once(cli: Run) -> None:
    ran = cli("start", "stuck", "--no-wait")

    assert ran.out.startswith("stuck is starting")
    assert ran.code == 0
    cli("stop", "stuck")


def test_a_model_stopped_by_another_person_ends_the_wait(cli: Run, server: ServerProcess) -> None:
    environment = {**os.environ, "MODELYARD_URL": server.url}
    with subprocess.Popen(
        [*MODELYARD, "start", "stuck"], env=environment, stderr=subprocess.PIPE, text=True
    ) as waiting:
        assert waiting.stderr is not None
        seen = waiting.stderr.readline()
        cli("stop", "stuck")
        said = waiting.stderr.read()

    assert seen.startswith("stuck: starting")
    assert "was stopped before it was ready" in said
    assert waiting.returncode == 1


def test_a_model_that_can_never_fit_is_refused_with_numbers(cli: Run) -> None:
    ran = cli("start", "huge")

    assert ran.code == 5
    assert "needs 4000 MiB on cpu, which can give 1000 MiB" in ran.err


def test_stop_waits_until_it_is_done_and_can_be_repeated(cli: Run) -> None:
    cli("start", "quick")

    assert cli("stop", "quick").out.startswith("quick stopped in ")
    assert cli("stop", "quick").out == "quick was not running\n"
    assert cli("stop", "quick", "--json").json["state"] == "stopped"


def test_stop_can_return_at_once(cli: Run) -> None:
    cli("start", "quick")

    assert cli("stop", "quick", "--no-wait").out.startswith("quick is stop")
    cli("stop", "quick")


def test_restart_gives_a_fresh_engine(cli: Run) -> None:
    before = cli("start", "quick", "--json").json

    ran = cli("restart", "quick")
    after = cli("show", "quick", "--json").json
    assert ran.out.startswith("quick is ready in ")
    assert after["run"] == before["run"] + 1
    assert after["pid"] != before["pid"]


def test_restart_starts_what_does_not_run(cli: Run) -> None:
    cli("stop", "quick")

    assert cli("restart", "quick", "--json").json["state"] == "ready"


def test_logs_shows_the_newest_lines(cli: Run) -> None:
    cli("restart", "quick")

    newest = cli("logs", "quick", "-n", "1")
    assert newest.out.startswith("quick: listening on")
    assert len(newest.out.splitlines()) == 1
    assert cli("logs", "quick", "--json").json["lines"][0]["number"] == 1


def test_logs_of_a_model_that_never_ran_says_so(cli: Run) -> None:
    ran = cli("logs", "huge")

    assert (ran.code, ran.out) == (0, "")
    assert "there is no log yet" in ran.err


def test_logs_follows_until_it_is_interrupted(cli: Run, server: ServerProcess) -> None:
    cli("restart", "quick")
    environment = {**os.environ, "MODELYARD_URL": server.url}
    command = [*MODELYARD, "logs", "quick", "--follow", "-n", "1"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        assert following.stderr is not None
        old = following.stdout.readline()
        cli("restart", "quick")
        new = following.stdout.readline()
        following.send_signal(signal.SIGINT)
        said = following.stderr.read()

    assert old.startswith("quick: listening on")
    assert new == "quick: loading model\n"
    assert (following.returncode, said) == (130, "")


# ------------------------------------------------------------------------------------------- ending


@pytest.mark.parametrize(
    "command", ["ps", "list", "info", "show x", "start x", "logs x", "run x y"]
)
def test_without_a_server_the_exit_code_is_3_and_the_way_out_is_named(
    alone: Run, command: str
) -> None:
    ran = alone(*command.split(), "--url", UNUSED_URL)

    assert (ran.code, ran.out) == (3, "")
    assert f"no Modelyard server answers at {UNUSED_URL}" in ran.err
    assert "modelyard serve" in ran.err


@pytest.mark.parametrize("command", ["show", "start", "stop", "restart", "logs", "run"])
def test_an_unknown_model_is_exit_code_4(cli: Run, command: str) -> None:
    ran = cli(command, "quikc", *(["hello"] if command == "run" else []))

    assert (ran.code, ran.out) == (4, "")
    assert "there is no model named 'quikc'" in ran.err
    assert "modelyard list" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["show"],
        ["logs", "quick", "-n", "0"],
        ["logs", "quick", "-n", "many"],
        ["start", "quick", "--timeout", "-1"],
        ["logs", "quick", "--follow", "--json"],
        ["info", "--url", "ftp://somewhere"],
        ["info", "--url", "http://host:port"],
    ],
)
def test_wrong_usage_is_exit_code_2(cli: Run, arguments: list[str]) -> None:
    ran = cli(*arguments)

    assert (ran.code, ran.out) == (2, "")
    assert ran.err


def test_something_else_at_the_address_is_named_as_such(alone: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        answer = (
            "import socket, sys\n"
            "listener = socket.socket(fileno=int(sys.argv[1]))\n"
            "taken = listener.accept()[0]; taken.recv(65536)\n"
            "taken.sendall(b'HTTP/1.1 200 OK\\r\\ncontent-length: 6\\r\\n\\r\\n<html>')\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", answer, str(stranger.fileno())], pass_fds=[stranger.fileno()]
        ):
            ran = alone("info", "--url", f"127.0.0.1:{stranger.getsockname()[1]}")

    assert ran.code == 1
    assert "does not speak like this version of Modelyard" in ran.err


def test_a_reader_that_leaves_early_hears_no_complaint(server: ServerProcess) -> None:
    command = f"{sys.executable} -m modelyard.cli list --url {server.url} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)

    assert done.stderr == ""


def test_the_shell_completes_names_of_models(server: ServerProcess) -> None:
    environment = {
        **os.environ,
        "MODELYARD_URL": server.url,
        "_MODELYARD_COMPLETE": "complete_bash",
        "COMP_WORDS": "modelyard show yard-",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(MODELYARD, env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["yard-chat", "yard-embed", "yard-rerank"]


def test_the_shell_completes_nothing_without_a_server(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "MODELYARD_URL": UNUSED_URL,
        "_MODELYARD_COMPLETE": "complete_bash",
        "COMP_WORDS": "modelyard show yard-",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(MODELYARD, env=environment, capture_output=True, text=True, check=True)

    assert (done.stdout.strip(), done.stderr) == ("", "")
