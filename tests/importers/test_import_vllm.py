"""Commands that plainly start vLLM become models of that engine; prices become prices."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from tests.importers.conftest import Import, make_database, surroundings
from tests.planner.large_models import Shape, folder

from modelyard.app import engine_problems
from modelyard.config import load
from modelyard.core.pricing import Price
from modelyard.core.specs import ModelSpec
from modelyard.devices.base import Probe
from modelyard.importers import import_path
from modelyard.importers.vllm_model import VllmModel, vllm_model
from modelyard.testing.fake_books import FOLDER_VARIABLE, Book
from modelyard.testing.fake_gpu import FakeGpuProbe, FakeHostProbe
from modelyard.testing.fake_vllm import executable
from modelyard.testing.server import running

SERVE = ("vllm", "serve")
TINY = Shape(2, 256, 512, 8, 4, words=512, context=2048, head=32)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("/m/a", "--host", "{host}", "--port={port}"), VllmModel("/m/a")),
        (("--model", "~/m/a", "--port", "{port}"), VllmModel("~/m/a")),
        (("./a", "-tp", "2"), VllmModel("/here/./a", {"tensor_parallel_size": 2})),
        (
            ("/m/a", "--served-model-name", "x", "y", "--max_model_len=4096", "--enforce-eager"),
            VllmModel("/m/a", {"max_model_len": 4096, "enforce_eager": True}),
        ),
        (
            ("/m/a", "--gpu-memory-utilization", "0.85", "--no-enable-prefix-caching"),
            VllmModel("/m/a", {"gpu_memory_utilization": 0.85, "enable_prefix_caching": False}),
        ),
        (
            ("/m/a", "--hf-overrides", '{"rope_theta": 10}', "--enable-sleep-mode"),
            VllmModel("/m/a", {"hf_overrides": {"rope_theta": 10}}),
        ),
    ],
)
def test_a_plain_command_is_understood(words: tuple[str, ...], expected: VllmModel) -> None:
    assert vllm_model((*SERVE, *words), "/here") == expected


@pytest.mark.parametrize(
    "argv",
    [
        ("vllm", "serve", "Qwen/Qwen3-8B"),
        ("vllm", "serve", "./a"),
        ("vllm", "serve", "/m/a", "/m/b"),
        ("vllm", "serve", "/m/a", "--no-such-option", "1"),
        ("vllm", "serve", "/m/a", "--max-model-len"),
        ("vllm", "serve", "/m/a", "--max-model-len", "1", "--max_model_len", "2"),
        ("vllm", "serve", "/m/a", "--lora-modules", "a=b", "c=d"),
        ("vllm", "serve", "/m/{{a}}"),
        ("vllm", "serve", "/m/a", "--dtype", "${env:TYPE}"),
        ("vllm", "serve", "/m/a", "--hf-overrides", "{not json"),
        ("conda", "run", "-n", "v", "vllm", "serve", "/m/a"),
        ("env", "A=1", "vllm", "serve", "/m/a"),
        ("vllm", "bench", "/m/a"),
        ("vllm",),
    ],
)
def test_what_is_not_understood_to_the_last_word_stays_a_command(argv: tuple[str, ...]) -> None:
    assert vllm_model(argv, None) is None


def test_a_vllm_of_its_own_place_is_named() -> None:
    found = vllm_model(("/opt/v/bin/vllm", "serve", "/m/a"), None)

    assert found == VllmModel("/m/a", {}, ("/opt/v/bin/vllm",))


def spec_of(imported: Import, script: str, place: Path) -> ModelSpec:
    result = imported(script, "start.sh")
    path = place / "modelyard.yaml"
    path.write_text(result.text)
    (spec,) = load(path, env={"HOME": str(place)}).models
    return spec


def test_a_script_that_starts_vllm_becomes_a_model_of_it(imported: Import, tmp_path: Path) -> None:
    script = "export HF_HOME=/data VLLM_SERVER_DEV_MODE=1\nvllm serve /m/a --port 80 -tp 2\n"

    spec = spec_of(imported, script, tmp_path)

    assert (spec.engine, spec.source, spec.command) == ("vllm", "/m/a", ())
    assert dict(spec.options) == {"tensor_parallel_size": 2}
    assert dict(spec.env) == {"HF_HOME": "/data"}
    assert len(spec.profiles[0].devices) == 2


async def test_an_imported_vllm_starts_and_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    executable(programs)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    book = Book.create(tmp_path / "books", ["24564MiB"], names=["NVIDIA GeForce RTX 4090"])
    place = folder(tmp_path / "m" / "tiny", TINY)
    source = tmp_path / "config.yaml"
    model = {
        "cmd": f"vllm serve {place} --port ${{PORT}} --gpu-memory-utilization 0.2",
        "env": [f"{FOLDER_VARIABLE}={book.folder}", "MODELYARD_FAKE_VLLM=--fake-weights 64MiB"],
    }
    source.write_text(json.dumps({"models": {"tiny": model}}))

    result = import_path(source, surroundings(tmp_path, (24564,)), engine_problems)
    path = tmp_path / "modelyard.yaml"
    path.write_text(result.text)
    config = load(path, env={"HOME": str(tmp_path)})
    devices: list[Probe] = [FakeGpuProbe(book.folder), FakeHostProbe(book.folder)]
    async with (
        running(config, tmp_path / "state", devices=devices) as server,
        httpx.AsyncClient(base_url=f"{server.url}/v1/", timeout=60) as client,
    ):
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
        answer = await client.post("chat/completions", json=body)
        view = server.yard.loop.view(server.yard.loop.scheduler.models["tiny"])

    assert answer.status_code == 200, answer.text
    assert view.engine == "vllm"
    assert view.sleep_levels == [1, 2]


def priced(tmp_path: Path, *tiers: tuple[object, ...], kind: str = "tier", cache: int = 1) -> str:
    path = make_database(tmp_path / "prices.db")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM pricing_tiers")
        database.execute("UPDATE model_defs SET pricing_type = ?, support_cache = ?", (kind, cache))
        rows = [(2, number, *tier) for number, tier in enumerate(tiers, start=1)]
        marks = ",".join("?" * 10)
        database.executemany(f"INSERT INTO pricing_tiers VALUES ({marks})", rows)
    result = import_path(path, surroundings(tmp_path), engine_problems)
    return result.text


def prices_in(text: str, tmp_path: Path) -> list[Price]:
    path = tmp_path / "modelyard.yaml"
    path.write_text(text)
    models = load(path, env={"HOME": str(tmp_path)}).models
    return [spec.price for spec in models if spec.price is not None]


def test_one_price_for_all_requests_becomes_the_models_price(tmp_path: Path) -> None:
    text = priced(tmp_path, (0, None, 0, None, 0.5, 1.5, 0.1, 0.05))

    expected = Price(Decimal("0.5"), Decimal("1.5"), Decimal("0.05"), 1_000_000, "CNY")
    assert prices_in(text, tmp_path) == [expected]


def test_without_a_cache_there_is_no_price_for_what_is_remembered(tmp_path: Path) -> None:
    text = priced(tmp_path, (0, -1, 0, -1, 2, 3, 0.1, 0.05), cache=0)

    assert prices_in(text, tmp_path) == [Price(Decimal(2), Decimal(3), None, 1_000_000, "CNY")]


@pytest.mark.parametrize(
    "tiers",
    [
        [(0, 1000, 0, None, 0.5, 1.5, 0.1, 0.05)],
        [(0, None, 0, None, 0.5, 1.5, 0.1, 0.05), (0, None, 0, None, 1, 2, 0, 0)],
        [(0, None, 0, None, 0, 0, 0, 0)],
        [],
    ],
)
def test_other_prices_are_told_and_none_is_made_up(
    tiers: list[tuple[object, ...]], tmp_path: Path
) -> None:
    assert prices_in(priced(tmp_path, *tiers), tmp_path) == []
