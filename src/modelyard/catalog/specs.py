"""From what the catalog knows of a model to the `ModelSpec` that the scheduler runs.

Laws of this file:
- A declaration wins over what the files say; only what it leaves open is filled in.
- Estimates stand for claims until a run was measured, so every spec has one where the files tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from modelyard.catalog.checkpoint import Checkpoint, HeaderCache, open_checkpoint
from modelyard.catalog.choice import LLAMACPP
from modelyard.catalog.classify import Kind
from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.estimate import estimate
from modelyard.catalog.estimate_folder import Wish, estimate_folder
from modelyard.catalog.folder_checkpoint import FolderCheckpoint, read_folder
from modelyard.catalog.folders import Walk
from modelyard.catalog.found import AnyCheckpoint, FoundModel
from modelyard.catalog.recent import stamps_of
from modelyard.core.defaults import CONTEXT_CHECKPOINTS
from modelyard.core.specs import ModelSpec, OptionValue, Profile, Task

_CONTEXT_OPTIONS: Final = ("ctx_size", "n_ctx")
_PARALLEL_OPTIONS: Final = ("parallel", "n_parallel")
_UBATCH_OPTIONS: Final = ("ubatch_size", "n_ubatch")
_CHECKPOINT_OPTIONS: Final = ("ctx_checkpoints", "n_ctx_checkpoints")
_PROMPT_CACHE_OPTIONS: Final = ("cache_ram", "cache_ram_mib")
_PROJECTOR_OPTIONS: Final = ("mmproj", "mmproj.path")
_KEY_TYPE_OPTIONS: Final = ("cache_type_k", "ctk")
_VALUE_TYPE_OPTIONS: Final = ("cache_type_v", "ctv")
_LENGTH_OPTIONS: Final = ("max_model_len",)
_BATCH_OPTIONS: Final = ("max_num_batched_tokens",)
_TENSOR_OPTIONS: Final = ("tensor_parallel_size", "tp")
_PIPELINE_OPTIONS: Final = ("pipeline_parallel_size", "pp")
_EAGER_OPTIONS: Final = ("enforce_eager",)
_KV_OPTIONS: Final = ("kv_cache_dtype",)
_DTYPE_OPTIONS: Final = ("dtype",)

WITHOUT_FILES: Final = frozenset({"command", "remote"})
"""Engines whose models are not on the disk for us to read."""


def spec_of(found: FoundModel) -> ModelSpec:
    """The spec of a model that was found, with its estimate.

    Raises ValueError for a model without an engine; a `Catalog` has none of those.
    """
    if found.engine.engine is None:
        raise ValueError(f"{found.id} has no engine: {found.engine.reason}")
    spec = ModelSpec(
        found.id,
        found.engine.engine,
        frozenset(),
        aliases=found.aliases,
        source=str(found.source),
        options=MappingProxyType(dict(found.options or {})),
    )
    return replace(_filled(spec, found.checkpoint), revision=found.revision)


def complete(spec: ModelSpec, *, headers: HeaderCache | None = None) -> ModelSpec:
    """A declared model with what the files at its `source` tell filled in.

    `source` becomes absolute and `revision` is always set; `tasks`, `estimate_mib` and
    `context_length` only where the spec leaves them open. The estimate is that of the profile
    that needs most, and honours the options `ctx_size` (or `n_ctx`), `parallel` (`n_parallel`),
    `ubatch_size` (`n_ubatch`), `ctx_checkpoints` (`n_ctx_checkpoints`), `cache_ram`
    (`cache_ram_mib`), `cache_type_k`, `cache_type_v` and `mmproj` of llama.cpp, and vLLM's
    `max_model_len`, `max_num_batched_tokens`, `enforce_eager`, `kv_cache_dtype` and `dtype`.
    A spec whose engine needs no files, or whose `source` is the id of a repository rather than
    a path, comes back as it is.
    Raises BadModelFile where there is no usable model at `source`, or one of these options is of
    the wrong kind.
    """
    if spec.engine in WITHOUT_FILES:
        return spec
    cache = HeaderCache() if headers is None else headers
    if spec.source is None:
        raise BadModelFile(Path(), f"model {spec.id!r} names no file", hint="set its source")
    path = Path(spec.source).expanduser().absolute()
    checkpoint: AnyCheckpoint
    if spec.engine == LLAMACPP or path.is_file():
        checkpoint = open_checkpoint(path, cache)
    elif path.is_dir():
        checkpoint = _folder(path, cache)
    else:
        return spec
    verdict = checkpoint.verdict
    if verdict.kind is not Kind.MODEL:
        raise BadModelFile(path, f"it is no model to be served ({verdict.kind}): {verdict.reason}")
    return _filled(replace(spec, source=str(path)), checkpoint)


def _folder(path: Path, cache: HeaderCache) -> FolderCheckpoint:
    folder = Walk().look(path)
    if folder is None:
        raise BadModelFile(path, "it cannot be read")
    key = (path.name, stamps_of(folder.files.values()))
    return cache.folders.get(key, lambda: read_folder(path, path.name, folder.files))


def _filled(spec: ModelSpec, checkpoint: AnyCheckpoint) -> ModelSpec:
    tasks = spec.tasks or checkpoint.verdict.tasks
    if isinstance(checkpoint, Checkpoint):
        trained = checkpoint.header.count("context_length")
    else:
        trained = checkpoint.context_length
    estimate_mib = spec.estimate_mib
    if estimate_mib is None:
        estimate_mib = max(
            _estimate_mib(spec.engine, checkpoint, tasks, {**spec.options, **profile.options})
            for profile in spec.profiles or (Profile("default"),)
        )
    return replace(
        spec,
        tasks=tasks,
        estimate_mib=estimate_mib,
        context_length=spec.context_length or trained,
        revision=checkpoint.revision,
    )


def _estimate_mib(
    engine: str,
    checkpoint: AnyCheckpoint,
    tasks: frozenset[Task],
    options: Mapping[str, OptionValue],
) -> int:
    path = checkpoint.files[0] if isinstance(checkpoint, Checkpoint) else checkpoint.folder

    def number(names: Sequence[str]) -> int | None:
        return _number(path, options, names)

    if not isinstance(checkpoint, Checkpoint):
        wish = Wish(
            context=number(_LENGTH_OPTIONS),
            batched_tokens=number(_BATCH_OPTIONS),
            kv_dtype=_text(options, _KV_OPTIONS),
            dtype=_text(options, _DTYPE_OPTIONS),
            eager=_last(options, _EAGER_OPTIONS) is True,
            tensor_parallel=number(_TENSOR_OPTIONS) or 1,
            pipeline_parallel=number(_PIPELINE_OPTIONS) or 1,
        )
        return sum(share.total_mib for share in estimate_folder(checkpoint, engine, wish).values())
    checkpoints = number(_CHECKPOINT_OPTIONS)
    projector = _text(options, _PROJECTOR_OPTIONS)
    return estimate(
        checkpoint.header,
        checkpoint.file_bytes,
        context=number(_CONTEXT_OPTIONS),
        parallel=number(_PARALLEL_OPTIONS) or 0,
        ubatch=number(_UBATCH_OPTIONS) or 0,
        checkpoints=CONTEXT_CHECKPOINTS if checkpoints is None else checkpoints,
        prompt_cache_mib=number(_PROMPT_CACHE_OPTIONS) or 0,
        tasks=tasks,
        projector_bytes=_size(projector),
        key_type=_text(options, _KEY_TYPE_OPTIONS) or "f16",
        value_type=_text(options, _VALUE_TYPE_OPTIONS) or "f16",
    ).total_mib


def _size(path: str | None) -> int:
    if path is None:
        return 0
    try:
        return Path(path).expanduser().stat().st_size
    except OSError:
        return 0  # the engine will say that it is not there


def _last(options: Mapping[str, OptionValue], names: Sequence[str]) -> OptionValue:
    """The option with one of these names. The last one counts: those of a profile come after
    those of its model."""
    for name, value in reversed(list(options.items())):
        if value is not None and name.replace("-", "_") in names:
            return value
    return None


def _text(options: Mapping[str, OptionValue], names: Sequence[str]) -> str | None:
    value = _last(options, names)
    return value if isinstance(value, str) else None


def _number(path: Path, options: Mapping[str, OptionValue], names: Sequence[str]) -> int | None:
    """The option with one of these names; below 0 is 0, which leaves the choice to the engine."""
    value = _last(options, names)
    if value is None or (isinstance(value, str) and value == "auto"):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return max(0, value)
    if isinstance(value, str) and value.removeprefix("-").isdecimal():
        return max(0, int(value))
    name = next(key for key in reversed(list(options)) if key.replace("-", "_") in names)
    raise BadModelFile(path, f"the option {name} is {value!r}, which is no whole number")
