from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from modelyard.devices.base import Probe, ProbeFailed
from modelyard.testing.fake_gpu import (
    HOST,
    Book,
    DeviceLost,
    FakeGpuProbe,
    FakeHostProbe,
    OutOfMemory,
)
from modelyard.testing.fake_page import birth_of, mebibytes

PATIENCE_S = 60.0
HOLD = """
import sys
from modelyard.testing.fake_books import Book
book = Book(sys.argv[1])
book.allocate(sys.argv[2], sys.argv[3])
print("held", flush=True)
sys.stdin.read()
"""
CHURN = """
import random, sys
from modelyard.testing.fake_books import Book
from modelyard.testing.fake_page import OutOfMemory
book, device, chance = Book(sys.argv[1]), sys.argv[2], random.Random(sys.argv[3])
for _ in range(60):
    try:
        book.resize(device, chance.randrange(900))
    except OutOfMemory:
        pass
"""


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book.create(
        tmp_path / "gpus", ["8GiB", "1GiB"], names=["NVIDIA GeForce RTX 4060", "NVIDIA T400"]
    )


@pytest.fixture
def gpu(book: Book) -> str:
    return book.accounts()[0].id


@dataclass
class Holder:
    """A process that holds memory until it is told to end."""

    process: subprocess.Popen[str]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)


@pytest.fixture
def holder(book: Book, gpu: str) -> Iterator[Holder]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(book.folder), gpu, "3GiB"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield Holder(process)
    process.kill()
    process.communicate()


# ----------------------------------------------------------------------------------------- memory


def test_a_machine_is_as_it_was_ordered(book: Book) -> None:
    told = [(each.index, each.id, each.name, each.total_mib) for each in book.accounts()]

    assert told == [
        (0, "GPU-fake-0000", "NVIDIA GeForce RTX 4060", 8192),
        (1, "GPU-fake-0001", "NVIDIA T400", 1024),
    ]


def test_memory_is_taken_and_given_back(book: Book, gpu: str) -> None:
    book.allocate(gpu, "2GiB", tag="weights")
    book.allocate(gpu, 100)
    book.resize(gpu, "1GiB", tag="weights")
    held = book.account(gpu)
    book.free(gpu, 100)

    assert (held.used_mib, dict(held.by_process_mib)) == (1124, {os.getpid(): 1124})
    assert book.held(gpu) == {"weights": 1024}


def test_what_does_not_fit_is_refused_in_cudas_words_and_nothing_is_taken(
    book: Book, gpu: str
) -> None:
    book.allocate(gpu, "6GiB")
    with pytest.raises(OutOfMemory, match=r"CUDA out of memory\. Tried to allocate 3\.00 GiB\. GPU 0 .* 2\.00 GiB is free"):  # fmt: skip # noqa: E501
        book.hold(gpu, {"memory": 7168, "more": 2048})

    assert book.held(gpu) == {"memory": 6144}
    assert book.violations() == [f"3072 MiB of memory+more did not fit on {gpu} by {os.getpid()}"]


def test_nobody_gives_back_what_it_does_not_hold(book: Book, gpu: str) -> None:
    book.allocate(gpu, 10)
    with pytest.raises(ValueError, match="holds 10 MiB"):
        book.free(gpu, 11)


def test_what_a_killed_process_held_is_free_though_nobody_collected_it(
    book: Book, gpu: str, holder: Holder
) -> None:
    before = book.account(gpu)
    os.kill(holder.process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.process.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    after = book.account(gpu)

    assert dict(before.by_process_mib) == {holder.process.pid: 3072}
    assert (after.used_mib, dict(after.by_process_mib)) == (0, {})
    assert [event.what for event in book.events()] == ["take", "died"]


def test_a_pid_that_is_used_again_owns_nothing_of_its_forerunner(book: Book, gpu: str) -> None:
    book.allocate(gpu, 10)
    page = book.folder / "page.json"
    page.write_text(page.read_text().replace(birth_of(os.getpid()), "1"))

    assert book.held(gpu) == {}


def test_freed_memory_comes_back_only_after_the_drivers_lag(book: Book, gpu: str) -> None:
    book.set_lag(3600)
    book.allocate(gpu, "7GiB")
    book.free(gpu, "5GiB")
    lagging = book.account(gpu)
    page = book.folder / "page.json"
    text = page.read_text()
    due = text.partition('"free_at_s": ')[2].partition("}")[0]
    page.write_text(text.replace(due, "0"))

    assert (lagging.used_mib, dict(lagging.by_process_mib)) == (7168, {os.getpid(): 2048})
    assert book.account(gpu).used_mib == 2048


def test_strangers_take_memory_with_a_name_or_without(book: Book, gpu: str) -> None:
    book.stranger(gpu, "2GiB")
    book.stranger(gpu, "1GiB", pid=os.getppid())
    account = book.account(gpu)
    book.stranger(gpu, 0)

    assert (account.used_mib, dict(account.by_process_mib)) == (3072, {os.getppid(): 1024})
    assert book.account(gpu).used_mib == 1024


def test_a_stranger_that_does_not_fit_is_no_fault_of_the_scheduler(book: Book, gpu: str) -> None:
    with pytest.raises(OutOfMemory):
        book.stranger(gpu, "9GiB")

    assert book.violations() == []


def test_processes_that_change_it_at_the_same_time_never_overcommit(book: Book) -> None:
    small = book.accounts()[1].id
    book.stranger(small, 300)
    walkers = [
        subprocess.Popen([sys.executable, "-c", CHURN, str(book.folder), small, str(seed)])
        for seed in range(3)
    ]
    statuses = [walker.wait(PATIENCE_S) for walker in walkers]
    events = book.events()

    assert statuses == [0, 0, 0]
    assert max(event.used_mib for event in events) <= 1024
    assert {"take", "give", "refuse"} <= {event.what for event in events}
    assert [event.at_s for event in events] == sorted(event.at_s for event in events)
    assert book.account(small).used_mib == 300


def test_a_process_killed_in_the_middle_of_a_change_leaves_books_that_balance(
    book: Book, gpu: str
) -> None:
    for seed in range(5):
        walker = subprocess.Popen([sys.executable, "-c", CHURN, str(book.folder), gpu, str(seed)])
        while not book.account(gpu).by_process_mib and walker.poll() is None:
            pass
        walker.kill()
        walker.wait(PATIENCE_S)

    assert book.account(gpu).used_mib == 0


@pytest.mark.parametrize(
    ("text", "mib"), [("8GiB", 8192), ("300MiB", 300), ("1.5 GiB", 1536), ("1KiB", 1), (7, 7)]
)
def test_sizes_are_read(text: str | int, mib: int) -> None:
    assert mebibytes(text) == mib


def test_a_size_without_a_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="not a size"):
        mebibytes("8G")


def test_a_folder_without_books_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no books"):
        Book(tmp_path)


# ------------------------------------------------------------------------------------- operations


def test_operations_that_overlap_on_one_device_are_told_of(book: Book) -> None:
    one, other = (account.id for account in book.accounts())
    with book.operation([one], "load"):
        with book.operation([other], "wake"):
            apart = book.violations()
        with book.operation([one, other], "sleep"):
            pass

    assert apart == []
    assert book.violations() == [
        f"sleep on {device} by {os.getpid()} beside load of {os.getpid()}"
        for device in (one, other)
    ]


def test_the_operation_of_a_dead_process_is_over(book: Book, gpu: str, holder: Holder) -> None:
    with book.operation([gpu], "load", pid=holder.process.pid):
        busy = book.account(gpu).busy
        holder.kill()
        assert (busy, book.account(gpu).busy) == (True, False)

    ends = [event for event in book.events() if event.what == "end"]
    assert [(event.tag, event.pid) for event in ends] == [("load", holder.process.pid)]


# ------------------------------------------------------------------------------------ what is seen


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, [0, 1]),
        ("1,0", [1, 0]),
        ("GPU-fake-0001", [1]),
        ("GPU-fake-0001,GPU-fake-0000", [1, 0]),
        ("", []),
        ("-1", []),
        ("0,7,1", [0]),
        ("0,0", [0]),
        ("GPU-fake", []),
    ],
)
def test_visible_devices_are_chosen_as_cuda_does(
    book: Book, chosen: str | None, expected: list[int]
) -> None:
    ids = [account.id for account in book.accounts()]

    assert book.visible(chosen) == [ids[index] for index in expected]


def test_a_probe_tells_what_the_books_say(book: Book, gpu: str, holder: Holder) -> None:
    probe: Probe = FakeGpuProbe(book.folder)
    first, second = probe.read()

    assert (first.id, first.kind, first.index, first.name, first.total_mib) == (
        gpu, "nvidia", 0, "NVIDIA GeForce RTX 4060", 8192,
    )  # fmt: skip
    assert (first.used_mib, first.by_process_mib) == (3072, {holder.process.pid: 3072})
    assert (second.used_mib, second.by_process_mib, second.index) == (0, {}, 1)


def test_the_host_is_told_with_what_sleeping_engines_keep_there(book: Book) -> None:
    book.allocate(HOST, "2GiB")
    (host,) = FakeHostProbe(book.folder).read()

    assert (host.id, host.kind, host.total_mib, host.used_mib) == ("cpu", "cpu", 65536, 2048)
    assert host.by_process_mib == {os.getpid(): 2048}
    assert "cpu" not in [reading.id for reading in FakeGpuProbe(book.folder).read()]


# ------------------------------------------------------------------------------------- misfortune


def test_a_device_that_vanishes_takes_what_was_held_there_and_comes_back_empty(book: Book) -> None:
    first, second = (account.id for account in book.accounts())
    probe = FakeGpuProbe(book.folder)
    book.allocate(first, 100)
    book.vanish(first)
    left = [(reading.id, reading.index) for reading in probe.read()]
    with pytest.raises(DeviceLost, match="fallen off the bus"):
        book.allocate(first, 1)
    book.come_back(first)

    assert left == [(second, 0)]
    assert [(reading.id, reading.used_mib) for reading in probe.read()] == [(first, 0), (second, 0)]


def test_a_device_that_fails_says_why_and_hides_no_other(book: Book, gpu: str) -> None:
    book.allocate(gpu, 100)
    book.fail(gpu, "Xid 79")
    failed, other = FakeGpuProbe(book.folder).read()
    with pytest.raises(DeviceLost, match="Xid 79"):
        book.allocate(gpu, 1)
    book.fail(gpu, "")

    assert (failed.failure, failed.total_mib, failed.used_mib) == ("Xid 79", 0, None)
    assert (other.failure, other.total_mib) == (None, 1024)
    assert FakeGpuProbe(book.folder).read()[0].used_mib == 0


def test_a_driver_that_fails_gives_its_reason(book: Book) -> None:
    probe = FakeGpuProbe(book.folder)
    book.break_driver("Driver/library version mismatch")
    with pytest.raises(ProbeFailed, match="version mismatch"):
        probe.read()
    book.break_driver("")

    assert len(probe.read()) == 2


def test_a_reading_that_hangs_ends_with_the_hanging_and_holds_up_nobody(
    book: Book, gpu: str
) -> None:
    book.hang()
    seen: list[int] = []
    reader = threading.Thread(target=lambda: seen.append(len(FakeGpuProbe(book.folder).read())))
    reader.start()
    book.allocate(gpu, 100)
    hung = (reader.is_alive(), list(seen))
    book.hang(hanging=False)
    reader.join(PATIENCE_S)

    assert (hung, seen) == ((True, []), [2])


def test_a_reading_of_books_that_are_gone_fails(book: Book) -> None:
    probe = FakeGpuProbe(book.folder)
    (book.folder / "page.json").unlink()
    with pytest.raises(ProbeFailed, match="cannot be read"):
        probe.read()


def test_a_birth_is_that_of_a_living_process(holder: Holder) -> None:
    born = birth_of(holder.process.pid)
    holder.kill()

    assert (bool(born), birth_of(holder.process.pid)) == (True, "")
    assert birth_of(os.getpid()) != born
    assert not psutil.pid_exists(holder.process.pid)
