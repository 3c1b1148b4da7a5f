"""Modelfiles and Ollama's store."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import httpx
import pytest
from tests.importers.conftest import SAMPLES, Import, surroundings
from tests.importers.test_import_samples import loaded

from modelyard.app import engine_problems
from modelyard.config import load
from modelyard.importers import Imported, import_path
from modelyard.importers.modelfile import read_modelfile
from modelyard.testing.server import DEMO_MODELS, running


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with the model `yard:latest`, whose weights are the demo's."""
    folder = tmp_path / ".ollama" / "models"
    content = (DEMO_MODELS / "yard-chat.gguf").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / f"sha256-{digest}").write_bytes(content)
    manifest = folder / "manifests" / "registry.ollama.ai" / "library" / "yard" / "latest"
    manifest.parent.mkdir(parents=True)
    layers = [
        {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}"}
        for kind in ("model", "template", "license", "params")
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return folder


def read(path: Path, home: Path) -> Imported:
    return import_path(path, surroundings(home), engine_problems)


def test_parameters_become_options_of_llama_cpp(imported: Import, tmp_path: Path) -> None:
    models = loaded(imported(SAMPLES / "modelfile" / "mario.Modelfile"), tmp_path)

    mario = models["mario"]
    assert mario.engine == "llamacpp"
    assert mario.source == str(SAMPLES / "modelfile" / "tiny-chat-q8_0.gguf")
    assert mario.options["ctx_size"] == 4096
    assert mario.options["temp"] == 1.0
    assert mario.options["repeat_penalty"] == 1.1


def test_a_value_in_three_quotes_may_have_many_lines() -> None:
    text = 'from a\nSYSTEM """one\ntwo"""\nPARAMETER stop "x y"\nparameter stop z\n'

    assert read_modelfile(text, "Modelfile") == {
        "from": "a",
        "system": "one\ntwo",
        "parameter": {"stop": ["x y", "z"]},
    }


def test_a_model_of_the_store_is_found_by_its_name(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "Modelfile"
    path.write_text("FROM yard\nPARAMETER num_ctx 256\n")

    models = loaded(read(path, tmp_path), tmp_path)
    assert list(models) == ["yard"]
    assert models["yard"].source.startswith(str(store / "blobs" / "sha256-"))


def test_a_model_that_the_store_does_not_hold_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "Modelfile"
    path.write_text("FROM llama3.2\n")

    result = read(path, tmp_path)
    assert result.left_out == ("llama3.2",)
    assert "pull it" in result.text


def test_a_folder_of_safetensors_is_served_by_vllm(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    path = tmp_path / "Modelfile"
    path.write_text("FROM ./checkpoint\nPARAMETER num_ctx 2048\nPARAMETER top_k 5\n")

    models = loaded(read(path, tmp_path), tmp_path)
    assert models["checkpoint"].engine == "vllm"
    assert models["checkpoint"].source == f"{tmp_path}/checkpoint"
    assert "max_model_len" in models["checkpoint"].options


async def test_models_of_a_whole_store_are_served(
    store: Path, tmp_path: Path, nothing_left: None
) -> None:
    path = tmp_path / "out.yaml"
    path.write_text(read(store, tmp_path).text)
    body = {"model": "yard:latest", "messages": [{"role": "user", "content": "hi"}]}

    async with (
        running(load(path, env={}), tmp_path / "state") as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as client,
    ):
        answer = await client.post("/v1/chat/completions", json={**body, "max_tokens": 4})
    assert answer.status_code == 200, answer.text


def test_what_lies_about_in_a_store_is_no_model(store: Path, tmp_path: Path) -> None:
    manifests = store / "manifests" / "registry.ollama.ai" / "library"
    (manifests / "broken").mkdir()
    (manifests / "broken" / "latest").write_text("{not json")
    (manifests / "gone").mkdir()
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "0" * 64}
    (manifests / "gone" / "1b").write_text(json.dumps({"layers": [layer]}))
    shutil.copy(manifests / "yard" / "latest", manifests / "yard" / "q4")
    (manifests / "yard" / "link").symlink_to("latest")

    result = read(store, tmp_path)
    assert result.models == ("yard:latest", "yard:q4")
    assert result.left_out == ("gone:1b",)
