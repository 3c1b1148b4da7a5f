"""The adapter of all presets: from a preset and a model to a command.

Laws of this file:
- An option of the user's replaces the preset's argument of the same name; `false` leaves it out,
  and with it the arguments that the preset adds together with it.
- A `command` of the user's that uses `{port}` is the whole command line. One that does not is the
  program, and the preset's arguments follow it.
- The engine sees only the GPUs that it was placed on; one on the host alone sees none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from modelyard.core.specs import (
    HOST_DEVICE,
    Call,
    Command,
    Endpoint,
    ModelSpec,
    OptionValue,
    Placement,
    Profile,
    Progress,
)
from modelyard.engines import probing
from modelyard.engines.base import Failure
from modelyard.engines.command import (
    CommandEngine,
    blanks,
    command_problems,
    fill,
    program_path,
    sleep_problems,
)
from modelyard.engines.presets.base import Preset, Spelling
from modelyard.engines.quirks import COUNTS_BY_ANSWERING, Quirks
from modelyard.engines.visibility import visible_devices

MODEL_OPTION = "model"
"""Names the model where it is no file: a repository on the Hub, one of Ollama's models."""
BLANKS = ("port", "host", "model", "alias", "names")


class PresetEngine:
    """Starts the program of one preset."""

    def __init__(self, preset: Preset) -> None:
        self.preset = preset
        self._command = CommandEngine()

    @property
    def name(self) -> str:
        return self.preset.name

    def __repr__(self) -> str:
        return f"PresetEngine({self.preset.name})"

    def problems(self, spec: ModelSpec) -> Sequence[str]:
        return tuple(self._problems(spec))

    def command(self, spec: ModelSpec, placement: Placement, endpoint: Endpoint) -> Command:
        profile = _profile(spec, placement)
        own = (profile.command if profile else ()) or spec.command
        values = {**_values(spec), "host": endpoint.host, "port": str(endpoint.port)}
        options = {**spec.options, **(profile.options if profile else {})}
        argv = [fill(argument, values) for argument in own or self.preset.program]
        if "port" not in _used(own):
            arguments = self._arguments(spec, placement, options)
            argv += [fill(argument, values) for argument in arguments]
        on_gpus = bool(set(placement.claims_mib) - {HOST_DEVICE})
        env = {
            **self.preset.env,
            **(self.preset.env_on_gpu if on_gpus else self.preset.env_on_host),
            **spec.env,
        }
        return Command(
            (program_path(argv[0], spec.cwd), *argv[1:]),
            env={
                **visible_devices(placement),
                **{name: fill(value, values) for name, value in env.items()},
            },
            cwd=spec.source if self.preset.runs_in_model else spec.cwd,
        )

    def fixed_port(self, spec: ModelSpec) -> int | None:  # noqa: ARG002 - all take the port given
        return None

    def health_path(self, spec: ModelSpec) -> str:
        return spec.health_path or self.preset.health_path

    def functional_probe(self, spec: ModelSpec) -> Call | None:
        return probing.smallest_request(spec, self.quirks(spec))

    def warm_up(self, spec: ModelSpec) -> Call | None:  # noqa: ARG002 - the probe is enough
        return None

    def quirks(self, spec: ModelSpec) -> Quirks | None:
        """How the program wants to be asked, with the name that it knows this model by."""
        quirks = self.preset.quirks or COUNTS_BY_ANSWERING
        if quirks.served_name is None:
            return quirks
        return replace(quirks, served_name=fill(quirks.served_name, _values(spec)))

    def progress(self, line: str) -> Progress | None:
        return self._command.progress(line)

    def failure(self, exit_text: str, last_lines: Sequence[str]) -> Failure:
        return self._command.failure(exit_text, last_lines)

    def memory_report(self, lines: Sequence[str], placement: Placement) -> Mapping[str, int]:
        return self._command.memory_report(lines, placement)

    # ---------------------------------------------------------------------------------- arguments

    def _arguments(
        self, spec: ModelSpec, placement: Placement, options: Mapping[str, OptionValue]
    ) -> Iterator[str]:
        preset = self.preset
        chosen = {_plain(name): value for name, value in options.items()}
        chosen.pop(MODEL_OPTION, None)
        if preset.model_option and chosen.get(_plain(preset.model_option)) is not None:
            yield from _without_model(preset.arguments)
        else:
            yield from preset.arguments
        for group in self._groups(spec):
            names = {_plain(argument.lstrip("-")) for argument in group if _is_flag(argument)}
            if not any(chosen.get(name) is False for name in names):
                yield from _without(group, chosen)
        gpus = len(set(placement.claims_mib) - {HOST_DEVICE})
        if preset.parallel_option and gpus > 1 and preset.parallel_option not in chosen:
            yield from (self._flag(preset.parallel_option), str(gpus))
        for name, value in options.items():
            if _plain(name) != MODEL_OPTION:
                yield from self._option(name, value)

    def _groups(self, spec: ModelSpec) -> Iterator[tuple[str, ...]]:
        """Arguments that belong together, for what this model is to do."""
        for task, group in self.preset.task_arguments.items():
            if task in spec.tasks:
                yield group
                break  # a program serves one such kind at a time
        if spec.sleep or spec.sleep_preset:
            yield self.preset.sleep_arguments

    def _option(self, name: str, value: OptionValue) -> Iterator[str]:
        if value is None or value is False:
            return
        yield self._flag(name)
        if isinstance(value, list):
            yield from (_text(item) for item in value)
        elif value is not True:
            yield _text(value)

    def _flag(self, name: str) -> str:
        spelling = self.preset.spelling
        if spelling is not Spelling.AS_WRITTEN:
            other = "_" if spelling is Spelling.DASHES else "-"
            name = name.replace(other, spelling.value)
        return f"-{name}" if len(name) == 1 else f"--{name}"

    # ----------------------------------------------------------------------------------- checking

    def _problems(self, spec: ModelSpec) -> Iterator[str]:
        preset = self.preset
        named, other = spec.options.get(MODEL_OPTION), _plain(preset.model_option)
        if named is not None and spec.source is not None:
            yield "options.model: source names the model already; remove one of them"
        elif named is not None and not isinstance(named, str):
            yield f"options.model: it must be text, not {named!r}"
        elif preset.runs_in_model and spec.source is None:
            yield f"source: {preset.name} is started in the folder of its checkout; name it here"
        elif named is None and spec.source is None and other not in map(_plain, spec.options):
            yield (
                "source: name the file or folder of the model here, or what the program is to "
                "fetch in options: {model: ...}"
            )
        yield from self._option_problems("options", spec.options)
        commands = {"command": spec.command} if spec.command else {}
        for index, profile in enumerate(spec.profiles):
            yield from self._option_problems(f"profiles[{index}].options", profile.options)
            if profile.command:
                commands[f"profiles[{index}].command"] = profile.command
        for path, argv in commands.items():
            yield from command_problems(path, argv, BLANKS)
        yield from sleep_problems(spec)

    def _option_problems(self, path: str, options: Mapping[str, OptionValue]) -> Iterator[str]:
        for name in options:
            if _plain(name.lstrip("-")) in self.preset.filled:
                yield f"{path}.{name}: Modelyard fills this in; leave it out"
            elif name.startswith("-") or not name.strip():
                yield f"{path}.{name}: write the option without the dashes before it"


def _profile(spec: ModelSpec, placement: Placement) -> Profile | None:
    return next((each for each in spec.profiles if each.name == placement.profile), None)


def _model(spec: ModelSpec) -> str:
    return str(spec.source or spec.options.get(MODEL_OPTION) or spec.id)


def _values(spec: ModelSpec) -> dict[str, str]:
    names = ",".join((spec.id, *spec.aliases))
    return {"model": _model(spec), "alias": spec.id, "names": names}


def _used(argv: Sequence[str]) -> set[str]:
    return {blank for argument in argv for blank in blanks(argument)}


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _is_flag(argument: str) -> bool:
    return argument.startswith("--")


def _without(group: Sequence[str], chosen: Mapping[str, OptionValue]) -> Iterator[str]:
    """The arguments of `group` whose options the user has not set himself."""
    skipping = False
    for argument in group:
        if _is_flag(argument):
            skipping = _plain(argument.lstrip("-")) in chosen
        if not skipping:
            yield argument


def _without_model(arguments: Sequence[str]) -> Iterator[str]:
    at = arguments.index("--model")
    yield from (*arguments[:at], *arguments[at + 2 :])


def _text(value: OptionValue) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}" if value == float(f"{value:g}") else repr(value)
    return json.dumps(value, ensure_ascii=False)
