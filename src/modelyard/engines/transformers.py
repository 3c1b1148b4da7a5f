"""transformers: a folder of safetensors served in Python, for vectors, scores, and chat as a last
resort.

Laws of this file:
- One process of our own serves one model (`servers/transformers`): with sentence-transformers what
  reads (embedding, rerank; an embedding model may do both), with `transformers serve` what writes.
- A replica computes where it was placed: on the host it sees no card; on one card it must find it;
  over several devices the weights are laid out within what was claimed on each (accelerate's
  `max_memory`), the fastest filled first.
- Nothing is fetched, and code from a model's folder runs only where an option says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from modelyard.core.specs import (
    HOST_DEVICE,
    Call,
    Command,
    Endpoint,
    ModelSpec,
    OptionValue,
    Placement,
    Progress,
    Task,
)
from modelyard.engines import probing, transformers_options, transformers_output
from modelyard.engines.base import Failure
from modelyard.engines.own_server import own_server
from modelyard.engines.quirks import COUNTS_BY_ANSWERING, Quirks
from modelyard.engines.transformers_options import TEMPLATE_FILE
from modelyard.engines.transformers_output import cards
from modelyard.engines.visibility import visible_devices

READING: Final = frozenset({Task.EMBEDDING, Task.RERANK})
"""Tasks of models that give vectors or scores."""
SERVED: Final = READING | {Task.CHAT, Task.COMPLETION}
CARD_OVERHEAD_MIB: Final = 640
"""Of a claim on a card, what is not for weights: the driver's context, and room to compute."""
HOST_OVERHEAD_MIB: Final = 1024
"""Of a claim on the host, what is not for weights: Python, torch, and room to compute."""
_LEAST_MIB: Final = 64
_SERVER_MODULE: Final = "modelyard.servers.transformers"
_CHAT: Final = "chat"


class Transformers:
    """Starts our server with `python`.

    `unified_memory` says that the host's memory is the GPU's too, as on Apple's chips, where a
    replica on the host does use the GPU.
    """

    name = "transformers"

    def __init__(self, python: str, *, unified_memory: bool = False) -> None:
        self._python = python
        self._unified_memory = unified_memory

    def problems(self, spec: ModelSpec) -> Sequence[str]:
        return tuple(self._problems(spec))

    def command(self, spec: ModelSpec, placement: Placement, endpoint: Endpoint) -> Command:
        profile = next((p for p in spec.profiles if p.name == placement.profile), None)
        chosen = transformers_options.settings(spec.options)
        if profile is not None:
            chosen |= transformers_options.settings(profile.options)
        values = self._ours(spec, placement, chosen) | chosen
        template = values.pop(TEMPLATE_FILE, None)
        tasks = sorted(spec.tasks) if _reads(spec) else [_CHAT]
        duty = [f"--task={task}" for task in tasks]
        argv = own_server(self._python, _SERVER_MODULE, spec, endpoint, duty, values, template)
        devices = {} if self._unified_memory else visible_devices(placement)
        return Command(argv, env={**devices, **spec.env}, cwd=spec.cwd)

    def fixed_port(self, spec: ModelSpec) -> int | None:  # noqa: ARG002 - any port will do
        return None

    def health_path(self, spec: ModelSpec) -> str:
        """Answers 503 while the model loads, but for chat, where nobody listens until then."""
        return spec.health_path or "/health"

    def functional_probe(self, spec: ModelSpec) -> Call | None:
        return probing.smallest_request(spec)

    def quirks(self, spec: ModelSpec) -> Quirks | None:  # noqa: ARG002 - OpenAI's own
        return COUNTS_BY_ANSWERING

    def warm_up(self, spec: ModelSpec) -> Call | None:  # noqa: ARG002 - no model needs one
        """The server has computed once before it is ready."""
        return None

    def progress(self, line: str) -> Progress | None:
        return transformers_output.progress(line)

    def failure(self, exit_text: str, last_lines: Sequence[str]) -> Failure:
        return transformers_output.failure(exit_text, last_lines)

    def memory_report(self, lines: Sequence[str], placement: Placement) -> Mapping[str, int]:
        """What torch keeps on the cards, without the driver's context."""
        return transformers_output.memory_report(lines, placement)

    # ----------------------------------------------------------------------------------- checking

    def _problems(self, spec: ModelSpec) -> Iterator[str]:
        if spec.source is None:
            yield "source: transformers needs the folder of a model"
        if foreign := sorted(spec.tasks - SERVED):
            yield f"tasks: the transformers engine does not serve {', '.join(foreign)}"
        elif spec.tasks & READING and spec.tasks - READING:
            listed = ", ".join(sorted(spec.tasks))
            yield f"tasks: one process cannot serve {listed}; declare two models"
        if spec.command:
            yield "command: transformers has its own; write `engine: command` to use yours"
        yield from _option_problems("options", spec.options, spec)
        for index, profile in enumerate(spec.profiles):
            path = f"profiles[{index}]"
            if profile.command:
                yield f"{path}.command: only `engine: command` has one"
            yield from _option_problems(f"{path}.options", profile.options, spec)

    # ----------------------------------------------------------------------------------- settings

    def _ours(
        self, spec: ModelSpec, placement: Placement, chosen: Mapping[str, OptionValue]
    ) -> dict[str, OptionValue]:
        """Where the model computes, where the user's options say nothing."""
        if self._unified_memory or "device" in chosen or "max_memory" in chosen:
            return {}
        gpus = cards(placement)
        if not gpus:
            return {"device": "cpu"}
        if not _reads(spec):
            return {"device": "cuda:0" if len(placement.claims_mib) == 1 else "auto"}
        if len(placement.claims_mib) == 1:
            has_name = visible_devices(placement)
            return {"device": "cuda:0"} if has_name else {}
        return {"max_memory": _shares(placement, gpus)}


def _shares(placement: Placement, gpus: Sequence[str]) -> dict[str, OptionValue]:
    """What weights may take on each device, as accelerate wants it."""
    shares: dict[str, OptionValue] = {
        str(at): _share(placement.claims_mib[gpu], CARD_OVERHEAD_MIB) for at, gpu in enumerate(gpus)
    }
    host = placement.claims_mib.get(HOST_DEVICE)
    if host is not None:
        shares[HOST_DEVICE] = _share(host, HOST_OVERHEAD_MIB)
    return shares


def _share(claim_mib: int, overhead_mib: int) -> str:
    return f"{max(_LEAST_MIB, claim_mib - overhead_mib)}MiB"


def _reads(spec: ModelSpec) -> bool:
    return bool(spec.tasks) and spec.tasks <= READING


def _option_problems(
    path: str, options: Mapping[str, OptionValue], spec: ModelSpec
) -> Iterator[str]:
    if not spec.tasks:
        # The catalog will tell from the files; until then an option of either kind may be right.
        either = {name for name, _ in transformers_options.problems(options, reads=True)}
        either &= {name for name, _ in transformers_options.problems(options, reads=False)}
        options = {name: value for name, value in options.items() if name in either}
    reads = _reads(spec) or not spec.tasks
    for name, why in transformers_options.problems(options, reads=reads):
        yield f"{path}.{name}: {why}"
