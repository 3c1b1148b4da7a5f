"""The sleep ladder with real processes on a fake GPU that keeps books."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelyard.core.specs import Limits
from modelyard.testing.fake_books import Book

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_the_scene_of_three_models_of_four_gib_on_eight(
    serve: Any, person: Any, vllm: Any, book: Book
) -> None:
    models = [vllm(name, mib=3800) for name in "abc"]
    models = [replace(spec, sleep={2: spec.sleep[2]}) for spec in models]
    async with serve(*models) as server, person(server) as who:
        await who.ask("a")
        await who.ask("b")
        third = await who.ask("c")
        asleep = await who.view("a")
        again = await who.ask("a")
        loop = server.yard.loop

        assert (asleep["state"], asleep["sleep_level"]) == ("asleep", 2)
        assert "c" in third
        assert "a" in again
        assert (loop.loads, loop.sleeps >= 2, loop.wakes) == (3, True, 1)
    assert book.violations() == []


async def test_weights_stay_in_host_memory_where_the_host_has_room(
    serve: Any, person: Any, vllm: Any, book: Book
) -> None:
    async with serve(*(vllm(name, mib=3800) for name in "abc")) as server, person(server) as who:
        for name in "abc":
            await who.ask(name)
        asleep = await who.view("a")

        assert (asleep["state"], asleep["sleep_level"]) == ("asleep", 1)
        assert "a" in await who.ask("a")
        assert server.yard.loop.loads == 3
    assert book.violations() == []


async def test_a_person_puts_a_model_to_sleep_and_wakes_it(
    serve: Any, person: Any, vllm: Any, book: Book
) -> None:
    async with serve(vllm("a")) as server, person(server) as who:
        before = await who.ask("a")
        for level in (1, 2):
            await who.post(f"/api/models/a/sleep?level={level}")
            asleep = await who.until("a", "asleep")
            assert asleep["sleep_level"] == level
            await who.post("/api/models/a/wake")
            await who.until("a", "ready")
            assert await who.ask("a") == before
        assert server.yard.loop.loads == 1


async def test_an_idle_model_goes_to_sleep_and_later_stops(
    serve: Any, person: Any, vllm: Any, book: Book
) -> None:
    limits = Limits(idle_sleep_s=0.3, idle_stop_s=2.2, stop_grace_s=3)
    async with serve(vllm("a", limits=limits)) as server, person(server) as who:
        await who.ask("a")
        # On a slow machine it sleeps for a moment only: that it did is counted.
        await who.until("a", "stopped")
        loop = server.yard.loop

        assert (loop.loads, loop.sleeps, loop.wakes) == (1, 1, 0)


async def test_an_engine_that_lies_about_its_sleep_is_stopped_and_remembered(
    serve: Any, person: Any, vllm: Any, book: Book
) -> None:
    async with serve(vllm("a", "--fake-lie-about-sleep")) as server, person(server) as who:
        await who.ask("a")
        await who.post("/api/models/a/sleep?level=2")
        view = await who.until("a", "stopped")

        assert "still holds" in view["reason"]
        assert view["sleep_levels"] == []
        assert "a" in await who.ask("a")


async def test_a_wake_that_fails_is_replaced_by_a_fresh_start(
    serve: Any, person: Any, vllm: Any, book: Book
) -> None:
    async with serve(vllm("a", "--fake-wake-fails")) as server, person(server) as who:
        await who.ask("a")
        await who.post("/api/models/a/sleep?level=2")
        await who.until("a", "asleep")

        assert "a" in await who.ask("a")
        assert server.yard.loop.loads == 2


async def test_an_engine_that_crashes_on_wake_is_replaced(
    serve: Any, person: Any, vllm: Any, book: Book
) -> None:
    async with serve(vllm("a", "--fake-crash-on-wake")) as server, person(server) as who:
        await who.ask("a")
        await who.post("/api/models/a/sleep?level=2")
        await who.until("a", "asleep")

        assert "a" in await who.ask("a")


async def test_memory_leaked_in_a_sleep_is_seen_and_charged(
    serve: Any, person: Any, vllm: Any, book: Book
) -> None:
    leaking = vllm("a", "--fake-leak", "300MiB", "--fake-residue", "200MiB")
    async with serve(leaking) as server, person(server) as who:
        await who.ask("a")
        await who.post("/api/models/a/sleep?level=2")
        asleep = await who.until("a", "asleep")

    (kept,) = [mib for device, mib in asleep["memory_mib"].items() if device != "cpu"]
    assert 500 <= kept <= 520
