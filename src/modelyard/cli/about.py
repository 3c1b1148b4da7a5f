"""Commands about the server and this program: info, version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelyard import __version__, compiled
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
        say(f"modelyard {__version__}, {built(compiled())}")
        return
    import platform

    print_json(
        {
            "modelyard": __version__,
            "compiled": compiled(),
            "python": platform.python_version(),
            "platform": platform.platform(),
        }
    )


def built(is_compiled: bool) -> str:
    """How the hot path runs, in a word."""
    return "compiled" if is_compiled else "interpreted"


def _server_pairs(server: Info) -> list[tuple[str, str]]:
    return [
        ("Server", f"{server.url}  (OpenAI base URL: {server.url}/v1)"),
        ("Version", f"{server.version}, {built(server.compiled)}"),
        ("Running for", f"{span(server.uptime_s)}, process {server.pid}"),
        ("Own memory", memory(server.memory_mib)),
        ("Config", short_path(server.config_path)),
        ("Models in", listed(short_path(folder) for folder in server.models_dirs)),
        ("Models", f"{server.models}, {server.ready} of them ready"),
        ("Requests", f"{server.in_flight} in flight, {server.queued} queued"),
        ("Answered", f"{server.requests} since the start"),
        ("Engines", f"{', '.join(_happened(server))} since the start"),
    ]


def _happened(server: Info) -> Iterator[str]:
    yield counted(server.loads, "load")
    yield counted(server.stops, "stop")
    yield counted(server.sleeps, "sleep")
    yield counted(server.wakes, "wake")


def _device_pairs(devices: list[DeviceView]) -> list[tuple[str, str]]:
    return [(f"Device {device.id}", "\n".join(_device(device))) for device in devices]


def _device(device: DeviceView) -> Iterator[str]:
    """What models claim of it; then how it is doing, as far as its driver tells."""
    claimed, capacity = memory(device.claimed_mib), memory(device.capacity_mib)
    drawn = bar(device.claimed_mib, device.capacity_mib)
    yield f"{drawn} {claimed} of {capacity} claimed by models"
    used = NOTHING if device.used_mib is None else memory(device.used_mib)
    told = [f"{used} of {memory(device.total_mib)} in use"]
    if device.strangers_mib:
        told.append(f"{memory(device.strangers_mib)} of it by others")
    if device.utilisation is not None:
        told.append(f"{device.utilisation:.0%} busy")
    if device.temperature_c is not None:
        told.append(f"{device.temperature_c:.0f} °C")
    if device.power_w is not None:
        told.append(f"{device.power_w:.0f} W")
    yield f"{device.name}: {', '.join(told)}"
    yield from device.notes
