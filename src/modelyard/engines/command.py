"""Any program that speaks the OpenAI API: a command line with five blanks to fill in.

Laws of this file:
- Exactly `{port}`, `{socket}`, `{host}`, `{model}` and `{alias}` are replaced, wherever they stand
  in an argument or in the value of a variable. Any other single word in braces is reported, because
  it is most likely a mistake; `{{word}}` stands for the text `{word}`. All other braces are left as
  they are: JSON, `${HOME}` of a shell, `{{ x }}` of a template.
- No shell is involved. Where one is wanted, the command says so: `[bash, -c, "..."]`.
- A command that names `{socket}` listens on a Unix socket at that path, in place of a port.
- A script that insists on a port of its own states it as `options: {port: 10001}`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from modelyard.core.specs import (
    HOST_DEVICE,
    Call,
    Command,
    Endpoint,
    ModelSpec,
    OptionValue,
    Placement,
    Progress,
)
from modelyard.engines import probing, reports
from modelyard.engines.base import Failure
from modelyard.engines.quirks import COUNTS_BY_ANSWERING, Quirks
from modelyard.engines.sleeping import PRESETS
from modelyard.engines.visibility import visible_devices

BLANKS = ("port", "socket", "host", "model", "alias")

_BLANK = re.compile(r"\{\{(?P<kept>[A-Za-z_]+)\}\}|(?<!\$)\{(?P<name>[A-Za-z_]+)\}")
_SCRIPTS = frozenset({".sh", ".bash", ".bat", ".cmd", ".ps1", ".py"})
SLEEP_LEVELS = (1, 2)
_PORT_OPTION = "port"
_LAST_PORT = 65535

_PERCENT = re.compile(r"(?<![\w.])(?P<percent>100(?:\.0+)?|\d{1,2}(?:\.\d+)?) ?%")
_STARTED = r"running on http|startup complete|listening (on|at)|server (is )?(ready|started)"
_PHASES = (
    (re.compile(r"download", re.IGNORECASE), "downloading"),
    (re.compile(r"captur\w* .*graph|compil", re.IGNORECASE), "compiling"),
    (re.compile(r"warm(ing)?[ -]?up", re.IGNORECASE), "warming up"),
    (re.compile(r"\bload(ing|ed)?\b", re.IGNORECASE), "loading"),
    (re.compile(_STARTED, re.IGNORECASE), "listening"),
)

_REASONS = tuple(
    (re.compile(pattern, re.IGNORECASE), reason, permanent)
    for pattern, reason, permanent in (
        (r"address already in use|errno 98\b|only one usage of each socket address",
         "its port was taken by another program", False),
        (r"out of memory|cannot allocate memory|bad_alloc|MemoryError", "out of memory", False),
        (r"ModuleNotFoundError: .*|command not found", "", True),
    )
)  # fmt: skip
_EXITS = {
    "exit code 126": "the program may not be executed",
    "exit code 127": "a program of the command was not found",
}


class CommandEngine:
    """Starts what the model's or the profile's `command` says."""

    name = "command"

    def problems(self, spec: ModelSpec) -> Sequence[str]:
        return tuple(_problems(spec))

    def command(self, spec: ModelSpec, placement: Placement, endpoint: Endpoint) -> Command:
        argv = _argv(spec, placement)
        values = {
            "port": str(endpoint.port),
            "socket": endpoint.path,
            "host": endpoint.host,
            "model": spec.source or spec.id,
            "alias": spec.id,
        }
        filled = tuple(fill(argument, values) for argument in argv)
        # A command on the host alone may be a script that chooses its own cards: it sees them all.
        seen = visible_devices(placement) if set(placement.claims_mib) - {HOST_DEVICE} else {}
        env = {**seen, **{name: fill(value, values) for name, value in spec.env.items()}}
        return Command((program_path(filled[0], spec.cwd), *filled[1:]), env=env, cwd=spec.cwd)

    def takes_socket(self, spec: ModelSpec, placement: Placement) -> bool:
        """Whether the command that `placement` starts listens on a Unix socket."""
        return "socket" in _used(_argv(spec, placement), spec)

    def fixed_port(self, spec: ModelSpec) -> int | None:
        """`options.port`, for programs that choose their port themselves."""
        port = spec.options.get(_PORT_OPTION)
        return port if isinstance(port, int) else None

    def health_path(self, spec: ModelSpec) -> str:
        return spec.health_path or "/health"

    def functional_probe(self, spec: ModelSpec) -> Call | None:
        """Only where the model asks for it: which names and bodies a program takes is its own."""
        return probing.smallest_request(spec) if spec.health.functional else None

    def quirks(self, spec: ModelSpec) -> Quirks | None:  # noqa: ARG002 - OpenAI's own
        return COUNTS_BY_ANSWERING

    def warm_up(self, spec: ModelSpec) -> Call | None:  # noqa: ARG002 - nothing is known of it
        return None

    def progress(self, line: str) -> Progress | None:
        """A percentage (as tqdm and most loaders print one), or a word that names a phase."""
        phase = next((phase for pattern, phase in _PHASES if pattern.search(line)), None)
        found = _PERCENT.search(line)
        if found:
            return Progress(phase or "loading", float(found["percent"]))
        return Progress(phase) if phase else None

    def failure(self, exit_text: str, last_lines: Sequence[str]) -> Failure:
        said = [line.strip() for line in last_lines if line.strip()]
        if exit_text in _EXITS:
            return Failure(f"{_EXITS[exit_text]}{_quote(said)}", permanent=True)
        for pattern, reason, permanent in _REASONS:
            telling = [line for line in said if pattern.search(line)]
            if telling:
                return Failure(f"{reason}{_quote(telling)}".removeprefix(": "), permanent)
        return Failure(f"{exit_text}{_quote(said) or ', and it printed nothing'}")

    def memory_report(self, lines: Sequence[str], placement: Placement) -> Mapping[str, int]:
        """What vLLM or llama.cpp says, if the command starts one of them."""
        return {**reports.llamacpp(lines, placement), **reports.vllm(lines, placement)}


def _argv(spec: ModelSpec, placement: Placement) -> Sequence[str]:
    profile = next((p for p in spec.profiles if p.name == placement.profile), None)
    return profile.command if profile is not None and profile.command else spec.command


def _used(argv: Sequence[str], spec: ModelSpec) -> set[str]:
    """The blanks of a command and its variables."""
    return {blank for text in (*argv, *spec.env.values()) for blank in blanks(text)}


def fill(text: str, values: Mapping[str, str]) -> str:
    """`text` with its blanks replaced."""

    def replacement(found: re.Match[str]) -> str:
        if found["kept"]:
            return "{" + found["kept"] + "}"
        return values.get(found["name"], found[0])

    return _BLANK.sub(replacement, text)


def program_path(program: str, cwd: str | None) -> str:
    """A script or a path is taken from the command's own folder, a bare name from PATH."""
    is_path = "/" in program or Path(program).suffix.lower() in _SCRIPTS
    if cwd is not None and is_path and not Path(program).is_absolute():
        return str(Path(cwd) / program)
    return program


def _quote(lines: Sequence[str]) -> str:
    return f": {lines[-1]}" if lines else ""


# ----------------------------------------------------------------------------------------- checking


def _problems(spec: ModelSpec) -> Iterator[str]:
    commands = {"command": spec.command} if spec.command else {}
    if not spec.command and not any(profile.command for profile in spec.profiles):
        yield "command: write the program to start and its arguments"
    for index, profile in enumerate(spec.profiles):
        if profile.command:
            commands[f"profiles[{index}].command"] = profile.command
        elif not spec.command and len(spec.profiles) > 1:
            yield f"profiles[{index}].command: neither the profile nor the model has one"
        for name in profile.options:
            yield f"profiles[{index}].options.{name}: a command's options are its own arguments"
    yield from _option_problems(spec.options)
    for path, argv in commands.items():
        yield from command_problems(path, argv)
        yield from _port_problems(path, argv, spec)
    yield from sleep_problems(spec)
    for name, value in spec.env.items():
        yield from (f"env.{name}: {problem}" for problem in _unknown_blanks(value))


def command_problems(
    path: str, argv: Sequence[str], known: Sequence[str] = BLANKS
) -> Iterator[str]:
    """What is wrong with a command that may hold the blanks `known`."""
    if not argv[0].strip():
        yield f"{path}[0]: the program's name is empty"
    for index, argument in enumerate(argv):
        yield from (f"{path}[{index}]: {problem}" for problem in _unknown_blanks(argument, known))


def _port_problems(path: str, argv: Sequence[str], spec: ModelSpec) -> Iterator[str]:
    used = _used(argv, spec)
    has_port = "port" in used or _PORT_OPTION in spec.options
    if "socket" in used and has_port:
        yield (
            f"{path}: it is given a port and {{socket}} as well; it can listen in one place only"
        )
    elif "socket" not in used and not has_port:
        yield (
            f"{path}: the command never uses {{port}}, nor {{socket}} for a Unix socket; where a "
            "script has a port of its own, write it as options: {port: 10001}"
        )


def _option_problems(options: Mapping[str, OptionValue]) -> Iterator[str]:
    for name, value in options.items():
        if name != _PORT_OPTION:
            yield f"options.{name}: a command's options are its own arguments, except port"
        elif isinstance(value, bool) or not isinstance(value, int):
            yield f"options.port: it must be a whole number, not {value!r}"
        elif not 0 < value <= _LAST_PORT:
            yield f"options.port: it must be between 1 and {_LAST_PORT}, not {value}"


def sleep_problems(spec: ModelSpec) -> Iterator[str]:
    """What is wrong with the calls that put a model's engine to sleep and wake it."""
    if spec.sleep_preset and spec.sleep_preset not in PRESETS:
        known = ", ".join(PRESETS)
        yield f"sleep: {spec.sleep_preset!r} is no engine whose sleep is known; there are {known}"
    for level, calls in spec.sleep.items():
        if level not in SLEEP_LEVELS:
            yield f"sleep.{level}: there are the levels 1 and 2; stopping is what comes after"
        for key, made in (("sleep", calls.enter), ("wake", calls.leave)):
            if not made:
                yield f"sleep.{level}.{key}: needs at least one call"
            for index, call in enumerate(made):
                if not call.path.startswith("/"):
                    yield f"sleep.{level}.{key}[{index}]: {call.path!r} is not a route"


def blanks(text: str) -> Iterator[str]:
    """The blanks in `text`, known or not."""
    return (found["name"] for found in _BLANK.finditer(text) if found["name"])


def _unknown_blanks(text: str, known: Sequence[str] = BLANKS) -> Iterator[str]:
    for name in blanks(text):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {{{near[0]}}}? " if near else ""
            listed = ", ".join(f"{{{blank}}}" for blank in known)
            yield f"{{{name}}} is not known; {meant}there are {listed}"
