"""The command that gives a model devices and options: assign.

Laws of this file:
- A running server owns its configuration file, so it writes; without one the file is written here,
  by the same code and after the same checks.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelyard.cli.configure import ConfigFile as ConfigOption
from modelyard.cli.exits import BadUsage
from modelyard.cli.options import Json, Model, Timeout, Url
from modelyard.cli.output import print_json, print_pairs, say
from modelyard.cli.owner import file_here, owner
from modelyard.cli.words import listed, short_path, span

if TYPE_CHECKING:
    from modelyard.client import Client
    from modelyard.config.assignment import AssignmentView, Wanted
    from modelyard.core.specs import OptionValue

NOBODY = "none"
"""Given to `--devices`, it takes the assigned ones back."""


Devices = Annotated[
    str | None,
    typer.Option(
        "--devices",
        "-d",
        metavar="DEVICE,...",
        help="Devices to run on, by index, words of the name or id; none takes them back.",
    ),
]
GpuMemory = Annotated[
    float | None,
    typer.Option("--gpu-memory", metavar="SHARE", help="Share of each GPU's memory, like 0.85."),
]
MaxModelLen = Annotated[
    int | None, typer.Option("--max-model-len", "-l", metavar="TOKENS", help="Longest sequence.")
]
TensorParallel = Annotated[
    int | None,
    typer.Option(
        "--tensor-parallel",
        "--tensor-parallel-size",
        "-t",
        metavar="GPUS",
        help="Over how many GPUs each layer is spread.",
    ),
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", metavar="TYPE", help="Type of weights and activations.")
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="NAME=VALUE",
        help="An option by the engine's own name; NAME= takes it back. May be repeated.",
    ),
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Start the model afresh and wait until it is ready.")
]
Show = Annotated[bool, typer.Option("--show", help="Only print what is assigned to the model.")]
Clear = Annotated[
    bool, typer.Option("--clear", help="Take back all that is assigned to the model.")
]


def assign(
    model: Model,
    devices: Devices = None,
    gpu_memory: GpuMemory = None,
    max_model_len: MaxModelLen = None,
    tensor_parallel: TensorParallel = None,
    dtype: Dtype = None,
    option: Options = None,
    restart: Restart = False,
    show: Show = False,
    clear: Clear = False,
    config: ConfigOption = None,
    timeout: Timeout = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Give a model devices and options, and write them into the configuration file.

    Adds to what is assigned already. Comments and everything else in the file stay as they are.
    """
    from modelyard.config.assignment import Wanted

    given = None if devices is None else _devices(devices)
    wanted = Wanted(given, gpu_memory, max_model_len, tensor_parallel, dtype, _options(option))
    _check(wanted != Wanted(), show, clear)
    client = owner(url, config)
    if client is None:
        if restart:
            raise BadUsage("no server is running, so there is nothing to restart")
        view = _in_file(config, model, wanted, show=show, clear=clear)
        _report(view, as_json, show, "; the next server follows it")
        return
    with client:
        view = _by_server(client, model, wanted, show=show, clear=clear)
        seconds = _restarted(client, view.model, timeout) if restart else None
    ending = "; the server follows it" if seconds is None else f"; ready again in {span(seconds)}"
    _report(view, as_json, show, ending)


# ------------------------------------------------------------------------------------- what is said


def _check(assigns: bool, show: bool, clear: bool) -> None:
    """One thing at a time is asked."""
    if not (assigns or show or clear):
        raise BadUsage("nothing to assign", hint="see `modelyard assign --help`, or use --show")
    if assigns + show + clear > 1:
        raise BadUsage("--show and --clear stand alone")


def _devices(text: str) -> list[str]:
    return [] if text == NOBODY else [name.strip() for name in text.split(",") if name.strip()]


def _options(given: list[str] | None) -> dict[str, OptionValue]:
    """`--option` by `--option`: values are YAML, as they would be in the file."""
    options: dict[str, OptionValue] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise BadUsage(f"--option {text}: write NAME=VALUE, or NAME= to take it back")
        if name.strip() in options:
            raise BadUsage(f"--option {name.strip()} is given twice")
        options[name.strip()] = _value(value) if value else None
    return options


def _value(text: str) -> OptionValue:
    from modelyard.config.read import read_text
    from modelyard.config.tree import Node, Origin
    from modelyard.core.errors import ConfigError

    def plain(node: Node) -> Any:
        if isinstance(node.value, dict):
            return {name: plain(below) for name, below in node.value.items()}
        if isinstance(node.value, tuple):
            return [plain(below) for below in node.value]
        return node.value

    try:
        tree = read_text(f"value: {text}".encode(), Origin("--option", Path()), "--option")
    except ConfigError:
        return text  # no YAML, so it is text
    value: OptionValue = plain(tree)["value"]
    return value


def _report(view: AssignmentView, as_json: bool, show: bool, ending: str) -> None:
    if as_json:
        print_json(view)
        return
    if show:
        options = [f"{name}: {value}" for name, value in view.options.items()]
        pairs = [
            ("Model", view.model),
            ("Devices", listed(view.devices)),
            ("Options", "\n".join(options) or listed(())),
            ("File", short_path(view.path)),
        ]
        print_pairs(pairs)
    elif view.changed:
        say(f"{view.model}: written to {short_path(view.path)}{ending}")
    else:
        say(f"{view.model}: nothing to change in {short_path(view.path)}")


# ------------------------------------------------------------------------------------ who writes it


def _by_server(
    client: Client, model: str, wanted: Wanted, *, show: bool, clear: bool
) -> AssignmentView:
    if show:
        return client.assignment(model)
    return client.clear_assignment(model) if clear else client.assign(model, wanted)


def _restarted(client: Client, model: str, timeout: float | None) -> float:
    import time

    from modelyard.cli.waiting import until_ready

    began = time.monotonic()
    client.restart(model)
    until_ready(client, model, timeout)
    return time.monotonic() - began


def _in_file(
    config: Path | None, model: str, wanted: Wanted, *, show: bool, clear: bool
) -> AssignmentView:
    """Do it without a server."""
    import asyncio

    from modelyard.core.names import Names

    file, specs = file_here(config)
    spec = Names(specs).resolve(model)
    if show:
        return file.assignment(spec)
    return asyncio.run(file.clear(spec) if clear else file.assign(spec, wanted))
