"""What is refused, and that each refusal says what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from modelyard.config import Config

Loader = Callable[..., Config]
Problems = Callable[..., Sequence[str]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sever: {}", "sever: there is no such key; did you mean server?"),
        ("server: {x: 1}", "server.x: there is no such key; the keys here are host, port, "),
        ("server: 5", "server: must hold keys and values (key: value), not 5"),
        ("server: {port: '80'}", "server.port: must be a whole number, not '80'"),
        ("server: {port: 80.0}", "server.port: must be a whole number, not 80.0"),
        ("server: {port: true}", "server.port: must be a whole number, not true"),
        ("server: {port: }", "server.port: must be a whole number, not empty"),
        ("server: {port: -1}", "server.port: -1 is not between 0 and 65535"),
        ("server: {host: ''}", "server.host: must not be empty"),
        ("server: {host: 7}", 'server.host: must be text, not 7; quote it: "7"'),
        ("server: {host: http://a}", "server.host: 'http://a' is not a host name; leave out http"),
        ("server: {allowed_hosts: ['a:80']}", "server.allowed_hosts[0]: 'a:80' is not a host name"),
        ("server: {insecure: yes}", "server.insecure: must be true or false, not 'yes'"),
        ("server: {max_body: 33}", "server.max_body: 33 has no unit; write it with its unit"),
        ("server: {max_body: 0}", "server.max_body: must be more than 0"),
        ("server: {keep_alive: 0}", "server.keep_alive: must be more than 0"),
        ("server: {keep_alive: soon}", "server.keep_alive: 'soon' is not a duration; write it"),
        ("server: {keep_alive: [1]}", "server.keep_alive: must be a duration, not a list; write"),
        ("server: {heartbeat_every: never}", "server.heartbeat_every: 'never' is not a duration"),
        (
            "models_dirs: ~/models",
            "models_dirs: must be a list, not '~/models'; write ['~/models']",
        ),
        ("models_dirs: {a: 1}", "models_dirs: must be a list, not a mapping"),
        ("models_dirs: ['']", "models_dirs[0]: must not be empty"),
        ("defaults: {idle_slep: 1m}", "defaults.idle_slep: there is no such key; did you mean"),
        ("defaults: {idle_sleep: 0}", "defaults.idle_sleep: must be more than 0; write never to"),
        ("defaults: {idle_stop: 0}", "defaults.idle_stop: must be more than 0; write never to"),
        ("defaults: {max_wait: null}", "defaults.max_wait: must be a duration, not empty; write"),
        ("defaults: {concurrency: 0}", "defaults.concurrency: 0 is not between 1 and 1000000"),
        ("devices: {budget: 4GiB}", "devices.budget: must hold keys and values (key: value), not"),
        ("devices: {budget: {cpu: 4}}", "devices.budget.cpu: 4 has no unit; write it with its"),
        ("devices: {reserve: }", "devices.reserve: must be a size, not empty; write it with"),
        ("engines: {llama_server: atuo}", "engines.llama_server: 'atuo' is neither auto nor"),
        ("scheduling: {backoff: 2m}", "scheduling.backoff: is longer than backoff_max; lower one"),
        ("models: [a]", "models: must hold keys and values (key: value), not a list"),
        ("models: {a: text}", "models.a: must hold keys and values (key: value), not 'text'"),
        ("models: {'': {source: x}}", 'models[""]: must not be empty'),
        ("models: {' a': {source: x}}", 'models[" a"]: begins or ends with a space; remove it'),
        ('models: {"a\\tb": {source: x}}', 'models["a\\tb"]: holds control characters or line'),
        (f"models: {{{'a' * 201}: {{source: x}}}}", f'models["{"a" * 77}..."]: has 201 characters'),
    ],
)
def test_a_wrong_setting_is_refused_with_advice(
    problems_of: Problems, text: str, problem: str
) -> None:
    (only,) = problems_of(text)

    assert only.startswith(f"modelyard.yaml:1: {problem}")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("", ".source: is missing; the engine llamacpp needs the path of a .gguf file"),
        ("source: 5", '.source: must be text, not 5; quote it: "5"'),
        (
            "source: x, engine: torch",
            ".engine: 'torch' is not an engine; write one of llamacpp, vllm",
        ),
        ("source: x, engine: llamacp", ".engine: 'llamacp' is not an engine; did you mean llamac"),
        ("source: x, tasks: chat", ".tasks: must be a list, not 'chat'; write ['chat']"),
        (
            "source: x, tasks: [chatt]",
            ".tasks[0]: 'chatt' is not a task; did you mean chat?; write",
        ),
        ("source: x, tasks: [{}]", ".tasks[0]: a mapping is not a task; write one of chat, "),
        ("source: x, priority: high", ".priority: must be a whole number, not 'high'"),
        ("source: x, env: {A: 1}", '.env.A: must be text, not 1; quote it: "1"'),
        ("engine: sglang", ".engine: 'sglang' is a preset; write engine: command, preset: sglang"),
        ("engine: command, preset: sg", ".preset: 'sg' is no program that Modelyard knows; write"),
        ("source: x, preset: mlx", ".preset: belongs to engine: command; add that, or remove this"),
        (
            "source: x, health_path: /a, health: {path: /b}",
            ".health.path: is the same as health_path; remove one of them",
        ),
        (
            "source: x, health: {functional: maybe}",
            ".health.functional: must be true or false, not",
        ),
        (
            "source: x, health: {time: 3s}",
            ".health.time: there is no such key; did you mean timeout",
        ),
        ("source: x, assigned: {device: [a]}", ".assigned.device: there is no such key; did you"),
        ("source: x, assigned: {devices: [0]}", ".assigned.devices[0]: must be text, not 0; quote"),
        ("source: x, health_path: health", ".health_path: 'health' is not a route; write it like"),
        ("source: x, copies: 2", ".copies: there is no such key"),
        ("source: x, replicas: 2", ".replicas: must hold keys and values (key: value), not 2"),
        ("source: x, replicas: {min: 2}", ".replicas.min: is more than replicas.max; lower it"),
        ("source: x, cost: {input: 1}", ".cost: there is no such key"),
        ("source: x, idle_top: 1m", ".idle_top: there is no such key; did you mean idle_stop?"),
        ("source: x, command: [a]", ".command: belongs to engine: command; set that, or remove"),
        ("source: x, memory: 300", ".memory: 300 has no unit; write it with its unit, like 512MiB"),
        ("source: x, memory: {cpu: a}", ".memory.cpu: 'a' is not a size; write it with its unit"),
        ("engine: command, command: [a]", ".tasks: is missing; say what the program can be asked"),
        ("engine: command, tasks: [chat]", ".command: is missing; the engine command needs it"),
        ("engine: command, tasks: [chat], command: []", ".command: is missing; the engine command"),
        (
            "engine: command, tasks: [chat], command: ./a --port 1",
            ".command: must be a list, not './a --port 1'; write each argument for itself, like",
        ),
        ("engine: command, tasks: [chat], command: [a, 1]", ".command[1]: must be text, not 1; qu"),
        ("engine: command, tasks: [chat], command: ['']", ".command[0]: must name the program"),
        ("source: x, aliases: [m]", ".aliases[0]: 'm' is the model's own id; remove it"),
        ("source: x, aliases: [a, a]", ".aliases[1]: 'a' is there twice; remove one of them"),
        ("source: x, aliases: ['']", ".aliases[0]: must not be empty"),
        ("source: x, profiles: {}", ".profiles: must be a list, not a mapping"),
        ("source: x, profiles: [{}]", ".profiles[0].name: is missing; give it a value"),
        ("source: x, profiles: [a]", ".profiles[0]: must hold keys and values (key: value), not"),
        ("source: x, profiles: [{name: a}, {name: a}]", ".profiles[1].name: 'a' is the name of a"),
        (
            "source: x, profiles: [{name: a, device: [cpu]}]",
            ".profiles[0].device: there is no such key; did you mean devices?",
        ),
        (
            "source: x, profiles: [{name: a, devices: [cpu, cpu]}]",
            ".profiles[0].devices[1]: 'cpu' is there twice; there is one host",
        ),
        (
            f"source: x, profiles: [{{name: a, devices: [{', '.join('g' * 33)}]}}]",
            ".profiles[0].devices: names 33 devices; a profile can have at most 32",
        ),
        (
            "source: x, profiles: [{name: a, devices: [g], memory: {cpu: 1GiB}}]",
            ".profiles[0].memory.cpu: is not a device of this profile, which has 'g'; add it to",
        ),
        (
            "source: x, profiles: [{name: a, devices: [g, h], memory: 1GiB}]",
            ".profiles[0].memory: needs the device of each size, like {cpu: 300MiB}",
        ),
        (
            "source: x, memory: 1GiB, profiles: [{name: a}]",
            ".memory: stands for a single profile, and there are profiles; move it into them",
        ),
        (
            "source: x, profiles: [{name: a, command: [b]}]",
            ".profiles[0].command: belongs to engine: command; set that, or remove this",
        ),
    ],
)
def test_a_wrong_model_is_refused_with_advice(
    problems_of: Problems, keys: str, problem: str
) -> None:
    (only,) = problems_of(f"models:\n  m: {{{keys}}}")

    assert only.startswith(f"modelyard.yaml:2: models.m{problem}")


def test_a_name_belongs_to_one_model_only(problems_of: Problems) -> None:
    text = """\
        models:
          a: {source: x, aliases: [same, b]}
          b: {source: x, aliases: [same]}
        """

    first, second = problems_of(text)

    assert first == (
        "modelyard.yaml:2: models.a.aliases[1]: 'b' is the id of another model; choose another name"
    )
    assert second == (
        "modelyard.yaml:3: models.b.aliases[0]: 'same' is already an alias of model 'a'; "
        "remove one of them"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "box.lan", "8.8.8.8"])
def test_a_host_that_others_can_reach_needs_a_word(problems_of: Problems, host: str) -> None:
    (problem,) = problems_of(f"server: {{host: '{host}'}}")

    assert problem == (
        f"modelyard.yaml:1: server.host: other machines can reach {host!r}, and no key with the "
        "scope admin protects the server: anybody there could use every model; make one with "
        "`modelyard keys add NAME --admin`, keep 127.0.0.1, or set server.insecure to true"
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST"])
def test_a_host_that_only_this_machine_reaches_needs_none(load_text: Loader, host: str) -> None:
    assert load_text(f"server: {{host: '{host}'}}").server.host == host


def test_insecure_allows_any_host(load_text: Loader) -> None:
    assert load_text("server: {host: 0.0.0.0, insecure: true}").server.insecure


def test_a_wrong_key_does_not_hide_what_else_is_wrong(problems_of: Problems) -> None:
    text = "models:\n  m:\n    engine: command\n    tasks: [nope]\n    aliases: [m]\n"

    assert [problem.split(": ")[1] for problem in problems_of(text)] == [
        "models.m.command",
        "models.m.tasks[0]",
        "models.m.aliases[0]",
    ]
