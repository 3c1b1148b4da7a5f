"""The static table of xllamacpp's parameters against the installed wheel.

Run as a program, this file prints the table anew:
    python tests/engines/test_llamacpp_attributes.py > src/modelyard/engines/llamacpp_attributes.py
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from os.path import commonprefix

import xllamacpp  # noqa: TID253 - the wheel itself is what the table is compared with

from modelyard.engines import llamacpp_attributes as table

HEADER = '''"""What can be set in xllamacpp: each attribute of `CommonParams` and its kind.

Generated from the wheel by tests/engines/test_llamacpp_attributes.py, which also compares the two.
Kinds are bool, int, float, str, list, dict, set, or the name of an enumeration.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

'''


def attributes(owner: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name in sorted(dir(owner)):
        value = getattr(owner, name)
        if name.startswith("_") or callable(value):
            continue
        is_group = type(value).__module__.startswith("xllamacpp")
        if is_group and not isinstance(value, enum.Enum):
            yield from attributes(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def kinds() -> dict[str, str]:
    return {name: type(value).__name__ for name, value in attributes(xllamacpp.CommonParams())}


def words() -> dict[str, tuple[str, ...]]:
    found = {}
    for _, value in attributes(xllamacpp.CommonParams()):
        if isinstance(value, enum.Enum):
            members = [member.name for member in type(value)]
            prefix = commonprefix(members).rpartition("_")[0] + "_"  # noqa: RUF071 - names
            short = (name.removeprefix(prefix).lower() for name in members)
            found[type(value).__name__] = tuple(word for word in short if word != "count")
    return dict(sorted(found.items()))


def test_the_table_names_every_parameter_of_the_wheel_with_its_kind() -> None:
    assert dict(table.KINDS) == kinds()


def test_the_table_names_every_word_of_the_wheels_enumerations() -> None:
    assert dict(table.WORDS) == words()


def main() -> None:
    print(HEADER, end="")
    print("KINDS: Mapping[str, str] = MappingProxyType(", kinds(), ")")
    print("WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(", words(), ")")


if __name__ == "__main__":
    main()
