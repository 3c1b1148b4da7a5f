"""LLM-Manager's `program` section and v3's settings: what is not about a single model.

Laws of this file:
- An address that other machines can reach is not taken over: LLM-Manager asks nobody for a key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from modelyard.config.rules import is_loopback
from modelyard.config.tree import Plain, show
from modelyard.config.values import KeyPath
from modelyard.importers.surroundings import Work
from modelyard.importers.values import as_bool, as_name, as_number, as_port, as_text

OPEN_ADDRESS = (
    "other machines could reach it, and nobody would be asked for a key; to open it set "
    "server.host, and make one with `modelyard keys add NAME --admin`, or set server.insecure"
)
_LOG = "not a setting: start with `modelyard serve --log-level debug`"
_NO_EQUAL = {
    "device_plugin_dir": "plugins of LLM-Manager are not read; Modelyard finds devices itself",
    "interface_plugin_dir": "plugins of LLM-Manager are not read; `tasks` says what a model does",
    "log_level": _LOG,
    "debug_mode": _LOG,
    "enable_profiling": "there is no profiler; `modelyard info` and `modelyard ps` tell what runs",
    "TokenTracker": "tokens are not recorded yet; requests are counted by `modelyard info`",
    "log_retention_days": "logs are rotated by size",
    "log_retention_count": "logs are rotated by size",
    "claude_settings_path": "Modelyard does not write the settings of other programs",
    "claude_configs": "Modelyard does not write the settings of other programs",
    "wol_broadcast": "Modelyard wakes no other machines",
    "wol_mac": "Modelyard wakes no other machines",
}
_ONE_PORT = "everything is on server.port"


def convert_program(program: Mapping[str, Plain], work: Work) -> None:
    """The `program` section of v0.1 to v2.x."""
    _convert(program, ("program",), work)


def convert_settings(settings: Mapping[str, Plain], work: Work) -> None:
    """The table `system_settings` of v3."""
    _convert(settings, ("system_settings",), work)


def _convert(settings: Mapping[str, Plain], at: KeyPath, work: Work) -> None:
    readers: Mapping[str, Callable[[KeyPath, Plain, Work], None]] = {
        "openai_host": put_host,
        "host": put_host,
        "openai_port": put_port,
        "port": put_port,
        "alive_time": _alive_time,
        "Disable_GPU_monitoring": _monitoring,
    }
    for key, value in settings.items():
        path = (*at, key)
        if key in readers:
            readers[key](path, value, work)
        elif key in ("webui_host", "webui_port"):
            work.book.not_needed(path, _ONE_PORT)
        elif key in _NO_EQUAL:
            work.book.no_equal(path, _NO_EQUAL[key])


def put_host(path: KeyPath, value: Plain, work: Work) -> None:
    """`server.host`, if it is an address of this machine alone."""
    text = as_text(value)
    host = as_name(text) if text else None
    if host is not None and is_loopback(host):
        work.draft.put("server", "host", host, show(path))
        work.book.converted(path, "server.host")
    else:
        work.book.no_equal(path, OPEN_ADDRESS)


def put_port(path: KeyPath, value: Plain, work: Work) -> None:
    port = as_port(value)
    if port is None:
        work.book.no_equal(path, "is no port; 8080 is used")
    else:
        work.draft.put("server", "port", port, show(path))
        work.book.converted(path, "server.port")


def _alive_time(path: KeyPath, value: Plain, work: Work) -> None:
    minutes = as_number(value)
    if minutes is None or minutes > 3650 * 1440:
        work.book.no_equal(path, "is no number of minutes; set defaults.idle_stop")
        return
    stop = f"{round(minutes * 60_000)}ms" if minutes % 1 else f"{int(minutes)}m"
    work.draft.put("defaults", "idle_stop", stop if minutes > 0 else "never", f"alive_time {value}")
    work.book.converted(path, "defaults.idle_stop")


def _monitoring(path: KeyPath, value: Plain, work: Work) -> None:
    if as_bool(value):
        work.book.no_equal(
            path, "devices are always read; `devices.sample_every: never` reads once"
        )
    else:
        work.book.not_needed(path, "devices are always watched")
