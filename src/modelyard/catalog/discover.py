"""Finds the models in folders and in other programs' stores.

Laws of this file:
- One bad file is a `Problem` with its reason, never the end of a scan.
- The same folders give the same models with the same ids in the same order.
- A name that two models would share belongs to the one whose id it is, else to the first.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from modelyard.catalog import ollama, variants
from modelyard.catalog.checkpoint import Checkpoint, HeaderCache, open_checkpoint
from modelyard.catalog.choice import Form, choose_engine
from modelyard.catalog.classify import Ability, Kind, Verdict, shard_of
from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.folder_checkpoint import (
    FolderCheckpoint,
    is_model_folder,
    other_than_model,
    read_folder,
)
from modelyard.catalog.folders import Folder, Problem, Walk
from modelyard.catalog.found import FoundModel, Origin
from modelyard.catalog.quantization import of_gguf, without_quantization
from modelyard.catalog.recent import stamps_of
from modelyard.catalog.specs import spec_of
from modelyard.catalog.stores import Repository, modelscope_id, pulled_from, repository_of
from modelyard.core.specs import ModelSpec

SUFFIX: Final = ".gguf"
DEFAULT_ENGINES: Final = ("llamacpp",)


@dataclass(frozen=True, slots=True)
class Catalog:
    """What a scan found: whole models that an engine here can run, and what is wrong with the
    rest."""

    found: tuple[FoundModel, ...]
    problems: tuple[Problem, ...]

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """The same models as the scheduler takes them."""
        return tuple(spec_of(found) for found in self.found)


def scan(
    dirs: Iterable[Path],
    *,
    headers: HeaderCache | None = None,
    engines: Collection[str] = DEFAULT_ENGINES,
) -> Catalog:
    """Find the models below `dirs` that one of `engines` can run.

    A folder may hold GGUF files, folders of the Hugging Face kind, the hub's cache, ModelScope's,
    or Ollama's store, at any depth up to `folders.MAX_DEPTH`; hidden folders are passed over, as
    are projectors and adapters. With `headers` from an earlier scan, what did not change is not
    read again. Blocks on the disk, so it is called off the event loop. A folder that is not there
    is a problem.
    """
    search = _Search(HeaderCache() if headers is None else headers, engines)
    search.run(dirs)
    return Catalog(tuple(_with_own_names(search.found)), (*search.walk.problems, *search.problems))


class _Search:
    def __init__(self, cache: HeaderCache, engines: Collection[str]) -> None:
        self.walk = Walk()
        self.found: dict[str, FoundModel] = {}
        self.problems: list[Problem] = []
        self._cache = cache
        self._engines = engines
        self._pulled: dict[Path, str] = {}
        """Folders that downloads of ours filled, with the repository they are from."""

    def run(self, dirs: Iterable[Path]) -> None:
        for folder in self.walk.folders(dirs):
            self._look(folder, None)

    def _look(self, folder: Folder, repository: Repository | None) -> None:
        if ollama.is_store(folder):
            folder.below = False
            self._ollama(folder)
            return
        inner = repository_of(folder) if repository is None else None
        if inner is not None:
            folder.below = False
            self._repository(folder, inner)
            return
        other = other_than_model(folder.files)
        if other is not None:
            folder.below = False
            self._other(folder.path, other)
        elif is_model_folder(folder.files):
            folder.below = False
            self._folder(folder, repository)
        self._ggufs(folder, repository)

    def _repository(self, folder: Folder, repository: Repository) -> None:
        if not repository.is_model or repository.snapshot is None:
            return
        before = len(self.found) + len(self.problems)
        for inner in self.walk.folders([repository.snapshot]):
            self._look(inner, repository)
        if repository.unfinished and len(self.found) + len(self.problems) == before:
            reason = "its download is not finished (there are .incomplete blobs)"
            self.problems.append(Problem(folder.path, reason))

    # ------------------------------------------------------------------------------ whole folders

    def _folder(self, folder: Folder, repository: Repository | None) -> None:
        scope = modelscope_id(folder)
        name = repository.id if repository is not None else scope or folder.path.name
        try:
            key = (name, stamps_of(folder.files.values()))
            checkpoint = self._cache.folders.get(
                key, lambda: read_folder(folder.path, name, folder.files)
            )
        except BadModelFile as error:
            unfinished = repository is not None and repository.unfinished
            self._bad(error, " (its download is not finished)" if unfinished else "")
            return
        verdict = checkpoint.verdict
        if verdict.kind is not Kind.MODEL:
            self._other(folder.path, verdict)
            return
        aliases: tuple[str, ...] = (name.rpartition("/")[2],)
        origin = Origin.MODELSCOPE if repository is None else Origin.HUGGINGFACE
        if repository is None and scope is None:
            inside = folder.path.parent not in {folder.root, folder.root.parent}
            origin = Origin.FOLDER
            aliases = (f"{folder.path.parent.name}/{folder.path.name}",) if inside else ()
        free = name if "/" in name else _free(name, folder.path.parents, self.found)
        self._add(_of_folder(checkpoint, free, aliases, origin, self._engines))

    # ---------------------------------------------------------------------------------- GGUF files

    def _ggufs(self, folder: Folder, repository: Repository | None) -> None:
        paths = [path for name, path in folder.files.items() if name.lower().endswith(SUFFIX)]
        models: list[Checkpoint] = []
        projectors: dict[Path, Checkpoint] = {}
        for path in _first_files(paths, self.problems):
            try:
                checkpoint = open_checkpoint(path, self._cache)
            except BadModelFile as error:
                self._bad(error)
                continue
            if checkpoint.verdict.kind is Kind.MODEL:
                models.append(checkpoint)
            elif checkpoint.verdict.kind is Kind.PROJECTOR:
                projectors[path] = checkpoint
            else:
                self._other(path, checkpoint.verdict)
        beside = [model.files[0] for model in models]
        hub_id = self._pulled_from(folder) if repository is None else repository.id
        for model in models:
            chosen = variants.projector_for(model.files[0], beside, list(projectors))
            projector = None if chosen is None else projectors[chosen]
            names = _gguf_names(model.files[0], beside, hub_id)
            origin = Origin.FOLDER if repository is None else Origin.HUGGINGFACE
            self._gguf(model, names, origin, projector)

    def _pulled_from(self, folder: Folder) -> str | None:
        """The repository that a download of ours filled this folder from, or one around it."""
        path = folder.path
        hub_id = pulled_from(folder) or self._pulled.get(path.parent)
        if hub_id is not None:
            self._pulled[path] = hub_id
        return hub_id

    def _gguf(
        self,
        checkpoint: Checkpoint,
        aliases: tuple[str, ...],
        origin: Origin,
        projector: Checkpoint | None,
    ) -> None:
        path = checkpoint.files[0]
        model_id = _free(variants.stem_of(path), path.parents, self.found)
        self._add(_of_gguf(checkpoint, model_id, aliases, origin, projector, self._engines))

    def _ollama(self, folder: Folder) -> None:
        for model in ollama.models_of(folder):
            if isinstance(model, BadModelFile):
                self._bad(model)
                continue
            try:
                checkpoint = open_checkpoint(model.weights, self._cache)
                beside = model.projector
                projector = None if beside is None else open_checkpoint(beside, self._cache)
            except BadModelFile as error:
                self._bad(error, f" (the model {model.id} of Ollama)")
                continue
            if checkpoint.verdict.kind is not Kind.MODEL:
                self._other(model.weights, checkpoint.verdict)
                continue
            self._add_ollama(model, checkpoint, projector)

    def _add_ollama(
        self, model: ollama.OllamaModel, checkpoint: Checkpoint, projector: Checkpoint | None
    ) -> None:
        foreign = ollama.only_for_ollama(checkpoint.header)
        if foreign is not None:
            self.problems.append(Problem(model.weights, f"{model.id}: {foreign}"))
            return
        found = _of_gguf(
            checkpoint, model.id, model.aliases, Origin.OLLAMA, projector, self._engines
        )
        remarks = found.remarks
        if model.template and found.verdict.ability is Ability.BASE:
            remarks += ("only Ollama has a chat template for it: set options.chat_template_file",)
        self._add(replace(found, license=found.license or model.license, remarks=remarks))

    # ------------------------------------------------------------------------------------ outcomes

    def _add(self, found: FoundModel) -> None:
        if found.engine.engine is None:
            self.problems.append(Problem(found.source, f"not served: {found.engine.reason}"))
        elif found.id not in self.found:
            self.found[found.id] = found

    def _other(self, path: Path, verdict: Verdict) -> None:
        if verdict.kind is Kind.UNSERVED:
            self.problems.append(Problem(path, f"the engine cannot serve it: {verdict.reason}"))

    def _bad(self, error: BadModelFile, more: str = "") -> None:
        advice = f" ({error.hint})" if error.hint else ""
        self.problems.append(Problem(error.path, error.reason + advice + more))


def _of_folder(
    checkpoint: FolderCheckpoint,
    model_id: str,
    aliases: tuple[str, ...],
    origin: Origin,
    engines: Collection[str],
) -> FoundModel:
    form = Form.PICKLED if checkpoint.weights.pickled else Form.SAFETENSORS
    method = None if checkpoint.quantization is None else checkpoint.quantization.method
    card = checkpoint.description.card
    return FoundModel(
        id=model_id,
        aliases=aliases,
        source=checkpoint.folder,
        origin=origin,
        form=form,
        verdict=checkpoint.verdict,
        engine=choose_engine(form, checkpoint.verdict.ability, method, engines),
        architecture=checkpoint.description.model_type,
        quantization=checkpoint.label,
        weight_bytes=checkpoint.weights.n_bytes,
        parameters=checkpoint.weights.parameters,
        context_length=checkpoint.context_length,
        license=card.license,
        base=model_id,
        checkpoint=checkpoint,
        revision=checkpoint.revision,
        remarks=checkpoint.description.remarks,
    )


def _of_gguf(
    checkpoint: Checkpoint,
    model_id: str,
    aliases: tuple[str, ...],
    origin: Origin,
    projector: Checkpoint | None,
    engines: Collection[str],
) -> FoundModel:
    header, verdict = checkpoint.header, checkpoint.verdict
    revision = checkpoint.revision
    if projector is not None:
        verdict = replace(verdict, inputs=variants.projector_inputs(projector.header))
        revision += projector.revision
    licensed = header.metadata.get("general.license")
    return FoundModel(
        id=model_id,
        aliases=aliases,
        source=checkpoint.files[0],
        origin=origin,
        form=Form.GGUF,
        verdict=verdict,
        engine=choose_engine(Form.GGUF, verdict.ability, None, engines),
        architecture=header.architecture or "",
        quantization=of_gguf(header),
        weight_bytes=header.tensor_bytes,
        parameters=sum(tensor.numbers for tensor in header.tensors),
        context_length=header.count("context_length"),
        license=licensed if isinstance(licensed, str) else None,
        base=variants.base_name(checkpoint.files[0]),
        checkpoint=checkpoint,
        revision=revision,
        projector=None if projector is None else projector.files[0],
        projector_bytes=0 if projector is None else projector.file_bytes,
        options=None if projector is None else {"mmproj": str(projector.files[0])},
    )


def _first_files(files: Iterable[Path], problems: list[Problem]) -> Iterator[Path]:
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


def _gguf_names(path: Path, beside: Sequence[Path], hub_id: str | None) -> tuple[str, ...]:
    """More names of a GGUF file: what it has in common with its quantisations, if people would
    mean this one; in a repository, its id and `ID:QUANTISATION` as llama.cpp writes it."""
    base = variants.base_name(path)
    same = [other for other in beside if variants.base_name(other) == base]
    quantization = without_quantization(variants.stem_of(path))[1]
    names: list[str] = []
    if path == variants.preferred(same) and quantization is not None:
        names.append(base)
        if hub_id is not None and len(same) == len(beside):
            names.append(hub_id)
    if hub_id is not None and quantization is not None:
        names.append(f"{hub_id}:{quantization}")
    return tuple(names)


def _free(name: str, folders: Iterable[Path], taken: Container[str]) -> str:
    """The name; with the names of folders above it where it is taken."""
    for folder in folders:
        if name not in taken:
            break
        name = f"{folder.name}/{name}"
    return name


def _with_own_names(found: dict[str, FoundModel]) -> Iterator[FoundModel]:
    """The models without aliases that are another's id, or an earlier one's alias."""
    taken = set(found)
    for model in found.values():
        own = tuple(dict.fromkeys(name for name in model.aliases if name not in taken))
        taken.update(own)
        yield replace(model, aliases=own)
