"""Finds the models in folders, and completes declared models from their files.

Laws of this file:
- One bad file is a `Problem` with its reason, never the end of a scan.
- The same folders give the same models with the same ids in the same order.
- A declaration wins over what the file says; only what it leaves open is filled in.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from modelyard.catalog.checkpoint import Checkpoint, HeaderCache, open_checkpoint
from modelyard.catalog.classify import Kind, shard_of
from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.estimate import estimate
from modelyard.catalog.folders import Problem, Walk
from modelyard.core.defaults import CONTEXT_CHECKPOINTS
from modelyard.core.specs import ModelSpec, OptionValue, Profile, Task

ENGINE: Final = "llamacpp"

_CONTEXT_OPTIONS: Final = ("ctx_size", "n_ctx")
_PARALLEL_OPTIONS: Final = ("parallel", "n_parallel")
_UBATCH_OPTIONS: Final = ("ubatch_size", "n_ubatch")
_CHECKPOINT_OPTIONS: Final = ("ctx_checkpoints", "n_ctx_checkpoints")
_PROMPT_CACHE_OPTIONS: Final = ("cache_ram", "cache_ram_mib")


@dataclass(frozen=True, slots=True)
class Catalog:
    """What a scan found."""

    models: tuple[ModelSpec, ...]
    problems: tuple[Problem, ...]


def scan(dirs: Iterable[Path], *, headers: HeaderCache | None = None) -> Catalog:
    """Find the models below `dirs`; hidden folders, projectors and adapters are passed over.

    With `headers` from an earlier scan, files that did not change are not read again. Blocks on
    the disk, so it is called off the event loop. A folder that is not there is a problem.
    """
    cache = HeaderCache() if headers is None else headers
    walk = Walk()
    models: dict[str, ModelSpec] = {}
    problems: list[Problem] = []
    for path in _first_files(walk.files(dirs), problems):
        try:
            checkpoint = open_checkpoint(path, cache)
            kind, reason = checkpoint.verdict.kind, checkpoint.verdict.reason
            if kind is Kind.MODEL:
                model = _spec(checkpoint, _free_id(path, models))
                models[model.id] = model
            elif kind is Kind.UNSERVED:
                problems.append(Problem(path, f"the engine cannot serve it: {reason}"))
        except BadModelFile as error:
            advice = f" ({error.hint})" if error.hint else ""
            problems.append(Problem(error.path, error.reason + advice))
    return Catalog(tuple(models.values()), (*walk.problems, *problems))


def complete(spec: ModelSpec, *, headers: HeaderCache | None = None) -> ModelSpec:
    """A declared model with what the GGUF file at its `source` tells filled in.

    `source` becomes absolute and `revision` is always set; `tasks`, `estimate_mib` and
    `context_length` only where the spec leaves them open. The estimate is that of the profile
    that needs most, and honours the options `ctx_size` (or `n_ctx`), `parallel` (`n_parallel`),
    `ubatch_size` (`n_ubatch`), `ctx_checkpoints` (`n_ctx_checkpoints`) and `cache_ram`
    (`cache_ram_mib`).
    Raises BadModelFile where there is no usable model file at `source`, or one of these options
    is no number.
    """
    if spec.source is None:
        raise BadModelFile(Path(), f"model {spec.id!r} names no file", hint="set its source")
    path = Path(spec.source).expanduser().absolute()
    checkpoint = open_checkpoint(path, HeaderCache() if headers is None else headers)
    verdict = checkpoint.verdict
    if verdict.kind is not Kind.MODEL:
        raise BadModelFile(path, f"it is no model to be served ({verdict.kind}): {verdict.reason}")
    return _filled(replace(spec, source=str(path)), checkpoint)


def _spec(checkpoint: Checkpoint, model_id: str) -> ModelSpec:
    source = str(checkpoint.files[0])
    return _filled(ModelSpec(model_id, ENGINE, frozenset(), source=source), checkpoint)


def _filled(spec: ModelSpec, checkpoint: Checkpoint) -> ModelSpec:
    tasks = spec.tasks or checkpoint.verdict.tasks
    estimate_mib = spec.estimate_mib
    if estimate_mib is None:
        estimate_mib = max(
            _estimate_mib(checkpoint, tasks, {**spec.options, **profile.options})
            for profile in spec.profiles or (Profile("default"),)
        )
    return replace(
        spec,
        tasks=tasks,
        estimate_mib=estimate_mib,
        context_length=spec.context_length or checkpoint.header.count("context_length"),
        revision=checkpoint.revision,
    )


def _estimate_mib(
    checkpoint: Checkpoint, tasks: frozenset[Task], options: Mapping[str, OptionValue]
) -> int:
    def number(names: Sequence[str]) -> int | None:
        return _number(checkpoint.files[0], options, names)

    checkpoints = number(_CHECKPOINT_OPTIONS)

    return estimate(
        checkpoint.header,
        checkpoint.file_bytes,
        context=number(_CONTEXT_OPTIONS),
        parallel=number(_PARALLEL_OPTIONS) or 0,
        ubatch=number(_UBATCH_OPTIONS) or 0,
        checkpoints=CONTEXT_CHECKPOINTS if checkpoints is None else checkpoints,
        prompt_cache_mib=number(_PROMPT_CACHE_OPTIONS) or 0,
        tasks=tasks,
    ).total_mib


def _number(path: Path, options: Mapping[str, OptionValue], names: Sequence[str]) -> int | None:
    """The option with one of these names; below 0 is 0, which leaves the choice to llama.cpp.

    The last one counts: those of a profile come after those of its model.
    """
    for name, value in reversed(list(options.items())):
        if value is None or name.replace("-", "_") not in names:
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            return max(0, value)
        if isinstance(value, str) and value.removeprefix("-").isdecimal():
            return max(0, int(value))
        raise BadModelFile(path, f"the option {name} is {value!r}, which is no whole number")
    return None


def _first_files(files: Iterable[Path], problems: list[Problem]) -> Iterable[Path]:
    """One file for each model; of split models whose first file is missing, a problem for each."""
    firsts: set[tuple[Path, str, int]] = set()
    for path in files:
        shard = shard_of(path.name)
        if shard is None:
            yield path
            continue
        # Names come in order, so the first file of a split model comes before its others.
        whole = (path.parent, shard.stem, shard.count)
        if whole in firsts:
            continue
        firsts.add(whole)
        if shard.number == 1:
            yield path
        else:
            missing = shard.file_name(1, path.suffix)
            problems.append(Problem(path, f"the first file of its model, {missing}, is missing"))


def _free_id(path: Path, taken: Container[str]) -> str:
    """The file's name without suffix; with the names of folders above it where that is taken."""
    shard = shard_of(path.name)
    model_id = path.stem if shard is None else shard.stem
    for folder in path.parents:
        if model_id not in taken:
            break
        model_id = f"{folder.name}/{model_id}"
    return model_id
