"""An engine process: the HTTP server that the xllamacpp wheel contains, serving one GGUF file.

Laws of this file:
- Only the standard library and xllamacpp are imported, because every cold request waits for this
  process to start. What the options mean is the adapter's business (`engines/llamacpp.py`):
  `--set` takes final attribute names of `xllamacpp.CommonParams`.
- `xllamacpp.Server(...)` holds the interpreter's lock until the model is loaded, which can take
  minutes; `lifeline` ends the process all the same.
- Where llama.cpp gives up, its own last lines say why.
"""

from __future__ import annotations

import argparse
import difflib
import enum
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import NoReturn, TypeAlias

import xllamacpp

from modelyard.servers.command_line import Parser, read_template
from modelyard.servers.lifeline import (
    EXIT_FAILED,
    EXIT_PERMANENT,
    Unusable,
    announce,
    die_with_stdin,
    leave,
    restore_signals,
)
from modelyard.servers.processors import usable_processors

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

LAST_WORDS_S = 0.2
"""llama.cpp prints from a thread of its own, which would be ended with its reason unsaid."""
_GGUF_MAGIC = b"GGUF"


def main(argv: Sequence[str]) -> NoReturn:
    """Serve until a signal or, with `--exit-with-stdin`, the end of stdin."""
    restore_signals()
    try:
        args = _arguments(argv)
        if args.exit_with_stdin:
            die_with_stdin()
        check_model_file(args.model)
        params = _parameters(args)
    except Unusable as error:
        leave(EXIT_PERMANENT, str(error))
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        time.sleep(LAST_WORDS_S)
        leave(EXIT_FAILED, f"llama.cpp could not serve {args.model}; its reason is printed above")
    restore_signals()  # some versions of the wheel install handlers that end its loop alone
    announce(f"{args.alias[0]} is ready at {server.listening_address}")
    while True:
        signal.pause()


# ---------------------------------------------------------------------------------------- arguments


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("modelyard.servers.llamacpp", __doc__, source="FILE")
    parser.add_argument("--mode", choices=("chat", "embedding", "rerank"), default="chat")
    return parser.parse_args(argv)


def check_model_file(path: str) -> None:
    """Refuse what cannot be a GGUF file, so that the reason is named in one line.

    Raises Unusable.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise Unusable(f"the model {path} is not a file")
        with Path(path).open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except OSError as error:
        raise Unusable(f"cannot read the model {path}: {error.strerror}") from None
    if magic != _GGUF_MAGIC:
        raise Unusable(f"{path} is not a GGUF file: it begins with {magic!r}")


def _parameters(args: argparse.Namespace) -> xllamacpp.CommonParams:
    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.model_alias = set(args.alias)
    params.hostnames = [args.host]
    params.port = args.port
    processors = usable_processors()
    if processors < (os.cpu_count() or 1):
        params.cpuparams.n_threads = processors
    if args.mode != "chat":
        params.embedding = True
    if args.mode == "rerank":
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    if args.chat_template_file:
        params.chat_template = read_template(args.chat_template_file)
    for setting in args.settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise Unusable(f"--set {setting}: write NAME=JSON")
        try:
            value: Json = json.loads(text)
        except ValueError as error:
            raise Unusable(f"--set {setting}: the value is not JSON ({error})") from None
        set_parameter(params, name, value)
    return params


# --------------------------------------------------------------------------------------- parameters


def set_parameter(params: xllamacpp.CommonParams, name: str, value: Json) -> None:
    """Set one attribute by its dotted name. Raises Unusable for a wrong name or value."""
    owner: object = params
    *path, last = name.split(".")
    try:
        for part in path:
            owner = getattr(owner, part)
        default = getattr(owner, last)
    except AttributeError:
        near = difflib.get_close_matches(name, list(names(params)), n=3)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise Unusable(f"llama.cpp has no parameter {name!r}{meant}") from None
    try:
        setattr(owner, last, _converted(default, value))
    except (TypeError, ValueError, OverflowError, RuntimeError, AssertionError) as error:
        raise Unusable(f"parameter {name} cannot be {json.dumps(value)}: {error}") from None


def names(owner: object, prefix: str = "") -> Iterator[str]:
    """All dotted names that `set_parameter` knows."""
    for name in dir(owner):
        if name.startswith("_"):
            continue
        value = getattr(owner, name)
        if _is_group(value):
            yield from names(value, f"{prefix}{name}.")
        elif not callable(value):
            yield prefix + name


def _is_group(value: object) -> bool:
    return type(value).__module__.startswith("xllamacpp") and not isinstance(value, enum.Enum)


def _converted(default: object, value: Json) -> object:
    """`value` as an attribute that now holds `default` wants it."""
    if isinstance(default, enum.Enum):
        return _member(type(default), value)
    if isinstance(default, list):
        return _list(default, value)
    for kind, read in _READERS.items():
        if isinstance(default, kind):
            return read(value)
    raise TypeError("it cannot be set here")


def _switch(value: Json) -> bool:
    if not isinstance(value, bool):
        raise TypeError("it must be true or false")
    return value


def _whole(value: Json) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("it must be a whole number")
    return value


def _number(value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("it must be a number")
    return float(value)


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise TypeError("it must be a text")
    return value


def _words(value: Json) -> set[str]:
    if not isinstance(value, list):
        raise TypeError("it must be a list")
    return {_text(item) for item in value}


def _texts(value: Json) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError("it must be a mapping")
    return {name: _text(item) for name, item in value.items()}


_READERS: dict[type, Callable[[Json], object]] = {
    bool: _switch,
    int: _whole,
    float: _number,
    str: _text,
    set: _words,
    dict: _texts,
}
"""Python's bool is an int, so it is asked first."""


def _list(default: list[object], value: Json) -> list[object]:
    """llama.cpp's arrays have a fixed length: a shorter list fills their beginning."""
    if not isinstance(value, list):
        raise TypeError("it must be a list")
    if default and isinstance(default[0], enum.Enum):
        return [_member(type(default[0]), item) for item in value]
    if default and isinstance(default[0], float):
        return [*map(_number, value), *default[len(value) :]]
    items = [_adapter(item) if isinstance(item, dict) else item for item in value]
    return [*items, *default[len(value) :]]


def _adapter(item: dict[str, Json]) -> xllamacpp.CommonAdapterLoraInfo:
    adapter = xllamacpp.CommonAdapterLoraInfo()
    adapter.path = _text(item.get("path"))
    adapter.scale = _number(item.get("scale", 1.0))
    return adapter


def _member(kind: type[enum.Enum], value: Json) -> enum.Enum:
    """A member by its name, which may leave out what all members' names begin with."""
    members = [member.name for member in kind]
    prefix = commonprefix(members).rpartition("_")[0] + "_"  # noqa: RUF071 - names, not paths
    known = {member.name.removeprefix(prefix).lower(): member for member in kind}
    wanted = str(value).upper().removeprefix(prefix).lower().replace("-", "_")
    if wanted not in known:
        raise ValueError(f"it must be one of {', '.join(known)}")
    return known[wanted]


if __name__ == "__main__":
    main(sys.argv[1:])
