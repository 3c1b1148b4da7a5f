"""Who holds what, who is at work where: the laws that no policy may break.

Laws of this file:
- No device and not the host ever holds more than it has.
- On one device memory moves for one model at a time.
- A request is served exactly once, by a model that is up, and no model serves too many at once.
- Whoever breaks a law ends the simulation with the story of how it came to that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from modelyard.core.errors import ModelyardError
from modelyard.simulation.values import Job, Setup

STORY = 25
"""Events that are told when a law is broken."""


class LawBroken(ModelyardError):
    """A policy, or the simulator itself, did what real devices cannot do."""

    code = "law_broken"


@dataclass(frozen=True, slots=True)
class Move:
    """A model comes or goes: `begin_s` to `end_s` on `devices`."""

    begin_s: float
    end_s: float
    what: str
    """`start`, `wake`, `sleep` or `stop`."""
    model: str
    devices: tuple[int, ...]


@dataclass(slots=True)
class _Device:
    size_mib: int
    held_mib: int = 0
    moving: str = ""
    serving: int = 0
    since_s: float = 0.0
    busy_s: float = 0.0


@dataclass(slots=True)
class Books:
    """What is so at this moment, and what happened."""

    setup: Setup
    now: float = 0.0
    moves: list[Move] = field(default_factory=list)
    swaps: int = 0
    """Models brought up: starts and wakes."""
    swap_s: float = 0.0
    """Seconds of coming and going."""
    served: list[Job] = field(default_factory=list)
    _devices: list[_Device] = field(default_factory=list)
    _host_mib: int = 0
    _story: deque[tuple[float, str, str]] = field(default_factory=lambda: deque(maxlen=STORY))

    def __post_init__(self) -> None:
        self._devices = [_Device(size) for size in self.setup.devices_mib]

    # ------------------------------------------------------------------------------------- memory

    def take(self, model: str, devices: Iterable[int], mib: int) -> None:
        """A model begins to hold `mib` more on each of these devices."""
        for number in devices:
            device = self._devices[number]
            device.held_mib += mib
            if device.held_mib > device.size_mib:
                held = f"{device.held_mib} of {device.size_mib} MiB"
                raise self.broken(f"device {number} would hold {held} with {model!r}")

    def give(self, model: str, devices: Iterable[int], mib: int) -> None:
        """A model gives back `mib` on each of these devices."""
        for number in devices:
            self._devices[number].held_mib -= mib
            if self._devices[number].held_mib < 0:
                raise self.broken(f"{model!r} gave back memory of device {number} twice")

    def free_mib(self, device: int) -> int:
        return self._devices[device].size_mib - self._devices[device].held_mib

    @property
    def host_free_mib(self) -> int:
        return self.setup.host_mib - self._host_mib

    def take_host(self, model: str, mib: int) -> None:
        """A model begins to hold (or, negative, ends holding) host memory."""
        self._host_mib += mib
        if not 0 <= self._host_mib <= self.setup.host_mib:
            held = f"{self._host_mib} of {self.setup.host_mib} MiB"
            raise self.broken(f"the host would hold {held} with {model!r}")

    # -------------------------------------------------------------------------------------- moves

    def is_moving(self, device: int) -> bool:
        return bool(self._devices[device].moving)

    def begin(self, what: str, model: str, devices: tuple[int, ...], seconds: float) -> None:
        """Memory begins to move for a model on these devices, for so many seconds."""
        for number in devices:
            device = self._devices[number]
            if device.moving:
                raise self.broken(
                    f"device {number} is to {what} {model!r} during a move of {device.moving!r}"
                )
            device.moving = model
        self.note(what, model, devices, seconds)
        self.swaps += what in ("start", "wake")
        self.swap_s += seconds

    def note(self, what: str, model: str, devices: tuple[int, ...], seconds: float) -> None:
        """Remember a move; whoever brings another model up pays for its seconds."""
        self._story.append((self.now, what, model))
        self.moves.append(Move(self.now, self.now + seconds, what, model, devices))

    def end(self, model: str, devices: Iterable[int]) -> None:
        """What had begun on these devices is over."""
        for number in devices:
            if self._devices[number].moving != model:
                raise self.broken(f"no move of {model!r} on device {number} could end")
            self._devices[number].moving = ""

    def give_up(self, model: str, devices: tuple[int, ...]) -> None:
        """The last move of a model ends before its time; what is left of it costs nothing."""
        self.end(model, devices)
        at = max(at for at, move in enumerate(self.moves) if move.model == model)
        self.swap_s -= self.moves[at].end_s - self.now
        self.moves[at] = replace(self.moves[at], end_s=self.now)

    # ------------------------------------------------------------------------------------ service

    def serve(self, job: Job, devices: Iterable[int], in_flight: int) -> None:
        """A request begins to be served; `in_flight` counts it."""
        if job.started_s == job.started_s:  # not nan
            raise self.broken(f"a request of {job.model!r} was served twice")
        if in_flight > self.setup.concurrency:
            raise self.broken(f"{job.model!r} serves {in_flight} requests at once")
        job.started_s = self.now
        for number in devices:
            device = self._devices[number]
            if not device.serving:
                device.since_s = self.now
            device.serving += 1

    def served_one(self, job: Job, devices: Iterable[int]) -> None:
        """A request has been served."""
        self.served.append(job)
        for number in devices:
            device = self._devices[number]
            device.serving -= 1
            if not device.serving:
                device.busy_s += self.now - device.since_s

    def busy_s(self) -> list[float]:
        """For each device, how long it served anybody."""
        return [device.busy_s for device in self._devices]

    def audit(self, jobs: int) -> None:
        """At the end: everybody was served once, and nobody serves any more."""
        if len(self.served) != jobs:
            raise self.broken(f"{len(self.served)} of {jobs} requests were served")

    def broken(self, what: str) -> LawBroken:
        """The error that ends the simulation, with what happened before."""
        story = "\n".join(f"  {at:.3f} s: {did} {model}" for at, did, model in self._story)
        return LawBroken(f"at {self.now:.3f} s {what}; before that:\n{story}")
