"""What is published: the schema, the configuration in force, the example and the documents."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelyard.config import Config, describe, json_schema, load

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "modelyard.yaml"

Loader = Callable[..., Config]


def published_keys() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key of the schema with its path as the documents write it."""
    schema = json_schema()
    sections = {
        "server.": "ServerSection",
        "server.tls.": "TlsSection",
        "devices.": "DevicesSection",
        "scheduling.": "SchedulingSection",
        "engines.": "EnginesSection",
        "downloads.": "DownloadsSection",
        "captures.": "CapturesSection",
        "keys.NAME.": "KeySection",
        "keys.NAME.limits.": "KeyLimitsSection",
        "defaults.": "LimitsSection",
        "models.ID.": "ModelSection",
        "models.ID.profiles[].": "ProfileSection",
        "models.ID.replicas.": "ReplicasSection",
        "models.ID.health.": "HealthSection",
        "models.ID.price.": "PriceSection",
        "models.ID.assigned.": "AssignedSection",
        "models.ID.shape.": "ShapeSection",
        "virtual.NAME.": "VirtualSection",
        "virtual.NAME.targets[].": "TargetSection",
        "models.ID.upstreams[].": "UpstreamSection",
        "models.ID.circuit.": "CircuitSection",
        "remotes.NAME.": "RemoteSection",
        "models.ID.sleep.LEVEL.": "SleepSection",
        "models.ID.sleep.LEVEL.wake[].": "CallSection",
    }
    assert sorted(sections.values()) == sorted(schema["$defs"])
    yield from schema["properties"].items()
    for prefix, section in sections.items():
        for key, published in schema["$defs"][section]["properties"].items():
            yield prefix + key, published


def default_in_documents(key: str, published: dict[str, Any]) -> str | None:
    """How a default is written in the documents; None where words are needed."""
    if "default" in published:
        default = published["default"]
        return f"`{default if isinstance(default, str) else json.dumps(default)}`"
    if "that of `defaults`" in published["description"]:
        return f"`defaults.{key.rpartition('.')[2]}`"
    return None


def test_every_key_is_documented_with_its_default() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \| [^|]+ \|$",
        (ROOT / "docs" / "config.md").read_text(),
        re.MULTILINE,
    )
    documented = {key: default for key, _, default in rows}
    expected = {
        key: default_in_documents(key, published) or documented.get(key)
        for key, published in published_keys()
    }

    assert documented == expected


def test_every_key_is_published_with_a_description() -> None:
    without = [key for key, published in published_keys() if not published.get("description")]

    assert without == []


def test_published_defaults_are_written_as_people_write_them() -> None:
    properties = json_schema()["$defs"]

    assert properties["LimitsSection"]["properties"]["idle_stop"]["default"] == "1h"
    assert properties["ServerSection"]["properties"]["max_body"]["default"] == "32MiB"
    assert properties["EnginesSection"]["properties"]["llama_server"]["default"] == "auto"


def test_the_schema_refuses_unknown_keys_in_every_section() -> None:
    schema = json_schema()

    assert {section["additionalProperties"] for section in schema["$defs"].values()} == {False}
    assert schema["additionalProperties"] is False


def test_the_example_loads() -> None:
    ids = [spec.id for spec in load(EXAMPLE, env={}).models]

    assert ids == [
        "tiny", "qwen3-4b", "house-model", "two-ways", "sleeper", "sleeper-by-hand", "elsewhere",
    ]  # fmt: skip


def test_the_defaults_in_the_examples_comments_are_the_defaults(tmp_path: Path) -> None:
    switched_on = tmp_path / "modelyard.yaml"
    switched_on.write_text(re.sub(r"^( *)#(?=\w)", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE))
    example, defaults = describe(load(EXAMPLE, env={})), describe(load(switched_on, env={}))
    for described in (example, defaults):
        for model in described["models"].values():
            model["cwd"] = None  # the two files lie in different folders

    assert defaults == example


def test_the_example_shows_every_key() -> None:
    text = EXAMPLE.read_text()
    missing = [
        key
        for key, _ in published_keys()
        if not re.search(rf"(^ *#?|[{{ -]){key.rpartition('.')[2]}:", text, re.MULTILINE)
    ]

    assert missing == []


def test_what_is_in_force_is_described_in_the_words_of_the_file(load_text: Loader) -> None:
    described = describe(load_text("defaults: {idle_stop: never}\ndevices: {budget: {cpu: 4GiB}}"))

    assert described["defaults"]["idle_stop"] == "never"
    assert described["defaults"]["max_wait"] == "10m"
    devices = {"reserve": "512MiB", "budget": {"cpu": "4GiB"}, "sample_every": "2s"}
    assert described["devices"] == devices
    assert described["engines"] == {"llama_server": "auto", "vllm": "auto"}


def test_what_is_described_loads_as_the_same_configuration(tmp_path: Path) -> None:
    config = load(EXAMPLE, env={})
    written = tmp_path / "modelyard.yaml"
    written.write_text(json.dumps(describe(config)))
    again = load(written, env={})

    assert (again.models, again.server, again.limits) == (
        config.models,
        config.server,
        config.limits,
    )
    assert (again.devices, again.scheduling) == (config.devices, config.scheduling)


def test_secrets_are_not_described(load_text: Loader) -> None:
    text = """
        server: {port: "${env:PORT}"}
        models_dirs: ["${env:ROOT}/m"]
        models:
          m:
            engine: command
            tasks: [chat]
            command: [serve, --api-key, key-1, --token=key-2, --max-tokens, "5", "${env:S}"]
            env: {API_KEY: key-3, HF_TOKEN: "${env:S}", PLAIN: "a ${env:S}", PGPASSWORD: key-4}
            options: {max_tokens: 5, deep: [{secret: key-5, x: "${env:S}"}]}
        """
    config = load_text(text, env={"S": "s3cret", "PORT": "9", "ROOT": "/r"})
    described = describe(config)
    model = described["models"]["m"]

    assert "s3cret" not in json.dumps(described)
    assert re.findall(r"key-\d", json.dumps(described)) == []
    assert "s3cret" not in repr(config.written)
    assert described["server"]["port"] == "${env:PORT}"
    assert described["models_dirs"] == ["${env:ROOT}/m"]
    assert model["command"] == [
        "serve", "--api-key", "<hidden>", "--token=<hidden>", "--max-tokens", "5", "${env:S}",
    ]  # fmt: skip
    assert model["env"] == {
        "API_KEY": "<hidden>",
        "HF_TOKEN": "<hidden>",
        "PLAIN": "a ${env:S}",
        "PGPASSWORD": "<hidden>",
    }
    assert model["options"] == {"max_tokens": 5, "deep": [{"secret": "<hidden>", "x": "${env:S}"}]}


@pytest.mark.parametrize("heavy", ["pydantic", "ruamel.yaml", "platformdirs"])
def test_importing_the_package_imports_nothing_heavy(heavy: str) -> None:
    code = f"import sys, modelyard.config; print({heavy!r} in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout

    assert printed == b"False\n"
