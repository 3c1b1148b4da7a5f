"""One model of llama-swap's configuration.

Laws of this file:
- A command that uses `${PORT}` is given our port; one with a port of its own keeps it.
- A model that serves neither text nor vectors is left out: Modelyard could not route to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from modelyard.config.rules import is_loopback
from modelyard.config.tree import Plain
from modelyard.config.values import KeyPath
from modelyard.importers import card_memory, programs
from modelyard.importers import llama_swap_macros as macros_of
from modelyard.importers.launch import VISIBLE, foreign_paths
from modelyard.importers.surroundings import Work
from modelyard.importers.values import as_int, as_mapping, as_text, as_texts, is_variable
from modelyard.importers.vllm_model import OWN_VARIABLES, VllmModel, vllm_model

_VALUES = "a request is handed to the engine as it is; set the engine's own defaults"
_NO_EQUAL = {
    "cmdStop": "the processes of an engine are asked to end, and killed after `stop_grace`",
    "name": "models are shown by their ids",
    "description": "models are shown by their ids",
    "metadata": "/v1/models tells what Modelyard knows",
    "unlisted": "every model is listed",
    "sendLoadingState": "a client that waits hears heartbeats, and no text",
}
_TIMEOUTS = "Modelyard talks to engines on this machine alone"
MAX_S = 3650 * 86400


class SwapModel:
    """The conversion of one model. `draft` is what becomes of it."""

    def __init__(
        self,
        work: Work,
        name: str,
        keys: dict[str, Plain],
        macros: Mapping[str, Plain],
        together: int | None,
    ) -> None:
        """`together`: so many models share the cards with this one, itself included; None: it
        runs beside any other.
        """
        self._together = together
        self._work, self._name, self._keys = work, name, keys
        self._macros = {**macros, **as_mapping(keys.get("macros"))}
        work.draft.release(name)
        self.draft = work.draft.model(name, f'"{name}" in {work.source.name}')
        self._book = work.book
        self._book.model = self.draft.id

    def names(self) -> list[str]:
        """The id in llama-swap and every alias, listed or made for parameters."""
        aliases = self.draft.keys.get("aliases")
        return [self._name, *(as_texts(aliases.value) if aliases else [])]

    def convert(self) -> None:
        self._aliases()
        self._book.converted(self._at("cmd"), "command")
        if "macros" in self._keys:
            self._book.converted(self._at("macros"), "command", "written out where they are used")
        try:
            self._command()
        except macros_of.BadMacro as error:
            self._book.no_equal(self._at("cmd"), f"{error}; write `command`")
            self.draft.put("engine", "command")
            self.draft.aside = str(error)
        self._health()
        self._times()
        self._limits()
        self._rest()

    def _at(self, *keys: str | int) -> KeyPath:
        return ("models", self._name, *keys)

    def _aliases(self) -> None:
        listed = self._keys.get("aliases")
        items = listed if isinstance(listed, list) else []
        mixed = any(isinstance(each, dict) for each in items)
        wanted: list[tuple[KeyPath, str]] = []
        for at, item in enumerate(items):
            if isinstance(item, dict):
                path = self._at("aliases", at)
                wanted.append(((*path, "id"), as_text(item.get("id")) or ""))
                for key in set(item) - {"id"}:
                    self._book.no_equal((*path, key), "an alias is a name and nothing more")
            else:
                path = self._at("aliases", at) if mixed else self._at("aliases")
                wanted.append((path, as_text(item) or ""))
        if listed == []:
            self._book.not_needed(self._at("aliases"), "is empty")
        self._work.draft.alias(self.draft, wanted, self._book, "aliases")

    # ------------------------------------------------------------------------------- command

    def _command(self) -> None:
        written = macros_of.without_comments(as_text(self._keys.get("cmd")) or "")
        expanded = macros_of.expand(written, self._macros, self._name)
        raw = macros_of.words(expanded)
        if not raw:
            raise macros_of.BadMacro("its command is empty")
        raw[0] = programs.portable(raw[0], windows=self._work.here.windows)
        words = [macros_of.as_argument(word) for word in raw]
        words = programs.with_names(words, self.names())
        draft = self.draft
        tasks, because = self._tasks(words)
        fixed = self._proxy(macros_of.has_port(raw))
        if not macros_of.has_port(raw):
            words, placed = programs.with_blanks(words, fixed)
            if not placed and fixed is not None:
                draft.put("options", {"port": fixed}, "proxy; the program chooses its port itself")
            elif not placed:
                draft.aside = "its command names no port; add its port option with {port}"
        draft.put("tasks", list(tasks), f"concluded from {because}")
        env, folder = self._env(), str(self._work.source.folder)
        vllm = vllm_model(words, folder)
        if vllm is not None:
            self._vllm(vllm)
        else:
            draft.put("engine", "command")
            draft.put("command", list(words), "cmd")
            draft.put("cwd", macros_of.as_literal(folder), "where the file lies")
        kept = {k: v for k, v in env.items() if vllm is None or k not in OWN_VARIABLES}
        if kept:
            draft.put("env", dict(kept), "env")
        draft.put("profiles", [self._profile(words)])
        if foreign_paths(words, self._work.here):
            text = "names files of a Windows drive; correct the paths"
            draft.notes.append(text)
            self._book.converted(self._at("cmd"), "command", text)

    def _vllm(self, found: VllmModel) -> None:
        draft = self.draft
        draft.keys.pop("options", None)
        draft.aside = ""
        draft.put("engine", "vllm", "cmd")
        draft.put("source", macros_of.as_literal(found.source), "cmd")
        if found.command:
            draft.put("command", list(found.command), "cmd")
        if found.options:
            draft.put("options", dict(found.options), "cmd")

    def _tasks(self, words: list[str]) -> tuple[list[str], str]:
        told = as_mapping(self._keys.get("capabilities"))
        if told.get("reranker") is True:
            return ["rerank"], "capabilities"
        out = set(as_texts(told.get("out") or []))
        taken = set(as_texts(told.get("in") or []))
        if (out and "text" not in out) or taken == {"audio"}:
            self.draft.aside = "sound and pictures are not served yet"
        return programs.tasks_of(words, self._name)

    def _env(self) -> dict[str, str]:
        env: dict[str, str] = {}
        listed = self._keys.get("env")
        for text in as_texts(listed or []):
            name, equals, value = text.partition("=")
            if not equals or not is_variable(name):
                self._book.no_equal(self._at("env"), "holds what is no NAME=value")
                continue
            if name in VISIBLE:
                self._book.converted(self._at("env"), "profiles[].devices")
                continue
            expanded = macros_of.expand(value, self._macros, self._name)
            env[name] = macros_of.as_argument(expanded)
            self._book.converted(self._at("env"), "env")
        if "env" in self._keys and not as_texts(listed or []):
            self._book.not_needed(self._at("env"), "is empty")
        return env

    def _profile(self, words: list[str]) -> dict[str, Plain]:
        devices = self._devices(words)
        profile: dict[str, Plain] = {"name": "default", "devices": list(devices)}
        if self._together is None:
            return profile
        memory = card_memory.claims(devices, words, self._work.here, self._together)
        if memory:
            profile["memory"] = {name: f"{mib}MiB" for name, mib in memory.items()}
            self.draft.notes.append(
                "memory is a first claim, as llama-swap would run it; after one run what was "
                "measured counts"
            )
        return profile

    def _devices(self, words: list[str]) -> list[str]:
        """The cards that the command is meant for, as far as it says so."""
        for text in as_texts(self._keys.get("env") or []):
            name, _, value = text.partition("=")
            numbers = value.replace(" ", "").split(",")
            if name == "CUDA_VISIBLE_DEVICES":
                if all(re.fullmatch(r"[0-9]{1,2}", number) for number in numbers):
                    return [f"nvidia:{number}" for number in dict.fromkeys(numbers)]
                if all(number.startswith(("GPU-", "MIG-")) for number in numbers):
                    return list(dict.fromkeys(numbers))
        count = programs.gpus_of(words, self._work.here.gpus) if self._work.here.gpus else 0
        return ["gpu"] * min(count, 16) or ["cpu"]

    def _proxy(self, has_port: bool) -> int | None:
        """The port that the program itself has chosen, from `proxy`."""
        written = as_text(self._keys.get("proxy"))
        path = self._at("proxy")
        if written is None:
            if "proxy" in self._keys:
                self._book.not_needed(path, "is empty")
            return None
        try:
            expanded = macros_of.expand(written, self._macros, self._name)
            url = urlsplit(macros_of.without_marks(expanded).rstrip(":"))
            host, port = url.hostname or "", url.port
        except (macros_of.BadMacro, ValueError):
            self._book.no_equal(path, "is no address; Modelyard asks engines on their own port")
            return None
        if not is_loopback(host):
            why = "engines run on this machine; write a command that forwards to the other one"
            self._book.no_equal(path, why)
        elif url.path.strip("/"):
            self._book.no_equal(path, "engines are asked at /v1; start this one without a prefix")
        elif has_port:
            self._book.not_needed(path, "the command is given the port")
        else:
            self._book.converted(path, "options.port")
        return None if has_port else port

    # ----------------------------------------------------------------------------- the others

    def _health(self) -> None:
        path = self._at("checkEndpoint")
        written = as_text(self._keys.get("checkEndpoint"))
        if written is None:
            if "checkEndpoint" in self._keys:
                self._book.not_needed(path, "is empty")
            return
        if written == "none":
            why = "an engine is ready once a route answers; /health is asked, or set health_path"
            self._book.no_equal(path, why)
        elif re.fullmatch(r"/[!-~]{0,190}", written) and "${" not in written:
            self.draft.put("health_path", written, "checkEndpoint")
            self._book.converted(path, "health_path")
        else:
            self._book.no_equal(path, "is no route like /health; set health_path")

    def _times(self) -> None:
        ttl = as_int(self._keys.get("ttl"))
        if ttl is not None and 0 <= ttl <= MAX_S:
            self.draft.put("idle_stop", f"{ttl}s" if ttl else "never", "ttl")
            self._book.converted(self._at("ttl"), "idle_stop")
        elif ttl is not None and ttl < 0:
            self._book.not_needed(self._at("ttl"), "the default is used")
        elif "ttl" in self._keys:
            self._book.no_equal(self._at("ttl"), "is no number of seconds; set idle_stop")
        grace = as_int(self._keys.get("unloadTimeout"))
        if grace is not None and 0 < grace <= MAX_S:
            self.draft.put("stop_grace", f"{grace}s", "unloadTimeout")
            self._book.converted(self._at("unloadTimeout"), "stop_grace")
        elif "unloadTimeout" in self._keys:
            self._book.not_needed(self._at("unloadTimeout"), "the default is used")
        for key, value in as_mapping(self._keys.get("timeouts")).items():
            path = self._at("timeouts", key)
            seconds = as_int(value)
            if key == "responseHeader" and seconds is not None and 0 < seconds <= MAX_S:
                self.draft.put("response_timeout", f"{seconds}s", "timeouts.responseHeader")
                self._book.converted(path, "response_timeout")
            else:
                self._book.not_needed(path, _TIMEOUTS)

    def _limits(self) -> None:
        if "concurrencyLimit" not in self._keys:
            return
        limit = as_int(self._keys["concurrencyLimit"])
        path = self._at("concurrencyLimit")
        if limit is not None and 0 < limit <= 1_000_000:
            self.draft.put("concurrency", limit, "concurrencyLimit")
            self._book.converted(path, "concurrency", "more requests wait and are not refused")
        else:
            self._book.not_needed(path, "no limit is set; more requests wait in the engine")

    def _rest(self) -> None:
        keys = self._keys
        for key, why in _NO_EQUAL.items():
            if key in keys:
                self._book.no_equal(self._at(key), why)
        if as_text(keys.get("useModelName")):
            why = "the engine is sent the name that the client used; add its option for names"
            self._book.no_equal(self._at("useModelName"), why)
        elif "useModelName" in keys:
            self._book.not_needed(self._at("useModelName"), "is empty")
        for key in as_mapping(keys.get("filters")):
            self._book.no_equal(self._at("filters", key), _VALUES)
        if keys.get("filters") == {}:
            self._book.not_needed(self._at("filters"), "is empty")
        for key in as_mapping(keys.get("capabilities")):
            path = self._at("capabilities", key)
            if key == "reranker":
                self._book.converted(path, "tasks")
            else:
                self._book.not_needed(path, "tasks say what a model does; the engine knows more")
