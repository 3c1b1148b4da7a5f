"""One page of the fake GPUs' books: who holds how much of which device, as values.

Laws of this file:
- Only the standard library is imported: every fake engine opens these books.
- Memory is held by living processes. What a dead one held is gone with it, as a driver sees to, and
  nothing is held in its name; a zombie is dead. A process is named by its pid and the moment of its
  birth.
- Nothing is ever taken that is not free, and every change is told.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

HOST = "cpu"
"""The account of the host's memory, kept beside the GPUs'."""

STRANGER = "stranger"
_ON_LINUX = sys.platform == "linux"
_UNITS = {"KiB": 1 / 1024, "MiB": 1, "GiB": 1024, "TiB": 1024 * 1024}
_SIZE = re.compile(rf"([0-9.]+)\s*({'|'.join(_UNITS)})")


def mebibytes(size: str | int) -> int:
    """MiB of `8GiB`, `300MiB` or `64KiB`, rounded up; a bare number is MiB. Raises ValueError."""
    if isinstance(size, int):
        return size
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise ValueError(f"{size!r} is not a size like 8GiB or 300MiB")
    return math.ceil(float(match[1]) * _UNITS[match[2]])


class OutOfMemory(RuntimeError):
    """More was asked of a device than is free there; nothing was taken."""


class DeviceLost(RuntimeError):
    """The device has vanished, has failed, or has lost what this process held on it; or the process
    that is to hold something is dead."""


@dataclass(slots=True)
class Gpu:
    """One device as it was built, and what is wrong with it now."""

    id: str
    name: str
    total_mib: int
    present: bool = True
    failure: str = ""
    """Why it neither works nor tells anything; empty while it is well."""


@dataclass(slots=True)
class Holding:
    """Memory under one name. `pid` is None for what belongs to no process that anyone can see."""

    device: str
    tag: str
    mib: int
    pid: int | None
    birth: str


@dataclass(slots=True)
class Returning:
    """Memory that was given back and that the driver does not yet call free."""

    device: str
    mib: int
    free_at_s: float


@dataclass(slots=True)
class Operation:
    """A load, sleep or wake that is going on."""

    number: int
    name: str
    devices: list[str]
    pid: int
    birth: str


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log, written while the books were locked, so in the order of truth."""

    at_s: float
    """Of the monotonic clock, which all processes of a machine share."""
    what: str
    """take, give, refuse, returned, died, begin, end, vanish, return, fail, repair, driver."""
    device: str = ""
    pid: int | None = None
    tag: str = ""
    """The name of the memory or of the operation; the reason of a failure."""
    mib: int = 0
    """By how much the process's memory there changed, or would have for a refusal."""
    used_mib: int = 0
    """What is used of the device after it, by anybody."""
    beside: tuple[str, ...] = ()
    """Of an operation that begins: those already going on at one of its devices."""


@dataclass(frozen=True, slots=True)
class Account:
    """What a driver would tell of one device."""

    id: str
    name: str
    index: int
    """Its place among the devices that are present now; -1 for the host."""
    total_mib: int
    used_mib: int
    by_process_mib: Mapping[int, int]
    failure: str
    busy: bool
    """Whether an operation is going on there."""

    @property
    def free_mib(self) -> int:
        return self.total_mib - self.used_mib


@dataclass(slots=True)
class Page:
    """The whole state. Its methods change it and tell what happened; they do no I/O."""

    gpus: list[Gpu]
    lag_s: float = 0.0
    driver_failure: str = ""
    hanging: bool = False
    operations_begun: int = 0
    holdings: list[Holding] = field(default_factory=list)
    returning: list[Returning] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    news: list[Event] = field(default_factory=list)

    @classmethod
    def decode(cls, text: bytes) -> Page:
        entry = json.loads(text)
        return cls(
            [Gpu(**gpu) for gpu in entry["gpus"]],
            entry["lag_s"],
            entry["driver_failure"],
            entry["hanging"],
            entry["operations_begun"],
            [Holding(**holding) for holding in entry["holdings"]],
            [Returning(**returning) for returning in entry["returning"]],
            [Operation(**operation) for operation in entry["operations"]],
        )

    def encode(self) -> bytes:
        entry = asdict(self)
        del entry["news"]
        return json.dumps(entry).encode()

    # ------------------------------------------------------------------------------------- reading

    def gpu(self, device: str) -> Gpu:
        for gpu in self.gpus:
            if gpu.id == device:
                return gpu
        raise DeviceLost(f"there is no device {device}")

    def used(self, device: str) -> int:
        held = sum(holding.mib for holding in self.holdings if holding.device == device)
        return held + sum(part.mib for part in self.returning if part.device == device)

    def held(self, device: str, pid: int | None) -> dict[str, int]:
        mine = (held for held in self.holdings if (held.device, held.pid) == (device, pid))
        return {holding.tag: holding.mib for holding in mine}

    def account(self, gpu: Gpu) -> Account:
        present = [each.id for each in self.gpus if each.present and each.id != HOST]
        by_process: dict[int, int] = {}
        for holding in self.holdings:
            if holding.device == gpu.id and holding.pid is not None:
                by_process[holding.pid] = by_process.get(holding.pid, 0) + holding.mib
        return Account(
            gpu.id,
            gpu.name,
            present.index(gpu.id) if gpu.id in present else -1,
            gpu.total_mib,
            self.used(gpu.id),
            by_process,
            gpu.failure,
            any(gpu.id in operation.devices for operation in self.operations),
        )

    # ------------------------------------------------------------------------------------ changing

    def tell(
        self, what: str, device: str = "", pid: int | None = None, tag: str = "", mib: int = 0
    ) -> None:
        used = self.used(device)
        self.news.append(Event(time.monotonic(), what, device, pid, tag, mib, used))

    def settle(self) -> None:
        """Let the dead go and what they held return."""
        named = {(held.pid, held.birth) for held in self.holdings}
        named |= {(operation.pid, operation.birth) for operation in self.operations}
        dead = {who for who in named if who[0] is not None and birth_of(who[0]) != who[1]}
        for holding in [held for held in self.holdings if (held.pid, held.birth) in dead]:
            self.holdings.remove(holding)
            self.give_back(holding.device, holding.mib)
            self.tell("died", holding.device, holding.pid, holding.tag, -holding.mib)
        for operation in [each for each in self.operations if (each.pid, each.birth) in dead]:
            self.finish(operation)
        now = time.monotonic()
        for part in [part for part in self.returning if part.free_at_s <= now]:
            self.returning.remove(part)
            self.tell("returned", part.device, mib=-part.mib)

    def give_back(self, device: str, mib: int) -> None:
        if self.lag_s and mib and device != HOST:
            self.returning.append(Returning(device, mib, time.monotonic() + self.lag_s))

    def hold(self, device: str, pid: int | None, sizes: Mapping[str, int]) -> None:
        gpu = self.gpu(device)
        if not gpu.present or gpu.failure:
            raise DeviceLost(gpu.failure or f"{device} has fallen off the bus")
        birth = "" if pid is None else birth_of(pid)
        if pid is not None and not birth:
            raise DeviceLost(f"process {pid} has ended, and holds nothing of {device} any more")
        before = self.held(device, pid)
        after = {tag: mib for tag, mib in {**before, **sizes}.items() if mib}
        change = sum(after.values()) - sum(before.values())
        free = gpu.total_mib - self.used(device)
        named = "+".join(sizes)
        if change > max(0, free):
            self.tell("refuse", device, pid, named, change)
            raise OutOfMemory(
                f"CUDA out of memory. Tried to allocate {_gib(change)}. {self._place(gpu)} has a"
                f" total capacity of {_gib(gpu.total_mib)} of which {_gib(free)} is free."
                f" Including non-PyTorch memory, this process has {_gib(sum(before.values()))}"
                " memory in use."
            )
        self.holdings = [held for held in self.holdings if (held.device, held.pid) != (device, pid)]
        self.holdings += [Holding(device, tag, mib, pid, birth) for tag, mib in after.items()]
        self.give_back(device, max(0, -change))
        self.tell("take" if change > 0 else "give", device, pid, named, change)

    def _place(self, gpu: Gpu) -> str:
        index = self.account(gpu).index
        return f"GPU {index}" if index >= 0 else "The host"

    def begin(self, devices: Sequence[str], name: str, pid: int) -> int:
        beside = [each for each in self.operations if set(each.devices) & set(devices)]
        self.operations_begun += 1
        number = self.operations_begun
        self.operations.append(Operation(number, name, list(devices), pid, birth_of(pid)))
        words = tuple(f"{each.name} of {each.pid}" for each in beside)
        for device in devices:
            used = self.used(device)
            self.news.append(
                Event(time.monotonic(), "begin", device, pid, name, 0, used, beside=words)
            )
        return number

    def finish(self, operation: Operation) -> None:
        self.operations.remove(operation)
        for device in operation.devices:
            self.tell("end", device, operation.pid, operation.name)

    def lose(self, device: str) -> None:
        """Take from every process what it holds there."""
        self.holdings = [held for held in self.holdings if held.device != device]
        self.returning = [part for part in self.returning if part.device != device]


def _gib(mib: int) -> str:
    return f"{mib / 1024:.2f} GiB"


def birth_of(pid: int) -> str:
    """When a process began, in words that stay the same while it lives; empty if it is dead.

    proc(5): field 22 of stat counts clock ticks since boot. Where there is no /proc, a process
    that exists is called `alive`, and a pid used again is not noticed.
    """
    if _ON_LINUX:
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        fields = stat.rpartition(b")")[2].split()
        return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "alive"
    return "alive"
