"""llama.cpp: a GGUF file served by the xllamacpp wheel, or by a llama-server of the user's own.

Laws of this file:
- Both servers are started from the same settings (`llamacpp_options`), so the same config gives
  equal answers on both. llama-server must know `--fit` (builds since December 2025).
- What the model needs is counted before it starts. So nothing may grow or shrink behind the
  scheduler's back: the prompt cache in host memory (8 GiB by default) is off unless it is asked
  for, a replica on the host uses no GPU, and its context is not fitted to what happens to be free.
- One process serves one kind of task, because llama.cpp pools the whole context one way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from modelyard.core.defaults import CONTEXT_CHECKPOINTS, READING_CONTEXT, context_tokens
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
from modelyard.engines import llamacpp_options, llamacpp_output, probing, reports
from modelyard.engines.base import Failure
from modelyard.engines.llamacpp_table import CHAT_TEMPLATE_FILE
from modelyard.engines.own_server import own_server
from modelyard.engines.quirks import Quirks
from modelyard.engines.visibility import visible_devices

REPORTING_VERBOSITY = 4
"""From here on llama.cpp logs what its buffers take, which stands in where a GPU's driver does not
tell processes apart. On the host we see for ourselves, and the log stays short."""

_SERVER_MODULE = "modelyard.servers.llamacpp"
_AUTO_SLOTS = -1
_EMBEDDING = "embedding"
_RERANK = "rerank"
_CHAT = "chat"
SERVED = frozenset({Task.CHAT, Task.COMPLETION, Task.EMBEDDING, Task.RERANK})


class LlamaCpp:
    """Starts `server_binary` (a llama-server) if there is one, else our own server with `python`.

    `unified_memory` says that the host's memory is the GPU's too, as on Apple's chips, where a
    replica on the host does use the GPU.
    """

    name = "llamacpp"

    def __init__(
        self, python: str, server_binary: str | None = None, *, unified_memory: bool = False
    ) -> None:
        self._python = python
        self._binary = server_binary
        self._unified_memory = unified_memory

    def problems(self, spec: ModelSpec) -> Sequence[str]:
        return tuple(self._problems(spec))

    def command(self, spec: ModelSpec, placement: Placement, endpoint: Endpoint) -> Command:
        settings = self._settings(spec, placement)
        if self._binary is None:
            argv = self._built_in(spec, endpoint, settings)
        else:
            argv = self._llama_server(self._binary, spec, endpoint, settings)
        devices = {} if self._unified_memory else visible_devices(placement)
        return Command(argv, env={**devices, **spec.env}, cwd=spec.cwd)

    def fixed_port(self, spec: ModelSpec) -> int | None:  # noqa: ARG002 - any port will do
        return None

    def health_path(self, spec: ModelSpec) -> str:
        return spec.health_path or "/health"

    def functional_probe(self, spec: ModelSpec) -> Call | None:
        return probing.smallest_request(spec)

    def quirks(self, spec: ModelSpec) -> Quirks | None:  # noqa: ARG002 - OpenAI's own
        return None

    def warm_up(self, spec: ModelSpec) -> Call | None:  # noqa: ARG002 - it warms itself up
        return None

    def progress(self, line: str) -> Progress | None:
        return llamacpp_output.progress(line)

    def failure(self, exit_text: str, last_lines: Sequence[str]) -> Failure:
        return llamacpp_output.failure(exit_text, last_lines)

    def memory_report(self, lines: Sequence[str], placement: Placement) -> Mapping[str, int]:
        """The sizes of llama.cpp's buffers; recent builds print them only at verbosity 4."""
        return reports.llamacpp(lines, placement)

    # ----------------------------------------------------------------------------------- checking

    def _problems(self, spec: ModelSpec) -> Iterator[str]:
        if spec.source is None:
            yield "source: llama.cpp needs the path of a GGUF file"
        if foreign := sorted(spec.tasks - SERVED):
            yield f"tasks: llama.cpp does not serve {', '.join(foreign)}"
        elif len(_kinds(spec.tasks)) > 1:
            listed = ", ".join(sorted(spec.tasks))
            yield f"tasks: one llama.cpp process cannot serve {listed}; declare two models"
        if spec.command:
            yield "command: the llamacpp engine has its own; write `engine: command` to use yours"
        yield from self._option_problems("options", spec.options)
        for index, profile in enumerate(spec.profiles):
            if profile.command:
                yield f"profiles[{index}].command: only `engine: command` has one"
            yield from self._option_problems(f"profiles[{index}].options", profile.options)

    def _option_problems(self, path: str, options: Mapping[str, OptionValue]) -> Iterator[str]:
        built_in = self._binary is None
        for name, why in llamacpp_options.problems(options, built_in=built_in):
            yield f"{path}.{name}: {why}"

    # ----------------------------------------------------------------------------------- settings

    def _settings(self, spec: ModelSpec, placement: Placement) -> dict[str, OptionValue]:
        """What the user chose over what Modelyard needs."""
        profile = next((p for p in spec.profiles if p.name == placement.profile), None)
        chosen = llamacpp_options.settings(spec.options)
        if profile is not None:
            chosen |= llamacpp_options.settings(profile.options)
        settings: dict[str, OptionValue] = {
            "ui": False,
            "endpoint_metrics": True,
            "cache_ram_mib": 0,
            "n_ctx_checkpoints": CONTEXT_CHECKPOINTS,
        }
        if self._binary is None:
            # It has no key: without this, any web page that a browser shows could talk to it.
            # Only recent builds of llama-server have the option.
            settings["cors_origins"] = ""
        if self._is_host_only(placement):
            settings |= {"n_gpu_layers": 0, "fit_params": False}
        else:
            settings["verbosity"] = REPORTING_VERBOSITY
        settings |= _context(spec, chosen.get("n_ctx"))
        return settings | chosen

    def _is_host_only(self, placement: Placement) -> bool:
        return set(placement.claims_mib) <= {HOST_DEVICE} and not self._unified_memory

    # ----------------------------------------------------------------------------------- commands

    def _built_in(
        self, spec: ModelSpec, endpoint: Endpoint, settings: Mapping[str, OptionValue]
    ) -> tuple[str, ...]:
        values = {"n_parallel": _AUTO_SLOTS, **settings}
        template = values.pop(CHAT_TEMPLATE_FILE, None)
        duty = [f"--mode={_mode(spec)}"]
        return own_server(self._python, _SERVER_MODULE, spec, endpoint, duty, values, template)

    def _llama_server(
        self,
        binary: str,
        spec: ModelSpec,
        endpoint: Endpoint,
        settings: Mapping[str, OptionValue],
    ) -> tuple[str, ...]:
        mode_flags = {_EMBEDDING: ("--embedding",), _RERANK: ("--reranking",), _CHAT: ()}
        return (
            binary,
            "--model",
            str(spec.source),
            "--alias",
            ",".join((spec.id, *spec.aliases)),
            "--host",
            endpoint.host,
            "--port",
            str(endpoint.port),
            *mode_flags[_mode(spec)],
            *llamacpp_options.arguments(dict(sorted(settings.items()))),
        )


def _kinds(tasks: frozenset[Task]) -> set[str]:
    of_task = {Task.EMBEDDING: _EMBEDDING, Task.RERANK: _RERANK}
    return {of_task.get(task, _CHAT) for task in tasks}


def _mode(spec: ModelSpec) -> str:
    kinds = _kinds(spec.tasks)
    return kinds.pop() if len(kinds) == 1 else _CHAT


def _context(spec: ModelSpec, n_ctx: OptionValue) -> dict[str, OptionValue]:
    """Room for as many tokens as asked for, or for our default; 0 is all the model can take.

    What a model only reads must fit one physical batch, or llama.cpp refuses it.
    """
    settings: dict[str, OptionValue] = {}
    tokens = n_ctx
    if n_ctx is None and spec.context_length:
        tokens = settings["n_ctx"] = context_tokens(spec.tasks, spec.context_length)
    if _mode(spec) != _CHAT:
        batch = tokens or spec.context_length or READING_CONTEXT
        settings |= {"n_batch": batch, "n_ubatch": batch}
    return settings
