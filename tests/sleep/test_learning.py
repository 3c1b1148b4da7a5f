"""What was measured in one life of the server is claimed in the next."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from modelyard.runtime.learning import options_digest
from modelyard.testing.fake_books import Book

pytestmark = pytest.mark.usefixtures("nothing_left")


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


async def learned(server: Any, model: str) -> None:
    """Wait until the model's footprint is known to the scheduler."""
    async with asyncio.timeout(60):
        while not server.yard.loop.scheduler.models[model].footprints.known:
            await asyncio.sleep(0.02)


async def test_a_declared_claim_gives_way_to_what_was_measured(
    serve: Any, person: Any, vllm: Any, book: Book
) -> None:
    wasteful = vllm("a", mib=2000)
    declared = wasteful.profiles[0].memory_mib["rtx 4060"]
    async with serve(wasteful) as server, person(server) as who:
        await who.ask("a")
        first = (await who.view("a"))["memory_mib"]
        await learned(server, "a")
    async with serve(wasteful) as server, person(server) as who:
        await who.ask("a")
        second = (await who.view("a"))["memory_mib"]
        (uuid,) = [device for device in second if device != "cpu"]
        held = book.account(uuid).used_mib

    assert first[uuid] == declared
    assert held <= second[uuid] <= held + 80


async def test_an_engine_that_is_dying_teaches_nothing_of_what_its_model_takes(
    serve: Any, person: Any, vllm: Any, book: Book
) -> None:
    # Its server lives on for a while without its engine process, and answers its health route.
    model = vllm("a", "--fake-load", "500ms", "--fake-death-notice", "2s")
    (card,) = book.accounts()
    async with serve(model, sample_every_s=None) as server, person(server) as who:
        asking = asyncio.ensure_future(who.ask("a"))
        await until(lambda: book.account(card.id).used_mib > 1000)
        await server.yard.loop.device_watch.sample()  # seen, but too early to be a measure
        await asking
        (engine,) = book.account(card.id).by_process_mib
        os.kill(engine, signal.SIGKILL)
        await until(lambda: not book.account(card.id).by_process_mib)
        await server.yard.loop.device_watch.sample()
        await learned(server, "a")
        known = server.yard.loop.scheduler.models["a"].footprints.known

    assert [sorted(by_position) for by_position in known.values()] == [["cpu"]]


async def test_another_definition_of_the_model_starts_from_its_declaration_again(
    serve: Any, person: Any, vllm: Any, book: Book
) -> None:
    async with serve(vllm("a", mib=2000)) as server, person(server) as who:
        await who.ask("a")
        await learned(server, "a")
    other = vllm("a", "--max-model-len", "4096", mib=2000)
    assert options_digest(other) != options_digest(vllm("a", mib=2000))
    async with serve(other) as server:
        assert not server.yard.loop.scheduler.models["a"].footprints.known
