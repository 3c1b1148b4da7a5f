"""Live news: nobody waits for a slow listener, and a slow listener knows what it missed."""

from __future__ import annotations

import asyncio
import logging

import pytest

from modelyard.core.views import Event
from modelyard.runtime.broadcast import Broadcast
from modelyard.runtime.tasks import Tasks


async def test_news_reaches_every_listener_of_its_topic() -> None:
    broadcast = Broadcast()
    with broadcast.subscribe(["a"]) as one, broadcast.subscribe() as every:
        broadcast.publish(Event("a", 1))
        broadcast.publish(Event("b", 2))
        broadcast.close()
        heard = [[event.data async for event in listener] for listener in (one, every)]

    assert heard == [[1], [1, 2]]


async def test_a_slow_listener_loses_the_oldest_and_is_told_how_many() -> None:
    broadcast = Broadcast(mailbox=3)
    with broadcast.subscribe() as slow:
        for number in range(10):
            broadcast.publish(Event("n", number))
        broadcast.close()
        heard = [(event.topic, event.data) async for event in slow]

    assert heard == [("lost", 7), ("n", 7), ("n", 8), ("n", 9)]


async def test_nobody_listening_is_known() -> None:
    broadcast = Broadcast()
    with broadcast.subscribe(["models"]):
        assert (broadcast.wanted("models"), broadcast.wanted("log:m")) == (True, False)

    assert not broadcast.wanted("models")


async def test_a_task_that_fails_is_logged_by_name_and_stops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks, done = Tasks(), []

    async def fails() -> None:
        raise ValueError("boom")

    async def works() -> None:
        await asyncio.sleep(0.01)
        done.append(1)

    with caplog.at_level(logging.ERROR, "modelyard"):
        tasks.spawn(fails(), "the failing one")
        tasks.spawn(works(), "the working one")
        await tasks.join()

    assert done == [1]
    assert "the failing one" in caplog.text


async def test_closing_ends_tasks_that_would_run_for_ever() -> None:
    tasks = Tasks()
    tasks.spawn(asyncio.Event().wait(), "waits for ever")

    await asyncio.wait_for(tasks.close(), 60)

    assert len(tasks) == 0
