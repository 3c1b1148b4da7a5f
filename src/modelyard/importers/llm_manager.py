"""LLM-Manager's configuration: v0.1, v0.2, v2 (JSON with comments), v2.x (YAML), v3 (JSON, SQLite).

Laws of this file:
- A model answers to its aliases; the first one is its primary name and becomes our id. The key of
  its block becomes an alias.
- A scheme is a mapping with `required_gpus` or `required_devices`; the order is the priority. In
  v0.1 the model itself is its only scheme, in v3 `schemes` is a list.
- A zero in a scheme's memory means that nothing is counted on that device.
- MB are the mebibytes of nvidia-smi. `alive_time` is minutes of idleness.
- One price for all requests becomes `price`; other prices, and usage, are kept aside: reported, and
  left where they are.

Facts: the sources of github.com/lingyezhixing/LLM-Manager (v0.1 2ea4ebe, v0.2 e816294, v2.0
a95acf1, v2.x f182e69, v3.1.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from modelyard.config.tree import Plain
from modelyard.config.values import KeyPath
from modelyard.importers.draft import ModelDraft
from modelyard.importers.launch import Way, put_ways
from modelyard.importers.llm_manager_commands import Start, scheme_launch
from modelyard.importers.llm_manager_program import convert_program, convert_settings
from modelyard.importers.report import Book
from modelyard.importers.surroundings import Work
from modelyard.importers.values import (
    as_bool,
    as_int,
    as_mapping,
    as_name,
    as_number,
    as_port,
    as_text,
    as_texts,
)

PROGRAM = "program"
LOCAL_MODELS = "Local-Models"
DEVICES = ("required_gpus", "required_devices")
MEMORY = ("gpu_mem_mb", "memory_mb")
SCRIPTS = ("bat_path", "script_path")
TASKS: Mapping[str, str] = {
    "chat": "chat",
    "base": "completion",
    "embedding": "embedding",
    "reranker": "rerank",
}
CLOUD_TABLES = ("cloud_providers", "cloud_models", "cloud_price_tiers", "cloud_mappings")
MAX_MIB = 64 * 1024 * 1024
_BOUNDS = ("min_input", "max_input", "min_output", "max_output")
_MOST = 10.0**9


def looks_like(tree: Plain) -> bool:
    """Whether `tree` is a configuration of LLM-Manager, of any version."""
    if isinstance(tree, list):
        return bool(tree) and all(_is_v3_model(item) for item in tree)
    keys = as_mapping(tree)
    if _is_v3_model(keys) or LOCAL_MODELS in keys or set(keys) == {PROGRAM}:
        return True
    if isinstance(keys.get("models"), list):
        return looks_like(keys["models"])
    return any(_is_model(value) for name, value in keys.items() if name != PROGRAM)


def _is_v3_model(value: Plain) -> bool:
    keys = as_mapping(value)
    return isinstance(keys.get("schemes"), list) and "mode" in keys


def _is_model(value: Plain) -> bool:
    keys = as_mapping(value)
    return bool("mode" in keys and ({*DEVICES, *SCRIPTS} & set(keys) or any(_schemes(keys))))


def convert(work: Work) -> None:
    """Fill the draft. Everything that is no model is reported here, too."""
    tree = as_mapping(work.tree)
    convert_program(as_mapping(tree.get(PROGRAM)), work)
    convert_settings(as_mapping(tree.get("system_settings")), work)
    _convert_records(tree, work)
    blocks = list(_blocks(work.tree))
    work.draft.reserve(_primary(block, name) for _, name, block in blocks)
    for path, name, block in blocks:
        _Model(work, path, name, block).convert()
    work.book.model = ""
    if any(_counts_cards(model) for model in work.draft.models):
        origin = "LLM-Manager kept nothing free on its cards"
        work.draft.put("devices", "reserve", "0MiB", origin)


def _convert_records(tree: Mapping[str, Plain], work: Work) -> None:
    """What v3's database holds besides models and settings."""
    for name, usage in as_mapping(tree.get("usage_of_deleted_models")).items():
        text = usage_text(as_mapping(usage))
        work.book.kept_aside(("usage_of_deleted_models", name), text)
    for table in ("log_sessions", "log_lines"):
        if table in tree:
            work.book.kept_aside((table,), "old logs stay in the database; keep the file")
    for table in CLOUD_TABLES:
        if table in tree:
            why = "other machines' endpoints are not served yet; their keys were not read"
            work.book.no_equal((table,), why)


def _counts_cards(model: ModelDraft) -> bool:
    """Whether memory is declared on anything but the host."""
    entry = model.keys.get("profiles")
    listed = entry.value if entry and isinstance(entry.value, list) else []
    return any(set(as_mapping(as_mapping(profile).get("memory"))) - {"cpu"} for profile in listed)


def _blocks(tree: Plain) -> Iterator[tuple[KeyPath, str, dict[str, Plain]]]:
    """Every model: where it is, the name of its block, its keys."""
    if isinstance(tree, list):
        for at, item in enumerate(tree):
            keys = as_mapping(item)
            yield (at,), as_text(keys.get("name")) or f"model-{at + 1}", keys
        return
    keys = as_mapping(tree)
    if _is_v3_model(keys):
        yield (), as_text(keys.get("name")) or "model", keys
        return
    if isinstance(keys.get("models"), list):
        for path, name, block in _blocks(keys["models"]):
            yield ("models", *path), name, block
        return
    start: KeyPath = (LOCAL_MODELS,) if LOCAL_MODELS in keys else ()
    keys = as_mapping(keys[LOCAL_MODELS]) if start else keys
    for name, value in keys.items():
        if isinstance(value, dict) and (start or _is_model(value) or "mode" in value):
            if not start and name == PROGRAM:
                continue
            yield (*start, name), name, value


def _primary(block: Mapping[str, Plain], name: str) -> str:
    return next(iter(as_texts(block.get("aliases") or [])), name)


def _schemes(block: Mapping[str, Plain]) -> Iterator[tuple[str, dict[str, Plain]]]:
    for name, value in block.items():
        if isinstance(value, dict) and {*DEVICES, *SCRIPTS} & set(value):
            yield name, value


class _Model:
    """The conversion of one model."""

    def __init__(self, work: Work, path: KeyPath, name: str, block: dict[str, Plain]) -> None:
        self._work, self._path, self._name, self._block = work, path, name, block
        primary = _primary(block, name)
        work.draft.release(primary)
        origin = f'"{name}" in {work.source.name}'
        self._model: ModelDraft = work.draft.model(primary, origin)
        self._profiles: set[str] = set()
        self._book: Book = work.book
        self._book.model = self._model.id

    def convert(self) -> None:
        self._names()
        self._mode()
        port = as_port(self._block.get("port"))
        if self._block.get("auto_start") is not None:
            self._auto_start()
        ways = [way for way in self._ways(port) if way is not None]
        if ways:
            self._model.notes += put_ways(self._model, ways, port)
        else:
            self._model.aside = "no scheme says how it is started"
        self._port(port)
        self._prices()
        self._rest()

    def _at(self, *keys: str | int) -> KeyPath:
        return (*self._path, *keys)

    def _names(self) -> None:
        wanted: list[tuple[KeyPath, str]] = []
        if "aliases" in self._block:
            wanted += [(self._at("aliases"), name) for name in as_texts(self._block["aliases"])]
            if not wanted:
                self._book.no_equal(
                    self._at("aliases"), "holds no usable name; the block's is used"
                )
        if "name" in self._block:
            wanted.append((self._at("name"), self._name))
        elif self._name not in {name for _, name in wanted}:
            wanted.append((self._at("aliases"), self._name))
        wanted = list(dict.fromkeys(wanted))
        self._work.draft.alias(self._model, wanted, self._book, "aliases, and the block's name")

    def _mode(self) -> None:
        mode = as_text(self._block.get("mode"))
        task = TASKS.get(mode.strip().lower()) if mode else None
        if task is None:
            why = "is no mode that Modelyard knows; `chat` is assumed, correct `tasks`"
            if "mode" in self._block:
                self._book.no_equal(self._at("mode"), why)
            self._model.notes.append("no known mode: correct tasks")
        else:
            self._book.converted(self._at("mode"), "tasks")
        self._model.put("tasks", [task or "chat"], f"mode: {mode}" if mode else "")

    def _auto_start(self) -> None:
        wanted = as_bool(self._block["auto_start"])
        if wanted is None:
            self._book.no_equal(self._at("auto_start"), "is neither true nor false")
        elif wanted:
            self._model.put("preload", True, "auto_start")
            self._book.converted(self._at("auto_start"), "preload")
        else:
            self._book.not_needed(self._at("auto_start"), "models start when they are asked for")

    def _port(self, port: int | None) -> None:
        if "port" not in self._block:
            return
        if port is None:
            self._book.no_equal(self._at("port"), "is no port; Modelyard chooses one")
        elif "options" in self._model.keys:
            self._book.converted(self._at("port"), "options.port")
        else:
            self._book.not_needed(self._at("port"), "Modelyard chooses a free port for each start")

    # -------------------------------------------------------------------------------- schemes

    def _ways(self, port: int | None) -> Iterator[Way | None]:
        listed = self._block.get("schemes")
        if isinstance(listed, list):
            for at, item in enumerate(listed):
                scheme = as_mapping(item)
                name = as_text(scheme.get("config_source")) or f"scheme {at + 1}"
                yield self._way(("schemes", at), name, scheme, port)
            return
        if {*SCRIPTS} & set(self._block):
            yield self._way((), "default", self._block, port)
        for name, scheme in _schemes(self._block):
            yield self._way((name,), name, scheme, port)

    def _way(
        self, below: KeyPath, name: str, scheme: dict[str, Plain], port: int | None
    ) -> Way | None:
        path = self._at(*below)
        if below and "config_source" in scheme:
            self._book.converted((*path, "config_source"), "profiles[].name")
        if not scheme:
            self._book.no_equal(path, "describes no way to start the model")
        devices, memory = self._memory(path, scheme)
        names = [self._model.id, *self._aliases()]
        start = Start(path, scheme, port, names, self._model.id)
        launch = scheme_launch(start, self._work, self._model)
        if launch is None:
            return None
        unique = as_name(name) or "default"
        while unique in self._profiles:
            unique = f"{unique[:190]}'"
        self._profiles.add(unique)
        return Way(unique, devices, memory, launch)

    def _aliases(self) -> list[str]:
        entry = self._model.keys.get("aliases")
        return as_texts(entry.value) if entry else []

    def _memory(
        self, path: KeyPath, scheme: Mapping[str, Plain]
    ) -> tuple[list[str], dict[str, int]]:
        devices: list[str] = []
        for key in DEVICES:
            if key in scheme:
                devices += [_device(name) for name in as_texts(scheme[key])]
                self._book.converted((*path, key), "profiles[].devices")
        memory: dict[str, int] = {}
        for key in MEMORY:
            if isinstance(scheme.get(key), dict):
                for name, size in as_mapping(scheme[key]).items():
                    self._size((*path, key, name), _device(name), size, devices, memory)
            elif key in scheme:
                self._size(
                    (*path, key), devices[0] if devices else "cpu", scheme[key], devices, memory
                )
        return devices or list(memory) or ["cpu"], memory

    def _size(
        self, path: KeyPath, device: str, size: Plain, devices: list[str], memory: dict[str, int]
    ) -> None:
        mib = as_int(size)
        if mib is None or not 0 <= mib <= MAX_MIB:
            self._book.no_equal(path, "is no size in MB; what the model takes will be measured")
        elif mib == 0 and device not in devices:
            self._book.not_needed(path, "nothing is counted on a device that is not required")
        else:
            if device not in devices:
                devices.append(device)
            memory[device] = mib
            self._book.converted(path, "profiles[].memory")

    # ----------------------------------------------------------------------------------- rest

    def _prices(self) -> None:
        prices = self._block.get("pricing")
        if prices is None:
            return
        told = as_mapping(prices)
        price = price_of(told)
        if price is not None:
            self._model.put("price", price, "pricing, per million tokens in yuan")
            self._book.converted(self._at("pricing"), "price")
            return
        if not any(_amounts(told)):
            self._book.not_needed(self._at("pricing"), "nothing was charged")
            return
        why = "a price by the hour, or in several tiers, has no key here; it is in the comments"
        self._book.kept_aside(self._at("pricing"), why)
        for line in price_lines(told):
            self._model.notes.append(line)

    def _rest(self) -> None:
        book, block = self._book, self._block
        if "bypass_vram_check" in block:
            why = "memory is always counted; lower `memory` where less is to be counted"
            book.no_equal(self._at("bypass_vram_check"), why)
        if "alternate_config" in block:
            why = "an old form of schemes; write it as a further profile"
            book.no_equal(self._at("alternate_config"), why)
        if "usage" in block:
            book.kept_aside(self._at("usage"), usage_text(as_mapping(block["usage"])))


def _device(name: str) -> str:
    """`CPU` is our `cpu`; words of a card's name are understood as they are."""
    return name.strip().lower()


def usage_text(usage: Mapping[str, Plain]) -> str:
    """Sums of recorded usage, and what to do with the record."""
    counts = {key: as_int(value) or 0 for key, value in usage.items()}
    return (
        f"{counts.get('requests', 0)} requests, {counts.get('input_tokens', 0)} input and "
        f"{counts.get('output_tokens', 0)} output tokens, {counts.get('cached_tokens', 0)} of them "
        "cached; Modelyard cannot take usage in yet, so keep the file"
    )


def price_of(prices: Mapping[str, Plain]) -> dict[str, Plain] | None:
    """Our `price` for one tier without bounds; None for anything else, and where all is free.

    LLM-Manager's prices are yuan for a million tokens, as its pages show them.
    """
    tiers = prices.get("tiers")
    if (as_text(prices.get("pricing_type")) or "tier") != "tier" or not isinstance(tiers, list):
        return None
    if len(tiers) != 1 or not any(_amounts(prices)):
        return None
    tier = as_mapping(tiers[0])
    if any((as_number(tier.get(key)) or 0) > 0 for key in _BOUNDS):
        return None
    price: dict[str, Plain] = {
        "input": _amount(tier.get("input_price")),
        "output": _amount(tier.get("output_price")),
    }
    if as_bool(prices.get("support_cache")):
        price["cached_input"] = _amount(tier.get("cache_read_price"))
    return {**price, "per": "1M", "currency": "CNY"}


def _amounts(prices: Mapping[str, Plain]) -> Iterator[float]:
    """Every amount above nothing."""
    tiers = prices.get("tiers")
    told = [prices.get("hourly_price")]
    for tier in tiers if isinstance(tiers, list) else []:
        told += [value for key, value in as_mapping(tier).items() if key.endswith("_price")]
    yield from (amount for each in told if (amount := as_number(each) or 0.0) > 0)


def _amount(value: Plain) -> int | float:
    amount = as_number(value) or 0.0
    amount = amount if 0 <= amount <= _MOST else 0.0
    return int(amount) if amount == int(amount) else amount


def price_lines(prices: Mapping[str, Plain]) -> Iterator[str]:
    """Prices in one line each, for people."""
    kind = as_text(prices.get("pricing_type")) or "tier"
    if kind == "hourly":
        yield f"price: {prices.get('hourly_price')} an hour"
        return
    tiers = prices.get("tiers")
    for tier in (tiers if isinstance(tiers, list) else [])[:50]:
        said = [f"{key} {value}" for key, value in as_mapping(tier).items() if value is not None]
        yield f"price, per million tokens: {', '.join(said)}"
