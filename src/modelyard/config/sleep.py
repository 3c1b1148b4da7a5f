"""A model's `sleep`: the name of an engine whose calls are known, or the calls themselves.

Laws of this file:
- A preset stays a name: what it stands for is known further out (`engines.sleeping`).
- A call goes to the model's own engine and nowhere else: it has a route, and no host.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from modelyard.config.kinds import (
    CallText,
    JsonObject,
    Kind,
    PositiveDuration,
    listed,
    mapped,
    read_call,
)
from modelyard.config.sections import Section
from modelyard.config.units import format_duration
from modelyard.config.values import SLEEP_PRESETS
from modelyard.config.wording import describe_kind, near_names
from modelyard.core.specs import Call, SleepLevel

LEVELS = ("1", "2")


@dataclass(frozen=True, slots=True)
class _Either:
    """Pydantic metadata of what may be written whole, as `inner`, or short, as `read` reads it."""

    inner: Any
    read: Callable[[object, Callable[[object], Any]], Any]
    short: Mapping[str, Any]
    """JSON schema of the short form."""

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        whole = handler.generate_schema(self.inner)
        return core_schema.no_info_wrap_validator_function(self.read, whole)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [dict(self.short), handler(schema)]}


class CallSection(Section):
    """One request to the engine's own control routes."""

    call: CallText = Field(description="Method and route, like `POST /sleep?level=1`.")
    body: JsonObject = Field(None, description="JSON that is sent with it; null sends none.")
    timeout_s: PositiveDuration = Field(
        Call("", "").timeout_s,
        description="Longest wait for the engine's answer, which must be a 2xx.",
    )

    def value(self) -> Call:
        method, _, path = self.call.partition(" ")
        body = None if self.body is None else json.dumps(self.body, ensure_ascii=False)
        return Call(method, path, body, self.timeout_s)


def _read_short(value: object, read: Callable[[object], CallSection]) -> CallSection:
    """A call that needs no more than its route is written as text."""
    # Wrong text is refused here, where it stands, and not as the key `call` that nobody wrote.
    return read(value if isinstance(value, dict) else {"call": read_call(value)})


_SHORT = {"type": "string", "minLength": 1}
Calls = Annotated[
    list[Annotated[CallSection, _Either(CallSection, _read_short, _SHORT)]],
    listed("\0", 'write each call for itself, like ["POST /sleep?level=1"]'),
]


class SleepSection(Section):
    """One level of sleep."""

    sleep: Calls = Field(
        description="Calls that put the engine to sleep, in this order: each its method and route "
        "(`POST /sleep`), or the keys below."
    )
    wake: Calls = Field(description="Calls that wake it up again, in this order.")


def _read_level(value: object) -> int:
    if isinstance(value, str) and value in LEVELS:
        return int(value)
    raise ValueError(
        f"{describe_kind(value)} is not a level; write 1 (the weights stay in host memory) "
        "or 2 (they are dropped)"
    )


def _read_sleep(value: object, read: Callable[[object], dict[int, SleepSection]]) -> Any:
    if value is None or isinstance(value, dict):
        return read(value or {})
    if isinstance(value, str) and value in SLEEP_PRESETS:
        return str(value)
    near = near_names(value, SLEEP_PRESETS)
    raise ValueError(
        f"{describe_kind(value)} is no engine whose sleep is known{near}; "
        f"write one of {', '.join(SLEEP_PRESETS)}, or the calls of each level"
    )


_LEVELS = dict[
    Annotated[int, Kind(_read_level, {"enum": list(LEVELS)})], Annotated[SleepSection, mapped]
]
_PRESET = {"type": "string", "enum": list(SLEEP_PRESETS)}
Sleep = Annotated[str | dict[int, SleepSection], _Either(_LEVELS, _read_sleep, _PRESET)]


def levels_of(levels: Mapping[int, SleepSection]) -> dict[int, SleepLevel]:
    """The levels as the rest of the program knows them, in their order."""
    return {
        level: SleepLevel(
            enter=tuple(call.value() for call in section.sleep),
            leave=tuple(call.value() for call in section.wake),
        )
        for level, section in sorted(levels.items())
    }


def written_levels(levels: Mapping[int, SleepLevel]) -> dict[str, Any]:
    """`levels` in the words of the file."""
    return {
        str(level): {
            "sleep": [_written_call(call) for call in calls.enter],
            "wake": [_written_call(call) for call in calls.leave],
        }
        for level, calls in levels.items()
    }


def _written_call(call: Call) -> dict[str, Any]:
    return {
        "call": str(call),
        "body": None if call.body is None else json.loads(call.body),
        "timeout": format_duration(call.timeout_s),
    }
