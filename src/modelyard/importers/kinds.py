"""Which foreign configurations there are, and how each is recognised by its content.

Laws of this file:
- A file is recognised by what it holds; its name matters only for scripts, which may hold anything.
- Kinds are tried in the order written, the most telling first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from modelyard.config.read import read_text
from modelyard.config.tree import Node, Origin, Plain
from modelyard.core.errors import ConfigError
from modelyard.importers import (
    llama_swap,
    llm_manager,
    local_llm,
    modelfile,
    nexus,
    ollama_store,
    script_file,
    vllama,
    vllama_env,
)
from modelyard.importers.errors import CannotImport
from modelyard.importers.jsonc import read_json
from modelyard.importers.llm_manager_db import read_database
from modelyard.importers.source import Source
from modelyard.importers.surroundings import Work


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of configuration. `read` gives its tree, or None where the source is another."""

    title: str
    read: Callable[[Source], Plain | None]
    looks_like: Callable[[Plain], bool]
    convert: Callable[[Work], None]


def _structured(source: Source) -> Plain | None:
    """JSON with comments, or YAML; None for anything else. Raises CannotImport."""
    if source.is_database or source.is_folder or not source.text.strip():
        return None
    if source.text.lstrip()[:1] in ("{", "[") or source.text.lstrip().startswith(("//", "/*")):
        return read_json(source.text, str(source.path))
    try:
        node = read_text(source.text.encode(), Origin(source.name, source.folder), str(source.path))
    except ConfigError as error:
        raise CannotImport(str(error)) from error
    return plain(node)


def plain(node: Node) -> Plain:
    """A tree without its places. Its depth and size are bounded by whoever read it."""
    if isinstance(node.value, dict):
        return {key: plain(below) for key, below in node.value.items()}
    if isinstance(node.value, tuple):
        return [plain(item) for item in node.value]
    return node.value


def _database(source: Source) -> Plain | None:
    return read_database(source.path) if source.is_database else None


def _manager(source: Source) -> Plain | None:
    return _database(source) if source.is_database else _structured(source)


def _script(source: Source) -> Plain | None:
    return script_file.read_script(source) if source.text.strip() else None


def _environment(source: Source) -> Plain | None:
    found = local_llm.read_environment(source.text) if source.text.strip() else None
    return dict(found) if found is not None else None


def _modelfile(source: Source) -> Plain | None:
    if not modelfile.looks_like_text(source.text):
        return None
    return modelfile.read_modelfile(source.text, str(source.path))


def _store(source: Source) -> Plain | None:
    return ollama_store.read_store(source.path) if source.is_folder else None


def _always(_: Plain) -> bool:
    return True


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "llm-manager": Kind("LLM-Manager", _manager, llm_manager.looks_like, llm_manager.convert),
        "llama-swap": Kind("llama-swap", _structured, llama_swap.looks_like, llama_swap.convert),
        "nexus": Kind("VLLM-Nexus-Gui", _structured, nexus.looks_like, nexus.convert),
        "vllama": Kind("vllama", _structured, vllama.looks_like, vllama.convert),
        "local-llm-interface": Kind(
            "Local LLM Interface", _environment, local_llm.looks_like, local_llm.convert
        ),
        "vllama-env": Kind(
            "vllama's variables", _environment, vllama_env.looks_like, vllama_env.convert
        ),
        "modelfile": Kind("an Ollama Modelfile", _modelfile, _always, modelfile.convert),
        "ollama": Kind("Ollama's store", _store, _always, ollama_store.convert),
        "script": Kind("a start script", _script, _always, script_file.convert),
    }
)


def recognise(source: Source) -> tuple[str, Plain]:
    """The kind of `source`, and its tree. Raises CannotImport."""
    if source.is_folder:
        if not ollama_store.is_store(source.path):
            raise CannotImport(
                f"{source.path}: is a folder, and no store of Ollama (manifests, blobs)",
                hint="name a configuration file",
            )
        return "ollama", _tree(KINDS["ollama"], source)
    if source.is_database:
        return "llm-manager", read_database(source.path)
    if not source.text.strip():
        raise CannotImport(f"{source.path}: is empty", hint="name a configuration file")
    if script_file.looks_like(source):
        return "script", _tree(KINDS["script"], source)
    if modelfile.looks_like_text(source.text):
        return "modelfile", _tree(KINDS["modelfile"], source)
    environment = _environment(source)
    if environment is not None:
        for name in ("local-llm-interface", "vllama-env"):
            if KINDS[name].looks_like(environment):
                return name, environment
        raise CannotImport(
            f"{source.path}: holds variables, and none begins with LLM_ or VLLAMA_", hint=_hint()
        )
    tree = _structured(source)
    for name, kind in KINDS.items():
        if kind.read in (_structured, _manager) and kind.looks_like(tree):
            return name, tree
    raise CannotImport(f"{source.path}: is no configuration that is known here", hint=_hint())


def read_as(name: str, source: Source) -> Plain:
    """The tree of `source` as the kind `name`, which a person has named. Raises CannotImport."""
    return _tree(KINDS[name], source)


def _tree(kind: Kind, source: Source) -> Plain:
    tree = kind.read(source)
    if tree is None or not isinstance(tree, dict | list):
        raise CannotImport(f"{source.path}: cannot be read as {kind.title}", hint=_hint())
    return tree


def _hint() -> str:
    return f"there are {', '.join(KINDS)}; name one with --from if the content is of that kind"
