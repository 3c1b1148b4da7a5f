"""The kinds of values that keys take: how each is read, written back, and published.

Laws of this file:
- Reading is strict: nothing is guessed from another type. Only text from an environment variable
  is converted, since a variable cannot say what it is.
- A refusal is a `ValueError` whose text fits behind "key: " and says what to write instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

from modelyard.config import units
from modelyard.config.tree import EnvText
from modelyard.config.values import ENGINE_NAMES, PRESETS
from modelyard.config.wording import describe_kind, near_names, shorten
from modelyard.core.specs import OptionValue, Task

MAX_NAME = 200
ONE_DEVICE = "\0"
"""Stands for the only device of a profile, where `memory` is a single size. Nobody can write it."""
ARGUMENTS_ADVICE = (
    'write each argument for itself, like ["./serve", "--port", "{port}"]; no shell reads the '
    "command, so nothing would split a line of text"
)
MAX_CALL = 2000
_CALL = re.compile(r"(?:GET|POST|PUT|PATCH|DELETE) /[!-~]*")
"""Visible ASCII: what a request line can hold as it is (RFC 9112, 3)."""
_WEB_PORTS = {"http": 80, "https": 443}
_ENV_REFERENCE = r"\$\{env:"


@dataclass(frozen=True, slots=True)
class Kind:
    """Pydantic metadata made of plain functions. `read` raises ValueError on what it refuses."""

    read: Callable[[object], Any]
    schema: Mapping[str, Any]
    write: Callable[[Any], Any] = lambda value: value

    def __get_pydantic_core_schema__(self, _: object, __: GetCoreSchemaHandler) -> CoreSchema:
        serialization = core_schema.plain_serializer_function_ser_schema(self.write)
        return core_schema.no_info_plain_validator_function(self.read, serialization=serialization)

    def __get_pydantic_json_schema__(self, _: CoreSchema, __: GetJsonSchemaHandler) -> Any:
        return dict(self.schema)

    def or_none(self, *words: str) -> Kind:
        """The same, with null and `words` read as None, which is written as the first word."""

        def read(value: object) -> Any:
            absent = value is None or (isinstance(value, str) and value in words)
            return None if absent else self.read(value)

        def write(value: Any) -> Any:
            if value is None:
                return words[0] if words else None
            return self.write(value)

        return Kind(read, {"anyOf": [dict(self.schema), {"type": "null"}]}, write)


def _read_text(value: object) -> str:
    if not isinstance(value, str):
        quoted = f'; quote it: "{value}"' if isinstance(value, bool | int | float) else ""
        raise ValueError(f"must be text, not {describe_kind(value)}{quoted}")
    return str(value)


def _read_filled_text(value: object) -> str:
    text = _read_text(value)
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def read_name(value: object) -> str:
    """A name that people type and logs show: not empty, one line, not endless."""
    name = _read_filled_text(value)
    if len(name) > MAX_NAME:
        raise ValueError(f"has {len(name)} characters; a name has at most {MAX_NAME}")
    if name != name.strip():
        raise ValueError("begins or ends with a space; remove it")
    if not name.isprintable():
        raise ValueError("holds control characters or line breaks; remove them")
    return name


def _read_host(value: object) -> str:
    name = read_name(value)
    if "/" in name or any(character.isspace() for character in name):
        raise ValueError(f"{shorten(name)} is not a host name; leave out http:// and any path")
    if name.startswith("[") or name.count(":") == 1:
        raise ValueError(f"{shorten(name)} is not a host name; leave out brackets and the port")
    return name


def _read_origin(value: object) -> str:
    """A web page's origin as browsers write it (RFC 6454, 6.2), in lower case."""
    text = read_name(value)
    if text == "*":
        return text
    advice = "write it like https://chat.example.com, without a path"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"{shorten(text)} is not an origin; {advice}") from None
    if parts.scheme not in _WEB_PORTS or not parts.hostname or not text.isascii():
        raise ValueError(f"{shorten(text)} is not an origin; {advice}")
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc or port == 0:
        raise ValueError(f"{shorten(text)} is more than an origin; {advice}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    usual = port in (None, _WEB_PORTS[parts.scheme])
    return f"{parts.scheme}://{host}" if usual else f"{parts.scheme}://{host}:{port}"


def _read_http_path(value: object) -> str:
    path = read_name(value)
    if not path.startswith("/") or not path.isascii() or " " in path:
        raise ValueError(f"{shorten(path)} is not a route; write it like /health")
    return path


def read_call(value: object) -> str:
    """The method and the route of a request, like `POST /sleep?level=1`."""
    text = _read_text(value)
    if len(text) <= MAX_CALL and _CALL.fullmatch(text):
        return text
    raise ValueError(
        f"{shorten(text)} is not a call; write its method and its route, like POST /sleep?level=1"
    )


def _read_object(value: object) -> dict[str, OptionValue]:
    if not isinstance(value, dict):
        raise ValueError(f"must hold keys and values (key: value), not {describe_kind(value)}")
    return {str(key): _read_option(below) for key, below in value.items()}


def _read_boolean(value: object) -> bool:
    if isinstance(value, EnvText) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {describe_kind(value)}")
    return value


def _read_path(value: object) -> Path:
    return Path(_read_filled_text(value))


def _read_task(value: object) -> Task:
    names = [task.value for task in Task]
    if isinstance(value, str) and value in names:
        return Task(value)
    raise ValueError(
        f"{describe_kind(value)} is not a task{near_names(value, names)}; "
        f"write one of {', '.join(names)}"
    )


def _read_engine(value: object) -> str:
    if isinstance(value, str) and value in ENGINE_NAMES:
        return str(value)
    if isinstance(value, str) and value in PRESETS:
        raise ValueError(f"{shorten(value)} is a preset; write engine: command, preset: {value}")
    raise ValueError(
        f"{describe_kind(value)} is not an engine{near_names(value, ENGINE_NAMES)}; "
        f"write one of {', '.join(ENGINE_NAMES)}"
    )


def _read_preset(value: object) -> str:
    if isinstance(value, str) and value in PRESETS:
        return str(value)
    raise ValueError(
        f"{describe_kind(value)} is no program that Modelyard knows{near_names(value, PRESETS)}; "
        f"write one of {', '.join(PRESETS)}, or a command of your own"
    )


def _read_llama_server(value: object) -> str:
    text = _read_filled_text(value)
    if text == "builtin" or "/" in text or "\\" in text:
        return text
    raise ValueError(
        f"{shorten(text)} is neither auto nor builtin nor a path like /opt/llama-server"
    )


def _read_option(value: object) -> OptionValue:
    if isinstance(value, EnvText):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a number that can be used")
    if isinstance(value, dict):
        return {str(key): _read_option(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_read_option(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{type(value).__name__} is not a value that YAML can write")


def whole(least: int, most: int) -> Kind:
    """A whole number between two bounds, both included."""

    def read(value: object) -> int:
        if isinstance(value, EnvText) and re.fullmatch(r"-?[0-9]{1,19}", value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"must be a whole number, not {describe_kind(value)}")
        if not least <= value <= most:
            raise ValueError(f"{shorten(value)} is not between {least} and {most}")
        return value

    schema = {"minimum": least, "maximum": most, "pattern": _ENV_REFERENCE}
    return Kind(read, {"type": ["integer", "string"], **schema})


def number(least: float, most: float) -> Kind:
    """A number between two bounds, both included."""

    def read(value: object) -> float:
        if isinstance(value, EnvText) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
            value = float(value)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"must be a number, not {describe_kind(value)}")
        if not least <= value <= most:
            raise ValueError(f"{shorten(value)} is not between {least:g} and {most:g}")
        return float(value)

    schema = {"minimum": least, "maximum": most, "pattern": _ENV_REFERENCE}
    return Kind(read, {"type": ["number", "string"], **schema})


def _positive(read: Callable[[object], Any], advice: str = "") -> Callable[[object], Any]:
    def read_positive(value: object) -> Any:
        number = read(value)
        if number <= 0:
            raise ValueError(f"must be more than 0{advice}")
        return number

    return read_positive


_never_zero = _positive(units.parse_duration, "; write never to switch it off")
_DURATION = {
    "type": ["string", "number"],
    "pattern": rf"{units.DURATION_PATTERN}|{_ENV_REFERENCE}",
    "minimum": 0,
}
_SIZE = {"type": "string", "pattern": rf"{units.SIZE_PATTERN}|{_ENV_REFERENCE}"}
_NEVER = {**_DURATION, "pattern": rf"^never$|{_DURATION['pattern']}"}
_TEXT = {"type": "string"}
_FILLED = {"type": "string", "minLength": 1}
_NAME = {**_FILLED, "maxLength": MAX_NAME}

Text = Annotated[str, Kind(_read_text, _TEXT)]
Name = Annotated[str, Kind(read_name, _NAME)]
Host = Annotated[str, Kind(_read_host, _NAME)]
Origin = Annotated[str, Kind(_read_origin, _NAME)]
HttpPath = Annotated[str | None, Kind(_read_http_path, {**_NAME, "pattern": "^/"}).or_none()]
FilePath = Annotated[Path, Kind(_read_path, _FILLED, str)]
FilePathOrNone = Annotated[Path | None, Kind(_read_path, _FILLED, str).or_none()]
CallText = Annotated[
    str, Kind(read_call, {"type": "string", "pattern": f"^({_CALL.pattern}|.*{_ENV_REFERENCE})"})
]
JsonObject = Annotated[dict[str, Any] | None, Kind(_read_object, {"type": "object"}).or_none()]
Boolean = Annotated[
    bool, Kind(_read_boolean, {"type": ["boolean", "string"], "pattern": _ENV_REFERENCE})
]
BooleanOrAuto = Annotated[
    bool | None,
    Kind(_read_boolean, {"type": ["boolean", "string"], "pattern": _ENV_REFERENCE}).or_none("auto"),
]
BooleanOrNone = Annotated[
    bool | None,
    Kind(_read_boolean, {"type": ["boolean", "string"], "pattern": _ENV_REFERENCE}).or_none(),
]
TaskName = Annotated[
    Task, Kind(_read_task, {"type": "string", "enum": [task.value for task in Task]}, str)
]
EngineName = Annotated[str, Kind(_read_engine, {"type": "string", "enum": list(ENGINE_NAMES)})]
PresetName = Annotated[
    str | None, Kind(_read_preset, {"type": "string", "enum": list(PRESETS)}).or_none()
]
FilePathOrAuto = Annotated[Path | None, Kind(_read_path, _FILLED, str).or_none("auto")]
PlaceOrAuto = Annotated[str | None, Kind(_read_filled_text, _FILLED).or_none("auto")]
LlamaServer = Annotated[str | None, Kind(_read_llama_server, _FILLED).or_none("auto")]
Option = Annotated[Any, Kind(_read_option, {})]
Duration = Annotated[float, Kind(units.parse_duration, _DURATION, units.format_duration)]
PositiveDuration = Annotated[
    float, Kind(_positive(units.parse_duration), _DURATION, units.format_duration)
]
DurationOrNever = Annotated[
    float | None, Kind(_never_zero, _NEVER, units.format_duration).or_none("never")
]
Size = Annotated[int, Kind(_positive(units.parse_size), _SIZE, units.format_size)]
Mib = Annotated[int, Kind(units.parse_mib, _SIZE, units.format_mib)]
"""A size that is kept in MiB."""


def listed(separator: str, advice: str = "") -> BeforeValidator:
    """What lists are read through: empty is [], and a variable's text is split."""

    def read(value: object) -> object:
        if value is None:
            return []
        if isinstance(value, EnvText):
            return [EnvText(item.strip()) for item in value.split(separator) if item.strip()]
        if isinstance(value, list | tuple):
            return list(value)
        hint = advice or (f"write [{shorten(str(value))}]" if isinstance(value, str) else "")
        raise ValueError(f"must be a list, not {describe_kind(value)}{hint and '; '}{hint}")

    return BeforeValidator(read)


def _read_mapping(value: object) -> object:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"must hold keys and values (key: value), not {describe_kind(value)}")
    return value


mapped = BeforeValidator(_read_mapping)
"""What mappings and sections are read through: empty is {}."""


def _read_memory(value: object) -> object:
    if value is None or isinstance(value, dict):
        return value or {}
    return {ONE_DEVICE: value}


Memory = Annotated[
    dict[str, Mib],
    BeforeValidator(_read_memory),
    WithJsonSchema({"anyOf": [_SIZE, {"type": "object", "additionalProperties": _SIZE}]}),
]
"""Memory by device; a single size is that of the only device."""
