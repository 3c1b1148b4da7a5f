"""A real llama.cpp that may not have the memory that its plan takes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import httpx
from tests.catalog.tiny_models import Tensors, Tiny, _attention, _blocks, _ends, _forward, make
from tests.cli.conftest import SERVE, clean_environment

HEADS, WIDTH = 16, 512
LIMIT_KIB = 1_250_000
"""Of addresses for each process. Python, the library and its threads take 400 to 600 MB of them,
and the cache takes 1 GiB for the 8192 tokens that the model was made for."""


def wide() -> Tiny:
    """128 KiB of cache for each token."""

    def tensors() -> Tensors:
        yield from _ends()
        for _, block in _blocks():
            yield from _attention(block, HEADS, WIDTH, query_heads=HEADS)
            yield from _forward(block)

    values = {
        "attention.key_length": WIDTH,
        "attention.value_length": WIDTH,
        "rope.dimension_count": WIDTH,
    }
    return Tiny("llama", tensors, values, heads=HEADS, query_heads=HEADS)


def test_llama_cpp_without_memory_for_its_cache_is_started_with_a_smaller_one(
    tmp_path: Path,
) -> None:
    source = make(wide(), tmp_path / "wide.gguf")
    config = tmp_path / "modelyard.yaml"
    entry = {
        "source": str(source),
        "auto": True,
        "tasks": ["completion"],
        "env": {"MALLOC_ARENA_MAX": "1"},
    }
    config.write_text(
        json.dumps(
            {
                "server": {"port": 0, "state_dir": str(tmp_path / "state")},
                "models": {"wide": entry},
            }
        )
    )
    words = [*SERVE, "--config", str(config)]
    with subprocess.Popen(
        ["sh", "-c", f'ulimit -v {LIMIT_KIB} && exec "$@"', "sh", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**clean_environment(), "MALLOC_ARENA_MAX": "1"},
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            told = ""
            while not told.endswith("\n}\n"):
                line = process.stdout.readline()
                assert line, process.communicate()
                told += line
            with httpx.Client(base_url=json.loads(told)["url"], timeout=60) as client:
                body = {"model": "wide", "prompt": "w1 w2", "max_tokens": 2}
                answer = client.post("/v1/completions", json=body)
                shown = client.get("/api/models/wide").json()
        finally:
            process.terminate()
            process.wait(20)

    assert answer.status_code == 200, answer.text
    assert shown["auto"]["tried"][0].startswith("as planned: out of memory (")
    assert shown["auto"]["context"] < 8192
    assert shown["auto"]["options"]["ctx_size"] == shown["auto"]["context"]
    assert shown["run"] == 1 + len(shown["auto"]["tried"])
