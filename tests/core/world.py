"""A scheduler in a small world without clocks, processes or sockets, and short words for it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from modelyard.core.errors import ModelyardError
from modelyard.core.events import (
    Changed,
    EngineNews,
    Grant,
    ModelsChanged,
    Refuse,
    RequestWaits,
    SchedulerAction,
    SchedulerEvent,
    StartEngine,
    StopEngine,
    TimerDue,
)
from modelyard.core.lifecycle import EngineExited, EngineReady, State
from modelyard.core.policy import Policy
from modelyard.core.scheduler import Scheduler
from modelyard.core.specs import Device, ModelSpec, Profile, Task


def model(name: str, mib: int = 100, **kwargs: object) -> ModelSpec:
    spec = ModelSpec(name, "llamacpp", frozenset({Task.CHAT}), estimate_mib=mib)
    return dataclasses.replace(spec, **kwargs)  # type: ignore[arg-type]


class World:
    """A scheduler with a clock, engines that obey, and a record of what was asked of them."""

    def __init__(
        self,
        *specs: ModelSpec,
        mib: int = 200,
        policy: Policy | None = None,
        devices: Sequence[Device] = (),
    ) -> None:
        self.scheduler = Scheduler(policy or Policy(), devices or [Device("cpu", "cpu", mib, mib)])
        self.now = 1000.0
        self.granted: list[int] = []
        self.refused: dict[int, ModelyardError] = {}
        self.leases: dict[int, tuple[str, int]] = {}
        self.live: dict[str, int] = {}
        self.stopping: dict[str, float | None] = {}
        self.tickets = itertools.count(1)
        self.tell(ModelsChanged(specs))

    def tell(self, event: SchedulerEvent) -> list[SchedulerAction]:
        return self.perform(self.scheduler.handle(event, self.now))

    def perform(self, actions: list[SchedulerAction]) -> list[SchedulerAction]:
        for action in actions:
            match action:
                case StartEngine(spec, run):
                    assert spec.id not in self.live, "two runs of one model"
                    self.live[spec.id] = run
                case StopEngine(name, run, drain_s):
                    assert self.live[name] == run
                    self.stopping[name] = drain_s
                case Grant(ticket, name, run):
                    self.granted.append(ticket)
                    self.leases[ticket] = (name, run)
                case Refuse(ticket, error):
                    self.refused[ticket] = error
        return [action for action in actions if not isinstance(action, Changed)]

    def ask(self, name: str) -> int:
        """A request: its ticket, granted or waiting."""
        ticket = next(self.tickets)
        run = self.scheduler.lease(name, self.now)
        if run is not None:
            self.granted.append(ticket)
            self.leases[ticket] = (name, run)
        else:
            self.tell(RequestWaits(name, ticket))
        return ticket

    def finish(self, ticket: int, *, served: bool = True) -> None:
        name, run = self.leases.pop(ticket)
        self.perform(self.scheduler.release(name, run, self.now, served=served))

    def ready(self, name: str) -> None:
        self.tell(EngineNews(name, EngineReady(self.live[name])))

    def exits(self, name: str, reason: str = "", *, permanent: bool = False) -> None:
        run = self.live.pop(name)
        self.stopping.pop(name, None)
        self.tell(EngineNews(name, EngineExited(run, reason, permanent)))

    def passes(self, seconds: float) -> None:
        """Time goes by, with a timer event at every deadline on the way."""
        until = self.now + seconds
        while (due := self.scheduler.next_timer()) <= until:
            self.now = due
            self.tell(TimerDue())
        self.now = until

    def state(self, name: str) -> State:
        return self.scheduler.models[name].state

    def up(self, name: str) -> int:
        ticket = self.ask(name)
        self.ready(name)
        return ticket

    def check(self) -> None:
        """What must hold at any moment."""
        slots = self.scheduler.models.values()
        for device in self.scheduler.devices:
            held = sum(slot.held_mib.get(device.id, 0) for slot in slots)
            assert held <= device.most_mib, f"overcommitted {device.id}"
        for name in self.live:
            slot = self.scheduler.models[name]
            assert slot.placement is not None, f"{name} lives without a claim"
        for name, slot in self.scheduler.models.items():
            run = self.live.get(name)
            leased = sum(1 for lease in self.leases.values() if lease == (name, run))
            assert slot.in_flight == leased, f"lost or doubled lease of {name}"


def card(number: int, mib: int = 200, **kwargs: object) -> Device:
    device = Device(f"GPU-{number}", "NVIDIA GeForce RTX 3090", mib, mib, "nvidia", number)
    return dataclasses.replace(device, **kwargs)  # type: ignore[arg-type]


def on(*devices: str, mib: int = 100, name: str = "only") -> tuple[Profile, ...]:
    return (Profile(name, devices, dict.fromkeys(devices, mib)),)


def held(world: World, name: str) -> dict[str, int]:
    return dict(world.scheduler.models[name].held_mib)


def gate(world: World, name: str) -> str:
    """The model for which this one takes no new requests; empty if it takes them."""
    return world.scheduler.models[name].first.promised_to
