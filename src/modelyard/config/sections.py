"""What all sections of the configuration have in common: how keys are named, and published.

Laws of this file:
- A key is its field's name without the unit at the end: `idle_stop_s` is written `idle_stop`.
- Unknown keys are refused.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from modelyard.config.kinds import Kind


def _key_of(field_name: str) -> str:
    return re.sub(r"_(s|mib|bytes)$", "", field_name)


def _publish(schema: dict[str, Any], section: type[BaseModel]) -> None:
    """Pydantic's schema of a section with defaults as people write them, and no made-up titles."""
    schema.pop("title", None)
    inherited = {
        name
        for base in section.__bases__
        if issubclass(base, Section) and base.lies_under
        for name in base.model_fields
    }
    for name, field in section.model_fields.items():
        published = schema["properties"][field.alias or name]
        published.pop("title", None)
        if name in inherited:  # a model's limit: what it leaves out is said in `defaults`
            published.pop("default")
            published["description"] += " Default: that of `defaults`."
        elif "default" in published and (kind := kind_of(field)):
            published["default"] = kind.write(field.default)


def kind_of(field: FieldInfo) -> Kind | None:
    """How a field that is a single value is written."""
    return next((kind for kind in field.metadata if isinstance(kind, Kind)), None)


class Section(BaseModel):
    """Keys that are written together."""

    lies_under: ClassVar[bool] = False
    """Whether sections made from this one take from it what they leave out."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        alias_generator=_key_of,
        protected_namespaces=(),
        json_schema_extra=_publish,
    )


def keys_of(section: type[Section]) -> list[str]:
    """The keys of a section as they are written."""
    return [field.alias or name for name, field in section.model_fields.items()]


def written_keys(section: type[Section], value: object) -> dict[str, Any]:
    """`value` in the words of the file: each of its fields that is a single value."""
    return {
        field.alias or name: kind.write(getattr(value, name))
        for name, field in section.model_fields.items()
        if (kind := kind_of(field))
    }
