from __future__ import annotations

from collections.abc import Mapping

import pytest

from modelyard.core.specs import (
    Endpoint,
    ModelSpec,
    OptionValue,
    Placement,
    Profile,
    Progress,
    Task,
)
from modelyard.engines import build
from modelyard.engines.command import CommandEngine

ENGINE = CommandEngine()
HERE = Endpoint("127.0.0.1", 4711)
DEFAULT = Placement("default", {"cpu": 100})


def model(
    *command: str,
    options: Mapping[str, OptionValue] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    profiles: tuple[Profile, ...] = (Profile("default"),),
) -> ModelSpec:
    return ModelSpec(
        "yard", "command", frozenset({Task.CHAT}), source="/models/yard", options=options or {},
        command=command, env=env or {}, cwd=cwd, profiles=profiles,
    )  # fmt: skip


# --------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("{port}", "4711"),
        ("--bind={host}:{port}", "--bind=127.0.0.1:4711"),
        ("{model}", "/models/yard"),
        ("--name={alias}", "--name=yard"),
        ('{"port":{port}}', '{"port":4711}'),
        ('{"a": {"b": 1}, "c": [{}]}', '{"a": {"b": 1}, "c": [{}]}'),
        ("{{port}}", "{port}"),
        ("{{anything}}", "{anything}"),
        ("{{ messages }}", "{{ messages }}"),
        ("${HOME} ${port}", "${HOME} ${port}"),
        ("{1..3} {a,b}", "{1..3} {a,b}"),
        ("{", "{"),
    ],
)
def test_only_the_known_blanks_are_filled(argument: str, expected: str) -> None:
    command = ENGINE.command(model("serve", argument), DEFAULT, HERE)

    assert command.argv == ("serve", expected)


def test_a_command_that_names_the_socket_listens_there() -> None:
    spec = model("x", "{port}", profiles=(Profile("a", command=("y", "{socket}")), Profile("b")))
    there = Endpoint("127.0.0.1", 0, "/run/m/s.sock")

    assert ENGINE.takes_socket(spec, Placement("a", {}))
    assert not ENGINE.takes_socket(spec, Placement("b", {}))
    assert ENGINE.command(spec, Placement("a", {}), there).argv == ("y", "/run/m/s.sock")


def test_blanks_in_variables_are_filled_too() -> None:
    spec = model("serve", env={"URL": "http://{host}:{port}", "PLAIN": "x"})
    command = ENGINE.command(spec, DEFAULT, HERE)

    assert command.env == {"URL": "http://127.0.0.1:4711", "PLAIN": "x"}


def test_a_model_without_a_source_is_named_by_its_id() -> None:
    spec = ModelSpec("yard", "command", frozenset(), command=("serve", "{model}"))

    assert ENGINE.command(spec, DEFAULT, HERE).argv == ("serve", "yard")


def test_a_profiles_command_is_used_in_place_of_the_models() -> None:
    spec = model("a", "{port}", profiles=(Profile("fast", command=("b", "{port}")),))

    assert ENGINE.command(spec, Placement("fast", {}), HERE).argv == ("b", "4711")


@pytest.mark.parametrize(
    ("program", "cwd", "expected"),
    [
        ("start.sh", "/srv", "/srv/start.sh"),
        ("./start.sh", "/srv", "/srv/start.sh"),
        ("bin/serve", "/srv", "/srv/bin/serve"),
        ("START.BAT", "/srv", "/srv/START.BAT"),
        ("/opt/start.sh", "/srv", "/opt/start.sh"),
        ("python3", "/srv", "python3"),
        ("./start.sh", None, "./start.sh"),
    ],
)
def test_a_script_is_taken_from_the_commands_own_folder(
    program: str, cwd: str | None, expected: str
) -> None:
    command = ENGINE.command(model(program, "{port}", cwd=cwd), DEFAULT, HERE)

    assert (command.argv[0], command.cwd) == (expected, cwd)


def test_a_script_with_a_port_of_its_own_keeps_it() -> None:
    legacy = model("./start.sh", options={"port": 10001})

    assert not ENGINE.problems(legacy)
    assert ENGINE.fixed_port(legacy) == 10001
    assert ENGINE.fixed_port(model("serve", "{port}")) is None


def test_health_is_asked_where_the_model_says() -> None:
    ollama = ModelSpec("yard", "command", frozenset(), health_path="/api/tags")

    assert [ENGINE.health_path(model()), ENGINE.health_path(ollama)] == ["/health", "/api/tags"]


# --------------------------------------------------------------------------------------- problems

NO_PORT = (
    "the command never uses {port}, nor {socket} for a Unix socket; where a script has a port of "
    "its own, write it as options: {port: 10001}"
)
BOTH = "it is given a port and {socket} as well; it can listen in one place only"
KNOWN = "there are {port}, {socket}, {host}, {model}, {alias}"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (model("serve", "{port}"), []),
        (model("serve", env={"PORT": "{port}"}), []),
        (model("serve", "--uds", "{socket}"), []),
        (model("serve", "{socket}", env={"PORT": "{port}"}), [f"command: {BOTH}"]),
        (model("serve", "{socket}", options={"port": 10001}), [f"command: {BOTH}"]),
        (model("serve"), [f"command: {NO_PORT}"]),
        (model("serve", "{{port}}"), [f"command: {NO_PORT}"]),
        (model(), ["command: write the program to start and its arguments"]),
        (model("", "{port}"), ["command[0]: the program's name is empty"]),
        (model("serve", "{prot}", "{port}"),
         [f"command[1]: {{prot}} is not known; did you mean {{port}}? {KNOWN}"]),
        (model("serve", "{port}", env={"A": "{gpu}"}),
         [f"env.A: {{gpu}} is not known; {KNOWN}"]),
        (model("serve", options={"port": "10001"}),
         ["options.port: it must be a whole number, not '10001'"]),
        (model("serve", options={"port": 70000}),
         ["options.port: it must be between 1 and 65535, not 70000"]),
        (model("serve", "{port}", options={"ctx_size": 1}),
         ["options.ctx_size: a command's options are its own arguments, except port"]),
        (model(profiles=(Profile("a", command=("x", "{port}")), Profile("b"))),
         ["profiles[1].command: neither the profile nor the model has one"]),
        (model("x", "{port}", profiles=(Profile("a", command=("y",), options={"q": 1}),)),
         ["profiles[0].options.q: a command's options are its own arguments",
          f"profiles[0].command: {NO_PORT}"]),
    ],
)  # fmt: skip
def test_problems_are_told_with_their_paths(spec: ModelSpec, expected: list[str]) -> None:
    assert list(ENGINE.problems(spec)) == expected


# ------------------------------------------------------------------------------- what it prints


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01]",
         Progress("loading", 50.0)),
        ("model.safetensors:  37%|███▋      | 1.85G/4.98G [00:12<00:21, 148MB/s]",
         Progress("loading", 37.0)),
        ("Downloading: 99.5%", Progress("downloading", 99.5)),
        ("Capturing CUDA graphs: 100%|##########| 8/8", Progress("compiling", 100.0)),
        ("INFO loading model weights", Progress("loading")),
        ("Warming up", Progress("warming up")),
        ("INFO:     Uvicorn running on http://127.0.0.1:8000", Progress("listening")),
        ("using 250% of one core", None),
        ("v1.50% odd", None),
        ("GET /health 200", None),
    ],
)  # fmt: skip
def test_log_lines_tell_phase_and_percentage(line: str, expected: Progress | None) -> None:
    assert ENGINE.progress(line) == expected


@pytest.mark.parametrize(
    ("exit_text", "lines", "reason", "permanent"),
    [
        ("exit code 127", ["sh: vllm: not found"],
         "a program of the command was not found: sh: vllm: not found", True),
        ("exit code 126", [], "the program may not be executed", True),
        ("exit code 1", ["OSError: [Errno 98] Address already in use", "bye"],
         "its port was taken by another program: OSError: [Errno 98] Address already in use",
         False),
        ("exit code 1", ["torch.OutOfMemoryError: CUDA out of memory."],
         "out of memory: torch.OutOfMemoryError: CUDA out of memory.", False),
        ("exit code 1", ["ModuleNotFoundError: No module named 'torch'"],
         "ModuleNotFoundError: No module named 'torch'", True),
        ("killed by SIGKILL", ["a", "b "], "killed by SIGKILL: b", False),
        ("exit code 0", ["  "], "exit code 0, and it printed nothing", False),
    ],
)  # fmt: skip
def test_a_failure_is_explained_in_one_line(
    exit_text: str, lines: list[str], reason: str, permanent: bool
) -> None:
    failure = ENGINE.failure(exit_text, lines)

    assert (failure.reason, failure.permanent) == (reason, permanent)


def test_every_engine_is_found_by_its_own_name() -> None:
    engines = build("python3")

    assert [name for name, engine in engines.items() if engine.name != name] == []
    assert {"llamacpp", "command"} <= set(engines)
