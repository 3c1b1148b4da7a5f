"""The books of a machine whose GPUs do not exist, shared by all processes that use them.

Laws of this file:
- Only the standard library is imported: every fake engine opens these books.
- One change is one turn under one lock, and the page is replaced whole: a process killed at any
  instant leaves books that balance.
- Every change is written to a log that only grows, so that a test can ask afterwards what was true
  at every moment, and not only at the end.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from modelyard.testing.fake_page import HOST, STRANGER, Account, Event, Gpu, Page, mebibytes

FOLDER_VARIABLE = "MODELYARD_FAKE_GPUS"
"""Names the folder of the books to every process that is to see these GPUs."""

DEFAULT_NAME = "NVIDIA GeForce RTX 4060"
_PAGE, _LOG, _LOCK = "page.json", "events.jsonl", "lock"
_LOOK_AGAIN_S = 0.01


class Book:
    """The books in `folder`. Every method may be called by any process at any time.

    A `pid` that is not given is the caller's own. Sizes are MiB, or text like `300MiB`.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / _PAGE).is_file():
            raise FileNotFoundError(f"{self.folder} holds no books of fake GPUs")

    @classmethod
    def create(
        cls,
        folder: Path | str,
        sizes: Sequence[str | int],
        *,
        names: Sequence[str] = (),
        host: str | int = "64GiB",
        lag_s: float = 0.0,
    ) -> Book:
        """A machine with one GPU for each of `sizes`; the last of `names` serves for the rest.

        `lag_s` is how long after it was given back memory becomes free.
        """
        names = names or [DEFAULT_NAME]
        gpus = [
            Gpu(f"GPU-fake-{index:04d}", names[min(index, len(names) - 1)], mebibytes(size))
            for index, size in enumerate(sizes)
        ]
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        page = Page([*gpus, Gpu(HOST, HOST, mebibytes(host))], lag_s)
        (path / _LOG).touch()
        (path / _PAGE).write_bytes(page.encode())
        return cls(path)

    @classmethod
    def of_environment(cls) -> Book | None:
        """The books that the environment names; None if it names none."""
        folder = os.environ.get(FOLDER_VARIABLE)
        return cls(folder) if folder else None

    @contextmanager
    def _turn(self) -> Iterator[Page]:
        with (self.folder / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            page = Page.decode((self.folder / _PAGE).read_bytes())
            page.settle()
            try:
                yield page
            finally:
                if page.news:
                    self._write(page)

    def _write(self, page: Page) -> None:
        lines = [json.dumps(asdict(event)) + "\n" for event in page.news]
        with (self.folder / _LOG).open("a") as log:
            log.write("".join(lines))
        draft = self.folder / f"{_PAGE}.draft"
        draft.write_bytes(page.encode())
        draft.replace(self.folder / _PAGE)

    # -------------------------------------------------------------------------------------- memory

    def hold(self, device: str, sizes: Mapping[str, int], *, pid: int | None = None) -> None:
        """Let a process hold exactly `sizes` under these names; its other memory stays.

        All of it or nothing. Raises OutOfMemory, or DeviceLost.
        """
        with self._turn() as page:
            page.hold(device, pid or os.getpid(), sizes)

    def allocate(
        self, device: str, size: str | int, *, tag: str = "memory", pid: int | None = None
    ) -> None:
        """Add `size` to what the process holds under `tag`. Raises OutOfMemory, or DeviceLost."""
        self._change(device, mebibytes(size), tag, pid or os.getpid())

    def free(
        self, device: str, size: str | int, *, tag: str = "memory", pid: int | None = None
    ) -> None:
        """Give back `size` of `tag`. Raises ValueError if the process holds less."""
        self._change(device, -mebibytes(size), tag, pid or os.getpid())

    def _change(self, device: str, change: int, tag: str, pid: int) -> None:
        with self._turn() as page:
            size = page.held(device, pid).get(tag, 0) + change
            if size < 0:
                raise ValueError(f"{pid} holds {size - change} MiB of {tag}, less than {-change}")
            page.hold(device, pid, {tag: size})

    def resize(
        self, device: str, size: str | int, *, tag: str = "memory", pid: int | None = None
    ) -> None:
        """Let `tag` be of `size`. Raises OutOfMemory, or DeviceLost."""
        self.hold(device, {tag: mebibytes(size)}, pid=pid)

    def stranger(self, device: str, size: str | int, *, pid: int | None = None) -> None:
        """Let somebody else hold `size` in all: `pid`, or nobody that the driver names.

        Raises OutOfMemory: a stranger, too, gets only what is free.
        """
        with self._turn() as page:
            page.hold(device, pid, {STRANGER: mebibytes(size)})

    # ------------------------------------------------------------------------------------- reading

    def accounts(self) -> list[Account]:
        """The GPUs that are present, in the order of their index."""
        with self._turn() as page:
            return [page.account(gpu) for gpu in page.gpus if gpu.present and gpu.id != HOST]

    def account(self, device: str) -> Account:
        """One device, or the host; a device that has vanished, too. Raises DeviceLost."""
        with self._turn() as page:
            return page.account(page.gpu(device))

    def held(self, device: str, *, pid: int | None = None) -> dict[str, int]:
        """What a process holds there, by name."""
        with self._turn() as page:
            return page.held(device, pid or os.getpid())

    def visible(self, chosen: str | None) -> list[str]:
        """The devices that CUDA_VISIBLE_DEVICES chooses, in its order; None chooses all.

        Indices, or beginnings of UUIDs; the first that names no device hides itself and all after
        it, as the CUDA programming guide says of that variable.
        """
        ids = [account.id for account in self.accounts()]
        if chosen is None:
            return ids
        seen: list[str] = []
        for word in (word.strip() for word in chosen.split(",")):
            found = ids[int(word) : int(word) + 1] if word.isdecimal() else []
            if word.startswith("GPU-"):
                found = [word] if word in ids else [each for each in ids if each.startswith(word)]
            if len(found) != 1 or found[0] in seen:
                break
            seen += found
        return seen

    # ---------------------------------------------------------------------------------- operations

    @contextmanager
    def operation(
        self, devices: Sequence[str], name: str, *, pid: int | None = None
    ) -> Iterator[None]:
        """Note that memory of `devices` is moved inside this block. Nothing is prevented by it."""
        with self._turn() as page:
            number = page.begin(devices, name, pid or os.getpid())
        try:
            yield
        finally:
            with self._turn() as page:
                for operation in [each for each in page.operations if each.number == number]:
                    page.finish(operation)

    # --------------------------------------------------------------------------------- misfortune

    def vanish(self, device: str) -> None:
        """Take the device out of the machine, and from every process what it held there."""
        with self._turn() as page:
            page.gpu(device).present = False
            page.lose(device)
            page.tell("vanish", device)

    def come_back(self, device: str) -> None:
        """Put the device back, empty."""
        with self._turn() as page:
            page.gpu(device).present = True
            page.tell("return", device)

    def fail(self, device: str, reason: str) -> None:
        """Let the device neither work nor tell anything; an empty reason repairs it.

        What was held there is lost, as with a device that vanishes.
        """
        with self._turn() as page:
            page.gpu(device).failure = reason
            page.lose(device)
            page.tell("fail" if reason else "repair", device, tag=reason)

    def break_driver(self, reason: str) -> None:
        """Let every reading fail for `reason`; an empty one mends the driver."""
        with self._turn() as page:
            page.driver_failure = reason
            page.tell("driver", tag=reason)

    def hang(self, *, hanging: bool = True) -> None:
        """Let every reading begin and not return until `hang(hanging=False)`."""
        with self._turn() as page:
            page.hanging = hanging
            page.tell("driver", tag="hangs" if hanging else "answers again")

    def set_lag(self, lag_s: float) -> None:
        """Change how long memory that is given back from now on takes to become free."""
        with self._turn() as page:
            page.lag_s = lag_s
            page.tell("driver", tag=f"lag {lag_s} s")

    def driver_failure(self) -> str:
        """Why the driver does not answer, after waiting for as long as it hangs; empty if it does.

        Raises FileNotFoundError when the books are removed meanwhile.
        """
        while True:
            # Not a turn: a driver that hangs must not hold up those who use the devices.
            page = Page.decode((self.folder / _PAGE).read_bytes())
            if not page.hanging:
                return page.driver_failure
            time.sleep(_LOOK_AGAIN_S)

    # ------------------------------------------------------------------------------------- history

    def events(self) -> list[Event]:
        """Everything that happened, in order."""
        with self._turn():
            lines = (self.folder / _LOG).read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        return [Event(**{**entry, "beside": tuple(entry["beside"])}) for entry in entries]

    def violations(self) -> list[str]:
        """What a scheduler must never let happen and did, in words.

        Memory asked for that was not there, and operations that overlapped on one device. The
        books themselves never overcommit; if they did, that would be said here too.
        """
        totals = {gpu.id: gpu.total_mib for gpu in self._gpus()}
        found = []
        for event in self.events():
            where = f"{event.device} by {event.pid}"
            if event.what == "refuse" and event.tag != STRANGER:
                found.append(f"{event.mib} MiB of {event.tag} did not fit on {where}")
            if event.beside:
                found.append(f"{event.tag} on {where} beside {', '.join(event.beside)}")
            if event.device and event.used_mib > totals[event.device]:
                found.append(f"{event.used_mib} MiB used of {event.device}")
        return found

    def _gpus(self) -> list[Gpu]:
        with self._turn() as page:
            return page.gpus
