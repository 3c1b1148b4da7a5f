"""An engine whose card was lost and came back, unseen, is replaced before anybody meets it."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.testing.fake_books import Book

pytestmark = pytest.mark.usefixtures("nothing_left")
CARD = "GPU-fake-0000"


def lose(book: Book) -> None:
    """As a reset of the card does, or a cable, faster than anybody looks."""
    book.vanish(CARD)
    book.come_back(CARD)


async def test_the_first_request_after_a_card_came_back_empty_is_answered(
    serve: Any, person: Any, vllm: Any, book: Book
) -> None:
    async with serve(vllm("a"), sample_every_s=None) as server, person(server) as who:
        before = await who.ask("a")
        await server.yard.loop.device_watch.sample()
        lose(book)
        await server.yard.loop.device_watch.sample()
        stopping = await who.view("a")

        assert await who.ask("a") == before
        assert server.yard.loop.loads == 2
    assert stopping["state"] in ("stopping", "stopped")
    assert book.violations() == []


async def test_a_replica_that_sleeps_is_not_ended_for_the_memory_it_gave_up(
    serve: Any, person: Any, vllm: Any, book: Book
) -> None:
    # All of it: the context, too, as engines do that are checkpointed.
    nothing_left = ("--fake-residue", "0MiB", "--fake-graphs", "0MiB")
    async with (
        serve(vllm("a", *nothing_left), sample_every_s=None) as server,
        person(server) as who,
    ):
        await who.ask("a")
        await server.yard.loop.device_watch.sample()
        await who.post("/api/models/a/sleep?level=2")
        await who.until("a", "asleep")
        await server.yard.loop.device_watch.sample()

        assert (await who.view("a"))["state"] == "asleep"
        assert book.account(CARD).used_mib == 0
