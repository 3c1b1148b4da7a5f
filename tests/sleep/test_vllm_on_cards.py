"""The vLLM adapter on fake cards: memory, cards and sleep by themselves, on a fake vLLM."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelyard.core.specs import Limits, ModelSpec, Profile, Task
from modelyard.testing.fake_books import FOLDER_VARIABLE, Book

pytestmark = pytest.mark.usefixtures("nothing_left")

FAKE = (sys.executable, "-m", "modelyard.testing.fake_vllm")
LIMITS = Limits(stop_grace_s=3.0, idle_sleep_s=None)
CARD = "rtx 4060"
DEVELOPMENT_ROUTES = (
    "/sleep", "/sleep?level=2", "/wake_up", "/is_sleeping", "/collective_rpc", "/server_info",
    "/reset_prefix_cache", "/v1/../sleep", "/v1/sleep", "//sleep", "/metrics", "/tokenize",
)  # fmt: skip


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Callable[..., ModelSpec]:
    """`model("a", 4000, max_model_len=128)`: a model on the fake card, in MiB."""

    def make(name: str, mib: int, *, cards: tuple[str, ...] = (CARD,), **options: Any) -> ModelSpec:
        source = tmp_path / name
        source.mkdir()
        weights = {"MODELYARD_FAKE_VLLM": "--fake-load 50ms --fake-weights 1GiB"}
        return ModelSpec(
            name,
            "vllm",
            frozenset({Task.CHAT}),
            source=str(source),
            options=options,
            profiles=(Profile("card", cards, dict.fromkeys(cards, mib)),),
            command=FAKE,
            env={FOLDER_VARIABLE: str(folder), **weights},
            limits=LIMITS,
        )

    return make


async def test_it_takes_the_profiles_memory_sleeps_for_another_and_wakes(
    book: Book, model: Any, serve: Any, person: Any
) -> None:
    async with serve(model("a", 4000), model("b", 5000)) as server, person(server) as someone:
        await someone.ask("a")
        held = await _seen(someone, "a")
        await someone.ask("b")
        asleep = await someone.until("a", "asleep")
        answer = await someone.ask("a", max_tokens=4)

    assert asleep["sleep_levels"] == [1, 2]
    assert asleep["sleep_level"] in (1, 2)
    assert answer
    # What vLLM took, and the driver's context, are what the profile says.
    assert 3600 <= held <= 4000


async def test_nobody_reaches_the_development_routes_through_modelyard(
    book: Book, model: Any, serve: Any, person: Any
) -> None:
    async with serve(model("a", 4000)) as server, person(server) as someone:
        await someone.ask("a")
        statuses = set()
        for path in DEVELOPMENT_ROUTES:
            for method in ("GET", "POST"):
                answer = await someone.http.request(method, path, json={"model": "a"})
                statuses.add(answer.status_code)
        view = await someone.view("a")

    assert statuses <= {404, 405}
    assert view["state"] == "ready"


async def test_without_sleep_mode_the_routes_are_not_there_and_room_is_made_by_stopping(
    book: Book, model: Any, serve: Any, person: Any
) -> None:
    awake = model("a", 4000, enable_sleep_mode=False)
    async with serve(awake, model("b", 5000)) as server, person(server) as someone:
        await someone.ask("a")
        levels = (await someone.view("a"))["sleep_levels"]
        await someone.ask("b")
        await someone.until("a", "stopped")

    assert levels == []


async def _seen(someone: Any, model: str) -> int:
    """What the driver says it holds on the card."""
    devices = (await someone.http.get("/api/devices")).json()
    return max(
        int(share["used_mib"] or share["claim_mib"])
        for device in devices
        for share in device["shares"]
        if share["model"] == model and device["kind"] != "cpu"
    )
