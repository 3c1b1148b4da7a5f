"""The virtual models at run time: the mode that holds, and whose turn it is.

Laws of this file:
- The decision is `core.shaping.choose`; what it is told comes from the scheduler's state.
- A mode outlives a reload of the configuration, and is gone with the server.
"""

from __future__ import annotations

from collections.abc import Iterable

from modelyard.core.errors import InvalidRequest
from modelyard.core.lifecycle import State
from modelyard.core.names import Names
from modelyard.core.scheduler import Scheduler
from modelyard.core.shaping import Standing, Turns, VirtualModel, choose
from modelyard.core.specs import ModelSpec, Task
from modelyard.core.views import VirtualView


class Virtuals:
    """Whom a virtual model stands for now."""

    def __init__(self) -> None:
        self.known: tuple[VirtualModel, ...] = ()
        self.mode = ""
        """The mode that holds; empty for none."""
        self._turns = Turns()

    @property
    def modes(self) -> list[str]:
        """The modes that some virtual model has."""
        return sorted({mode for virtual in self.known for mode in virtual.modes})

    def follow(self, virtuals: Iterable[VirtualModel]) -> None:
        """Stand for these from now on."""
        self.known = tuple(virtuals)

    def switch(self, mode: str) -> None:
        """Have this mode hold; empty for none. Raises InvalidRequest."""
        if mode and mode not in self.modes:
            known = ", ".join(self.modes) or "none"
            raise InvalidRequest(f"no virtual model has a mode {mode[:200]!r}; known: {known}")
        self.mode = mode

    def problems(self, names: Names) -> list[str]:
        """What people should know of the virtual models: targets that no model has as a name."""
        return [
            f"virtual.{virtual.id}: there is no model named {target.model!r}"
            for virtual in names.virtuals.values()
            for target in virtual.targets_in(self.mode)
            if not names.knows(target.model)
        ]

    def leading_to(self, spec: ModelSpec, names: Names) -> list[str]:
        """The virtual models that this model stands behind now."""
        own = {spec.id, *spec.aliases, *spec.variants}
        return [
            virtual.id
            for virtual in names.virtuals.values()
            if any(
                target.model in own and names.resolve(target.model).id == spec.id
                for target in virtual.targets_in(self.mode)
                if names.knows(target.model)
            )
        ]

    def view(self, virtual: VirtualModel, names: Names, scheduler: Scheduler) -> VirtualView:
        """What the admin API says of a virtual model now."""
        targets = [target.model for target in virtual.targets_in(self.mode)]
        specs = [names.resolve(name) for name in targets if names.knows(name)]
        slots = [scheduler.models[spec.id] for spec in specs if spec.id in scheduler.models]
        states = [slot.state.value for slot in slots]
        tasks = frozenset[Task].intersection(*(spec.tasks for spec in specs)) if specs else ()
        return VirtualView(
            virtual.id,
            virtual.choose,
            targets,
            virtual.fallback,
            tasks=sorted(task.value for task in tasks),
            state="ready" if "ready" in states else next(iter(states), "stopped"),
            models=list(dict.fromkeys(spec.id for spec in specs)),
            unknown=[name for name in targets if not names.knows(name)],
        )

    def targets(self, virtual: VirtualModel, names: Names, scheduler: Scheduler) -> list[str]:
        """The names to ask, the best one first; the others in case it cannot answer."""

        def standing(name: str) -> Standing:
            slot = scheduler.models.get(names.resolve(name).id) if names.knows(name) else None
            if slot is None:
                return Standing(is_ready=False, has_room=False)
            ready = [each for each in slot.replicas if each.state is State.READY]
            has_room = not slot.queue and any(each.has_room() for each in ready)
            return Standing(is_ready=bool(ready), has_room=has_room)

        return choose(virtual, self.mode, self._turns, standing)
