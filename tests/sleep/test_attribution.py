"""Whose memory it is, when processes come and go while the devices are read."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from modelyard.config import Devices
from modelyard.devices.base import Reading
from modelyard.runtime import memory_watch
from modelyard.runtime.sampling import Holder, Sample, Sampler
from modelyard.testing.fake_books import Book
from modelyard.testing.fake_gpu import FakeGpuProbe

CARD = "GPU-fake-0000"
REPORTED_MIB, HELD_MIB = 2100, 2400
"""An engine's own figure leaves out what the driver needs for it."""
Start = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def process() -> Iterator[Start]:
    """Starts processes that do nothing."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE))
        return started[-1]

    yield start
    for each in started:
        end(each)
        each.communicate()


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def living(processes: Iterable[subprocess.Popen[bytes]]) -> list[int]:
    return [each.pid for each in processes if each.poll() is None]


def holder(*processes: subprocess.Popen[bytes], is_ready: bool = True) -> Holder:
    """A replica with what lives of these processes."""
    claims = {CARD: 2500}
    return Holder("a", claims, is_ready, lambda: living(processes), lambda: {CARD: REPORTED_MIB})


def sampler(folder: Path, *, probe: FakeGpuProbe | None = None) -> Sampler:
    return Sampler([probe or FakeGpuProbe(folder)], Devices(reserve_mib=0), lambda _: 0)


def strangers(sample: Sample) -> int:
    return sum(device.strangers_mib for device in sample.devices)


class Between(FakeGpuProbe):
    """Does something just before or after the driver is asked."""

    def __init__(
        self,
        folder: Path,
        *,
        before: Callable[[], object] = int,
        after: Callable[[], object] = int,
    ) -> None:
        super().__init__(folder)
        self._before, self._after = before, after

    def read(self) -> Sequence[Reading]:
        self._before()
        said = super().read()
        self._after()
        return said


# ---------------------------------------------------------------------------------- who holds what


async def test_what_a_process_held_that_ends_just_after_the_reading_is_not_a_strangers(
    folder: Path, book: Book, process: Start
) -> None:
    engine = process()
    book.allocate(CARD, HELD_MIB, pid=engine.pid)
    probe = Between(folder, after=lambda: end(engine))

    sample = await sampler(folder, probe=probe).sample([holder(engine)])

    assert sample.used_mib == {"a": {CARD: HELD_MIB}}
    assert strangers(sample) == 0


async def test_what_a_process_takes_that_began_just_before_the_reading_is_not_a_strangers(
    folder: Path, book: Book, process: Start
) -> None:
    engines: list[subprocess.Popen[bytes]] = []

    def begin() -> None:
        engines.append(process())
        book.allocate(CARD, HELD_MIB, pid=engines[0].pid)

    starting = Holder("a", {CARD: 2500}, False, lambda: living(engines), dict)
    sample = await sampler(folder, probe=Between(folder, before=begin)).sample([starting])

    assert sample.used_mib == {"a": {CARD: HELD_MIB}}
    assert strangers(sample) == 0


async def test_the_report_of_an_engine_that_has_died_hides_no_strangers_memory(
    folder: Path, book: Book, process: Start
) -> None:
    engine = process()
    book.allocate(CARD, HELD_MIB, pid=engine.pid)
    cards = sampler(folder)
    await cards.sample([holder(engine)])
    end(engine)
    book.stranger(CARD, 1500)

    sample = await cards.sample([holder(engine)])

    assert sample.used_mib == {"a": {}}
    assert strangers(sample) == 1500


async def test_the_report_of_an_engine_stands_where_the_driver_never_named_it(
    folder: Path, book: Book, process: Start
) -> None:
    book.allocate(CARD, HELD_MIB, pid=os.getpid())  # as seen from another pid namespace

    sample = await sampler(folder).sample([holder(process())])

    assert sample.used_mib == {"a": {CARD: REPORTED_MIB}}
    assert strangers(sample) == HELD_MIB - REPORTED_MIB


# ---------------------------------------------------------------------------------- what is lost


async def test_an_engine_whose_card_came_back_empty_has_lost_its_memory(
    folder: Path, book: Book, process: Start
) -> None:
    engine, idle = process(), process()
    book.allocate(CARD, HELD_MIB, pid=engine.pid)
    cards = sampler(folder)
    before = await cards.sample([holder(engine, idle)])
    book.vanish(CARD)
    book.come_back(CARD)
    after = await cards.sample([holder(engine, idle)])
    asleep = await cards.sample([holder(engine, idle, is_ready=False)])

    assert before.lost == {}
    assert after.lost == {"a": [CARD]}
    assert after.used_mib == {"a": {}}
    assert asleep.lost == {}


async def test_an_engine_is_not_broken_by_the_end_of_the_process_that_held_its_memory(
    folder: Path, book: Book, process: Start
) -> None:
    # As with servers that load into a child and end it when it is idle.
    server, child = process(), process()
    book.allocate(CARD, HELD_MIB, pid=child.pid)
    cards = sampler(folder)
    await cards.sample([holder(server, child)])
    end(child)

    assert (await cards.sample([holder(server, child)])).lost == {}


async def test_a_driver_that_stops_naming_an_engine_has_not_lost_its_memory(
    folder: Path, book: Book, process: Start
) -> None:
    engine = process()
    book.allocate(CARD, HELD_MIB, pid=engine.pid)
    cards = sampler(folder)
    await cards.sample([holder(engine)])
    book.free(CARD, HELD_MIB, pid=engine.pid)
    book.stranger(CARD, HELD_MIB)  # in nobody's name

    sample = await cards.sample([holder(engine)])

    assert sample.lost == {}
    assert sample.used_mib == {"a": {CARD: REPORTED_MIB}}


async def test_another_run_of_a_model_has_lost_nothing_that_its_last_run_held(
    folder: Path, book: Book, process: Start
) -> None:
    first, second = process(), process()
    book.allocate(CARD, HELD_MIB, pid=first.pid)
    cards = sampler(folder)
    await cards.sample([holder(first)])
    book.free(CARD, HELD_MIB, pid=first.pid)

    assert (await cards.sample([holder(second)])).lost == {}


# ---------------------------------------------------------------------------------- the sampler


async def test_a_sample_is_not_older_than_its_question_after_another_was_cancelled(
    folder: Path, book: Book
) -> None:
    cards = sampler(folder)
    await cards.sample([])
    book.hang()
    cancelled = asyncio.create_task(cards.sample([]))
    await asyncio.sleep(0.05)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    book.stranger(CARD, 1500)
    asking = asyncio.create_task(cards.sample([]))
    await asyncio.sleep(0.05)
    book.hang(hanging=False)

    assert strangers(await asking) == 1500


async def test_devices_stay_as_last_seen_while_processes_cannot_be_looked_at(
    folder: Path, book: Book, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> list[int]:
        raise OSError(24, "Too many open files")

    caplog.set_level(logging.INFO, "modelyard")
    blind = Holder("a", {CARD: 2500}, True, fail, dict)
    cards = sampler(folder)
    with pytest.raises(OSError, match="Too many open files"):
        await cards.sample([blind])
    seen = await cards.sample([])
    book.stranger(CARD, 1500)
    during = [await cards.sample([blind]), await cards.sample([blind])]
    after = await cards.sample([])

    assert [each.devices for each in during] == [seen.devices] * 2
    assert [each.stale for each in during] == [{CARD}] * 2
    assert [each.used_mib for each in during] == [{}, {}]
    assert strangers(after) == 1500
    assert caplog.text.count("Too many open files; memory is taken as last seen") == 1
    assert caplog.text.count("processes: read again") == 1


# ---------------------------------------------------------------------------------- after an exit


async def test_a_stop_does_not_wait_for_memory_that_somebody_else_took_meanwhile(
    serve: Any,
    person: Any,
    vllm: Any,
    book: Book,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_watch, "SETTLE_S", 60.0)  # longer than anybody here waits
    async with serve(vllm("a"), sample_every_s=None) as server, person(server) as who:
        await who.ask("a")
        await server.yard.loop.device_watch.sample()
        book.stranger(CARD, "1GiB", pid=os.getpid())
        await who.post("/api/models/a/stop")
        await who.until("a", "stopped")

        assert strangers_of(server) == 1024
    assert "not given back" not in caplog.text


async def test_a_stop_waits_for_memory_that_is_in_nobodys_name(
    serve: Any,
    person: Any,
    vllm: Any,
    book: Book,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_watch, "SETTLE_S", 0.3)
    async with serve(vllm("a"), sample_every_s=None) as server, person(server) as who:
        await who.ask("a")
        await server.yard.loop.device_watch.sample()
        book.stranger(CARD, "1GiB", pid=os.getpid())
        book.stranger(CARD, "300MiB")
        await who.post("/api/models/a/stop")
        await who.until("a", "stopped")

        assert strangers_of(server) == 1324
    assert "model a: not given back 0.3 s after its end: 300 MiB" in caplog.text


def strangers_of(server: Any) -> int:
    return sum(d.strangers_mib for d in server.yard.loop.scheduler.devices if d.id == CARD)


# ---------------------------------------------------------------------------------- several cards


async def test_a_model_over_two_cards_sleeps_and_wakes_on_both(
    serve: Any, person: Any, vllm: Any, folder: Path
) -> None:
    book = Book.create(folder, ["8GiB", "8GiB"], names=["NVIDIA GeForce RTX 4060"])
    wide = vllm("a", mib=3000, devices=("rtx 4060", "rtx 4060"))
    async with serve(wide) as server, person(server) as who:
        before = await who.ask("a")
        awake = [account.used_mib for account in book.accounts()]
        await who.post("/api/models/a/sleep?level=2")
        view = await who.until("a", "asleep")
        asleep = {account.id: account.used_mib for account in book.accounts()}
        after = await who.ask("a")
        loop = server.yard.loop

        assert (loop.loads, loop.sleeps, loop.wakes) == (1, 1, 1)
        assert [account.used_mib for account in book.accounts()] == awake
    assert before == after
    assert len({pid for each in book.events() if each.tag == "context" and (pid := each.pid)}) == 2
    assert {d: mib for d, mib in view["memory_mib"].items() if d != "cpu"} == asleep
    assert book.violations() == []
