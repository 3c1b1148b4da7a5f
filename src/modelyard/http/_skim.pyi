"""Finds where a JSON value ends, in C."""

from typing_extensions import Buffer

def skip_value(
    data: Buffer, at: int, most: int, depth: int, in_string: bool, /
) -> tuple[int, int, bool, bool]: ...
