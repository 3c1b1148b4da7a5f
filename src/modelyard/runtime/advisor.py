"""Models with `auto: true`: what they are started with, and what comes after too little memory.

Laws of this file:
- A plan is made once for a definition, and again when the devices it names are gone, or cards
  came where there were none. What others hold meanwhile changes nothing: a running model is not
  restarted because a new plan would be a little different.
- A step is taken when a start ended for lack of memory, and stands until the definition or the
  devices change; a restart of the server does not forget it. After the last step the model has
  failed like any other, and its next try begins at the top.
- Plans are reckoned in a thread, since they read headers; all else happens on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.found import FoundModel
from modelyard.core.devices import matching
from modelyard.core.errors import ModelyardError
from modelyard.core.specs import HOST_DEVICE, Device, ModelSpec, Profile
from modelyard.core.views import AutoView
from modelyard.engines.base import Failure
from modelyard.planner.auto import (
    Recipe,
    Standing,
    is_open,
    lower,
    machine_for,
    recipes,
    served,
)
from modelyard.planner.locate import models_at
from modelyard.planner.machine import Machine
from modelyard.runtime.kept_steps import KeptSteps, Step, Steps
from modelyard.runtime.learning import options_digest
from modelyard.runtime.tasks import Tasks

log = logging.getLogger("modelyard")

NOT_PLANNED = "it is started as it is written"


@dataclass(slots=True)
class _Advice:
    """What is advised for one model as it is defined."""

    digest: str
    gpus: frozenset[str]
    """The cards that were there when it was planned."""
    ways: Mapping[str, Sequence[Recipe]] = field(default_factory=dict)
    """By profile; one that cannot be planned for has none."""
    at: dict[str, Standing] = field(default_factory=dict)
    tried: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Advisor:
    """Lays plans over the definitions of `auto` models, and steps down where memory is lacking."""

    def __init__(
        self,
        path: Path,
        devices: Callable[[], Sequence[Device]],
        machine: Callable[[str], Machine],
        found: Callable[[], Sequence[FoundModel]],
        uses_cards: Callable[[ModelSpec], bool],
        publish: Callable[[Sequence[ModelSpec]], None],
        tasks: Tasks,
    ) -> None:
        """`path` keeps the steps; `machine` is the machine that a model is planned for; `found` is
        what the catalog knows; `uses_cards` tells whether a model's engine is built for cards, so
        that it may be put there unasked; `publish` is told all models whenever they change."""
        self._kept = KeptSteps(path)
        self._devices = devices
        self._machine = machine
        self._found = found
        self._uses_cards = uses_cards
        self._publish = publish
        self._tasks = tasks
        self._plain: Sequence[ModelSpec] = ()
        """All models as they are defined."""
        self._advice: dict[str, _Advice] = {}
        self._turn = asyncio.Lock()

    async def begin(self, specs: Sequence[ModelSpec]) -> None:
        """Serve these models; their plans are made before this returns."""
        self._plain = specs
        await asyncio.to_thread(self._kept.read)
        await self.settle()

    def follow(self, specs: Sequence[ModelSpec]) -> None:
        """Serve these models from now on; at once if no plan is missing."""
        self._plain = specs
        if any(self._is_missing(spec) for spec in specs):
            self._tasks.spawn(self.settle(), "plan for models")
        else:
            self._publish(self.advised())

    def devices_changed(self) -> None:
        """A device came or went."""
        self.follow(self._plain)

    async def settle(self) -> None:
        """Make the plans that are missing, and tell all models."""
        async with self._turn:
            while missing := [spec for spec in self._plain if self._is_missing(spec)]:
                for spec in missing:
                    self._advice[spec.id] = await self._reckoned(spec)
            self._publish(self.advised())

    def advised(self) -> list[ModelSpec]:
        """All models, `auto` ones with what they are to be started with."""
        return [self._laid_over(spec) for spec in self._plain]

    def step(self, model: str, profile: str, failure: Failure) -> str | None:
        """A start has failed. The next one is made with the next step; None if there is one.

        Where there is none, why the model has failed, with all that was tried; if nothing could be
        tried, just why.
        """
        advice = self._advice.get(model)
        if advice is None or failure.lack is None or not (ways := advice.ways.get(profile)):
            return failure.reason
        at = advice.at.get(profile, Standing())
        tried = (*advice.tried.get(profile, ()), f"{ways[at.step].name}: {failure.reason}")
        on = lower(ways, at, failure.lack, failure.longest)
        if on is None:
            advice.at.pop(profile, None)
            advice.tried.pop(profile, None)
            self._keep()
            told = "; ".join(tried[:-1])
            return f"{failure.reason} ({ways[at.step].name}, the last step of auto" + (
                f"; before it: {told})" if told else ")"
            )
        advice.at[profile], advice.tried[profile] = on, tried
        way = ways[on.step]
        log.warning(
            "model %s: it ran out of memory (%s): %s; auto: the next start is made with %s (%s)",
            model,
            ways[at.step].name,
            failure.reason,
            way.name,
            way.reason,
        )
        self._keep()
        self._publish(self.advised())
        return None

    def view(self, model: str, profile: str | None) -> AutoView | None:
        """What is advised for a profile of a model, its first one if none is named."""
        advice = self._advice.get(model)
        if advice is None or not advice.ways:
            return None
        name = profile or ""
        if name not in advice.ways:
            name = next(iter(advice.ways))
        at = advice.at.get(name, Standing())
        way = advice.ways[name][at.step]
        options = dict(served(advice.ways[name], at).options)
        tried = list(advice.tried.get(name, ()))
        return AutoView(name, way.name, way.reason, way.context, options, tried)

    # ------------------------------------------------------------------------------------- inside

    def _is_missing(self, spec: ModelSpec) -> bool:
        """Whether a plan has to be made, or made anew."""
        if not spec.auto:
            return False
        advice = self._advice.get(spec.id)
        if advice is None or advice.digest != options_digest(spec):
            return True
        gpus = self._gpus()
        if gpus == advice.gpus:
            return False
        devices = self._devices()
        planned = [way.profile for ways in advice.ways.values() for way in ways[:1]]
        if not planned:
            return True
        here = all(matching(name, devices) for profile in planned for name in profile.devices)
        on_host = all(profile.devices == (HOST_DEVICE,) for profile in planned)
        return not here or (on_host and not advice.gpus and self._uses_cards(spec))

    def _gpus(self) -> frozenset[str]:
        return frozenset(device.id for device in self._devices() if device.kind != HOST_DEVICE)

    async def _reckoned(self, spec: ModelSpec) -> _Advice:
        advice = _Advice(options_digest(spec), self._gpus())
        devices, machine = self._devices(), self._machine(spec.id)
        if any(map(is_open, spec.profiles)) and not self._uses_cards(spec):
            machine = Machine((), machine.host)
        found = next((f for f in self._found() if str(f.source) == spec.source), None)
        try:
            advice.ways = await asyncio.to_thread(_ways, spec, found, devices, machine)
        except ModelyardError as error:
            log.warning("model %s: auto has no effect, %s: %s", spec.id, NOT_PLANNED, error)
        kept = self._kept.steps.get(spec.id)
        if kept is not None and kept.digest == advice.digest:
            for name, step in kept.profiles.items():
                _recall(advice, name, step)
        return advice

    def _laid_over(self, spec: ModelSpec) -> ModelSpec:
        advice = self._advice.get(spec.id) if spec.auto else None
        if advice is None or not advice.ways:
            return spec
        profiles = tuple(self._profile(profile, advice) for profile in spec.profiles)
        return replace(spec, profiles=profiles)

    def _profile(self, profile: Profile, advice: _Advice) -> Profile:
        ways = advice.ways.get(profile.name)
        return served(ways, advice.at.get(profile.name, Standing())) if ways else profile

    def _keep(self) -> None:
        steps = {
            model: Steps(advice.digest, kept)
            for model, advice in self._advice.items()
            if (kept := dict(_standing(advice)))
        }
        if steps != self._kept.steps:
            self._kept.steps = steps
            self._tasks.spawn(asyncio.to_thread(self._kept.write), "keep the steps of auto")


def _standing(advice: _Advice) -> Iterable[tuple[str, Step]]:
    for name, at in advice.at.items():
        ways = advice.ways[name]
        yield name, Step(ways[at.step].name, ways[at.memory].name, advice.tried[name])


def _recall(advice: _Advice, profile: str, step: Step) -> None:
    """Go on where an earlier run of the server was, if the plan still has these steps."""
    names = [way.name for way in advice.ways.get(profile, ())]
    if step.name in names and step.memory in names:
        advice.at[profile] = Standing(names.index(step.name), names.index(step.memory))
        advice.tried[profile] = step.tried


def _ways(
    spec: ModelSpec, found: FoundModel | None, devices: Sequence[Device], machine: Machine
) -> dict[str, Sequence[Recipe]]:
    """What each profile may be started with. Raises ModelyardError where none can be planned."""
    if found is None:
        if spec.source is None:
            raise BadModelFile(Path(), f"model {spec.id!r} names no file", hint="set its source")
        found, _ = models_at(Path(spec.source), engines=(spec.engine,))
    ways: dict[str, Sequence[Recipe]] = {}
    for profile in spec.profiles:
        named = {name: [d.id for d in matching(name, devices)] for name in profile.devices}
        usable = machine_for(profile, machine, named)
        if usable is not None:
            ways[profile.name] = recipes(found, spec, profile, usable)
    return ways
