"""`/v1/models`: what clients are told of a model, before anybody has asked it anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelyard.catalog.discover import scan
from modelyard.config import Config, Devices
from modelyard.core.shaping import Shape, Target, VirtualModel
from modelyard.core.specs import ModelSpec, Task
from modelyard.testing.server import DEMO_MODELS, fake_model, running

pytestmark = pytest.mark.usefixtures("nothing_left")

FILES = {each.id: each for each in scan((DEMO_MODELS,)).found}


@pytest.fixture
async def listed(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What is listed of each name, on a server in which nothing was asked."""
    declared = ModelSpec(
        "writer",
        "llamacpp",
        frozenset(),
        aliases=("author",),
        source=str(FILES["yard-chat"].source),
        options={"ctx_size": 96},
        variants={"writer:short": Shape(max_output_tokens=8)},
    )
    vectors = replace(fake_model("vectors"), tasks=frozenset({Task.EMBEDDING}))
    config = Config(
        models=(declared, fake_model("fake"), vectors),
        models_dirs=(DEMO_MODELS,),
        virtuals=(
            VirtualModel("any", (Target("writer"), Target("fake"))),
            VirtualModel("near", (Target("writer"), Target("yard-embed"))),
        ),
        devices=Devices(budget_mib={"cpu": 1000}),
    )
    async with (
        running(config, tmp_path / "state", list_aliases=True) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        data = (await http.get("/v1/models")).json()["data"]
        for each in data:
            if each["id"] != "author":  # an alias by itself is shown as its model
                assert (await http.get(f"/v1/models/{each['id']}")).json() == each
        assert server.yard.loop.loads == 0
    return {each["id"]: each for each in data}


async def test_capabilities_are_tasks_and_what_the_files_tell(
    listed: dict[str, dict[str, Any]],
) -> None:
    assert listed["writer"]["capabilities"][:2] == ["chat", "completion"]
    assert listed["writer:short"]["capabilities"] == listed["writer"]["capabilities"]
    assert listed["yard-embed"]["capabilities"] == ["embedding"]
    assert listed["fake"]["capabilities"] == sorted(listed["fake"]["tasks"])


async def test_the_context_that_a_model_runs_with_is_told_apart_from_what_it_was_made_for(
    listed: dict[str, dict[str, Any]],
) -> None:
    writer, embedder = listed["writer"], listed["yard-embed"]

    assert (writer["max_model_len"], writer["meta"]) == (96, {"n_ctx": 96})
    assert writer["context_length"] == FILES["yard-chat"].context_length
    assert embedder["max_model_len"] == FILES["yard-embed"].context_length
    assert not {"max_model_len", "meta"} & listed["fake"].keys()


async def test_every_name_says_what_it_resolves_to(listed: dict[str, dict[str, Any]]) -> None:
    found = {name: each.get("resolves_to") for name, each in listed.items()}

    assert {name: to for name, to in found.items() if to} == {
        "author": "writer",
        "writer:short": "writer",
        "any": ["writer", "fake"],
        "near": ["writer", "yard-embed"],
    }
    assert all(each["name"] == name for name, each in listed.items())


async def test_of_a_virtual_model_is_told_what_holds_for_all_of_its_targets(
    listed: dict[str, dict[str, Any]],
) -> None:
    either, mixed = listed["any"], listed["near"]

    assert set(either["tasks"]) == set(listed["writer"]["tasks"]) & set(listed["fake"]["tasks"])
    assert "max_model_len" not in either  # nobody knows that of `fake`
    assert (mixed["tasks"], mixed["capabilities"]) == ([], [])
    assert mixed["meta"] == {"n_ctx": min(96, listed["yard-embed"]["max_model_len"])}
