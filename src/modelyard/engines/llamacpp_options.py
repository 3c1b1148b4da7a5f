"""The options of llama.cpp, checked and translated for either of its two servers.

Laws of this file:
- Whatever name the config uses, an option becomes one *setting*: an attribute of xllamacpp's
  `CommonParams` and a JSON value. Both servers are started from settings, so that the same config
  gives the same engine.
- What Modelyard itself decides (where the engine listens, what it is called, which model it serves
  and for what) is refused here, with the place where it belongs.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from modelyard.core.specs import OptionValue
from modelyard.engines.llamacpp_attributes import KINDS, WORDS
from modelyard.engines.llamacpp_table import OPTIONS, Form, Option


class BadOption(Exception):
    """An option that cannot be used; the message is for the person who wrote it."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one name stands for. `opposite`: the value is to be turned round."""

    attribute: str
    kind: str
    option: Option | None = None
    opposite: bool = False


def _meanings() -> dict[str, Meaning]:
    meanings = {name: Meaning(name, kind) for name, kind in KINDS.items()}
    by_flag = {}
    for option in OPTIONS:
        kind = KINDS.get(option.attribute, "str")
        name = option.flag.replace("-", "_")
        by_flag[name] = Meaning(option.attribute, kind, option, option.opposite)
        if option.form is Form.SWITCH:
            by_flag[f"no_{name}"] = Meaning(option.attribute, kind, option, not option.opposite)
        if kind == "bool" or not option.opposite:
            meanings[option.attribute] = Meaning(option.attribute, kind, option)
    return meanings | by_flag


_MEANINGS = _meanings()
_ALIASES = {"temperature": "temp", "typical_p": "typical", "no_ui": "no_webui"}

_INSTEAD = {
    "mlock": "write `load_mode: mlock`",
    "mmap": "write `load_mode: mmap` or `load_mode: none`",
    "no_mmap": "write `load_mode: none`",
    "cpu_moe": r"write `override_tensor: '\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU'`",
    "timeout": "write `timeout_read` and `timeout_write`",
}
"""Options of llama-server that its parser turns into others."""

_BELONGS = {
    "where the engine listens is chosen by Modelyard": (
        "host", "hostnames", "port", "reuse_port", "api_prefix",
    ),
    "write `source` beside the options": (
        "model", "model.path", "model_url", "model.url", "hf_repo", "model.hf_repo", "hf_file",
        "model.hf_file", "docker_repo", "model.docker_repo", "models_dir", "models_max",
        "models_preset", "models_preset_hf", "models_autoload",
    ),
    "the model's id and `aliases` are its names": ("alias", "model_alias"),
    "write `tasks` beside the options": ("embedding", "embeddings", "rerank", "reranking"),
    "Modelyard alone talks to the engine, over loopback; keys belong to `server`": (
        "api_key", "api_keys", "api_key_file", "ssl_file_key", "ssl_file_cert", "ssl_key_file",
        "ssl_cert_file",
    ),
}  # fmt: skip
_REFUSED = {name: why for why, names in _BELONGS.items() for name in names}


def settings(options: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
    """Attributes and their values. Options that nothing is known of keep their names.

    Raises BadOption; options that `problems` has accepted do not.
    """
    return dict(_setting(name, value) for name, value in options.items() if value is not None)


def problems(options: Mapping[str, OptionValue], *, built_in: bool) -> Iterator[tuple[str, str]]:
    """Each option that cannot be used, and why. Unknown ones are left to a real llama-server."""
    seen: dict[str, str] = {}
    for name, value in options.items():
        try:
            _check_name(name, built_in=built_in)
            attribute = _setting(name, value)[0] if value is not None else name
        except BadOption as error:
            yield name, str(error)
            continue
        other = seen.setdefault(attribute, name)
        if other != name:
            yield name, f"it is the same option as {other}; keep one of them"


def arguments(values: Mapping[str, OptionValue]) -> Iterator[str]:
    """Settings as llama-server's command line has them."""
    for attribute, value in values.items():
        meaning = _MEANINGS.get(attribute)
        option = meaning.option if meaning else None
        yield from _argument(option or Option(attribute.replace("_", "-"), attribute), value)


# ------------------------------------------------------------------------------------------ reading


def _bare(name: str) -> str:
    bare = name.lstrip("-").replace("-", "_")
    return _ALIASES.get(bare, bare)


def _check_name(name: str, *, built_in: bool) -> None:
    bare = _bare(name)
    if bare in _REFUSED:
        raise BadOption(f"it is not an option here: {_REFUSED[bare]}")
    meaning = _MEANINGS.get(bare)
    if built_in and meaning is None:
        near = difflib.get_close_matches(bare, _MEANINGS, n=3)
        meant = f"did you mean {' or '.join(near)}?" if near else "only a llama-server may have it"
        raise BadOption(f"the built-in server has no such option; {_INSTEAD.get(bare, meant)}")
    if not built_in and meaning is not None and meaning.option is None:
        raise BadOption("llama-server has no such option, only the built-in server has")


def _setting(name: str, value: OptionValue) -> tuple[str, OptionValue]:
    meaning = _MEANINGS.get(_bare(name))
    if meaning is None:
        return _bare(name), value
    read = _READERS.get(meaning.kind, _word)
    return meaning.attribute, read(meaning, value)


def _word(meaning: Meaning, value: OptionValue) -> OptionValue:
    """A member of an enumeration, as the flag or as the attribute spells it."""
    of_flag = meaning.option.words if meaning.option else {}
    known = WORDS[meaning.kind]
    if isinstance(value, bool) and "on" in of_flag:
        value = "on" if value else "off"
    if isinstance(value, str):
        word = of_flag.get(value.lower(), value.lower())
        if word in known:
            return word
    raise BadOption(f"it must be {_listed([*of_flag, *known])}, not {json.dumps(value)}")


def _switch(meaning: Meaning, value: OptionValue) -> bool:
    chosen = {"on": True, "off": False}.get(value) if isinstance(value, str) else value
    if not isinstance(chosen, bool):
        raise BadOption(f"it must be true or false, not {json.dumps(value)}")
    return chosen != meaning.opposite


def _whole(meaning: Meaning, value: OptionValue) -> OptionValue:
    words = meaning.option.words if meaning.option else {}
    if isinstance(value, str) and value in words:
        return words[value]
    if isinstance(value, bool) or not isinstance(value, int):
        wanted = _listed(["a whole number", *words])
        raise BadOption(f"it must be {wanted}, not {json.dumps(value)}")
    return value


def _number(meaning: Meaning, value: OptionValue) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadOption(f"it must be a number, not {json.dumps(value)}")
    if meaning.opposite and value == 0:
        raise BadOption("it cannot be 0")
    return 1 / value if meaning.opposite else float(value)


def _text(meaning: Meaning, value: OptionValue) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return _SEPARATORS.get(meaning.attribute, ",").join(map(str, value))
    raise BadOption(f"it must be a text, not {json.dumps(value)}")


def _mapping(_: Meaning, value: OptionValue) -> OptionValue:
    """xllamacpp keeps each value of the template's arguments as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise BadOption("it must be a mapping, or one written as JSON") from None
    if not isinstance(value, dict):
        raise BadOption(f"it must be a mapping, not {json.dumps(value)}")
    return {name: json.dumps(item) for name, item in value.items()}


def _list(meaning: Meaning, value: OptionValue) -> OptionValue:
    items = value
    if isinstance(value, str):
        items = [part.strip() for part in value.split(",")]
    if not isinstance(items, list):
        raise BadOption(f"it must be a list, not {json.dumps(value)}")
    if meaning.attribute == "tensor_split":
        return [_share(item) for item in items]
    if meaning.attribute == "lora_adapters":
        return [_adapter(item) for item in items]
    if meaning.attribute == _GUESSES:
        return [str(item).replace("-", "_") for item in items]
    return items


def _share(item: OptionValue) -> float:
    try:
        return float(str(item))
    except ValueError:
        raise BadOption(f"it must list numbers, as in [3, 1], not {json.dumps(item)}") from None


def _adapter(item: OptionValue) -> OptionValue:
    if isinstance(item, str):
        return {"path": item, "scale": 1.0}
    if not isinstance(item, dict) or not isinstance(item.get("path"), str):
        raise BadOption("it must list files, or mappings of path and scale")
    return {"path": item["path"], "scale": item.get("scale", 1.0)}


def _listed(words: Sequence[str]) -> str:
    unique = list(dict.fromkeys(words))
    return " or ".join(filter(None, (", ".join(unique[:-1]), unique[-1])))


_READERS: Mapping[str, Callable[[Meaning, OptionValue], OptionValue]] = MappingProxyType(
    {
        "bool": _switch,
        "int": _whole,
        "float": _number,
        "str": _text,
        "dict": _mapping,
        "list": _list,
        "set": _list,
    }
)
"""Every other kind is an enumeration."""

_SEPARATORS = {"sampling.samplers": ";"}
_GUESSES = "speculative.types"


# ------------------------------------------------------------------------------------------ writing


def _argument(option: Option, value: OptionValue) -> Iterator[str]:
    flag = f"--{option.flag}"
    match value:
        case bool():
            yield from _switch_argument(option, value != option.opposite)
        case list() if option.attribute == "lora_adapters":
            for item in value:
                if isinstance(item, dict):
                    yield from _adapter_argument(item)
        case list() if option.attribute == _GUESSES:
            yield from (flag, ",".join(str(item).replace("_", "-") for item in value))
        case list():
            yield from (flag, ",".join(map(_plain, value)))
        case dict() if option.attribute == "default_template_kwargs":
            yield from (flag, json.dumps({k: json.loads(str(v)) for k, v in value.items()}))
        case dict():
            yield from (flag, json.dumps(value))
        case _:
            words = {str(of_attribute): of_flag for of_flag, of_attribute in option.words.items()}
            yield from (flag, words.get(str(value), _plain(value)))


def _adapter_argument(item: Mapping[str, OptionValue]) -> tuple[str, str]:
    if item["scale"] == 1:
        return ("--lora", str(item["path"]))
    return ("--lora-scaled", f"{item['path']}:{item['scale']}")


def _switch_argument(option: Option, chosen: bool) -> Iterator[str]:
    if option.form is Form.ON_OFF:
        yield from (f"--{option.flag}", "on" if chosen else "off")
    elif chosen:
        yield f"--{option.flag}"
    elif option.form is not Form.ONLY_ON:
        yield f"--no-{option.flag}"


def _plain(value: OptionValue) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
