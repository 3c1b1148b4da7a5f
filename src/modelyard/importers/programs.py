"""What is known of the programs that commands start: their port, host, name, task and cards.

Laws of this file:
- Programs are known by their file name, and options by the program's own `--help`; what is not
  known is left as it is.
- Modelyard chooses the port and the address, so a value of theirs becomes `{port}` and `{host}`.

Facts about options: llama-server (tools/server/README.md of llama.cpp), `vllm serve --help` of
0.32, `lmdeploy serve api_server --help` of 0.16, `python -m sglang.launch_server --help`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath

WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")


@dataclass(frozen=True, slots=True)
class Program:
    """The options of one kind of inference server."""

    name: str
    port: str = "--port"
    host: str = "--host"
    served_name: str = ""
    """Option with the name that requests must use; empty where any name will do."""
    many_names: bool = False
    visible_gpus: str = ""
    """Option with the number of GPUs; empty where all that are visible are used."""


_LLAMA = Program("llama.cpp")
_VLLM = Program(
    "vLLM",
    served_name="--served-model-name",
    many_names=True,
    visible_gpus="--tensor-parallel-size",
)
_LMDEPLOY = Program("LMDeploy", "--server-port", "--server-name", "--model-name")
_SGLANG = Program("SGLang", visible_gpus="--tp")
_SHORT_FORMS = {"--tensor-parallel-size": ("-tp",), "--tp": ("--tp-size",)}

_PORT_OPTIONS = ("--port", "--server-port", "--http-port", "--api-port", "-port")
_HOST_OPTIONS = ("--host", "--server-name", "--hostname")
_EMBEDDING = frozenset({"--embedding", "--embeddings", "--is-embedding"})
_RERANK = frozenset({"--rerank", "--reranking"})
_TASK_VALUES = {
    "embed": "embedding", "embedding": "embedding", "score": "rerank", "classify": "rerank",
    "rerank": "rerank",
}  # fmt: skip
_RERANKER_NAME = re.compile(r"rerank", re.IGNORECASE)
_EMBEDDING_NAME = re.compile(r"embed|(?<![a-z])(bge|gte|e5)-", re.IGNORECASE)


def known(argv: Sequence[str]) -> Program | None:
    """The kind of server that `argv` starts."""
    words = [bare(word) for word in argv[:12]]
    text = " ".join(words)
    if "llama-server" in words:
        return _LLAMA
    if "vllm serve" in text or "vllm.entrypoints.openai.api_server" in text:
        return _VLLM
    if "lmdeploy serve api_server" in text:
        return _LMDEPLOY
    return _SGLANG if "sglang.launch_server" in text or "sglang serve" in text else None


def bare(word: str) -> str:
    """The last part of a path, without `.exe`: how a program is called."""
    name = re.split(r"[\\/]", word.rstrip("\\/"))[-1] if word else ""
    return re.sub(r"\.exe$", "", name, flags=re.IGNORECASE)


def is_windows_path(text: str) -> bool:
    return WINDOWS_PATH.match(text) is not None


def portable(program: str, *, windows: bool) -> str:
    """`program` where it can be found here: a path of Windows as the bare name, looked up in PATH.

    Scripts keep their path: nobody puts them on the PATH.
    """
    if windows or not (is_windows_path(program) or program.lower().endswith(".exe")):
        return program
    name = PureWindowsPath(program).name
    return re.sub(r"\.exe$", "", name, flags=re.IGNORECASE)


def find_option(argv: Sequence[str], names: Sequence[str]) -> tuple[int, str] | None:
    """Where the value of an option is, and the value: `--port 80`, `--port=80`."""
    for at, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in names and equals:
            return at, value
        if name in names and at + 1 < len(argv):
            return at + 1, argv[at + 1]
    return None


def replace_option(argv: Sequence[str], names: Sequence[str], value: str) -> list[str] | None:
    """`argv` with another value of an option; None if it is not there."""
    found = find_option(argv, names)
    if found is None:
        return None
    at, _ = found
    changed = list(argv)
    name, equals, _ = changed[at].partition("=")
    changed[at] = f"{name}={value}" if equals and name in names else value
    return changed


def port_of(argv: Sequence[str]) -> int | None:
    """The port that a command states."""
    found = find_option(argv, _PORT_OPTIONS)
    return int(found[1]) if found and re.fullmatch(r"[0-9]{1,5}", found[1]) else None


def with_blanks(argv: Sequence[str], port: int | None) -> tuple[list[str], bool]:
    """`argv` with Modelyard's address in it, and whether the port is among it.

    Arguments must have been escaped before; `port` is the one that the source states, which may
    stand anywhere in the command.
    """
    program = known(argv)
    words = replace_option(argv, _HOST_OPTIONS, "{host}") or list(argv)
    placed = replace_option(words, _PORT_OPTIONS, "{port}")
    if placed is None and port is not None:
        pattern = re.compile(rf"(?<![0-9]){port}(?![0-9])")
        swapped = [pattern.sub("{port}", word) for word in words]
        placed = swapped if swapped != words else None
    if placed is None and program is not None:
        placed = [*words, program.port, "{port}"]
    return placed or words, placed is not None


def with_names(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """`argv` with the names that requests use, for servers that answer to no other.

    The gateway hands the name that a client wrote on to the engine.
    """
    program = known(argv)
    if program is None or not program.served_name:
        return list(argv)
    words = list(argv)
    option = program.served_name
    at = next((at for at, word in enumerate(words) if word.partition("=")[0] == option), None)
    told: list[str] = []
    if at is not None:
        end = at + 1
        if "=" in words[at]:
            told = [words[at].partition("=")[2]]
        else:
            while end < len(words) and not words[end].startswith("-"):
                end += 1
            told = words[at + 1 : end]
        del words[at:end]
    wanted = list(dict.fromkeys([*names, *told])) if program.many_names else list(names[:1])
    return [*words, option, *wanted]


def tasks_of(argv: Sequence[str], name: str) -> tuple[list[str], str]:
    """What a model can probably be asked to do, and what that was concluded from."""
    options = {word.partition("=")[0] for word in argv}
    if options & _RERANK:
        return ["rerank"], "its command"
    if options & _EMBEDDING:
        return ["embedding"], "its command"
    told = find_option(argv, ("--task", "--convert"))
    if told and told[1] in _TASK_VALUES:
        return [_TASK_VALUES[told[1]]], "its command"
    for text in (name, *argv):
        if _RERANKER_NAME.search(text):
            return ["rerank"], "its name"
    if _EMBEDDING_NAME.search(name):
        return ["embedding"], "its name"
    return ["chat", "completion"], "nothing that says otherwise"


def gpus_of(argv: Sequence[str], present: int) -> int:
    """How many GPUs a command uses on a machine that has `present`; 0 for none."""
    layers = find_option(argv, ("-ngl", "--gpu-layers", "--n-gpu-layers"))
    device = find_option(argv, ("-dev", "--device"))
    if (layers and layers[1] == "0") or (device and device[1] in ("none", "cpu")):
        return 0
    program = known(argv)
    if program is not None and program.visible_gpus:
        option = (program.visible_gpus, *_SHORT_FORMS.get(program.visible_gpus, ()))
        told = find_option(argv, option)
        count = int(told[1]) if told and re.fullmatch(r"[0-9]{1,2}", told[1]) else 1
        return max(1, count)
    split = find_option(argv, ("-sm", "--split-mode"))
    return min(present, 1) if split and split[1] == "none" else present
