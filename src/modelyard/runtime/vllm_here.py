"""vLLM on this machine: which builds the models need, and what they leave open, filled in.

Laws of this file:
- `look` blocks, and is called in a thread for every configuration before that is adopted; the rest
  only reads what it found.
- A vLLM is asked for its options only where a declared model has options to check or sleep to set
  up; models found in folders have none, and what is recorded of the version is enough for them.
- A command that starts vLLM and names it for its sleep gets the levels that this vLLM really has.
  A command that hides its vLLM (a script, a container) is believed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from modelyard.config import Config
from modelyard.core.specs import HOST_DEVICE, Device, ModelSpec, Profile
from modelyard.engines.sleeping import PRESETS, why_vllm_cannot_sleep
from modelyard.engines.vllm import Vllm
from modelyard.engines.vllm_builds import Build
from modelyard.engines.vllm_complete import Machine, completed
from modelyard.runtime.vllm_lookup import Lookup, cores, weights_mib

log = logging.getLogger("modelyard")

_USUAL: tuple[str, ...] = ()


class VllmHere:
    """The vLLMs that a configuration's models use."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._builds: dict[tuple[str, ...], Build] = {}
        self._programs: dict[str, Build] = {}
        self.devices: Callable[[], Sequence[Device]] = lambda: ()
        """The devices there are now; known once they have been read."""

    def look(self, config: Config) -> None:
        """Find and ask the vLLMs. Blocks: up to `vllm_lookup.ASK_S` for each that is new here."""
        lookup = Lookup(config.engines.vllm, config.server.state_dir, self._env)
        models = config.models
        wanted = {words for spec in models if spec.engine == "vllm" for words in _words(spec)}
        builds = lookup.builds(wanted)
        if _USUAL not in builds:
            builds[_USUAL] = lookup.unasked()
        programs = {p for spec in models if (p := _vllm_program(spec)) is not None}
        self._programs = {program: lookup.unasked(program) for program in programs}
        self._builds = builds

    @property
    def is_there(self) -> bool:
        """Whether models that name no vLLM of their own could be started."""
        return bool(self._builds.get(_USUAL, Build()).launch)

    @property
    def version(self) -> str:
        """What tells the usual build from another."""
        build = self._builds.get(_USUAL, Build())
        return f"{' '.join(build.launch)} {build.version} {build.platform}".strip()

    def adapter(self) -> Vllm:
        return Vllm(self.build_of, self._total_mib)

    def build_of(self, words: tuple[str, ...]) -> Build:
        """The build for the words of a model's `command`."""
        return self._builds.get(words) or self._builds.get(_USUAL) or Build(trouble="not looked up")

    def completed(self, specs: Iterable[ModelSpec]) -> list[ModelSpec]:
        """`specs` with what vLLM models leave open, given the devices there are. Reads folders."""
        machine = Machine(self.devices(), cores(), weights_mib)

        def build(spec: ModelSpec, profile: Profile | None) -> Build:
            return self.build_of((profile.command if profile else ()) or spec.command)

        return [self._sobered(spec) for spec in completed(tuple(specs), build, machine)]

    def _total_mib(self, device_id: str) -> int | None:
        return next((d.total_mib for d in self.devices() if d.id == device_id), None)

    def _sobered(self, spec: ModelSpec) -> ModelSpec:
        """A command whose vLLM cannot sleep as its preset says, without the levels it lacks."""
        program = _vllm_program(spec)
        build = self._programs.get(program) if program else None
        if build is None or not build.launch or spec.sleep != PRESETS["vllm"]:
            return spec
        on_cards = any(d != HOST_DEVICE for p in spec.profiles for d in p.devices)
        levels = build.sleep_levels if on_cards else {}
        if not levels:
            why = why_vllm_cannot_sleep(build.platform if on_cards else "cpu")
            log.warning("model %s: sleep: vllm has no effect: %s", spec.id, why)
        return replace(spec, sleep=levels, sleep_preset="vllm" if levels else "")


def _words(spec: ModelSpec) -> Iterator[tuple[str, ...]]:
    """How the vLLM of each profile is named."""
    for profile in spec.profiles:
        yield profile.command or spec.command
    yield spec.command


def _vllm_program(spec: ModelSpec) -> str | None:
    """The program of a command that visibly starts vLLM and names it for its sleep."""
    argv = spec.command
    if spec.sleep_preset != "vllm" or not argv:
        return None
    name = Path(argv[0]).name
    if name == "vllm":
        return argv[0]
    is_module = name.startswith("python") and "-m" in argv[1:-1]
    module = argv[argv.index("-m") + 1] if is_module else ""
    return argv[0] if module.startswith("vllm.") else None
