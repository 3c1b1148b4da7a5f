"""llama-swap's `config.yaml`.

Laws of this file:
- A model keeps its command. llama-swap decides by hand-written groups who may run together,
  Modelyard by memory, so what groups and matrix are for needs no equal; pins and priorities do.
- llama-swap never unloads unless a `ttl` says so: so `never` is written where it says nothing.
- Keys of clients and peers are secrets and are neither written nor shown.

Facts: config.example.yaml, config-schema.json and internal/config of
github.com/mostlygeek/llama-swap.
"""

from __future__ import annotations

from collections.abc import Mapping

from modelyard.config.tree import Plain
from modelyard.config.values import KeyPath
from modelyard.importers.llama_swap_groups import groups_of, matrices_of, neighbours
from modelyard.importers.llama_swap_model import SwapModel
from modelyard.importers.surroundings import Work
from modelyard.importers.values import as_int, as_mapping, as_texts

_MEMORY = "memory decides here who runs together; declare `memory` where it is known"
_LOG = "the log goes to stderr; `modelyard serve --log-level` says how much"
_PASS = "answers are passed on as engines give them"
_NO_EQUAL = {
    "apiKeys": "keys that were chosen elsewhere are not taken over; make new ones with "
    "`modelyard keys add NAME`",
    "peers": "other machines' endpoints are not served yet; clients ask them directly",
    "profiles": "names cannot be rewritten while the server runs; use aliases",
    "store": "a history of requests is not kept yet",
    "selectors": "names are resolved by ids and aliases alone",
    "sendLoadingState": "a client that waits hears heartbeats, and no text",
    "includeAliasesInList": "/v1/models lists ids, with their aliases beside them",
}
_NOT_NEEDED = {
    "logLevel": _LOG, "logTimeFormat": _LOG, "logToStdout": _LOG, "logRequests": _LOG,
    "metricsMaxInMemory": "nothing of the kind is kept in memory",
    "captureBuffer": "requests are not captured",
    "startPort": "Modelyard chooses a free port for each start",
    "ui": "there is no web page", "performance": "devices are watched (devices.sample_every)",
    "upstream": _PASS,
}  # fmt: skip


def looks_like(tree: Plain) -> bool:
    models = as_mapping(as_mapping(tree).get("models"))
    return any("cmd" in as_mapping(model) for model in models.values())


def convert(work: Work) -> None:
    tree = as_mapping(work.tree)
    _settings(tree, work)
    macros = as_mapping(tree.get("macros"))
    if "macros" in tree:
        work.book.converted(("macros",), "models", "written out where they are used")
    models = as_mapping(tree.get("models"))
    work.draft.reserve(models)
    together = neighbours(tree)
    converted: dict[str, SwapModel] = {}
    for name, keys in models.items():
        if isinstance(keys, dict):
            model = SwapModel(work, name, keys, macros, together.get(name, 1))
            model.convert()
            converted[name] = model
    work.book.model = ""
    names = {alias: name for name, model in converted.items() for alias in model.names()}
    _preload(as_mapping(tree.get("hooks")), names, converted, work)
    _routing(tree, names, converted, work)


def _settings(tree: Mapping[str, Plain], work: Work) -> None:
    book, draft = work.book, work.draft
    for key in tree:
        if key in _NO_EQUAL:
            book.no_equal((key,), _NO_EQUAL[key])
        elif key in _NOT_NEEDED:
            book.not_needed((key,), _NOT_NEEDED[key])
    ready = as_int(tree.get("healthCheckTimeout"))
    if ready is not None and ready > 0:
        draft.put("defaults", "start_timeout", f"{max(ready, 15)}s", "healthCheckTimeout")
        book.converted(("healthCheckTimeout",), "defaults.start_timeout")
    grace = as_int(tree.get("unloadTimeout"))
    if grace is not None and grace > 0:
        draft.put("defaults", "stop_grace", f"{grace}s", "unloadTimeout")
        book.converted(("unloadTimeout",), "defaults.stop_grace")
    elif grace == 0:
        book.not_needed(("unloadTimeout",), "the default of 10 s is the same")
    ttl = as_int(tree.get("globalTTL", 0))
    if ttl is None or ttl < 0:
        book.no_equal(("globalTTL",), "is no number of seconds; set defaults.idle_stop")
        return
    stop = f"{ttl}s" if ttl else "never"
    draft.put("defaults", "idle_stop", stop, "globalTTL; llama-swap unloads nothing by itself")
    if "globalTTL" in tree:
        book.converted(("globalTTL",), "defaults.idle_stop")


def _preload(
    hooks: Mapping[str, Plain],
    names: Mapping[str, str],
    models: Mapping[str, SwapModel],
    work: Work,
) -> None:
    listed = as_texts(as_mapping(hooks.get("on_startup")).get("preload") or [])
    path = ("hooks", "on_startup", "preload")
    for wanted in listed:
        if wanted in names:
            models[names[wanted]].draft.put("preload", True, "hooks.on_startup.preload")
            work.book.converted(path, "preload")
        else:
            work.book.no_equal(path, f"there is no model {wanted!r} to load at the start")
    if not listed and as_mapping(hooks.get("on_startup")).get("preload") == []:
        work.book.not_needed(path, "is empty")


def _routing(
    tree: Mapping[str, Plain],
    names: Mapping[str, str],
    models: Mapping[str, SwapModel],
    work: Work,
) -> None:
    for path, groups in groups_of(tree):
        for name, group in as_mapping(groups).items():
            _group((*path, name), as_mapping(group), names, models, work)
    routing = as_mapping(tree.get("routing"))
    router = as_mapping(routing.get("router"))
    for path, matrix in matrices_of(tree):
        for key in as_mapping(matrix):
            if key == "evict_costs":
                why = "models leave by idleness; set `pinned` or `idle_stop` for one that is dear"
                work.book.no_equal((*path, key), why)
            else:
                work.book.not_needed((*path, key), _MEMORY)
    if "use" in router:
        work.book.not_needed(("routing", "router", "use"), _MEMORY)
    scheduler = as_mapping(routing.get("scheduler"))
    if "use" in scheduler:
        text = "waiting requests are served by priority and age"
        work.book.not_needed(("routing", "scheduler", "use"), text)
    fifo = as_mapping(as_mapping(scheduler.get("settings")).get("fifo"))
    for name, value in as_mapping(fifo.get("priority")).items():
        place = ("routing", "scheduler", "settings", "fifo", "priority", name)
        rank = as_int(value)
        if rank is None or name not in names:
            work.book.no_equal(place, "is no number, or the model does not exist")
        else:
            models[names[name]].draft.put("priority", max(-1000, min(rank, 1000)), "priority")
            work.book.converted(place, "priority")


def _group(
    path: KeyPath,
    group: Mapping[str, Plain],
    names: Mapping[str, str],
    models: Mapping[str, SwapModel],
    work: Work,
) -> None:
    members = [names[name] for name in as_texts(group.get("members") or []) if name in names]
    for key, value in group.items():
        if key == "persistent" and value is True:
            for name in members:
                models[name].draft.put("pinned", True, "its group is persistent")
            work.book.converted((*path, key), "pinned")
        elif key in ("swap", "exclusive", "persistent", "members"):
            work.book.not_needed((*path, key), _MEMORY)
