from __future__ import annotations

import json
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
from modelyard.engines.base import Engine
from modelyard.engines.llamacpp import LlamaCpp
from modelyard.engines.transformers import Transformers

ENGINE = Transformers("/usr/bin/python3")
HERE = Endpoint("127.0.0.1", 9000)
ON_HOST = Placement("default", {"cpu": 2000})
CARD = "GPU-5a0e1b6e-0000-0000-0000-000000000001"
OTHER = "GPU-5a0e1b6e-0000-0000-0000-000000000002"
ON_CARD = Placement("default", {CARD: 4000})
EMBEDDING = frozenset({Task.EMBEDDING})
CHAT = frozenset({Task.CHAT, Task.COMPLETION})
LOADING = "modelyard: the model could not be loaded: "


def model(
    options: Mapping[str, OptionValue] | None = None,
    tasks: frozenset[Task] = EMBEDDING,
    **more: object,
) -> ModelSpec:
    return ModelSpec("tiny", "transformers", tasks, ("gpt-4o",), "/m/tiny", options or {}, **more)  # type: ignore[arg-type]


def settings(spec: ModelSpec, placement: Placement = ON_HOST) -> dict[str, OptionValue]:
    argv = ENGINE.command(spec, placement, HERE).argv
    given = [part.removeprefix("--set=").partition("=") for part in argv if part[:6] == "--set="]
    return {name: json.loads(value) for name, _, value in given}


# ---------------------------------------------------------------------------------------- commands


def test_a_reading_model_is_served_by_our_own_server() -> None:
    command = ENGINE.command(model({"batch_size": 8}), ON_HOST, HERE)

    assert command.argv == (
        "/usr/bin/python3", "-P", "-m", "modelyard.servers.transformers", "--model=/m/tiny",
        "--alias=tiny", "--alias=gpt-4o", "--host=127.0.0.1", "--port=9000", "--task=embedding",
        "--exit-with-stdin", "--set=batch_size=8", '--set=device="cpu"',
    )  # fmt: skip
    assert command.env == {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    ("tasks", "flags"),
    [
        (EMBEDDING | {Task.RERANK}, ["--task=embedding", "--task=rerank"]),
        (frozenset({Task.RERANK}), ["--task=rerank"]),
        (CHAT, ["--task=chat"]),
        (frozenset({Task.COMPLETION}), ["--task=chat"]),
    ],
)
def test_tasks_decide_what_the_process_is(tasks: frozenset[Task], flags: list[str]) -> None:
    argv = ENGINE.command(model(tasks=tasks), ON_HOST, HERE).argv

    assert [part for part in argv if part.startswith("--task=")] == flags


def test_one_card_must_be_found() -> None:
    command = ENGINE.command(model(), ON_CARD, HERE)

    assert command.env == {"CUDA_VISIBLE_DEVICES": CARD}
    assert settings(model(), ON_CARD) == {"device": "cuda:0"}


def test_over_several_devices_weights_stay_within_what_was_claimed_on_each() -> None:
    placement = Placement("default", {"cpu": 20_000, OTHER: 2000, CARD: 9000}, (CARD, OTHER, "cpu"))

    assert settings(model(), placement) == {
        "max_memory": {"0": "8360MiB", "1": "1360MiB", "cpu": "18976MiB"}
    }
    assert ENGINE.command(model(), placement, HERE).env == {
        "CUDA_VISIBLE_DEVICES": f"{CARD},{OTHER}"
    }


def test_a_chat_model_over_several_devices_is_laid_out_by_transformers() -> None:
    both = Placement("default", {CARD: 9000, OTHER: 9000})

    assert settings(model(tasks=CHAT), both) == {"device": "auto"}
    assert settings(model(tasks=CHAT), ON_CARD) == {"device": "cuda:0"}
    assert settings(model(tasks=CHAT)) == {"device": "cpu"}


@pytest.mark.parametrize("own", [{"device": "cuda:1"}, {"max_memory": {"0": "2GiB"}}])
def test_the_users_word_about_the_device_is_the_last(own: dict[str, OptionValue]) -> None:
    assert settings(model(own), ON_CARD) == own


def test_with_unified_memory_the_library_finds_the_device() -> None:
    apple = Transformers("/p", unified_memory=True)
    command = apple.command(model(), ON_HOST, HERE)

    assert not command.env
    assert not any(part.startswith("--set") for part in command.argv)


def test_a_profiles_options_are_laid_over_the_models() -> None:
    profiles = (Profile("default", options={"dtype": "bfloat16"}),)
    spec = model({"torch_dtype": "float16", "batch-size": 4}, profiles=profiles)

    assert settings(spec) == {"batch_size": 4, "device": "cpu", "dtype": "bfloat16"}


def test_a_template_is_handed_over_as_a_file() -> None:
    argv = ENGINE.command(model({"chat_template_file": "/t.jinja"}), ON_HOST, HERE).argv

    assert "--chat-template-file=/t.jinja" in argv


def test_an_option_without_a_value_is_left_out() -> None:
    assert "dtype" not in settings(model({"dtype": None}))


def test_health_and_probe() -> None:
    probe = ENGINE.functional_probe(model())

    assert [ENGINE.health_path(model()), ENGINE.health_path(model(health_path="/x"))] == [
        "/health", "/x",
    ]  # fmt: skip
    assert probe is not None
    assert probe.path == "/v1/embeddings"
    assert ENGINE.warm_up(model()) is None
    assert ENGINE.fixed_port(model()) is None


# ---------------------------------------------------------------------------------------- problems


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("batch_sizes", 8, "there is no such option; did you mean batch_size"),
        ("zzzzz", 8, "there is no such option; the options are attn_implementation, batch_size"),
        ("batch_size", 0, "it must be a whole number of at least 1, not 0"),
        ("batch_size", True, "it must be a whole number of at least 1, not true"),
        ("dtype", "int4", 'it must be auto, float32, float16 or bfloat16, not "int4"'),
        ("device", "", 'it must be a text, not ""'),
        ("trust_remote_code", "yes", 'it must be true or false, not "yes"'),
        ("overlong", "drop", 'it must be error or truncate, not "drop"'),
        ("max_memory", {}, "it must be a mapping of devices to sizes, like {0: 20GiB, cpu: 60GiB}"),
        ("max_memory", {"0": True}, "it must be a mapping of devices to sizes"),
        ("prompts", {"a": 1}, "it must be a mapping of names to texts"),
        ("model_kwargs", [1], "it must be a mapping, not [1]"),
        ("quantization", "bnb-4bit", "only chat and base models have it"),
        ("port", 1, "it is not an option here: where the engine listens is chosen by Modelyard"),
        ("revision", "x", "it is not an option here: nothing is fetched: `source` is a folder"),
        ("model_timeout", 1, "it is not an option here: a model that is idle is stopped by"),
    ],
)  # fmt: skip
def test_an_unusable_option_is_named_with_the_way_out(
    name: str, value: OptionValue, told: str
) -> None:
    found = ENGINE.problems(model({name: value}))

    assert len(found) == 1
    assert found[0].startswith(f"options.{name}: {told}")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("batch_size", 8, "only embedding and rerank models have it"),
        ("cb_max_memory_percent", 1.5, "it must be a number above 0 and up to 1, not 1.5"),
        ("default_seed", True, "it must be a whole number, not true"),
    ],
)
def test_chat_models_have_options_of_their_own(name: str, value: OptionValue, told: str) -> None:
    assert ENGINE.problems(model({name: value}, CHAT)) == (f"options.{name}: {told}",)


def test_before_the_tasks_are_known_an_option_of_either_kind_is_let_pass() -> None:
    either = model({"batch_size": 8, "quantization": "bnb-4bit", "zzz": 1}, frozenset())

    assert [problem.partition(":")[0] for problem in ENGINE.problems(either)] == ["options.zzz"]


def test_one_option_under_two_names_is_a_problem() -> None:
    assert ENGINE.problems(model({"dtype": "auto", "torch_dtype": "auto"})) == (
        "options.torch_dtype: it is the same option as dtype; keep one of them",
    )


def test_all_problems_are_told_at_once_with_their_paths() -> None:
    spec = ModelSpec(
        "tiny", "transformers", frozenset({Task.CHAT, Task.RERANK}), command=("x",),
        profiles=(Profile("a", options={"port": 1}, command=("x",)),),
    )  # fmt: skip
    paths = [problem.partition(":")[0] for problem in ENGINE.problems(spec)]

    assert paths == [
        "source", "tasks", "command", "profiles[0].command", "profiles[0].options.port",
    ]  # fmt: skip


# ---------------------------------------------------------------------------------- what it prints


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("modelyard: phase: starting torch", Progress("starting torch")),
        ("Loading weights:  42%|####      | 42/100 [00:00<?, ?it/s]",
         Progress("loading weights", 42.0)),
        ("Loading checkpoint shards: 100%|##########| 4/4", Progress("loading weights", 100.0)),
        ("modelyard: tiny is ready at http://127.0.0.1:1", Progress("ready")),
        ("modelyard: ready", Progress("ready")),
        ("modelyard: memory held: cuda:0 5 MiB", None),
        ("the text `modelyard: ready` in a log", None),
        ("", None),
    ],
)  # fmt: skip
def test_log_lines_tell_the_phase(line: str, expected: Progress | None) -> None:
    assert ENGINE.progress(line) == expected


@pytest.mark.parametrize(
    ("exit_text", "lines", "reason", "permanent"),
    [
        ("exit code 78", ["modelyard: phase: loading weights", "modelyard: x is not a folder"],
         "x is not a folder", True),
        ("exit code 1", ["ModuleNotFoundError: No module named 'torch'"],
         "it needs `pip install 'modelyard[transformers]'`", True),
        ("exit code 1", [LOADING + "model type `nova` but Transformers does not recognize this"],
         "this transformers does not know the architecture nova; a newer one may", True),
        ("exit code 1", [LOADING + "ValueError: it requires you to execute the configuration"],
         "the model brings Python code of its own; read it, and set the option", True),
        ("exit code 1", [LOADING + "AssertionError: Torch not compiled with CUDA enabled"],
         "this torch cannot use the card; install its build for it", True),
        ("exit code 1", [LOADING + "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"],
         "out of memory (the model", False),
        ("exit code 1", ["modelyard: cannot listen on 127.0.0.1 port 1: Address already in use"],
         "its port was taken by another program", False),
        ("killed by SIGKILL", ["modelyard: phase: loading weights"],
         "the system killed it, as it does when memory runs out", False),
        ("exit code 1", [LOADING + "KeyError: 'x'"],
         "the model could not be loaded: KeyError: 'x'", False),
        ("exit code 3", ["modelyard: phase: warming up"],
         "exit code 3: modelyard: phase: warming up", False),
        ("exit code 3", [], "exit code 3, and it printed nothing", False),
    ],
)  # fmt: skip
def test_a_failure_is_explained_in_one_line(
    exit_text: str, lines: list[str], reason: str, permanent: bool
) -> None:
    failure = ENGINE.failure(exit_text, lines)

    assert failure.reason.startswith(reason)
    assert failure.permanent is permanent


def test_what_torch_holds_is_told_by_card() -> None:
    both = Placement("default", {OTHER: 1, CARD: 1, "cpu": 1}, (CARD, OTHER, "cpu"))
    lines = [
        "modelyard: memory held: cuda:0 100 MiB, cuda:1 0 MiB",
        "modelyard: memory held: cuda:0 300 MiB, cuda:1 200 MiB",
        "a text that says modelyard: memory held: cuda:0 9999 MiB",
    ]

    assert ENGINE.memory_report(lines, both) == {CARD: 300, OTHER: 200}
    assert not ENGINE.memory_report(lines[2:], both)


@pytest.mark.parametrize("engine", [ENGINE, LlamaCpp("python3")])
@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.TRANSCRIPTION, Task.SPEECH, Task.IMAGE])
def test_a_task_that_an_engine_has_no_route_for_is_a_problem(engine: Engine, task: Task) -> None:
    spec = model(tasks=frozenset({task, Task.CHAT}))

    problems = [each for each in engine.problems(spec) if each.startswith("tasks: ")]

    assert len(problems) == 1
    assert problems[0].endswith(f"not serve {task}")
