"""The command that tells whether a model fits, and how to run it: plan.

Laws of this file:
- A name is a model of the running server, which knows its devices and who holds what there;
  without a server it is looked for in the folders of the configuration. A path needs no server.
- A plan starts nothing and changes nothing.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelyard.cli.configure import ConfigFile, load_config
from modelyard.cli.exits import BadUsage
from modelyard.cli.options import Json, Url, complete_model
from modelyard.cli.output import note, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelyard.catalog.found import FoundModel
    from modelyard.client import Client
    from modelyard.config import Config
    from modelyard.config.plans import Ask, PlanView
    from modelyard.core.specs import Device
    from modelyard.devices.base import Probe
    from modelyard.planner.machine import Machine

Wanted = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|PATH",
        help="Id or alias of a model, a GGUF file, or a folder.",
        autocompletion=complete_model,
    ),
]


def plan(
    model: Wanted,
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus",
            "-g",
            metavar="CARDS",
            help='Cards in place of this machine\'s, like "2x RTX 4090", "24GiB" or none.',
        ),
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option("--ram", metavar="SIZE", help="Host memory beside named cards, like 64GiB."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", "-l", metavar="TOKENS", help="Longest sequence."),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", "-n", metavar="N", help="Full sequences at once."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", "-e", help="llamacpp, vllm or transformers.")
    ] = None,
    formulas: Annotated[
        bool, typer.Option("--formulas", help="Show how each part of the memory was reckoned.")
    ] = False,
    config: ConfigFile = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Tell whether a model fits, how to run it, how fast it can be, and what else could be done."""
    from modelyard.config.plans import Ask

    if ram is not None and gpus is None:
        raise BadUsage("--ram goes with --gpus", hint="without both, this machine is meant")
    ask = Ask(gpus, _ram(ram), context, concurrency, engine)
    client = _server(url)
    if client is None:
        view = _reckoned(model, ask, config, None)
    else:
        with client:
            is_path = _is_path(model)
            view = _reckoned(model, ask, config, client) if is_path else client.plan(model, ask)
    if as_json:
        print_json(view)
        return
    from modelyard.cli.plan_page import print_plan

    print_plan(view, formulas=formulas)


def _is_path(model: str) -> bool:
    """A name may hold slashes too, so what exists on the disk is a path."""
    return model.startswith((".", "/", "~")) or Path(model).exists()


def _ram(text: str | None) -> int | None:
    from modelyard.config.units import parse_mib

    try:
        return None if text is None else parse_mib(text)
    except ValueError as error:
        raise BadUsage(f"--ram {text}: {error}") from None


def _server(url: str | None) -> Client | None:
    """The server that runs; None if none was named and there is none of ours."""
    from modelyard.client import Client, ServerNotRunning
    from modelyard.core.errors import ModelyardError

    is_named = url is not None or bool(os.environ.get("MODELYARD_URL"))
    client = Client(url)
    try:
        client.info()
    except ModelyardError as error:
        client.close()
        if is_named:
            raise
        if not isinstance(error, ServerNotRunning):
            note(f"planning without a server: {error}")
        return None
    except BaseException:
        client.close()
        raise
    return client


def _reckoned(model: str, ask: Ask, file: Path | None, client: Client | None) -> PlanView:
    """The plan, reckoned by this process; the devices are the server's where there is one."""
    from modelyard.planner.machine import machine_named
    from modelyard.planner.plan import ENGINES, make_plan, view_of

    config = load_config(file)
    found, beside, is_base = _found(model, config)
    if ask.gpus is not None:
        machine = machine_named(ask.gpus, ask.ram_mib, config.devices.reserve_mib)
    elif client is not None:
        machine = _machine_of_server(client)
    else:
        machine = _machine_here(config)
    plan = make_plan(found, machine, ask, beside=beside, engines=ENGINES, any_variant=is_base)
    return view_of(plan)


def _found(model: str, config: Config) -> tuple[FoundModel, Sequence[FoundModel], bool]:
    """The model, those beside it, and whether any of its quantisations is meant."""
    from modelyard.planner.locate import models_at
    from modelyard.planner.plan import ENGINES, find

    if _is_path(model):
        path = Path(model)
        found, beside = models_at(path)
        return found, beside, path.expanduser().is_dir()
    from modelyard.runtime.inventory import Inventory

    inventory = Inventory(config, engines=ENGINES)
    inventory.read()
    for spec in config.models:
        if model in (spec.id, *spec.aliases) and spec.source:
            found, beside = models_at(Path(spec.source))
            return found, beside, False
    found = find(model, inventory.found)
    return found, inventory.found, model != found.id and model == found.base


def _machine_of_server(client: Client) -> Machine:
    from modelyard.core.specs import Device
    from modelyard.planner.machine import machine_of

    views = client.devices()
    devices = [
        Device(
            view.id,
            view.name,
            view.total_mib,
            view.capacity_mib,
            view.kind,
            view.index,
            view.strangers_mib,
            view.ceiling_mib,
        )
        for view in views
    ]
    pinned = {model.id for model in client.models() if model.pinned}
    stays = {
        view.id: sum(share.claim_mib for share in view.shares if share.model in pinned)
        for view in views
    }
    held = {view.id: view.claimed_mib - stays[view.id] for view in views}
    return machine_of(devices, held, stays)


def _machine_here(config: Config) -> Machine:
    from modelyard.planner.machine import machine_of

    return machine_of(asyncio.run(_devices(config)))


async def _devices(config: Config) -> Sequence[Device]:
    from modelyard.devices import probes
    from modelyard.launchers.memory import host_mib
    from modelyard.runtime.sampling import Sampler

    sampler = Sampler(_made_up() or probes(), config.devices, host_mib)
    return (await sampler.sample(())).devices


def _made_up() -> list[Probe] | None:
    """Probes of GPUs that do not exist, if the environment names their books."""
    from modelyard.testing.fake_books import FOLDER_VARIABLE

    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return None
    from modelyard.testing.fake_gpu import FakeGpuProbe, FakeHostProbe

    try:
        return [FakeHostProbe(folder), FakeGpuProbe(folder)]
    except FileNotFoundError as error:
        raise BadUsage(f"{FOLDER_VARIABLE}: {error}", hint="unset it") from None
