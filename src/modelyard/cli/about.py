"""Commands about the server and this program: info, version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard import __version__
from modelyard.cli.options import Json, Url
from modelyard.cli.output import print_json, print_pairs, say
from modelyard.cli.words import NOTHING, bar, counted, listed, memory, short_path, span

if TYPE_CHECKING:
    from modelyard.core.views import DeviceView, Info


def info(url: Url = None, as_json: Json = False) -> None:
    """Show the running server, its devices and its problems."""
    from modelyard.client import Client

    with Client(url) as client:
        server, devices = client.info(), client.devices()
    if as_json:
        print_json({"server": server, "devices": devices})
        return
    print_pairs([*_server_pairs(server), *_device_pairs(devices)])
    if server.problems:
        say("\nModels that cannot be used:")
        for problem in server.problems:
            say(f"  {problem}")


def version(as_json: Json = False) -> None:
    """Show the version of this program."""
    if not as_json:
        say(f"modelyard {__version__}")
        return
    import platform

    print_json(
        {
            "modelyard": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        }
    )


def _server_pairs(server: Info) -> list[tuple[str, str]]:
    return [
        ("Server", f"{server.url}  (OpenAI base URL: {server.url}/v1)"),
        ("Version", server.version),
        ("Running for", f"{span(server.uptime_s)}, process {server.pid}"),
        ("Own memory", memory(server.memory_mib)),
        ("Config", short_path(server.config_path)),
        ("Models in", listed(short_path(folder) for folder in server.models_dirs)),
        ("Models", f"{server.models}, {server.ready} of them ready"),
        ("Requests", f"{server.in_flight} in flight, {server.queued} queued"),
        ("Answered", f"{server.requests} since the start"),
        (
            "Engines",
            f"{counted(server.loads, 'load')}, {counted(server.stops, 'stop')} since the start",
        ),
    ]


def _device_pairs(devices: list[DeviceView]) -> list[tuple[str, str]]:
    return [(f"Device {device.id}", _device(device)) for device in devices]


def _device(device: DeviceView) -> str:
    claimed, capacity = memory(device.claimed_mib), memory(device.capacity_mib)
    used = NOTHING if device.used_mib is None else memory(device.used_mib)
    return (
        f"{bar(device.claimed_mib, device.capacity_mib)} {claimed} of {capacity} claimed by models"
        f"; {device.name}: {used} of {memory(device.total_mib)} in use"
    )
