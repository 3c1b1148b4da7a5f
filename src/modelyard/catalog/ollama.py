"""Ollama's store, read only: manifests that name blobs.

Laws of this file:
- Nothing is written there. A model is served from Ollama's own blob; Ollama may delete it, and then
  it is gone here too.
- What only Ollama's engine can load (vision parts inside the model's file, names of its own for
  architectures) is told, not tried.

Layout (github.com/ollama/ollama, manifest package): `manifests/HOST/NAMESPACE/MODEL/TAG` is JSON
with `layers` of `mediaType`, `digest` and `size`; a layer's content is `blobs/sha256-HEX`. Newer
stores have `manifests-v2` beside it, whose tags link to blobs that are such manifests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.folders import Folder
from modelyard.catalog.gguf import GgufHeader
from modelyard.catalog.json_object import JsonObject, read_object

MANIFESTS: Final = ("manifests", "manifest-v2", "manifests-v2")
_HOSTS: Final = frozenset({"registry.ollama.ai", "ollama.com"})
_NAMESPACE: Final = "library"
_LAYER: Final = "application/vnd.ollama.image."
_DIGEST: Final = re.compile(r"sha256[:-]([0-9a-f]{64})")
_MOST_MODELS: Final = 4096
_MANIFEST_BYTES: Final = 2**20
_OWN_ARCHITECTURES: Final = frozenset({"gptoss", "mllama", "qwen25vl", "llama4"})
"""Spelt in Ollama's way, or converted in a layout that llama.cpp does not have."""


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """One tag of a model."""

    id: str
    """As `ollama list` shows it: `qwen3:8b`; with its namespace or host where it has one."""
    aliases: tuple[str, ...]
    weights: Path
    projector: Path | None
    license: str | None
    template: bool
    """Ollama has a template of its own for it, in Go's language."""


def is_store(folder: Folder) -> bool:
    """Whether `folder` is the root of an Ollama store."""
    return "blobs" in folder.folders and any(name in folder.folders for name in MANIFESTS)


def models_of(folder: Folder) -> Iterator[OllamaModel | BadModelFile]:
    """Every model of the store at `folder`, or what is wrong with it, in the order of names."""
    seen: set[str] = set()
    for manifests in MANIFESTS:
        for path in _manifests(folder.path / manifests):
            host, namespace, model, tag = path.relative_to(folder.path / manifests).parts
            name = _name(host, namespace, model)
            if f"{name}:{tag}" in seen:
                continue
            seen.add(f"{name}:{tag}")
            try:
                found = _model(folder.path / "blobs", read_object(path), name, tag)
            except BadModelFile as error:
                yield error
                continue
            if found is not None:
                yield found


def only_for_ollama(header: GgufHeader) -> str | None:
    """Why llama.cpp cannot load a file that Ollama made; None where it can."""
    if header.architecture in _OWN_ARCHITECTURES:
        return f"Ollama's own layout of {header.architecture}: only Ollama loads it"
    if header.architecture != "clip" and any(t.name.startswith("v.") for t in header.tensors):
        return "its vision part is inside the same file, which only Ollama loads"
    return None


def _manifests(root: Path) -> list[Path]:
    """Files four levels deep: host, namespace, model, tag."""
    level = [root]
    for _ in range(4):
        level = [child for folder in level for child in _listed(folder)][:_MOST_MODELS]
    return [path for path in level if path.is_file()]


def _listed(folder: Path) -> list[Path]:
    try:
        children = sorted(folder.iterdir())
    except (NotADirectoryError, FileNotFoundError):
        return []
    except OSError:
        return []  # another user's: the scan has said so of the store itself
    return [child for child in children if not child.name.startswith(".")]


def _name(host: str, namespace: str, model: str) -> str:
    parts = [] if host in _HOSTS else [host]
    parts += [] if namespace == _NAMESPACE and not parts else [namespace]
    return "/".join([*parts, model])


def _model(blobs: Path, manifest: JsonObject, name: str, tag: str) -> OllamaModel | None:
    layers = manifest.values.get("layers")
    if not isinstance(layers, list):
        raise BadModelFile(manifest.path, "it has no layers")
    found: dict[str, Path] = {}
    for layer in layers:
        entry = JsonObject(manifest.path, layer if isinstance(layer, dict) else {}, "layers")
        kind = (entry.text("mediaType") or "").partition(";")[0].removeprefix(_LAYER)
        if kind in {"model", "projector", "template", "license"}:
            found.setdefault(kind, _blob(blobs, entry, whole=kind in {"model", "projector"}))
    if "model" not in found:
        return None  # runs in a cloud, or is kept tensor by tensor for another engine
    return OllamaModel(
        id=f"{name}:{tag}",
        aliases=(name,) if tag == "latest" else (),
        weights=found["model"],
        projector=found.get("projector"),
        license=_first_line(found.get("license")),
        template="template" in found,
    )


def _blob(blobs: Path, layer: JsonObject, *, whole: bool) -> Path:
    digest = _DIGEST.fullmatch(layer.text("digest") or "")
    if digest is None:
        raise BadModelFile(layer.path, f"a layer has the digest {layer.values.get('digest')!r}")
    path = blobs / f"sha256-{digest[1]}"
    size = layer.count("size")
    if not whole:
        return path
    try:
        present = path.stat().st_size
    except OSError as error:
        raise BadModelFile(
            layer.path, f"its layer {path.name} cannot be read: {error.strerror or error}"
        ) from error
    if size is not None and present < size:
        raise BadModelFile(layer.path, f"its layer {path.name} has {present} of {size} bytes")
    return path


def _first_line(path: Path | None) -> str | None:
    """The licence's title: Ollama keeps its text."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            text = file.read(512).decode("utf-8", errors="replace")
    except OSError:
        return None  # a licence that is not there hinders nobody
    return next((line.strip()[:80] for line in text.splitlines() if line.strip()), None)
