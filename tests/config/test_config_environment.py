"""Environment variables: as settings, and as references inside values."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from modelyard.config import Config, load
from modelyard.config.environment import MAX_EXPANDED, PREFIX, variable_for
from modelyard.config.schema import settable_paths
from modelyard.core.errors import ConfigError

Loader = Callable[..., Config]
Problems = Callable[..., Sequence[str]]


def with_env(**settings: str) -> Config:
    return load(None, env={f"MODELYARD_{name}": value for name, value in settings.items()})


def test_variables_are_read_by_the_type_of_their_key() -> None:
    config = with_env(
        SERVER__PORT="9000",
        SERVER__HOST="0.0.0.0",
        SERVER__INSECURE="TRUE",
        SERVER__ALLOWED_HOSTS="a.lan, b.lan",
        SERVER__MAX_BODY="1MiB",
        MODELS_DIRS=os.pathsep.join(["/a", "/b,c"]),
        DEFAULTS__IDLE_STOP="never",
        DEFAULTS__MAX_WAIT="90",
        DEFAULTS__CONCURRENCY="4",
        DEVICES__BUDGET__CPU="4GiB",
        ENGINES__LLAMA_SERVER="builtin",
    )

    assert (config.server.port, config.server.host, config.server.insecure) == (
        9000,
        "0.0.0.0",
        True,
    )
    assert config.server.allowed_hosts == ("a.lan", "b.lan")
    assert config.server.max_body_bytes == 1024**2
    assert config.models_dirs == (Path("/a"), Path("/b,c"))
    assert (config.limits.idle_stop_s, config.limits.max_wait_s) == (None, 90.0)
    assert config.limits.concurrency == 4
    assert config.devices.budget_mib == {"cpu": 4096}
    assert config.engines.llama_server == "builtin"


def test_empty_reserved_and_foreign_variables_are_left_alone() -> None:
    config = with_env(SERVER__PORT=" ", OWNER="x", RUN="x", URL="x", CONFIG="x")
    foreign = load(None, env={"PATH": "/bin", "modelyard_server__port": "1"})

    assert (config, foreign) == (Config(), Config())


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("SERVER__PROT", "no setting has this name; did you mean MODELYARD_SERVER__PORT"),
        ("SERVER", "no setting has this name"),
        ("DEVICES__BUDGET__", "no setting has this name"),
        ("DEVICES__BUDGET", "no setting has this name"),
        ("MODELS__QWEN__SOURCE", "models are described in the file, not by variables; unset it"),
    ],
)
def test_a_variable_that_means_nothing_is_a_problem(name: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_env(**{name: "1"})
    assert caught.value.problems[0].startswith(f"MODELYARD_{name}: {problem}")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("SERVER__PORT", "80 80", "server.port: must be a whole number, not '80 80'"),
        ("SERVER__PORT", "٣", "server.port: must be a whole number, not '٣'"),
        ("DEFAULTS__MAX_QUEUE", "9" * 19, f"defaults.max_queue: {'9' * 19} is not between 0 and"),
        ("SERVER__HOST", "\udcff", "server.host: holds a NUL or bytes that are not UTF-8"),
    ],
)
def test_a_wrong_value_names_the_variable_and_its_key(name: str, value: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_env(**{name: value})
    assert caught.value.problems[0].startswith(f"MODELYARD_{name}: {problem}")


def test_every_key_outside_models_has_a_variable_of_its_own() -> None:
    names = [variable_for(path) for path in settable_paths()]

    assert len(names) == len(set(names))
    assert all(name.startswith(PREFIX) for name in names)


def test_references_stand_for_variables_in_any_value(load_text: Loader) -> None:
    text = """
        server: {port: "${env:PORT}", insecure: "${env:YES}", max_body: "${env:SIZE}MiB"}
        models_dirs: ["${env:ROOT}/models", "/x"]
        defaults: {max_wait: "${env:WAIT}", idle_stop: "${env:IDLE}"}
        models:
          m:
            source: m.gguf
            env: {KEY: "Bearer ${env:SECRET}-${env:PORT}"}
            tasks: ["${env:TASK}"]
        """
    env = {"PORT": "9", "YES": "true", "SIZE": "2", "ROOT": "/r", "WAIT": "7", "IDLE": "never"}
    config = load_text(text, env={**env, "SECRET": "s3cret", "TASK": "chat"})

    assert (config.server.port, config.server.insecure) == (9, True)
    assert config.server.max_body_bytes == 2 * 1024**2
    assert config.models_dirs == (Path("/r/models"), Path("/x"))
    assert (config.limits.max_wait_s, config.limits.idle_stop_s) == (7.0, None)
    assert config.models[0].env == {"KEY": "Bearer s3cret-9"}
    assert [task.value for task in config.models[0].tasks] == ["chat"]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("$${env:X}", "${env:X}"),
        ("$${", "${"),
        ("${HOME} $HOME ${}", "${HOME} $HOME ${}"),
        ("${env:X}$${env:X}", "<${env:X}>${env:X}"),
    ],
)
def test_dollars_are_kept_unless_they_refer_to_a_variable(
    load_text: Loader, written: str, value: str
) -> None:
    text = f"models: {{m: {{source: m.gguf, env: {{A: '{written}'}}}}}}"

    assert load_text(text, env={"X": "<${env:X}>"}).models[0].env == {"A": value}


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("${env:NOPE}", "the environment variable 'NOPE' is not set; set it, or write the value"),
        ("${env:}", "${env: names no variable; write ${env:NAME}, or $${ for ${"),
        ("${env:A B}", "${env:A B names no variable; write ${env:NAME}, or $${ for ${"),
        ("${env:OPEN", "${env:OPEN names no variable; write ${env:NAME}, or $${ for ${"),
    ],
)
def test_a_reference_to_nothing_is_one_problem(
    problems_of: Problems, written: str, problem: str
) -> None:
    assert problems_of(f"server:\n  host: '{written}'") == (
        f"modelyard.yaml:2: server.host: {problem}",
    )


def test_references_cannot_grow_without_bound(problems_of: Problems) -> None:
    text = "models: {m: {source: m.gguf, env: {A: '" + "${env:X}" * 1000 + "'}}}"
    (problem,) = problems_of(text, env={"X": "x" * 100_000})

    assert problem == (
        f"modelyard.yaml:1: models.m.env.A: variables stand for more than {MAX_EXPANDED} "
        "characters; use fewer of them"
    )
