"""Ollama's store: manifests that name blobs. Read, never written.

Laws of this file:
- Walks are bounded, links are not followed, and a manifest is at most 1 MiB.
- A model's weights are the layer of the type `application/vnd.ollama.image.model`.

Facts: server/modelpath.go, types/model/name.go and server/manifest.go of github.com/ollama/ollama.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from modelyard.config.tree import Plain
from modelyard.importers.draft import literal
from modelyard.importers.surroundings import Surroundings, Work
from modelyard.importers.values import as_mapping, as_text

WEIGHTS = "application/vnd.ollama.image.model"
MAX_MANIFEST = 1024 * 1024
MAX_MODELS = 1000
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,80}")
_REGISTRY, _LIBRARY, _TAG = "registry.ollama.ai", "library", "latest"
_BESIDE = {
    "template": "llama.cpp uses the template inside the file",
    "system": "there is no default system message; clients send it",
    "params": "name the Modelfile (`ollama show --modelfile`) to convert its parameters",
    "messages": "there is no default conversation; clients send it",
    "adapter": "name the Modelfile to convert the adapter",
    "projector": "set options.mmproj to this file",
    "license": "",
}


def store_folder(here: Surroundings) -> Path:
    """Where Ollama keeps models: OLLAMA_MODELS, else `~/.ollama/models`."""
    told = here.env.get("OLLAMA_MODELS")
    return Path(told) if told else here.home / ".ollama" / "models"


def is_store(folder: Path) -> bool:
    return (folder / "manifests").is_dir() and (folder / "blobs").is_dir()


def blob_of(name: str, here: Surroundings) -> Path | None:
    """The file of weights of the model `name`; None if the store does not hold it."""
    base, _, tag = name.partition(":")
    parts = base.split("/")
    if not 1 <= len(parts) <= 3 or not all(map(_NAME.fullmatch, [*parts, tag or _TAG])):
        return None
    full = [*[_REGISTRY, _LIBRARY][: 3 - len(parts)], *parts]
    folder = store_folder(here)
    return _weights(folder, folder.joinpath("manifests", *full, tag or _TAG))


def read_store(folder: Path) -> dict[str, Plain]:
    """Every model of the store: its name, and the types of its layers with their digests."""
    models: dict[str, Plain] = {}
    for path in _manifests(folder / "manifests"):
        parts = path.relative_to(folder / "manifests").parts
        layers = _layers(path)
        if layers:
            models[_short(parts)] = dict(layers)
    return {"models": models}


def convert(work: Work) -> None:
    """Each model of a store becomes one of the engine `llamacpp`."""
    folder = work.source.path
    for name, layers in as_mapping(as_mapping(work.tree).get("models")).items():
        model = work.draft.model(name, f"{name} in {folder}")
        work.book.model = model.id
        for kind, digest in as_mapping(layers).items():
            path = ("models", name, kind)
            blob = _blob(folder, as_text(digest) or "")
            if kind == "model" and blob is not None:
                model.put("source", literal(str(blob.absolute())), "its weights")
                work.book.converted(path, "source")
            elif kind == "license":
                work.book.not_needed(path, "the licence stays with the model")
            elif kind in _BESIDE:
                work.book.no_equal(path, _BESIDE[kind])
        if "source" not in model.keys:
            model.put("engine", "llamacpp")
            model.aside = "its weights are not in the store"
    work.book.model = ""


def _manifests(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Manifests lie at HOST/NAMESPACE/MODEL/TAG."""
    try:
        entries = sorted(folder.iterdir())[:MAX_MODELS]
    except OSError:
        return
    for entry in entries:
        if entry.is_symlink():
            continue
        if depth == 3 and entry.is_file():
            yield entry
        elif depth < 3 and entry.is_dir():
            yield from _manifests(entry, depth + 1)


def _short(parts: tuple[str, ...]) -> str:
    """`qwen3:8b` as people write it, without Ollama's own registry."""
    *path, model, tag = parts
    owner = [part for part in path if part not in (_REGISTRY, _LIBRARY)]
    return f"{'/'.join([*owner, model])}:{tag}"


def _layers(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST)
        manifest: Plain = json.loads(content)
    except (OSError, ValueError, RecursionError):
        return {}  # not a manifest; other files may lie here
    listed = as_mapping(manifest).get("layers")
    found: dict[str, str] = {}
    for layer in listed if isinstance(listed, list) else []:
        kind = as_text(as_mapping(layer).get("mediaType"))
        digest = as_text(as_mapping(layer).get("digest"))
        if kind and digest:
            found.setdefault(kind.rpartition(".")[2], digest)
    return found


def _weights(folder: Path, manifest: Path) -> Path | None:
    digest = _layers(manifest).get(WEIGHTS.rpartition(".")[2]) if manifest.is_file() else None
    return _blob(folder, digest) if digest else None


def _blob(folder: Path, digest: str) -> Path | None:
    found = _DIGEST.fullmatch(digest)
    if found is None:
        return None
    for name in (f"sha256-{found[1]}", f"sha256:{found[1]}"):
        if (folder / "blobs" / name).is_file():
            return folder / "blobs" / name
    return None
