"""An engine process: the HTTP server that the xllamacpp wheel contains, serving one GGUF file.

Laws of this file:
- Only the standard library and xllamacpp are imported, because every cold request waits for this
  process to start. What the options mean is the adapter's business (`engines/llamacpp.py`):
  `--set` takes final attribute names of `xllamacpp.CommonParams`.
- `xllamacpp.Server(...)` holds the interpreter's lock until the model is loaded, which can take
  minutes. Whatever must end the process in that time is therefore left to the kernel: signals keep
  their default action, and on Linux the end of stdin is made a signal too (F_SETSIG in fcntl(2)).
- Exit code 78 (EX_CONFIG in sysexits.h) means that the same command can only fail again; 1 means
  that llama.cpp gave up, and its own last lines say why. One line on stderr sums up either.
"""

from __future__ import annotations

import argparse
import difflib
import enum
import fcntl
import json
import os
import select
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import NoReturn, TypeAlias

import xllamacpp

from modelyard.servers.processors import usable_processors

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

EXIT_FAILED = 1
EXIT_PERMANENT = 78

_GGUF_MAGIC = b"GGUF"
_STDIN = 0


class PermanentError(Exception):
    """Something only a person can put right: a wrong file or a wrong parameter."""


def main(argv: Sequence[str]) -> NoReturn:
    """Serve until a signal or, with `--exit-with-stdin`, the end of stdin."""
    _restore_signals()
    try:
        args = _arguments(argv)
        if args.exit_with_stdin:
            _die_with_stdin()
        check_model_file(args.model)
        params = _parameters(args)
    except PermanentError as error:
        _leave(EXIT_PERMANENT, str(error))
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        _leave(EXIT_FAILED, f"llama.cpp could not serve {args.model}; its reason is printed above")
    _restore_signals()
    print(f"modelyard: {args.alias[0]} is ready at {server.listening_address}", flush=True)
    _serve(exit_with_stdin=args.exit_with_stdin)


# ---------------------------------------------------------------------------------------- arguments


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise PermanentError(message)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m modelyard.servers.llamacpp", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", required=True, metavar="FILE", help="GGUF file to serve")
    parser.add_argument("--alias", required=True, action="append", metavar="NAME")
    parser.add_argument("--host", default="127.0.0.1", help="address, or path of a Unix socket")
    parser.add_argument("--port", type=int, required=True, help="0 lets the system choose")
    parser.add_argument("--mode", choices=("chat", "embedding", "rerank"), default="chat")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=JSON",
        dest="settings",
        help="attribute of xllamacpp.CommonParams, e.g. n_ctx=4096 or sampling.temp=0.2",
    )
    parser.add_argument("--chat-template-file", metavar="FILE", help="Jinja template to use")
    parser.add_argument(
        "--exit-with-stdin", action="store_true", help="end when stdin does; write nothing to it"
    )
    return parser.parse_args(argv)


def check_model_file(path: str) -> None:
    """Refuse what cannot be a GGUF file, so that the reason is named in one line.

    Raises PermanentError.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise PermanentError(f"the model {path} is not a file")
        with Path(path).open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except OSError as error:
        raise PermanentError(f"cannot read the model {path}: {error.strerror}") from None
    if magic != _GGUF_MAGIC:
        raise PermanentError(f"{path} is not a GGUF file: it begins with {magic!r}")


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
        params.chat_template = _template(args.chat_template_file)
    for setting in args.settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise PermanentError(f"--set {setting}: write NAME=JSON")
        try:
            value: Json = json.loads(text)
        except ValueError as error:
            raise PermanentError(f"--set {setting}: the value is not JSON ({error})") from None
        set_parameter(params, name, value)
    return params


def _template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PermanentError(f"cannot read the chat template {path}: {error}") from None


# --------------------------------------------------------------------------------------- parameters


def set_parameter(params: xllamacpp.CommonParams, name: str, value: Json) -> None:
    """Set one attribute by its dotted name. Raises PermanentError for a wrong name or value."""
    owner: object = params
    *path, last = name.split(".")
    try:
        for part in path:
            owner = getattr(owner, part)
        default = getattr(owner, last)
    except AttributeError:
        near = difflib.get_close_matches(name, list(names(params)), n=3)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise PermanentError(f"llama.cpp has no parameter {name!r}{meant}") from None
    try:
        setattr(owner, last, _converted(default, value))
    except (TypeError, ValueError, OverflowError, RuntimeError, AssertionError) as error:
        raise PermanentError(f"parameter {name} cannot be {json.dumps(value)}: {error}") from None


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


# -------------------------------------------------------------------------------- life and death


def _restore_signals() -> None:
    """Let the kernel end the process at once, whatever C++ code is running.

    Called again after the constructor, because some versions of the wheel install handlers there
    that end the server's loop and leave the process alive.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _die_with_stdin() -> None:
    """Have the kernel send SIGTERM when stdin ends, or end now if it has.

    Other systems than Linux cannot choose the signal; there the end is noticed once the model is
    loaded.
    """
    try:
        if sys.platform == "linux":
            fcntl.fcntl(_STDIN, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(_STDIN, fcntl.F_SETSIG, signal.SIGTERM)
            flags = fcntl.fcntl(_STDIN, fcntl.F_GETFL)
            fcntl.fcntl(_STDIN, fcntl.F_SETFL, flags | os.O_ASYNC)
        ended = select.select([_STDIN], [], [], 0)[0] and not os.read(_STDIN, 4096)
    except OSError as error:
        raise PermanentError(f"--exit-with-stdin needs a stdin: {error.strerror}") from None
    if ended:
        os._exit(0)


def _serve(*, exit_with_stdin: bool) -> NoReturn:
    if exit_with_stdin:
        while os.read(_STDIN, 4096):
            pass
        os._exit(0)
    while True:
        signal.pause()


def _leave(code: int, message: str) -> NoReturn:
    print(f"modelyard: {message}", file=sys.stderr, flush=True)
    # Past the interpreter's own end, which would wait for threads of llama.cpp.
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
