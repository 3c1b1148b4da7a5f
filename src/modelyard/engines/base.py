"""What an engine adapter knows. Adapters are pure: they translate, they never act.

Laws of this file:
- An adapter reads a spec and returns values; whoever starts processes and opens sockets is
  elsewhere (`launchers`, `runtime`).
- Facts about the machine that an adapter needs (where a program lies) are given to its
  constructor by `app/engines.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelyard.core.specs import Call, Command, Endpoint, ModelSpec, Placement, Progress
from modelyard.engines.lack import Lack
from modelyard.engines.quirks import Quirks


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a start failed, in one line, and whether trying again is pointless."""

    reason: str
    permanent: bool = False
    lack: Lack | None = None
    """What memory was too little, if that is why; a start with smaller settings may do."""
    longest: int | None = None
    """The longest sequence for which the engine says that memory would do, in tokens."""


class Engine(Protocol):
    """One kind of inference server."""

    @property
    def name(self) -> str:
        """The word that the config's `engine` key uses."""
        ...

    def problems(self, spec: ModelSpec) -> Sequence[str]:
        """What is wrong with the spec for this engine, each with its key path inside the model."""
        ...

    def command(self, spec: ModelSpec, placement: Placement, endpoint: Endpoint) -> Command:
        """The process that serves `spec` at `endpoint`."""
        ...

    def fixed_port(self, spec: ModelSpec) -> int | None:
        """The port on which this model's engine insists, if it does (start scripts often do)."""
        ...

    def health_path(self, spec: ModelSpec) -> str:
        """The route that answers 200 once the engine can serve requests."""
        ...

    def functional_probe(self, spec: ModelSpec) -> Call | None:
        """The smallest request that shows that the model itself answers: one token, one vector.

        It is made when the health route answers for the first time, and after an engine broke an
        answer off. None makes no such request. `engines.probing` has a default for each task.
        """
        ...

    def quirks(self, spec: ModelSpec) -> Quirks | None:
        """How the engine wants to be asked where it is not as clients ask; None if it is."""
        ...

    def warm_up(self, spec: ModelSpec) -> Call | None:
        """A request that is made once after a cold start, so that no client pays for the first.

        Only for engines whose first request is slower than the functional probe shows; None for
        all others.
        """
        ...

    def progress(self, line: str) -> Progress | None:
        """What a line of the engine's output says about its loading, if anything."""
        ...

    def failure(self, exit_text: str, last_lines: Sequence[str]) -> Failure:
        """Explain an engine that ended before it was ready, from its exit and its last lines."""
        ...

    def memory_report(self, lines: Sequence[str], placement: Placement) -> Mapping[str, int]:
        """What the engine says it holds now: MiB by device id, from its log since its start.

        Devices it says nothing about are left out. It is the engine's word, without the driver's
        share; see `engines.reports`.
        """
        ...
