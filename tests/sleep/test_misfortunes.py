"""What goes wrong with cards, drivers and sleeping engines, with real processes on fake GPUs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from modelyard.config import Config, Devices
from modelyard.core.policy import Policy
from modelyard.core.specs import Limits, ModelSpec, Profile
from modelyard.devices.base import Probe
from modelyard.runtime import memory_watch, sampling
from modelyard.testing.fake_books import Book
from modelyard.testing.fake_gpu import HOST, FakeGpuProbe, FakeHostProbe
from modelyard.testing.server import Running, running

pytestmark = pytest.mark.usefixtures("nothing_left")

CARD, OTHER = "GPU-fake-0000", "GPU-fake-0001"
Start = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def two_cards(folder: Path) -> Book:
    """Two cards that differ in nothing but their ids."""
    return Book.create(folder, ["8GiB", "8GiB"], names=["NVIDIA GeForce RTX 4060"])


@pytest.fixture
def yard(folder: Path, tmp_path: Path, person: Any) -> Start:
    """`async with yard(model, ...) as (server, who)`: a machine whose host is of the books, too."""

    @asynccontextmanager
    async def start(*models: ModelSpec, sample_every_s: float | None = 0.05) -> AsyncIterator[Any]:
        config = Config(
            models=models,
            devices=Devices(reserve_mib=100, sample_every_s=sample_every_s),
            scheduling=Policy(backoff_s=0.1),
        )
        probes: list[Probe] = [FakeHostProbe(folder), FakeGpuProbe(folder)]
        async with (
            running(config, tmp_path / "state", devices=probes) as server,
            person(server) as who,
        ):
            yield server, who

    return start


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


def present(server: Running) -> set[str]:
    return {device.id for device in server.yard.loop.scheduler.devices}


def strangers(server: Running, card: str = CARD) -> int:
    return sum(d.strangers_mib for d in server.yard.loop.scheduler.devices if d.id == card)


async def where(who: Any, model: str) -> set[str]:
    return {device for device in (await who.view(model))["memory_mib"] if device != HOST}


async def refusal(who: Any, model: str) -> tuple[str, str]:
    """Ask, and return the code and the words of the error that comes back."""
    messages = [{"role": "user", "content": "hello"}]
    request = {"model": model, "messages": messages}
    answer = await who.http.post("/v1/chat/completions", json=request)
    assert answer.status_code >= 400, answer.text
    error = answer.json()["error"]
    return str(error["code"]), str(error["message"])


# -------------------------------------------------------------------------------------------- cards


async def test_two_models_land_on_different_ones_of_two_identical_cards(
    yard: Start, vllm: Any, two_cards: Book
) -> None:
    async with yard(vllm("a", mib=3800), vllm("b", mib=3800)) as (_, who):
        await asyncio.gather(who.ask("a"), who.ask("b"))

        assert await where(who, "a") | await where(who, "b") == {CARD, OTHER}
    assert two_cards.violations() == []


async def test_the_model_of_a_card_that_vanishes_moves_to_the_other_and_its_card_is_used_again(
    yard: Start, vllm: Any, two_cards: Book
) -> None:
    models = [vllm(name, mib=6000) for name in "ab"]
    async with yard(*models) as (server, who):
        await who.ask("a")
        (lost,) = await where(who, "a")
        left = ({CARD, OTHER} - {lost}).pop()
        two_cards.vanish(lost)
        await until(lambda: lost not in present(server))

        assert "a" in await who.ask("a")
        assert await where(who, "a") == {left}

        two_cards.come_back(lost)
        await until(lambda: lost in present(server))

        assert "b" in await who.ask("b")
        assert await where(who, "b") == {lost}
    assert two_cards.violations() == []


async def test_a_model_takes_its_next_profile_when_the_card_of_its_first_vanishes(
    yard: Start, vllm: Any, folder: Path
) -> None:
    book = Book.create(folder, ["8GiB", "8GiB"], names=["NVIDIA A4000", "NVIDIA L4"])
    spec = vllm("a", devices=("a4000",), mib=3000)
    profiles = (*spec.profiles, Profile("spare", ("l4",), {"l4": 3000}))
    async with yard(replace(spec, profiles=profiles)) as (server, who):
        await who.ask("a")
        assert (await who.view("a"))["profile"] == "gpu"
        book.vanish(CARD)
        await until(lambda: CARD not in present(server))

        assert "a" in await who.ask("a")
        view = await who.view("a")
        assert view["profile"] == "spare"
        assert view["passed_over"] == ["profile 'gpu' needs a4000; present: fake host, l4"]


async def test_requests_fail_with_the_reason_while_the_only_card_is_gone(
    yard: Start, vllm: Any, book: Book
) -> None:
    async with yard(vllm("a"), vllm("b")) as (server, who):
        await who.ask("a")
        book.vanish(CARD)
        await until(lambda: CARD not in present(server))

        code, words = await refusal(who, "b")
        assert code == "no_device"
        assert "needs rtx 4060; present: fake host" in words
        assert (await who.http.get("/health")).status_code == 200

        book.come_back(CARD)
        await until(lambda: CARD in present(server))
        assert "b" in await who.ask("b")


async def test_a_request_that_waits_for_a_card_which_vanishes_is_told(
    yard: Start, vllm: Any, book: Book
) -> None:
    async with yard(vllm("a", "--fake-load", "10s")) as (server, who):
        asking = asyncio.ensure_future(refusal(who, "a"))
        await who.until("a", "starting")
        book.vanish(CARD)
        await until(lambda: CARD not in present(server))
        code, words = await asking

    assert code in ("no_device", "engine_start_failed")
    assert "rtx 4060" in words or CARD in words


async def test_a_card_that_fails_is_shown_with_its_reason_and_not_used(
    yard: Start, vllm: Any, two_cards: Book
) -> None:
    async with yard(vllm("a", mib=6000)) as (server, who):
        two_cards.fail(CARD, "GPU is lost (Xid 79)")
        await until(lambda: CARD not in present(server))
        await who.ask("a")
        shown = (await who.http.get("/api/devices")).json()

        assert await where(who, "a") == {OTHER}
        assert [each["notes"] for each in shown if each["id"] == CARD] == [["GPU is lost (Xid 79)"]]
    assert two_cards.violations() == []


# ------------------------------------------------------------------------------------------ drivers


async def test_requests_are_served_while_a_driver_hangs_and_its_cards_stay_as_last_seen(
    yard: Start,
    vllm: Any,
    book: Book,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "HUNG_AFTER_S", 0.2)
    caplog.set_level(logging.INFO, "modelyard")
    async with yard(vllm("a", mib=3000), vllm("b", mib=3000)) as (server, who):
        await who.ask("a")
        book.hang()
        await until(lambda: "has not answered" in caplog.text)

        assert "a" in await who.ask("a")
        assert "b" in await who.ask("b")
        assert present(server) == {HOST, CARD}
        await who.post("/api/models/a/stop")
        await who.until("a", "stopped")

        book.hang(hanging=False)
        await until(lambda: "read again" in caplog.text)
        book.stranger(CARD, "1GiB")
        await until(lambda: strangers(server) == 1024)


async def test_a_server_ends_while_a_driver_hangs(
    yard: Start, vllm: Any, book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "HUNG_AFTER_S", 0.2)
    async with yard(vllm("a")) as (_, who):
        await who.ask("a")
        book.hang()
    assert book.account(CARD).by_process_mib == {}
    book.hang(hanging=False)


async def test_a_driver_that_fails_leaves_its_cards_as_last_seen_and_is_read_again(
    yard: Start, vllm: Any, book: Book, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modelyard")
    async with yard(vllm("a")) as (server, who):
        book.break_driver("Driver/library version mismatch")
        await until(lambda: "Driver/library version mismatch; taken as last seen" in caplog.text)

        assert "a" in await who.ask("a")
        assert present(server) == {HOST, CARD}

        book.break_driver("")
        await until(lambda: "read again" in caplog.text)


async def test_an_engine_whose_sleep_cannot_be_seen_is_not_called_a_liar(
    yard: Start, vllm: Any, book: Book
) -> None:
    async with yard(vllm("a")) as (_, who):
        await who.ask("a")
        book.break_driver("Driver/library version mismatch")
        await who.post("/api/models/a/sleep?level=2")
        view = await who.until("a", "asleep")
        book.break_driver("")

        assert view["sleep_levels"] == [1, 2]
        assert "a" in await who.ask("a")


# --------------------------------------------------------------------------------- memory of others


async def test_a_stranger_of_two_gib_makes_a_model_take_its_second_profile(
    yard: Start, vllm: Any, book: Book
) -> None:
    big, small = vllm("a", mib=7000), vllm("a", mib=3000)
    profile = replace(small.profiles[0], name="small", command=small.command)
    async with yard(replace(big, profiles=(*big.profiles, profile))) as (server, who):
        book.stranger(CARD, "2GiB")
        await until(lambda: strangers(server) == 2048)
        await who.ask("a")
        view = await who.view("a")

    assert view["profile"] == "small"
    assert view["passed_over"] == [
        f"profile 'gpu': {CARD} has {8192 - 100 - 2048} MiB free of the 7000 MiB needed"
    ]
    assert book.violations() == []


async def test_a_model_waits_for_a_strangers_two_gib_and_says_so(
    yard: Start, vllm: Any, book: Book
) -> None:
    async with yard(vllm("a", mib=7000)) as (server, who):
        book.stranger(CARD, "2GiB")
        await until(lambda: strangers(server) == 2048)
        asking = asyncio.ensure_future(who.ask("a"))
        await until(lambda: server.yard.loop.waiting == 1)
        waiting = await who.view("a")
        book.stranger(CARD, 0)
        answer = await asking

    assert waiting["state"] == "stopped"
    assert "2048 MiB of NVIDIA GeForce RTX 4060 by other programs" in waiting["waiting_for"]
    assert "a" in answer
    assert book.violations() == []


async def test_what_is_not_back_after_a_stop_is_reported_and_not_given_away(
    yard: Start,
    vllm: Any,
    book: Book,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_watch, "SETTLE_S", 0.3)
    # Nobody reads the devices but those who must: what is left behind is new to them.
    models = vllm("a", mib=4000), vllm("b", mib=7900)
    async with yard(*models, sample_every_s=None) as (server, who):
        await who.ask("a")
        book.stranger(CARD, "300MiB")  # as a driver does that loses track of what it freed
        await who.post("/api/models/a/stop")
        await who.until("a", "stopped")
        asking = asyncio.ensure_future(who.ask("b"))
        await until(lambda: server.yard.loop.waiting == 1)
        waiting = await who.view("b")
        asking.cancel()

    assert "model a: not given back 0.3 s after its end: 300 MiB" in caplog.text
    assert f"{8192 - 100 - 300} MiB free of the 7900 MiB needed" in waiting["waiting_for"]
    assert book.violations() == []


async def test_memory_that_comes_back_late_is_not_given_away_early(
    yard: Start, vllm: Any, book: Book
) -> None:
    book.set_lag(0.4)
    async with yard(vllm("a", mib=5000), vllm("b", mib=5000)) as (_, who):
        for model in "abab":
            assert model in await who.ask(model)
    assert book.violations() == []


async def test_a_model_whose_weights_the_host_cannot_hold_sleeps_without_them(
    yard: Start, vllm: Any, folder: Path
) -> None:
    book = Book.create(folder, ["8GiB"], names=["NVIDIA GeForce RTX 4060"], host="3GiB")
    limits = Limits(idle_sleep_s=0.2, idle_stop_s=None, stop_grace_s=3)
    async with yard(vllm("a", mib=4000, limits=limits)) as (_, who):
        await who.ask("a")

        assert (await who.until("a", "asleep"))["sleep_level"] == 2
    assert book.violations() == []


async def test_a_model_whose_weights_the_host_can_hold_keeps_them_there_while_it_is_idle(
    yard: Start, vllm: Any, book: Book
) -> None:
    limits = Limits(idle_sleep_s=0.2, idle_stop_s=None, stop_grace_s=3)
    async with yard(vllm("a", mib=4000, limits=limits)) as (_, who):
        await who.ask("a")

        assert (await who.until("a", "asleep"))["sleep_level"] == 1
        assert book.account(HOST).used_mib == 2000


# ----------------------------------------------------------------------------- falling asleep


async def test_an_engine_killed_asleep_leaves_nothing_behind_and_is_replaced_when_asked(
    yard: Start, vllm: Any, book: Book
) -> None:
    async with yard(vllm("a")) as (server, who):
        before = await who.ask("a")
        await who.post("/api/models/a/sleep?level=2")
        pid = (await who.until("a", "asleep"))["pid"]
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        os.kill(pid, signal.SIGKILL)

        assert await who.ask("a") == before
        assert server.yard.loop.loads == 2
        assert len(family) > 1
        assert not any(lives(process) for process in family)
        assert len(book.account(CARD).by_process_mib) == 1


async def test_a_stop_ends_an_engine_that_is_falling_asleep(
    yard: Start, vllm: Any, book: Book
) -> None:
    async with yard(vllm("a", "--fake-sleep-time", "1s")) as (server, who):
        await who.ask("a")
        await who.post("/api/models/a/sleep?level=2")
        await who.until("a", "suspending")
        await who.post("/api/models/a/stop")
        await who.until("a", "stopped")

        assert book.account(CARD).used_mib == 0
        assert "a" in await who.ask("a")
        assert server.yard.loop.loads == 2


@pytest.mark.parametrize("level", [1, 2])
async def test_a_request_that_comes_while_its_model_falls_asleep_wakes_it(
    yard: Start, vllm: Any, book: Book, level: int
) -> None:
    async with yard(vllm("a", "--fake-sleep-time", "1s")) as (server, who):
        before = await who.ask("a")
        await who.post(f"/api/models/a/sleep?level={level}")
        await who.until("a", "suspending")

        assert await who.ask("a") == before
        loop = server.yard.loop
        assert (loop.loads, loop.sleeps, loop.wakes) == (1, 1, 1)
    assert book.violations() == []


@pytest.mark.parametrize("level", [1, 2])
async def test_a_sleep_waits_for_the_streams_in_flight(
    yard: Start, vllm: Any, book: Book, level: int
) -> None:
    async with yard(vllm("a", "--fake-tps", "20")) as (server, who):
        await who.ask("a", max_tokens=1)
        slot = server.yard.loop.scheduler.models["a"]
        reading = asyncio.ensure_future(stream(who.http, "a", 30))
        await until(lambda: slot.in_flight == 1)
        await who.post(f"/api/models/a/sleep?level={level}")
        in_flight = slot.in_flight
        words, reason = await reading
        await who.until("a", "asleep")

    assert (in_flight, len(words), reason) == (1, 30, "length")


async def test_two_models_of_one_card_told_to_sleep_do_so_one_after_the_other(
    yard: Start, vllm: Any, book: Book
) -> None:
    models = [vllm(name, "--fake-sleep-time", "200ms", mib=3000) for name in "ab"]
    async with yard(*models) as (_, who):
        for name in "ab":
            await who.ask(name)
        for name in "ab":
            await who.post(f"/api/models/{name}/sleep?level=2")
        for name in "ab":
            await who.until(name, "asleep")
        for name in "ab":
            await who.post(f"/api/models/{name}/wake")
        for name in "ab":
            await who.until(name, "ready")
    assert book.violations() == []


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def stream(http: httpx.AsyncClient, model: str, tokens: int) -> tuple[list[str], str | None]:
    """The words of a streamed answer, and why it ended."""
    messages = [{"role": "user", "content": "go on"}]
    request = {"model": model, "messages": messages, "stream": True, "max_tokens": tokens}
    words: list[str] = []
    reason = None
    async with http.stream("POST", "/v1/chat/completions", json=request) as answer:
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            (choice,) = json.loads(line.removeprefix("data: "))["choices"]
            words += [word] if (word := choice["delta"].get("content")) else []
            reason = choice["finish_reason"] or reason
    return words, reason


async def test_an_engine_killed_before_it_was_told_to_sleep_is_not_called_a_bad_sleeper(
    yard: Any, vllm: Any, book: Book
) -> None:
    async with yard(vllm("a")) as (_, who):
        await who.ask("a")
        os.kill((await who.view("a"))["pid"], signal.SIGKILL)
        await who.post("/api/models/a/sleep?level=2")
        await who.until("a", "stopped")
        assert (await who.view("a"))["sleep_levels"] == [1, 2]


async def test_a_person_who_asks_for_level_one_without_room_gets_a_deeper_sleep(
    yard: Any, vllm: Any, folder: Path
) -> None:
    book = Book.create(folder, ["8GiB"], names=["NVIDIA GeForce RTX 4060"], host="1GiB")
    async with yard(vllm("a", mib=4000)) as (_, who):
        await who.ask("a")
        await who.post("/api/models/a/sleep?level=1")
        asleep = await who.until("a", "asleep")
    assert asleep["sleep_level"] == 2
    assert book.violations() == []
