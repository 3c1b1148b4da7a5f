"""Ollama's Modelfiles, and the models in Ollama's store.

Laws of this file:
- A GGUF file, or a model that lies in the store, is served by the engine `llamacpp`; a folder of
  safetensors by vLLM.
- Parameters become options of llama.cpp. A Go template cannot become the Jinja template that
  llama.cpp reads, so the one inside the file is used.

Facts: docs/modelfile.mdx and parser/parser.go of github.com/ollama/ollama; manifests and blobs as
`ollama show --modelfile` and its store (types/model, server/modelpath.go) have them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from modelyard.config.tree import Plain
from modelyard.config.values import KeyPath
from modelyard.importers.card_memory import claims
from modelyard.importers.draft import ModelDraft, argument, literal
from modelyard.importers.errors import CannotImport
from modelyard.importers.launch import Launch, Way, put_ways, usable_folder
from modelyard.importers.ollama_store import blob_of, store_folder
from modelyard.importers.programs import bare
from modelyard.importers.surroundings import Work
from modelyard.importers.values import as_bool, as_int, as_mapping, as_number, as_text

INSTRUCTIONS = frozenset(
    ["from", "parameter", "template", "system", "adapter", "license", "message", "requires",
     "renderer", "parser", "draft"]
)  # fmt: skip
_FIRST = re.compile(r"^\s*from\s+\S", re.IGNORECASE | re.MULTILINE)
_INSTRUCTION = re.compile(r"([A-Za-z]+)[ \t]+(.*)", re.DOTALL)
_DOCKER = re.compile(
    r"^\s*(run|cmd|entrypoint|copy|workdir|expose)\s", re.IGNORECASE | re.MULTILINE
)
_WHOLE = {
    "num_ctx": "ctx_size", "num_batch": "batch_size", "num_gpu": "gpu_layers",
    "num_thread": "threads", "num_keep": "keep", "num_predict": "predict", "main_gpu": "main_gpu",
    "seed": "seed", "top_k": "top_k", "repeat_last_n": "repeat_last_n", "mirostat": "mirostat",
    "draft_num_predict": "spec_draft_n_max",
}  # fmt: skip
_NUMBERS = {
    "temperature": "temp", "top_p": "top_p", "min_p": "min_p", "typical_p": "typical",
    "repeat_penalty": "repeat_penalty", "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}  # fmt: skip
_LOST = {
    "stop": "requests say where to stop (`stop`); the file's own end marks are always used",
    "tfs_z": "llama.cpp has no such sampler any more",
    "mirostat_tau": "llama.cpp's server has no default for it; send it with requests",
    "mirostat_eta": "llama.cpp's server has no default for it; send it with requests",
    "penalize_newline": "llama.cpp has no such option any more",
    "numa": "set options.numa to a policy of llama.cpp (distribute, isolate)",
}
_UNUSED = ("low_vram", "f16_kv", "logits_all", "vocab_only", "embedding_only", "num_gqa",
           "rope_frequency_base", "rope_frequency_scale")  # fmt: skip
_REST = {
    "template": "a Go template cannot become llama.cpp's Jinja template; the file's own is used, "
    "or set options.chat_template_file",
    "system": "there is no default system message; clients send it with their requests",
    "message": "there is no default conversation; clients send it with their requests",
    "renderer": "llama.cpp renders with the file's own template",
    "parser": "llama.cpp parses answers by the file's own template",
}


def looks_like_text(text: str) -> bool:
    return _FIRST.search(text) is not None and _DOCKER.search(text) is None


def read_modelfile(text: str, where: str) -> dict[str, Plain]:
    """Instructions as a tree; what may be written several times is a list. Raises CannotImport."""
    tree: dict[str, Plain] = {}
    for line, name, value in _instructions(text, where):
        if name == "parameter":
            key, _, rest = value.partition(" ")
            _append(tree, "parameter", key.strip().lower(), _unquoted(rest.strip()))
        elif name == "from":
            if "from" in tree:
                raise CannotImport(f"{where}:{line}: a second FROM; keep one")
            tree["from"] = _unquoted(value.strip())
        elif name in ("license", "message", "adapter"):
            listed = tree.setdefault(name, [])
            if isinstance(listed, list):
                listed.append(_unquoted(value.strip()))
        else:
            tree[name] = _unquoted(value.strip())
    if not as_text(tree.get("from")):
        raise CannotImport(f"{where}: has no FROM", hint="a Modelfile names its model with FROM")
    return tree


def _append(tree: dict[str, Plain], section: str, key: str, value: str) -> None:
    below = tree.setdefault(section, {})
    if isinstance(below, dict):
        listed = below.setdefault(key, [])
        if isinstance(listed, list):
            listed.append(value)


def _instructions(text: str, where: str) -> Iterator[tuple[int, str, str]]:
    """Each instruction with its line; a value in three quotes may have several lines."""
    lines = iter(enumerate(text.split("\n"), 1))
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _INSTRUCTION.fullmatch(line.strip())
        name = found[1].lower() if found else ""
        if found is None or name not in INSTRUCTIONS:
            word = line.split()[0][:40]
            known = ", ".join(sorted(INSTRUCTIONS)).upper()
            raise CannotImport(f"{where}:{number}: {word!r} is no instruction; there are {known}")
        value = found[2]
        if value.count('"""') == 1:
            rest = []
            for _, more in lines:
                rest.append(more)
                if '"""' in more:
                    break
            else:
                raise CannotImport(f'{where}:{number}: the text in """ does not end')
            value = "\n".join([value, *rest])
        yield number, name, value


def _unquoted(value: str) -> str:
    for quote in ('"""', '"'):
        if value.startswith(quote):
            return value.removeprefix(quote).removesuffix(quote)
    return value


def convert(work: Work) -> None:
    """One Modelfile."""
    tree = as_mapping(work.tree)
    written = as_text(tree.get("from")) or ""
    model = work.draft.model(_name(work.source.path, written), f"{work.source.name}")
    work.book.model = model.id
    options: dict[str, Plain] = {}
    source = _source(written, work)
    if source is not None and _exists(source) and source.is_dir():
        _served_by_vllm(source, as_mapping(tree.get("parameter")), model, work)
    else:
        _parameters(as_mapping(tree.get("parameter")), options, work)
        _adapters(tree, options, work)
        model.put("engine", "llamacpp")
        if source is None:
            model.put("source", literal(written))
            model.aside = f"Ollama's store holds no {written}; pull it, or write the path of a file"
            work.book.no_equal(("from",), f"is not in Ollama's store ({store_folder(work.here)})")
        else:
            model.put("source", literal(str(source)), "FROM")
            work.book.converted(("from",), "source")
        if options:
            model.put("options", options, "PARAMETER, ADAPTER")
    _rest(tree, work)
    work.book.model = ""


def _name(path: Path, written: str) -> str:
    """A Modelfile does not say what it makes: its own name does, else what it is made from."""
    words = [part for part in re.split(r"[.]", path.name) if part.lower() != "modelfile"]
    if words and words != [""]:
        return words[0]
    name = bare(written.partition("@")[0])
    return re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE) or "model"


def _source(written: str, work: Work) -> Path | None:
    """The file or folder that FROM means; None if it is a name that the store does not hold."""
    is_path = written.startswith((".", "/", "~")) or written.lower().endswith((".gguf", ".bin"))
    folder = usable_folder(written, work.source.folder, work.here)
    if folder is not None and (is_path or _exists(Path(folder))):
        return Path(folder)
    return blob_of(written, work.here)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False


def _served_by_vllm(
    source: Path, parameters: Mapping[str, Plain], model: ModelDraft, work: Work
) -> None:
    argv = ["vllm", "serve", argument(str(source)), "--host", "{host}", "--port", "{port}",
            "--served-model-name", argument(model.id)]  # fmt: skip
    for key, values in parameters.items():
        length = as_int(_last(values)) if key == "num_ctx" else None
        if length is not None and length > 0:
            argv += ["--max-model-len", str(length)]
            work.book.converted(("parameter", key), "command")
        else:
            why = "vLLM has no default for it; clients send it with their requests"
            work.book.no_equal(("parameter", key), why)
    model.put("tasks", ["chat", "completion"], "a folder of safetensors")
    memory = claims(["gpu"], argv, work.here)
    way = Way("default", ["gpu"], memory, Launch(tuple(argv), has_port=True))
    model.notes += put_ways(model, [way], None)
    work.book.converted(("from",), "command")


def _parameters(parameters: Mapping[str, Plain], options: dict[str, Plain], work: Work) -> None:
    for key, values in parameters.items():
        path: KeyPath = ("parameter", key)
        value = _last(values)
        number: int | float | None = None
        if key in _WHOLE:
            number = as_int(value)
        elif key in _NUMBERS:
            number = as_number(value)
        if number is not None:
            name = _WHOLE.get(key) or _NUMBERS[key]
            options[name] = number
            work.book.converted(path, f"options.{name}")
        elif key in ("use_mmap", "use_mlock"):
            _loading(key, as_bool(value), options, work)
        elif key in _LOST:
            work.book.no_equal(path, _LOST[key])
        elif key in _UNUSED:
            work.book.not_needed(path, "llama.cpp decides it by itself")
        elif key in _WHOLE or key in _NUMBERS:
            work.book.no_equal(path, "is no number; the default is used")


def _last(values: Plain) -> Plain:
    return values[-1] if isinstance(values, list) and values else None


def _loading(key: str, wanted: bool | None, options: dict[str, Plain], work: Work) -> None:
    path = ("parameter", key)
    if key == "use_mlock" and wanted:
        options["load_mode"] = "mlock"
        work.book.converted(path, "options.load_mode")
    elif key == "use_mmap" and wanted is False:
        options.setdefault("load_mode", "none")
        work.book.converted(path, "options.load_mode")
    else:
        work.book.not_needed(path, "is llama.cpp's default")


def _adapters(tree: Mapping[str, Plain], options: dict[str, Plain], work: Work) -> None:
    listed = tree.get("adapter")
    paths = [
        usable_folder(as_text(item), work.source.folder, work.here)
        for item in (listed if isinstance(listed, list) else [])
    ]
    usable: list[Plain] = [literal(path) for path in paths if path and path.endswith(".gguf")]
    if usable:
        options["lora"] = usable
        work.book.converted(("adapter",), "options.lora")
    if len(usable) < len(paths):
        why = "llama.cpp reads adapters as GGUF; convert it with convert_lora_to_gguf.py"
        work.book.no_equal(("adapter",), why)
    draft = usable_folder(as_text(tree.get("draft")), work.source.folder, work.here)
    if draft:
        options["spec_draft_model"] = literal(draft)
        work.book.converted(("draft",), "options.spec_draft_model")


def _rest(tree: Mapping[str, Plain], work: Work) -> None:
    for key, why in _REST.items():
        if key in tree:
            work.book.no_equal((key,), why)
    if "license" in tree:
        work.book.not_needed(("license",), "the licence stays with the model's file")
    if "requires" in tree:
        work.book.not_needed(("requires",), "a version of Ollama")
