"""Loading: precedence, defaults, paths, and every problem at once with its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import platformdirs
import pytest

from modelyard.config import Config, Server, default_path, load
from modelyard.config.values import Tls
from modelyard.core.errors import ConfigError
from modelyard.core.specs import Limits, ModelSpec, Profile, Task

Loader = Callable[..., Config]
Problems = Callable[..., Sequence[str]]


def test_without_anything_every_setting_has_its_default() -> None:
    assert load(None, env={}) == Config()


def test_a_file_without_settings_changes_nothing(load_text: Loader, tmp_path: Path) -> None:
    path = tmp_path / "modelyard.yaml"

    assert load_text("server:\nmodels:\ndefaults: {}\nmodels_dirs:") == Config(path=path)


def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(load_text: Loader) -> None:
    text = "server: {port: 1, host: '::1', keep_alive: 1s}"
    env = {"MODELYARD_SERVER__PORT": "2", "MODELYARD_SERVER__HOST": "127.0.0.2"}
    server = load_text(text, env=env, **{"server.port": 3}).server

    assert server == Server(port=3, host="127.0.0.2", keep_alive_s=1.0)


def test_a_flag_that_was_not_given_changes_nothing(load_text: Loader) -> None:
    assert load_text("server: {port: 1}", **{"server.port": None}).server.port == 1


def test_every_server_key_reaches_its_field(load_text: Loader) -> None:
    text = """
        server:
          host: 0.0.0.0
          port: 0
          allowed_hosts: [box.lan, "*"]
          insecure: true
          tls: {certificate: /tls/box.pem, key: /tls/box.key, client_ca: /tls/ca.pem}
          max_body: 1MiB
          heartbeat_after: 1s
          heartbeat_every: 2s
          heartbeats: false
          no_heartbeats_for: ["*opencode*"]
          header_timeout: 6s
          body_timeout: 3s
          send_timeout: 5s
          keep_alive: 4s
          websocket_idle: 7s
          shutdown_timeout: 0
          state_dir: /var/lib/modelyard
        """
    expected = Server(
        host="0.0.0.0",
        port=0,
        allowed_hosts=("box.lan", "*"),
        tls=Tls(Path("/tls/box.pem"), Path("/tls/box.key"), Path("/tls/ca.pem")),
        insecure=True,
        max_body_bytes=1024**2,
        heartbeat_after_s=1,
        heartbeat_every_s=2,
        heartbeats=False,
        no_heartbeats_for=("*opencode*",),
        header_timeout_s=6,
        body_timeout_s=3,
        send_timeout_s=5,
        keep_alive_s=4,
        websocket_idle_s=7,
        shutdown_timeout_s=0,
        state_dir=Path("/var/lib/modelyard"),
    )

    assert load_text(text).server == expected


def test_a_model_of_the_built_in_engine_needs_only_its_file(
    load_text: Loader, tmp_path: Path
) -> None:
    config = load_text("models: {tiny: {source: tiny.gguf}}")

    assert config.models == (
        ModelSpec("tiny", "llamacpp", frozenset(), source=str(tmp_path / "tiny.gguf")),
    )


def test_a_model_keeps_everything_that_was_said_of_it(load_text: Loader, tmp_path: Path) -> None:
    text = """
        defaults: {max_wait: 1m, max_queue: 5}
        models:
          org/name:v1.5:
            aliases: [short]
            engine: command
            tasks: [chat, rerank]
            options: {deep: {list: [1, true, null, text]}}
            profiles:
              - {name: fast, devices: [gpu, cpu], memory: {gpu: 2GiB}, command: [./fast]}
              - {name: slow, memory: 300MiB, options: {threads: 2}, command: [./slow, "{port}"]}
            env: {EMPTY: "", NAME: value}
            cwd: work
            health_path: /ready
            preload: true
            pinned: true
            priority: -5
            loading_state: true
            max_wait: 10
            idle_stop: never
            concurrency: 2
        """
    fast = Profile("fast", ("gpu", "cpu"), {"gpu": 2048}, command=("./fast",))
    slow = Profile("slow", ("cpu",), {"cpu": 300}, {"threads": 2}, ("./slow", "{port}"))
    expected = ModelSpec(
        "org/name:v1.5",
        "command",
        frozenset({Task.CHAT, Task.RERANK}),
        aliases=("short",),
        options={"deep": {"list": [1, True, None, "text"]}},
        profiles=(fast, slow),
        env={"EMPTY": "", "NAME": "value"},
        cwd=str(tmp_path / "work"),
        health_path="/ready",
        preload=True,
        pinned=True,
        priority=-5,
        loading_state=True,
        limits=Limits(idle_stop_s=None, max_wait_s=10.0, max_queue=5, concurrency=2),
    )

    assert load_text(text).models == (expected,)


@pytest.mark.parametrize(
    ("memory", "devices", "memory_mib"),
    [
        ("300MiB", ("cpu",), {"cpu": 300}),
        ("{gpu: 1GiB, cpu: 1MiB}", ("gpu", "cpu"), {"gpu": 1024, "cpu": 1}),
        ("", ("cpu",), {}),
        ("0", ("cpu",), {"cpu": 0}),
    ],
)
def test_memory_alone_is_a_single_profile(
    load_text: Loader, memory: str, devices: tuple[str, ...], memory_mib: dict[str, int]
) -> None:
    config = load_text(f"models:\n  m:\n    source: m.gguf\n    memory: {memory}")

    assert config.models[0].profiles == (Profile("default", devices, memory_mib),)


def test_models_share_settings_through_anchors(load_text: Loader) -> None:
    text = """
        models:
          one: &one {source: /m/one.gguf, max_queue: 7}
          two: {<<: *one, source: /m/two.gguf}
        """
    found = [(spec.source, spec.limits.max_queue) for spec in load_text(text).models]

    assert found == [("/m/one.gguf", 7), ("/m/two.gguf", 7)]


def test_relative_paths_start_where_they_were_written(
    load_text: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", "/home/ada")
    text = "server: {state_dir: ~/state}\nmodels_dirs: [models]\nengines: {llama_server: ./bin/x}"
    config = load_text(text)
    flagged = load_text(text, env={"MODELYARD_ENGINES__LLAMA_SERVER": "./y"}, models_dirs=["z"])

    assert config.server.state_dir == Path("/home/ada/state")
    assert config.models_dirs == (tmp_path / "models",)
    assert config.engines.llama_server == str(tmp_path / "bin/x")
    assert flagged.models_dirs == (elsewhere / "z",)
    assert flagged.engines.llama_server == str(elsewhere / "y")


def test_a_current_folder_that_is_gone_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    with pytest.raises(
        ConfigError, match="the current folder: 1 problem\n  cannot be used: No such"
    ):
        load(None, env={})


def test_a_home_folder_that_nobody_has_is_a_problem(problems_of: Problems) -> None:
    (problem,) = problems_of("models_dirs: [a, ~nobody-like-this/models]")

    assert problem == (
        "modelyard.yaml:1: models_dirs[1]: '~nobody-like-this/models' names a home folder that is "
        "not known; write it out"
    )


def test_a_command_starts_in_the_folder_of_the_file(load_text: Loader, tmp_path: Path) -> None:
    text = "models: {m: {engine: command, tasks: [chat], command: [./serve]}}"

    assert load_text(text).models[0].cwd == str(tmp_path)


@pytest.mark.parametrize(
    ("written", "value"), [("auto", None), ("builtin", "builtin"), ("/opt/ls", "/opt/ls")]
)
def test_the_llama_server_is_found_built_in_or_given(
    load_text: Loader, written: str, value: str | None
) -> None:
    assert load_text(f"engines: {{llama_server: {written}}}").engines.llama_server == value


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(problems_of: Problems) -> None:
    text = """\
        server:
          prot: 8080
          port: x
        models:
          qwen-3.1:
            tasks:
              - chat
              - chatt
            copies: {min: 0}
          legacy:
            engine: command
            command: ./start --port 1
            aliases: [qwen-3.1]
        """
    variable, *problems = problems_of(text, env={"MODELYARD_SERVER__HOTS": "x"})

    assert variable.startswith("MODELYARD_SERVER__HOTS: no setting has this name; did you mean")
    assert [problem.split(": ", 2)[:2] for problem in problems] == [
        ["modelyard.yaml:2", "server.prot"],
        ["modelyard.yaml:3", "server.port"],
        ["modelyard.yaml:5", 'models["qwen-3.1"].source'],
        ["modelyard.yaml:8", 'models["qwen-3.1"].tasks[1]'],
        ["modelyard.yaml:9", 'models["qwen-3.1"].copies'],
        ["modelyard.yaml:10", "models.legacy.tasks"],
        ["modelyard.yaml:12", "models.legacy.command"],
        ["modelyard.yaml:13", "models.legacy.aliases[0]"],
    ]


def test_a_wrong_flag_and_a_wrong_variable_are_named_as_such() -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, env={"MODELYARD_SERVER__INSECURE": "yes"}, overrides={"server.port": 70000})
    assert str(caught.value).splitlines() == [
        "the configuration: 2 problems",
        "  command line: server.port: 70000 is not between 0 and 65535",
        "  MODELYARD_SERVER__INSECURE: server.insecure: must be true or false, not 'yes'",
    ]


def test_endless_problems_are_counted_and_not_listed(problems_of: Problems) -> None:
    problems = problems_of("\n".join(f"k{n}: 1" for n in range(9_000)))

    assert len(problems) <= 101


def test_the_default_file_is_used_only_if_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    path = platformdirs.user_config_path("modelyard", appauthor=False) / "modelyard.yaml"
    before = default_path()
    path.parent.mkdir(parents=True)
    path.touch()

    assert (before, default_path()) == (None, path)
